"""Tests of pages that advertise metadata that upstream's pages do not: it is read out of the wheels."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from mypypi.digests import Digest
from mypypi.ecosystems.pypi import PyPI
from mypypi.model import PackageFile, PageRules, RenderedPage, SourceDocument
from mypypi.rendering.listing import Listing
from mypypi.rendering.renderer import Renderer
from tests.ecosystems.simple_pages import (
    OTHER_SHA256,
    PROJECT,
    SHA256,
    SIMPLE_HTML,
    SIMPLE_JSON,
    WHEEL,
    WHEEL_LINK,
    WHEEL_URL,
    anchor,
    as_html,
    as_json,
    check_strictly,
    filenames,
    only_file,
    project,
    pypi,
    read_by_pip,
    wheel,
)
from tests.rig.pages import dump
from tests.support.memory import MemoryTestCase, render_at_once

FILES_HOST, OTHER_HOST = "https/files.example", "https/other.example"
METADATA_LINK = f"{WHEEL_LINK}.metadata"
EXTRACTED = "_extracted"
SDIST = {"filename": "holy_grail-1.0.tar.gz", "url": "https://files.example/packages/holy_grail-1.0.tar.gz"}
OTHER_WHEEL = "holy_grail-2.0-py3-none-any.whl"


def rendered_by(
    document: object,
    ranged: frozenset[str] | None = frozenset([FILES_HOST]),
    withheld: frozenset[str] = frozenset(),
) -> RenderedPage:
    """Render upstream's document, JSON or HTML, by rules with these origins that answer ranges."""
    is_html = isinstance(document, str)
    body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
    rendered = render_body(body, SIMPLE_HTML if is_html else SIMPLE_JSON, PageRules(withheld, ranged))
    if not is_html:  # as indexes write it: without spaces, and sorted
        again = render_body(dump(document), SIMPLE_JSON, PageRules(withheld, ranged))
        assert as_json(again) == as_json(rendered)
        assert (listing(again), again.extracts, again.untried) == (
            listing(rendered),
            rendered.extracts,
            rendered.untried,
        )
    return rendered


def render_body(body: bytes, content_type: str, rules: PageRules) -> RenderedPage:
    """Render upstream's bytes. No object of the page may have a key twice: clients disagree on which one counts."""
    rendered = pypi.render(
        PROJECT, SourceDocument(body, content_type, "https://index.example/simple/holy-grail/"), rules
    )
    json.loads(rendered.forms["json"].body, object_pairs_hook=_unique)
    return rendered


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def listing(rendered: RenderedPage) -> Mapping[str, PackageFile]:
    return pypi.listing(PROJECT, {name: form.body for name, form in rendered.forms.items()})


def is_offered(rendered: RenderedPage) -> bool:
    """Whether the only file of the page has metadata that is read out of it. All that says so must agree."""
    file = only_file(rendered)
    marks = [
        file.get(EXTRACTED) is True,
        any(each.wheel is not None for each in listing(rendered).values()),
        bool(rendered.extracts),
    ]
    assert len(set(marks)) == 1, marks
    if marks[0]:
        assert file["core-metadata"] is True
        assert 'data-core-metadata="true"' in as_html(rendered)
    else:
        assert EXTRACTED not in file
    return marks[0]


