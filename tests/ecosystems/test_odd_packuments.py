"""Tests of malformed members of packuments: one bad member never takes the package away from clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.packument_parts import dist_tags, manifest
from mypypi.errors import BadUpstreamResponse, NotFound
from mypypi.model import BASE_PLACEHOLDER, PageId, PageRules, RenderedPage, SourceDocument
from tests.ecosystems.json_values import anything

BASE = BASE_PLACEHOLDER.decode()
REGISTRY = "https://registry.example"
PAGE = PageId("packument", "thing")
LINK = "thing/-/thing-1.0.0.tgz"

npm = NPM(REGISTRY)

odd_dists = st.fixed_dictionaries(
    {},
    optional={
        "tarball": st.sampled_from([f"{REGISTRY}/{LINK}", "//[", "", "thing.tgz"]) | anything,
        "integrity": st.sampled_from(["sha512-x", "sha1-", "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk="]) | anything,
        "shasum": anything,
    },
)
odd_versions = st.fixed_dictionaries(
    {}, optional={"name": anything, "version": anything, "scripts": anything, "dist": odd_dists | anything}
)
odd_packuments = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["thing", "Thing"]) | anything,
        "versions": st.dictionaries(st.sampled_from(["1.0.0", "2.0.0", "", "../x"]), odd_versions | anything)
        | anything,
        "dist-tags": st.dictionaries(st.sampled_from(["latest", "next"]), anything) | anything,
        "time": st.dictionaries(st.sampled_from(["modified", "1.0.0"]), anything) | anything,
    },
)


#: Values that are no object, no address and no text.
ODD: tuple[Any, ...] = (None, 5, [], {}, True)
ODD_VERSIONS: tuple[Any, ...] = ([], "x", 5, True)


def render(document: object) -> RenderedPage:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return npm.render(PAGE, SourceDocument(body, "application/json", f"{REGISTRY}/thing"), PageRules())


def version(number: str = "1.0.0", **fields: Any) -> dict[str, Any]:
    return {"name": "thing", "version": number, "dist": {"tarball": f"{REGISTRY}/thing/-/thing-{number}.tgz"}, **fields}


def packument(**fields: Any) -> dict[str, Any]:
    return {"name": "thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version()}, **fields}


def form(rendered: RenderedPage, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(rendered.forms[name].body)
    return document


def check_installable(rendered: RenderedPage) -> None:
    """Assert that both forms have version 1.0.0 alone, with a link to this server."""
    for name in ("full", "abbreviated"):
        versions = form(rendered, name)["versions"]
        assert {number: each["dist"]["tarball"] for number, each in versions.items()} == {"1.0.0": f"{BASE}/{LINK}"}
    assert npm.listing(PAGE, {"files": rendered.forms["files"].body})[LINK].url == f"{REGISTRY}/{LINK}"


class TestUnusableVersions:
    """Versions that can't be installed."""

    @pytest.mark.parametrize(
        "unusable",
        [
            *(None, 1, "x", [], {}, True),
            {"name": "thing", "version": "2.0.0"},
            *(version("2.0.0", dist=odd) for odd in (*ODD, "x", {"integrity": "sha512-x"})),
            *(version("2.0.0", dist={"tarball": odd}) for odd in (*ODD, "")),
        ],
    )
    def test_they_are_left_out_with_one_note(self, unusable: object) -> None:
        """A version without a tarball is left out of both forms. The others stay. One note has their number."""
        rendered = render(packument(versions={"2.0.0": unusable, "1.0.0": version(), "3.0.0": unusable}, readme="é"))
        check_installable(rendered)
        assert form(rendered, "full")["readme"] == "é"
        assert rendered.notes == ("2 versions without a tarball were left out, such as '2.0.0'",)

    def test_values_of_the_others_keep_their_bytes(self) -> None:
        """Where a version is left out, all other values are the same bytes as in upstream's response."""
        pieces = b'"readme":"\\u00e9\\/","x":1.10,"time":{"1.0.0":"2026"}'
        good = b'{"version":"1.0.0","y":1E400,"dist":{"tarball":"https://registry.example/thing/-/thing-1.0.0.tgz"}}'
        full = render(b'{"name":"thing",%s,"versions":{"1.0.0":%s,"2.0.0":null}}' % (pieces, good)).forms["full"].body
        assert pieces in full
        assert good.replace(REGISTRY.encode(), BASE.encode()) in full

    def test_their_manifests_are_not_found(self) -> None:
        """A version that was left out has no manifest, by number or by tag."""
        odd = packument(versions={"2.0.0": None, "1.0.0": version()}, **{"dist-tags": {"latest": "2.0.0"}})
        full = render(odd).forms["full"].body
        assert json.loads(manifest(full, "1.0.0"))["version"] == "1.0.0"
        for wanted in ("2.0.0", "latest"):
            with pytest.raises(NotFound):
                manifest(full, wanted)

    def test_a_package_may_have_no_other_versions(self) -> None:
        """A package whose versions all are unusable has none."""
        rendered = render(packument(versions={"1.0.0": None}))
        assert (form(rendered, "full")["versions"], form(rendered, "abbreviated")["versions"]) == ({}, {})


