"""Tests that pages of the usual form are rendered as all others are, only quicker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mypypi.ecosystems import usual_page
from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import BadUpstreamResponse
from mypypi.model import PackageFile, PageId, PageRules, RenderedPage, SourceDocument
from mypypi.rendering.listing import Listing
from tests.ecosystems.simple_pages import OTHER_SHA256, SHA256, SHA512

PROJECT = PageId("simple", "holy-grail")
HOST = "https://files.example"
#: The link of `LACKING`, whose metadata is offered by one of the rules.
OFFERED = "https/files.example/packages/aa/bb/holy_grail-4.0-py3-none-any.whl"
RULES = (
    PageRules(),
    PageRules(ranged=frozenset()),
    PageRules(ranged=frozenset({"https/files.example"})),
    PageRules(ranged=frozenset(), offered=frozenset({OFFERED})),
)


def file(filename: str = "holy_grail-1.0-py3-none-any.whl", **fields: object) -> dict[str, object]:
    """A file as PyPI lists it."""
    return {
        "core-metadata": {"sha256": OTHER_SHA256},
        "data-dist-info-metadata": {"sha256": OTHER_SHA256},
        "filename": filename,
        "hashes": {"sha256": SHA256},
        "provenance": None,
        "requires-python": ">=3.9",
        "size": 12345,
        "upload-time": "2026-01-02T03:04:05.678901Z",
        "url": f"{HOST}/packages/aa/bb/{filename}",
        "yanked": False,
    } | {name.replace("_", "-"): value for name, value in fields.items()}


SDIST = file("holy_grail-1.0.tar.gz", core_metadata=False, data_dist_info_metadata=False, yanked="it is heavy")
BARE = {name: file()[name] for name in ("filename", "url", "hashes")} | {"filename": "holy_grail-2.0-py3-none-any.whl"}
BARE["url"] = f"{HOST}/packages/{BARE['filename']}"
PROVEN = file(
    "holy_grail-3.0-py3-none-any.whl", provenance="https://index.example/integrity/holy-grail/3.0/x/provenance"
)
LACKING = file("holy_grail-4.0-py3-none-any.whl", core_metadata=False, data_dist_info_metadata=False)
ENCODED = file(
    "holy_grail-4.1+local-py3-none-any.whl", url=f"{HOST}/packages/cc/holy_grail-4.1%2Blocal-py3-none-any.whl"
)
LONG = file(f"holy_grail-4.2-py3-none-{'any.' * 50}whl", core_metadata=True)
STRAY = file("coconut-5.0-py3-none-any.whl", core_metadata=True)


def document(*files: object, **fields: object) -> dict[str, object]:
    page = {"files": list(files), "meta": {"_last-serial": 7, "api-version": "1.4"}, "name": "holy-grail"}
    return page | {"versions": ["1.0"]} | {name.replace("_", "-"): value for name, value in fields.items()}


def relative(page: dict[str, Any], up: str) -> dict[str, object]:
    """A page with links that are relative to it, as many indexes write them."""
    return page | {"files": [each | {"url": each["url"].replace(f"{HOST}/", up)} for each in page["files"]]}


def encoded(page: object, *, spaced: bool = False) -> bytes:
    return json.dumps(page, separators=None if spaced else (",", ":"), ensure_ascii=False).encode()


def render(body: bytes, rules: PageRules) -> RenderedPage | None:
    """Render a page; None if it can't be read."""
    source = SourceDocument(body, "application/vnd.pypi.simple.v1+json", "https://index.example/simple/holy-grail/")
    try:
        return PyPI("https://index.example").render(PROJECT, source, rules)
    except BadUpstreamResponse:
        return None


def files_of(rendered: RenderedPage) -> Mapping[str, PackageFile]:
    return PyPI("").listing(PROJECT, {name: form.body for name, form in rendered.forms.items()})


def packed(rendered: RenderedPage) -> Listing:
    return Listing.of_rows(rendered.rows) if rendered.rows else Listing.of(files_of(rendered).values())


def members(rendered: RenderedPage) -> object:
    """A page's JSON, in which no member occurs twice that upstream's has once."""

    def collect(pairs: list[tuple[str, object]]) -> object:
        ours = [name for name, _ in pairs if name in ("core-metadata", "_extracted")]
        assert "_extracted" not in ours or len(set(ours)) == len(ours), ours
        return dict(pairs)

    return json.loads(rendered.forms["json"].body, object_pairs_hook=collect)