class TestOffer:
    """For which files metadata is offered."""

    @pytest.mark.parametrize("page", [project(wheel()), anchor()], ids=["json", "html"])
    def test_wheel_without_metadata_of_upstreams(self, page: object) -> None:
        """A wheel at an origin that answers ranges has metadata in both forms, whichever form upstream sends."""
        rendered = rendered_by(page)
        assert is_offered(rendered)
        assert "data-dist-info-metadata" in as_html(rendered)  # for pip before 23.1 (PEP 714)
        assert (rendered.extracts, rendered.untried) == ((FILES_HOST,), ())

    @pytest.mark.parametrize("page", [project(wheel()), anchor()], ids=["json", "html"])
    def test_clients_accept_the_page(self, page: object) -> None:
        """Strict clients accept both forms, and pip finds the metadata in each."""
        rendered = rendered_by(page)
        check_strictly(rendered)
        for form in ("json", "html"):
            (link,) = read_by_pip(rendered, form)
            metadata = link.metadata_link()
            assert metadata is not None
            assert metadata.url == f"http://here.example/file/{METADATA_LINK}"
            assert not metadata.has_hash

    def test_nothing_is_offered_without_the_setting(self) -> None:
        """Rules without origins add nothing, and no origin is tried."""
        rendered = rendered_by(project(wheel()), None)
        assert not is_offered(rendered)
        assert rendered.untried == ()
        assert rendered == pypi.render(
            PROJECT,
            SourceDocument(json.dumps(project(wheel())).encode(), SIMPLE_JSON, "https://index.example/simple/x/"),
            PageRules(),
        )

    @pytest.mark.parametrize("origins", [[], [OTHER_HOST], ["http/files.example"], ["https/files.example:8443"]])
    def test_nothing_is_offered_at_other_origins(self, origins: list[str]) -> None:
        """Scheme, host and port of the wheel must be those of an origin that answers ranges."""
        rendered = rendered_by(project(wheel()), frozenset(origins))
        assert not is_offered(rendered)
        assert rendered.untried == (WHEEL_URL,)

    @pytest.mark.parametrize("url", [f"{WHEEL_URL}?sig=1", f"{WHEEL_URL}?", "https://files.example/%2F", "https://["])
    def test_nothing_is_offered_at_odd_links(self, url: str) -> None:
        """With a query, clients disagree on the address of metadata. A link that is not served here has none either."""
        rendered = rendered_by(project(wheel(url=url), wheel()))
        assert [link for link in listing(rendered) if link.endswith(".metadata")] == [METADATA_LINK]

    def test_credentials_in_a_link_are_no_origin(self) -> None:
        """A link with credentials is not served here, and so has no metadata here."""
        rendered = rendered_by(project(wheel(url=f"https://me:secret@files.example/{WHEEL}")))
        assert not is_offered(rendered)
        assert rendered.untried == ()

    @pytest.mark.parametrize("filename", ["holy_grail-1.0.tar.gz", "holy_grail-1.0.zip", "holy_grail-1.0.egg", "x"])
    def test_nothing_is_offered_for_other_files(self, filename: str) -> None:
        """Only wheels have metadata that can be read out of them."""
        rendered = rendered_by(project(wheel(filename=filename, url=f"https://files.example/packages/{filename}")))
        assert not is_offered(rendered)
        assert rendered.untried == ()

    def test_stored_wheel_at_an_origin_without_ranges(self) -> None:
        """Metadata of a stored wheel is offered, wherever it is from, and not that of others."""
        other = wheel(filename=OTHER_WHEEL, url=f"https://files.example/packages/{OTHER_WHEEL}")
        link = METADATA_LINK.removesuffix(".metadata")
        for withheld, offered in ((frozenset(), True), (frozenset([METADATA_LINK]), None)):
            rules = PageRules(withheld, frozenset(), frozenset([link]))
            rendered = render_body(dump(project(wheel(), other)), SIMPLE_JSON, rules)
            assert [file.get(EXTRACTED) for file in as_json(rendered)["files"]] == [offered, None]
            assert rendered.untried == (other["url"],)

    def test_nothing_is_offered_if_it_is_turned_off(self) -> None:
        """Without the setting, not even the metadata of stored wheels is offered."""
        link = METADATA_LINK.removesuffix(".metadata")
        assert not is_offered(render_body(dump(project(wheel())), SIMPLE_JSON, PageRules(offered=frozenset([link]))))

    def test_withheld_metadata_is_not_offered(self) -> None:
        """After metadata could not be read, it is withheld. Then its origin need not be tried either."""
        rendered = rendered_by(project(wheel()), withheld=frozenset([METADATA_LINK]))
        assert not is_offered(rendered)
        assert METADATA_LINK not in listing(rendered)
        assert rendered.untried == ()
        (link,) = read_by_pip(rendered)
        assert link.metadata_link() is None

    def test_other_wheels_keep_theirs(self) -> None:
        """The withheld metadata of one wheel says nothing about another one."""
        other = wheel(filename=OTHER_WHEEL, url=f"https://files.example/packages/{OTHER_WHEEL}")
        rendered = rendered_by(project(wheel(), other, SDIST), withheld=frozenset([METADATA_LINK]))
        assert [file.get(EXTRACTED) for file in as_json(rendered)["files"]] == [None, True, None]
        assert filenames(rendered) == [WHEEL, OTHER_WHEEL, SDIST["filename"]]
        check_strictly(rendered)

    def test_links_of_other_projects_are_indexed(self) -> None:
        """The metadata of a wheel named after another project leads to this page, as the wheel does."""
        name = "other-1.0-py3-none-any.whl"
        rendered = rendered_by(project(wheel(filename=name, url=f"https://files.example/{name}")))
        link = f"https/files.example/{name}"
        assert rendered.indexed_links == (link, f"{link}.metadata")