class TestOddMembers:
    """Members of another type than npm's documentation gives them."""

    @pytest.mark.parametrize("name", [{}, {"name": None}, {"name": 5}, {"name": "Thing"}, {"name": "THING"}])
    def test_the_name_may_be_missing_or_in_other_case(self, name: dict[str, object]) -> None:
        """A packument with versions needs no name, and its case does not count."""
        document = packument()
        del document["name"]
        rendered = render({**document, **name})
        check_installable(rendered)
        assert form(rendered, "abbreviated")["name"] == (name["name"] if isinstance(name.get("name"), str) else "thing")

    @pytest.mark.parametrize(
        "tags", [{"latest": None}, {"latest": "1.0.0", "next": None}, {"latest": 5}, {"latest": []}]
    )
    def test_an_odd_tag_is_passed_on(self, tags: dict[str, object]) -> None:
        """A tag that is no version is passed on. Its manifest is not found."""
        rendered = render(packument(**{"dist-tags": tags}))
        check_installable(rendered)
        assert [form(rendered, name)["dist-tags"] for name in ("full", "abbreviated")] == [tags, tags]
        full = rendered.forms["full"].body
        assert json.loads(dist_tags(full)) == tags
        with pytest.raises(NotFound):
            manifest(full, "latest" if tags["latest"] != "1.0.0" else "next")

    @pytest.mark.parametrize("tags", [None, [], "x", 5])
    def test_odd_tags_are_passed_on(self, tags: object) -> None:
        """Tags that are no object do not hide the versions."""
        rendered = render(packument(**{"dist-tags": tags}))
        check_installable(rendered)
        assert json.loads(manifest(rendered.forms["full"].body, "1.0.0"))["version"] == "1.0.0"
        with pytest.raises(NotFound):
            manifest(rendered.forms["full"].body, "latest")

    @pytest.mark.parametrize("versions", [{}, {"versions": None}])
    def test_versions_may_be_missing(self, versions: dict[str, object]) -> None:
        """A packument may have no versions, as that of a package that was unpublished."""
        rendered = render({"name": "thing", "time": {"unpublished": {}}, **versions})
        assert form(rendered, "abbreviated")["versions"] == {}
        assert form(rendered, "full").get("versions", {}) == {}
        assert rendered.notes == ()

    @pytest.mark.parametrize(
        "time", [None, [], "x", {}, {"modified": None}, {"modified": 5}, {"modified": "yesterday"}]
    )
    def test_times_may_be_missing(self, time: object) -> None:
        """A packument without a usable time of its last change has no ``Last-Modified``."""
        rendered = render(packument(time=time))
        check_installable(rendered)
        assert rendered.modified == ""

    @pytest.mark.parametrize(
        "fields",
        [
            *({"scripts": odd} for odd in (*ODD, "x", {"install": None})),
            *({"name": odd} for odd in (None, "another", 5)),
            *({"version": odd} for odd in (None, "1.0", 5)),
            *({"dependencies": odd} for odd in (*ODD, {"a": None})),
            {"deprecated": False},
        ],
    )
    def test_odd_fields_of_a_version_are_passed_on(self, fields: dict[str, Any]) -> None:
        """Other fields of a version are passed on as upstream sent them."""
        rendered = render(packument(versions={"1.0.0": version(**fields)}))
        check_installable(rendered)
        assert form(rendered, "full")["versions"]["1.0.0"].items() >= fields.items()

    def test_the_last_of_two_versions_with_one_number_counts(self) -> None:
        """Where a member is there twice, the last one counts, as in clients' JSON parsers."""
        first, last = (json.dumps(version(n=number)).encode() for number in (1, 2))
        rendered = render(b'{"name":"thing","versions":{"1.0.0":%s,"1.0.0":%s}}' % (first, last))
        check_installable(rendered)
        assert form(rendered, "full")["versions"]["1.0.0"]["n"] == 2


class TestNoPackument:
    """Documents that are no packument of this package: the page as it was must not be replaced by one."""

    @pytest.mark.parametrize(
        "document",
        [
            *(None, [], 5, "x", {}),
            {"error": "not found"},
            {"message": "sign in", "versions": {}},
            {"name": None, "versions": None},
            {"versions": {"1.0.0": None}},
            *(packument(versions=odd) for odd in ODD_VERSIONS),
        ],
    )
    def test_they_are_refused(self, document: object) -> None:
        """A document without a name and versions is refused, as is one whose versions are no object."""
        with pytest.raises(BadUpstreamResponse):
            render(document)

    @pytest.mark.parametrize("body", [b"", b" ", b"<!doctype html><form>", b'{"name":"thing"', b'"thing"'])
    def test_what_is_not_json_is_refused(self, body: bytes) -> None:
        """HTML, an empty body and JSON that was cut off are refused."""
        with pytest.raises(BadUpstreamResponse, match="can't be parsed"):
            render(body)

    @pytest.mark.parametrize("name", ["another", "@acme/thing", "thing2", ""])
    def test_another_package_is_refused(self, name: str) -> None:
        """The packument of another package is refused."""
        with pytest.raises(BadUpstreamResponse, match="packument of another package"):
            render(packument(name=name))


@given(document=odd_packuments)
def test_any_packument_is_refused_or_its_versions_can_be_installed(document: dict[str, Any]) -> None:
    """Any packument is refused as a whole, or each version that it shows has a tarball."""
    try:
        rendered = render(document)
    except BadUpstreamResponse:
        return
    for name in ("full", "abbreviated"):
        for each in (form(rendered, name).get("versions") or {}).values():
            assert each["dist"]["tarball"]
    npm.listing(PAGE, {"files": rendered.forms["files"].body})