def check(body: bytes, rules: PageRules) -> bool:
    """Check that a page is rendered the same with and without the quick way. Returns whether that was taken."""
    quick = render(body, rules)
    with patch("mypypi.ecosystems.pypi.usual_page", lambda *_: None):
        right = render(body, rules)
    if quick is None or right is None:
        assert quick is right
        return False
    assert right.rows == ()
    assert quick.forms.keys() == right.forms.keys()
    assert members(quick) == members(right)
    assert [(form.media_type, form.based) for form in quick.forms.values()] == [
        (form.media_type, form.based) for form in right.forms.values()
    ]
    assert sorted(quick.indexed_links) == sorted(right.indexed_links)
    for name in ("modified", "is_doubtful", "notes", "extracts", "untried"):
        assert getattr(quick, name) == getattr(right, name), name
    listed = files_of(right)
    for listing in (packed(quick), packed(right)):
        assert {link: listing.get(link) for link in listed} == listed
        assert listing.get("https/files.example/other") is None
    return bool(quick.rows)


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("rules", RULES)
def test_usual_pages_are_rendered_quickly(rules: PageRules, *, spaced: bool) -> None:
    """Pages as PyPI writes them take the quick way, and the result is the same."""
    pages = (
        document(file(), SDIST),
        document(BARE),
        document(PROVEN, file()),
        document(file(), LACKING, SDIST, BARE),
        document(file(), ENCODED, LACKING | {"url": f"{HOST}/a%2Bb/{LACKING['filename']}"}),
        document(LONG, LONG | {"url": f"{HOST}/{'a/' * 40}{LONG['filename']}"}),
        *(relative(document(file(), ENCODED, SDIST, LACKING), up) for up in ("../", "../../", "../../../../")),
        document(STRAY, file(), project_status={"status": "archived", "reason": "found"}),
        document(file(hashes={"md5": "ab" * 16, "sha512": SHA512}), file("holy_grail-6.tar.gz", core_metadata=True)),
    )
    for page in pages:
        assert check(encoded(page, spaced=spaced), rules)


@pytest.mark.parametrize(
    "page",
    [
        document(),
        document(file(), file()),
        document(file(), name="Holy.Grail"),
        document(file(), name="coconut"),
        document(file(), meta={"api-version": "2.0"}),
        document(file(), meta={}),
        document(file(), project_status=7),
        document(file(url="../../files/holy_grail-1.0-py3-none-any.whl")),
        document(file(url=f"{HOST}/packages//holy_grail-1.0-py3-none-any.whl")),
        document(file(), file("a.whl", url="../files/a.whl")),
        document(file(url="../files/a.whl"), file("b.whl", url="../../files/b.whl")),
        document(file("a.whl", url="../../files/a.whl"), file("b.whl", url="../files/b.whl")),
        document(file("a.whl", url="..//files/a.whl")),
        document(file("a.whl", url="..///other.example/a.whl")),
        document(file("a.whl", url=".././a.whl")),
        document(file("a.whl", url="../%2e%2e/a.whl")),
        document(file("a.whl", url="../a%2bb/a.whl")),
        document(file("a+b.whl", url=f"{HOST}/a%2bb.whl")),
        document(file("a%2Bb.whl", url=f"{HOST}/a%2Bb.whl")),
        document(file("a+b.whl", url=f"{HOST}/a%252Bb.whl")),
        document(file("a+b.whl", url=f"{HOST}/a%2Bb.whl"), file("a+b.whl", url=f"{HOST}/a+b.whl")),
        document(file("a.whl", url="https://files%2Bexample/a.whl")),
        document(file(f"{'a' * 239}.whl")),
        *(document(file("a.whl", url=f"{HOST}/{'b' * count}/a.whl")) for count in (200, 250, 255, 256, 300)),
        *(document(file("a.whl", url=f"../{'b' * count}/a.whl")) for count in (200, 250, 255, 256, 300)),
        document(file(f"{'a' * 242}.whl", core_metadata=True)),
        document(file(url=f"{HOST}/{'a/' * 995}holy_grail-1.0-py3-none-any.whl", core_metadata=True)),
        document(file(url=f"{HOST}/packages/%61/holy_grail-1.0-py3-none-any.whl")),
        document(file(url=f"{HOST}/packages/holy_grail-1.0-py3-none-any.whl?sign=1")),
        document(file(url=f"{HOST}/packages/holy_grail-1.0-py3-none-any.whl#sha256={SHA256}")),
        document(file(url=f"{HOST}:443/packages/holy_grail-1.0-py3-none-any.whl")),
        document(file(url=f"{HOST}/" + "a/" * 110 + "holy_grail-1.0-py3-none-any.whl")),
        document(file(url=f"{HOST}/download/7")),
        document(file("holy_grail-1.0\n-py3-none-any.whl")),
        document(file(), file("", url=f"{HOST}/packages/")),
        document(file(url=f"{HOST}/a\n{HOST}/packages/holy_grail-1.0-py3-none-any.whl")),
        document(file(), file("holy_grail-7.tar.gz", url="https://other.example/holy_grail-7.tar.gz")),
        document(file(hashes={"sha256": SHA256.upper()})),
        document(file(hashes={"sha256": "short"})),
        document(file(hashes={"SHA256": SHA256})),
        document(file(hashes=None)),
        document(file(upload_time="2026-13-02T03:04:05Z")),
        document(file(upload_time="9999-12-31T03:04:05Z")),
        document(file(upload_time="yesterday")),
        document(file(upload_time="2026-01-02T03:04:05Z\n2026-01-02T03:04:05Z")),
        document(file(size="7")),
        document(file(size=2**63)),
        document(file(size=-1)),
        document(file(yanked=None)),
        document(file(core_metadata={"sha256": "x"})),
        document(file(core_metadata="true")),
        document(file(gpg_sig=True)),
        document(file(provenance="p/1")),
        document(file(_extracted=True)),
        document(file(new_field={"url": f"{HOST}/packages/x"})),
        document({"filename": "holy_grail-1.0.whl"}),
        document(file(), tracks=[f'"url":"{HOST}/x"']),
        {**file(), **document(file())},
    ],
)
@pytest.mark.parametrize("rules", RULES)
def test_other_pages_are_rendered_the_same(page: object, rules: PageRules) -> None:
    """Pages of another form have the same result, whichever way they take."""
    check(encoded(page), rules)