class TestMetadataOfUpstreams:
    """What upstream's page says about metadata itself."""

    @pytest.mark.parametrize("field", ["core_metadata", "dist_info_metadata", "data_dist_info_metadata"])
    @pytest.mark.parametrize("given", [True, {"sha256": OTHER_SHA256}], ids=["true", "digest"])
    def test_it_stays(self, field: str, given: object) -> None:
        """Metadata that upstream advertises, in any of the fields, is fetched from upstream, and checked."""
        rendered = rendered_by(project(wheel(**{field: given})))
        assert not is_offered(rendered)
        assert rendered.untried == ()
        expected = Digest("sha256", OTHER_SHA256) if isinstance(given, dict) else None
        assert listing(rendered)[METADATA_LINK] == PackageFile(METADATA_LINK, f"{WHEEL_URL}.metadata", expected)

    @pytest.mark.parametrize("attribute", ["core_metadata", "dist_info_metadata"])
    def test_it_stays_in_html(self, attribute: str) -> None:
        """The same goes for the attributes of an HTML page."""
        rendered = rendered_by(anchor(**{attribute: f"sha256={OTHER_SHA256}"}))
        assert not is_offered(rendered)
        assert listing(rendered)[METADATA_LINK].digest == Digest("sha256", OTHER_SHA256)

    @pytest.mark.parametrize("field", ["core_metadata", "dist_info_metadata"])
    @pytest.mark.parametrize("given", [False, None, "false", 0, "", []])
    def test_none_is_none(self, field: str, given: object) -> None:
        """If upstream says that there is none, it is offered."""
        rendered = rendered_by(project(wheel(**{field: given})))
        assert is_offered(rendered)
        check_strictly(rendered)

    @pytest.mark.parametrize("none", [[], ["core-metadata"], ["core-metadata", "data-dist-info-metadata"]])
    def test_none_is_none_on_a_page_of_the_usual_form(self, none: list[str]) -> None:
        """A page with all the fields that an index writes has one value for each, ours or upstream's."""
        usual = {
            "provenance": None,
            "requires-python": None,
            "size": 201096,
            "upload-time": "2026-01-01T00:00:00.010001Z",
            "yanked": False,
        }
        other = {"filename": OTHER_WHEEL, "url": f"https://files.example/packages/{OTHER_WHEEL}"}
        file = wheel() | usual | dict.fromkeys(none, False)
        rendered = rendered_by(project(file | {"core-metadata": {"sha256": OTHER_SHA256}}, file | other))
        check_strictly(rendered)
        upstreams, ours = as_json(rendered)["files"]
        assert upstreams["core-metadata"] == {"sha256": OTHER_SHA256}
        assert (ours["core-metadata"], ours[EXTRACTED]) == (True, True)

    @pytest.mark.parametrize("given", [True, False, "x", {"sha256": SHA256}])
    @pytest.mark.parametrize("core_metadata", [True, {"sha256": OTHER_SHA256}, False])
    def test_mark_of_another_server_is_removed(self, given: object, core_metadata: object) -> None:
        """Upstream may be another MyPyPi. Its mark is not ours: its metadata is requested from it."""
        for ranged in (None, frozenset({OTHER_HOST})):
            rendered = rendered_by(
                project(wheel(_extracted=given, core_metadata=core_metadata) | {EXTRACTED: given}), ranged
            )
            assert not is_offered(rendered)
            assert all(file.wheel is None for file in listing(rendered).values())
            assert (METADATA_LINK in listing(rendered)) == (core_metadata is not False)

    def test_mark_of_another_server_is_replaced_by_ours(self) -> None:
        """A mark without metadata means nothing. Where the metadata can be read here, the mark is ours."""
        assert is_offered(rendered_by(project(wheel() | {EXTRACTED: False})))
        assert is_offered(rendered_by(project(wheel(core_metadata=False) | {EXTRACTED: True})))

    def test_json_page_of_this_server_can_be_upstreams(self) -> None:
        """The page of a MyPyPi behind another one advertises the same metadata, as upstream's own."""
        first = rendered_by(project(wheel()))
        source = SourceDocument(first.forms["json"].body, SIMPLE_JSON, "https://near.example/simple/holy-grail/")
        second = pypi.render(PROJECT, source, PageRules(ranged=frozenset(["https/near.example"])))
        assert not is_offered(second)
        link = f"https/near.example/file/{METADATA_LINK}"
        assert listing(second)[link] == PackageFile(link, link.replace("/", "://", 1))