@pytest.mark.parametrize(
    "change",
    [
        (b'"url":"https:', b'"url":"https:\\/\\/files.example/x","url":"https:'),
        (b'"url":"https:', b'"url":"\\u0068ttps:'),
        (b'"url":"https:', b'"url" :"https:'),
        (b'"core-metadata":false', b'"core-metadata": false'),
        (b'"core-metadata":false', b'"core-metadata":true,"core-metadata":false'),
        (b'"yanked":false', b'"yanked":"\\"url\\":\\"https://files.example/"'),
        (b'"yanked":false', b'"yanked":"\xff"'),
        (b'"yanked":false', b'"yanked":"\\ud800"'),
        (b"{", b"\xef\xbb\xbf{"),
    ],
)
@pytest.mark.parametrize("rules", RULES)
def test_odd_writing(change: tuple[bytes, bytes], rules: PageRules) -> None:
    """However the JSON is written, no other text than the links is changed."""
    body = encoded(document(file(), LACKING, BARE))
    assert change[0] in body
    check(body.replace(*change, 1), rules)


def test_only_stored_wheels_are_offered() -> None:
    """Of several wheels without metadata, that of the stored one is offered. The others' origin is to be tried."""
    body = encoded(document(BARE, LACKING, file()))
    assert check(body, RULES[3])
    rendered = render(body, RULES[3])
    assert rendered is not None
    assert [each.get("_extracted") for each in json.loads(rendered.forms["json"].body)["files"]] == [None, True, None]
    assert (rendered.extracts, rendered.untried) == (("https/files.example",), (BARE["url"],))
    assert files_of(rendered)[f"{OFFERED}.metadata"].wheel == files_of(rendered)[OFFERED]


def test_withheld_links_are_left_out() -> None:
    """A page with a withheld link does not take the quick way."""
    withheld = f"https/files.example/packages/aa/bb/{file()['filename']}.metadata"
    rendered = render(encoded(document(file())), PageRules(frozenset({withheld})))
    assert rendered is not None
    assert "core-metadata" not in json.loads(rendered.forms["json"].body)["files"][0]


ODD: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**64),
    st.sampled_from(["", "true", SHA256, f"{HOST}/a", f"{HOST}/a/holy_grail-1.0-py3-none-any.whl", "x.whl", "\u2028é"]),
    st.dictionaries(st.sampled_from(["sha256", "md5", "url", "x"]), st.sampled_from([SHA256, "ab" * 16, "", None])),
)
FIELDS = st.sampled_from([*file(), "gpg-sig", "dist-info-metadata", "_extracted", "new"])


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """Pages that differ from the usual form in a field, or in a byte."""
    files: list[dict[str, Any]] = [
        dict(draw(st.sampled_from([file(), SDIST, BARE, PROVEN, LACKING, STRAY, ENCODED])))
        for _ in range(draw(st.integers(1, 4)))
    ]
    for each in files:
        if draw(st.booleans()):
            each[draw(FIELDS)] = draw(ODD)
        if draw(st.booleans()):
            each.pop(draw(FIELDS), None)
    page = document(*files)
    if draw(st.booleans()) and all(isinstance(each.get("url"), str) for each in files):
        page = relative(page, draw(st.sampled_from(["../", "../../", "", "/"])))
    body = bytearray(encoded(page, spaced=draw(st.booleans())))
    for _ in range(draw(st.integers(0, 2))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.sampled_from(b'"{}[],:\\ a0/\xff'))
    return bytes(body)


@given(pages(), st.sampled_from(RULES))
@example(encoded(document(file(), BARE, LACKING, PROVEN)), RULES[2])
def test_any_page_is_rendered_the_same(body: bytes, rules: PageRules) -> None:
    """No page has another result with the quick way than without it."""
    check(body, rules)


def test_the_quick_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A usual page is never mended field by field. Otherwise, the tests above would compare nothing."""
    monkeypatch.setattr(usual_page, "mend_page", lambda _: None)
    monkeypatch.setattr("mypypi.ecosystems.pypi.mend_file", None)
    assert render(encoded(document(file(), SDIST)), PageRules()) is not None