class TestOrigins:
    """`extracts` and `untried`: what the page tells about origins."""

    def files(self, *hosts: str) -> dict[str, object]:
        """Return a page with two wheels at each of these hosts, and an sdist at each of them."""
        names = (f"holy_grail-{number}.0-py3-none-any.whl" for number in range(1000))
        files: list[object] = []
        for host in hosts:
            files += [wheel(filename=name, url=f"https://{host}/{name}") for name in (next(names), next(names))]
            files.append({"filename": "holy_grail-1.0.zip", "url": f"https://{host}/holy_grail-1.0.zip"})
        return project(*files)

    def test_one_wheel_of_each_unknown_origin_is_untried(self) -> None:
        """To find out about an origin, one wheel is enough."""
        rendered = rendered_by(self.files("a.example", "b.example", "c.example"), frozenset(["https/b.example"]))
        assert rendered.extracts == ("https/b.example",)
        assert [url.split("/")[2] for url in rendered.untried] == ["a.example", "c.example"]
        assert all(url.endswith(".whl") for url in rendered.untried)
        marked = [file["url"] for file in as_json(rendered)["files"] if EXTRACTED in file]
        assert len(marked) == 2
        assert all("b.example" in url for url in marked)

    def test_few_origins_are_tried(self) -> None:
        """A page of a hundred hosts does not lead to a hundred requests."""
        rendered = rendered_by(self.files(*(f"h{number}.example" for number in range(100))))
        assert 1 <= len(rendered.untried) <= 4
        assert rendered.extracts == ()

    def test_all_known_origins_are_used(self) -> None:
        """How many origins are known makes no difference."""
        hosts = [f"h{number}.example" for number in range(100)]
        rendered = rendered_by(self.files(*hosts), frozenset(f"https/{host}" for host in hosts))
        assert len(rendered.extracts) == 100
        assert rendered.untried == ()

    def test_port_is_part_of_the_origin(self) -> None:
        """An index on this machine has a port, which is part of its origin."""
        url = f"http://127.0.0.1:8080/{WHEEL}"
        rendered = rendered_by(project(wheel(url=url)), frozenset(["http/127.0.0.1:8080"]))
        assert is_offered(rendered)
        assert rendered_by(project(wheel(url=url))).untried == (url,)

    @pytest.mark.parametrize("page", [project(), project(SDIST), project(wheel(core_metadata=True)), "<html></html>"])
    def test_page_without_such_wheels_names_no_origin(self, page: object) -> None:
        """Where there is nothing to read, no origin is tried."""
        rendered = rendered_by(page, frozenset())
        assert (rendered.extracts, rendered.untried) == ((), ())


class TestListing:
    """The files that a page lists, as requests for them find them."""

    def test_metadata_has_its_wheel(self) -> None:
        """Metadata has the wheel's URL, digest and size, and no digest of its own: nothing tells that before."""
        rendered = rendered_by(project(wheel(size=4321)))
        read_from = PackageFile(WHEEL_LINK, WHEEL_URL, Digest("sha256", SHA256), 4321)
        assert list(listing(rendered)) == [WHEEL_LINK, METADATA_LINK]
        assert listing(rendered)[WHEEL_LINK] == read_from
        metadata = listing(rendered)[METADATA_LINK]
        assert metadata == PackageFile(METADATA_LINK, f"{WHEEL_URL}.metadata", wheel=read_from)
        assert (metadata.digest, metadata.size) == (None, None)

    def test_signature_and_metadata_are_independent(self) -> None:
        """A signature beside the wheel is fetched from upstream, as before."""
        found = listing(rendered_by(project(wheel(gpg_sig=True))))
        assert found[f"{WHEEL_LINK}.asc"].wheel is None
        assert found[METADATA_LINK].wheel == found[WHEEL_LINK]

    def pages(self) -> list[RenderedPage]:
        """Return pages whose listing is read from either form: a signed link needs a form of its own."""
        signed = wheel(filename=OTHER_WHEEL, url=f"https://other.example/{OTHER_WHEEL}?sig=1")
        local = "holy_grail-1.0+x-py3-none-any.whl"
        plain = [
            wheel(size=5),
            wheel(filename=local, url=f"https://files.example/a%2Bb/{local.replace('+', '%2B')}", hashes={}),
            wheel(filename="holy_grail-1.1-py3-none-any.whl", url="../../holy_grail-1.1-py3-none-any.whl", size=0),
            SDIST,
        ]
        ranged = frozenset([FILES_HOST, OTHER_HOST, "https/index.example"])
        return [rendered_by(project(*plain), ranged), rendered_by(project(*plain, signed), ranged)]

    def test_both_forms_of_the_listing_agree(self) -> None:
        """With signed links on the page, the listing comes from another form, and has the same metadata."""
        usual, with_signed = self.pages()
        assert "files" not in usual.forms
        assert "files" in with_signed.forms
        found = dict(listing(with_signed))
        signed = found.pop(f"{OTHER_HOST}/{OTHER_WHEEL}")
        assert (signed.wheel, signed.url.endswith("?sig=1")) == (None, True)
        assert found == listing(usual)  # nor is there metadata beside the signed link
        assert sum(file.wheel is not None for file in found.values()) == 3

    def test_packed_listing_gives_it_back(self) -> None:
        """Packed in memory, each file is as it was: above all, where its bytes are, and how they are checked."""
        for rendered in self.pages():
            files = listing(rendered)
            packed = Listing.of(files.values())
            assert {link: packed.get(link) for link in files} == files

    def test_link_that_ends_otherwise_than_the_name(self) -> None:
        """Metadata of a wheel whose link does not end with its name has two links, and is read out of one wheel."""
        files = listing(rendered_by(project(wheel(url="https://files.example/download/1"))))
        packed = Listing.of(files.values())
        link = "https/files.example/download/1"
        for each in (f"{link}.metadata", f"{link}/{WHEEL}.metadata"):
            for file in (files[each], packed.get(each)):
                assert file is not None
                assert file.wheel is not None
                assert (file.key, file.wheel.key, file.wheel.url) == (
                    f"{link}.metadata",
                    link,
                    "https://files.example/download/1",
                )
                assert file.wheel.digest == Digest("sha256", SHA256)

    def test_packed_listing_finds_metadata_by_name(self) -> None:
        """Requests that name a file without its link find it."""
        packed = Listing.of(listing(rendered_by(project(wheel()))).values())
        (found,) = packed.named(f"{WHEEL}.metadata")
        assert (found.link, found.wheel) == (METADATA_LINK, packed.get(WHEEL_LINK))


class RenderProcessTest(MemoryTestCase):
    """The render processes give back what the page tells."""

    def test_origins_survive_the_way_from_the_process(self) -> None:
        """A rendered page has the origins, and its listing the wheel, when it arrives from a render process."""
        renderer = Renderer("pypi", "https://index.example", render_at_once)
        other = wheel(filename=OTHER_WHEEL, url=f"https://other.example/{OTHER_WHEEL}")
        body = json.dumps(project(wheel(size=9), other)).encode()
        source = SourceDocument(body, SIMPLE_JSON, "https://index.example/simple/holy-grail/")
        rules = PageRules(ranged=frozenset([FILES_HOST]))
        page = self.now(renderer.render(PROJECT, source, rules))
        self.assertEqual(((FILES_HOST,), (other["url"],)), (page.extracts, page.untried))
        metadata = page.listing.get(METADATA_LINK)
        assert metadata is not None
        self.assertEqual(page.listing.get(WHEEL_LINK), metadata.wheel)
        listed = self.now(renderer.listing(PROJECT, "json", page.forms["json"]))
        self.assertEqual(metadata, listed.get(METADATA_LINK))


def test_strict_operation_offers_the_same_by_the_rules() -> None:
    """Which rules apply is decided elsewhere: in strict mode, these have no origins."""
    source = SourceDocument(json.dumps(project(wheel())).encode(), SIMPLE_JSON, "https://index.example/simple/x/")
    rendered = PyPI("https://index.example", strict=True).render(PROJECT, source, PageRules())
    assert not is_offered(rendered)
