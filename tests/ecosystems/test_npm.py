"""Tests of the npm ecosystem: a packument keeps upstream's bytes, except for its tarball links."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mypypi.digests import Digest
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.ecosystems.npm import NPM, check_name
from mypypi.ecosystems.packument_parts import dist_tags, manifest
from mypypi.errors import BadRequest, BadUpstreamResponse, NotFound
from mypypi.interfaces import IEcosystem
from mypypi.model import BASE_PLACEHOLDER, PackageFile, PageId, PageRequest, PageRules, RenderedPage, SourceDocument
from mypypi.rendering.listing import Listing

BASE = BASE_PLACEHOLDER.decode()
REGISTRY = "https://registry.example"
FULL, ABBREVIATED = "application/json", "application/vnd.npm.install-v1+json"
PAGE = PageId("packument", "thing")

npm = NPM(REGISTRY)


def render(document: object, name: str = "thing", url: str = "") -> RenderedPage:
    """Render upstream's document. A document that is neither bytes nor text is encoded as JSON."""
    if isinstance(document, str):
        body = document.encode()
    else:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return npm.render(PageId("packument", name), SourceDocument(body, FULL, url or f"{REGISTRY}/{name}"), PageRules())


def packument(*versions: dict[str, Any], name: str = "thing", **fields: Any) -> dict[str, Any]:
    return {"name": name, "versions": {version["version"]: version for version in versions}, **fields}


def version(number: str = "1.0.0", tarball: str | None = None, name: str = "thing", **fields: Any) -> dict[str, Any]:
    """Return a version's object. The argument `dist` extends its ``dist``."""
    usual = f"{REGISTRY}/{name}/-/{name.rpartition('/')[2]}-{number}.tgz"
    dist = fields.pop("dist", {})
    return {"name": name, "version": number, **fields, "dist": {"tarball": tarball or usual, **dist}}


def form(rendered: RenderedPage, name: str = "full") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(rendered.forms[name].body)
    return document


def links(rendered: RenderedPage, name: str = "full") -> dict[str, str]:
    """Return the tarball links of a form, by version."""
    return {number: each["dist"]["tarball"] for number, each in form(rendered, name)["versions"].items()}


def listing(rendered: RenderedPage, name: str = "thing") -> dict[str, PackageFile]:
    files = npm.listing(PageId("packument", name), {"files": rendered.forms["files"].body})
    assert Listing.of_rows(rendered.rows) == Listing.of(files.values())
    return files


def listed(rendered: RenderedPage, link: str, name: str = "thing") -> PackageFile:
    """Return the listed file of a link, looked up as for a client's request."""
    assert link.startswith(f"{BASE}/"), link
    return listing(rendered, name)[unquote(link.removeprefix(f"{BASE}/"))]


def integrity(algorithm: str, data: bytes = b"x") -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class TestEcosystemTable:
    """The entry for npm in the table of ecosystems."""

    def test_table_has_npm(self) -> None:
        """The table's constructor takes upstream's URL and returns an ecosystem of that name."""
        ecosystem = ECOSYSTEMS["npm"](REGISTRY)
        assert verifyObject(IEcosystem, ecosystem)
        assert (ecosystem.name, ecosystem.scoped) == ("npm", True)

    def test_example_is_an_npm_command(self) -> None:
        """The example command names the registry with npm's option."""
        assert npm.example("http://here.example:8080/") == "npm install --registry http://here.example:8080/ express"


class TestNames:
    """The names of packages."""

    @pytest.mark.parametrize(
        "name", ["a", "thing", "@acme/thing", "JSONStream", "@Acme/Thing", "a.b_c-d~", "-", "it's!"]
    )
    def test_valid_names_are_kept_unchanged(self, name: str) -> None:
        """Valid names are not normalised. Legacy names may have capitals and odd characters."""
        assert check_name(name) == name

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", ".hidden", "@acme", "@acme/", "@/thing", "a/b", "a b", "a\n", "é", "%41", "@a/b/c", "a" * 215],
    )
    def test_invalid_names_are_bad_requests(self, name: str) -> None:
        """An invalid name is refused before upstream is asked."""
        with pytest.raises(BadRequest, match="not the name of an npm package"):
            check_name(name)


class TestPageRequests:
    """The requests for pages."""

    @pytest.mark.parametrize(
        ("page", "path"),
        [
            (PAGE, "/thing"),
            (PageId("packument", "@acme/thing"), "/@acme%2fthing"),
            (PageId("packument", "JSONStream"), "/JSONStream"),
        ],
    )
    def test_each_page_has_a_path(self, page: PageId, path: str) -> None:
        """
        Each page has its path, with a scope's slash encoded as npm does.

        The full form is requested, since the other is made from it.
        """
        assert npm.page_request(page) == PageRequest(path, FULL)

    def test_keys_have_one_page(self) -> None:
        """The registry's signing keys are one page, and a kind of request of their own."""
        assert npm.page_request(PageId("keys")) == PageRequest("/-/npm/v1/keys", FULL, "keys")

    def test_attestations_are_requested_by_version(self) -> None:
        """Attestations are requested by ``name@version``."""
        request = npm.page_request(PageId("attestations", "@acme/thing@1.0.0+build"))
        assert unquote(request.path) == "/-/npm/v1/attestations/@acme/thing@1.0.0+build"


#: Any JSON value, for fields that are not parsed.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("tarball"), inner, max_size=3),
    max_leaves=8,
)
numbers = st.from_regex(r"[0-9]{1,3}\.[0-9]\.[0-9](-[a-z0-9.]{1,5})?(\+[a-z0-9.]{1,5})?", fullmatch=True)
#: Tarball URLs with various hosts, ports and paths. The placeholder makes those of two versions differ.
tarball_urls = st.sampled_from(
    [
        REGISTRY + "/thing/-/thing-{}.tgz",
        "https://files.example:8443/{}/package.tgz",
        "http://127.0.0.1:4873/@acme/thing/-/{}/odd name %C3%A9.tgz",
        "https://files.example/download?file={}",
        "/thing/-/{}.tgz",
    ]
)


dists = st.fixed_dictionaries({"tarball": anything, "integrity": anything, "shasum": anything})


@st.composite
def packuments(draw: st.DrawFn) -> dict[str, Any]:
    """Draw packuments with several versions, tarballs in various places and unknown fields."""
    versions = [
        version(number, draw(tarball_urls).format(place), extra=draw(anything), dist={"extra": draw(anything)})
        for place, number in enumerate(draw(st.lists(numbers, unique=True, max_size=4)))
    ]
    return packument(*versions, readme=draw(st.text()), extra=draw(anything))


#: Documents with the outline of a packument, and any value in the fields that are parsed.
odd_packuments = st.fixed_dictionaries(
    {"name": st.just("thing")},
    optional={
        "versions": anything | st.dictionaries(st.text(), anything | st.fixed_dictionaries({"dist": anything | dists})),
        "time": anything,
        "dist-tags": anything,
    },
)


class TestFullPackuments:
    """The full form of packuments."""

    @given(document=packuments(), ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
    def test_only_the_links_differ_from_upstreams_bytes(
        self,
        document: dict[str, Any],
        ascii_only: bool,  # noqa: FBT001 - hypothesis passes by name
        indent: int | None,
    ) -> None:
        """A full packument has upstream's bytes, except for its links: signatures cover these bytes."""
        body = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
        rendered = render(body)
        restored = rendered.forms["full"].body.decode()
        for number, link in links(rendered).items():
            url = document["versions"][number]["dist"]["tarball"]
            restored = restored.replace(json.dumps(link), json.dumps(url, ensure_ascii=ascii_only))
        assert restored == body

    @given(document=packuments())
    def test_links_lead_here_and_the_listing_to_upstream(self, document: dict[str, Any]) -> None:
        """The links of both forms are conventional and lead here. The listing has upstream's URL for each."""
        rendered = render(document)
        assert links(rendered, "abbreviated") == links(rendered)
        for number, link in links(rendered).items():
            assert unquote(link) == f"{BASE}/thing/-/thing-{number}.tgz"
            url = document["versions"][number]["dist"]["tarball"]
            assert listed(rendered, link).url == (url if "://" in url else REGISTRY + url)

    @pytest.mark.parametrize(
        "field",
        [
            {"readme": f'"tarball":"{REGISTRY}/thing/-/thing-1.0.0.tgz"'},
            {"readme": f"get it from {REGISTRY}/thing/-/thing-1.0.0.tgz"},
            {"dependencies": {"tarball": "^1.0.0"}},
            {"tarball": "https://elsewhere.example/thing-1.0.0.tgz"},
            {"homepage": f"{REGISTRY}/thing/-/thing-1.0.0.tgz"},
            {'a"tarball': f"{REGISTRY}/thing/-/thing-1.0.0.tgz"},
            {"tarball": {"tarball": ["tarball", 1, None]}},
        ],
    )
    def test_text_that_only_looks_like_a_tarball_link_is_kept(self, field: dict[str, Any]) -> None:
        """
        Text that only looks like a tarball link is unchanged.

        It may be in a readme, a string, another field, or a dependency of that name.
        """
        rendered = render(packument(version("1.0.0", extra=field), **field))
        full = form(rendered)
        assert full["versions"]["1.0.0"].pop("extra") == field
        assert {name: full[name] for name in field} == field
        assert links(rendered) == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}

    def test_escaped_links_are_recognised(self) -> None:
        """A link is recognised with any JSON escapes. A slash, or any letter, can be written in several ways."""
        url = f"{REGISTRY}/thing/-/thing-1.0.0.tgz".replace("/", r"\/").replace("example", r"\u0065xample")
        rendered = render(f'{{"name":"thing","versions":{{"1.0.0":{{"dist":{{ "tarball" :\n"{url}"}}}}}}}}')
        assert links(rendered) == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}

    @pytest.mark.parametrize("readme", [r"cut \ud83d", r"\udc00 first", r"\\\ud83d", r"a pair \ud83d\ude00, \ud83d"])
    def test_a_lone_surrogate_is_accepted(self, readme: str) -> None:
        """
        A packument with a lone surrogate is rendered.

        The npm registry cuts readmes to a length, perhaps between the two halves of a character.
        """
        body = json.dumps(packument(version(), readme="README")).replace("README", readme)
        rendered = render(body)
        assert readme.encode() in rendered.forms["full"].body
        assert links(rendered) == links(rendered, "abbreviated") == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}
        assert json.loads(manifest(rendered.forms["full"].body, "1.0.0"))["version"] == "1.0.0"

    def test_forms_have_a_placeholder_for_the_address(self) -> None:
        """
        Both forms have a placeholder for this server's address, which each response fills in.

        Their media types are those of the npm registry.
        """
        forms = render(packument(version())).forms
        assert [(forms[name].media_type, forms[name].based) for name in ("full", "abbreviated")] == [
            (FULL, True),
            (ABBREVIATED, True),
        ]

    def test_a_packument_may_have_no_versions(self) -> None:
        """A packument may have no versions: an unpublished package has none."""
        document = {"name": "thing", "time": {"unpublished": {"versions": ["1.0.0"]}}}
        rendered = render(document)
        assert (form(rendered), listing(rendered)) == (document, {})
        assert form(rendered, "abbreviated") == {**document, "dist-tags": {}, "versions": {}}

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[]", b'"x"', b'{"name":"thing","versions":[]}', b'{"name":"thing"']
    )
    def test_a_body_that_is_not_a_packument_is_refused(self, body: bytes) -> None:
        """A body that is not a packument is refused. It is neither stored nor shown."""
        with pytest.raises(BadUpstreamResponse):
            render(body)

    def test_the_packument_of_another_package_is_refused(self) -> None:
        """A packument of another package is refused. With it, clients would install the wrong package."""
        with pytest.raises(BadUpstreamResponse, match="another package"):
            render(packument(name="other"))

    @given(body=st.binary() | (anything | odd_packuments).map(lambda each: json.dumps(each).encode()))
    def test_any_body_is_rendered_or_refused(self, body: bytes) -> None:
        """Any body is either rendered, or refused with BadUpstreamResponse."""
        try:
            rendered = render(body)
        except BadUpstreamResponse:
            return
        assert form(rendered)["name"] == "thing"


class TestLinks:
    """The links to tarballs."""

    def test_links_of_a_scoped_package_have_its_scope_once(self) -> None:
        """
        A scoped package's link is ``@scope/name/-/name-version.tgz``.

        With this form, lock files keep only the version.
        """
        rendered = render(packument(version(name="@acme/thing"), name="@acme/thing"), "@acme/thing")
        assert links(rendered) == {"1.0.0": f"{BASE}/@acme/thing/-/thing-1.0.0.tgz"}
        assert (
            listed(rendered, links(rendered)["1.0.0"], "@acme/thing").url == f"{REGISTRY}/@acme/thing/-/thing-1.0.0.tgz"
        )

    def test_a_plus_in_a_link_is_not_encoded(self) -> None:
        """The plus before build metadata is not encoded, as registries and clients write it."""
        rendered = render(packument(version("1.0.0+build.5")))
        assert links(rendered) == {"1.0.0+build.5": f"{BASE}/thing/-/thing-1.0.0+build.5.tgz"}
        assert "thing/-/thing-1.0.0+build.5.tgz" in listing(rendered)

    def test_links_of_legacy_names_keep_their_capitals(self) -> None:
        """Links keep the capitals of legacy names. A name without them is another package's."""
        rendered = render(packument(version(name="JSONStream"), name="JSONStream"), "JSONStream")
        assert links(rendered) == {"1.0.0": f"{BASE}/JSONStream/-/JSONStream-1.0.0.tgz"}

    def test_a_file_is_also_listed_under_upstreams_filename(self) -> None:
        """
        A file is also listed under upstream's filename.

        A lock file that was written against upstream may have that name.
        """
        url = f"{REGISTRY}/thing/-/odd%20name.tgz"
        files = listing(render(packument(version("1.0.0", url))))
        assert {link: file.url for link, file in files.items()} == {
            "thing/-/thing-1.0.0.tgz": url,
            "thing/-/odd name.tgz": url,
        }

    def test_conventional_filenames_have_precedence(self) -> None:
        """A conventional filename leads to its own version, even if upstream's filenames are swapped."""
        crossed = {"1.0.0": f"{REGISTRY}/thing/-/thing-2.0.0.tgz", "2.0.0": f"{REGISTRY}/thing/-/thing-1.0.0.tgz"}
        rendered = render(packument(*(version(number, url) for number, url in crossed.items())))
        assert {number: listed(rendered, link).url for number, link in links(rendered).items()} == crossed

    @pytest.mark.parametrize(
        "url", ["file:///etc/passwd", "https://user:secret@files.example/a.tgz", "//[", "ftp://x/a"]
    )
    def test_links_that_can_not_be_served_are_unchanged(self, url: str) -> None:
        """A link that can't be served from here is unchanged, and not listed."""
        rendered = render(packument(version("1.0.0", url)))
        assert (links(rendered), listing(rendered)) == ({"1.0.0": url}, {})

    def test_a_link_with_an_empty_segment_leads_here(self) -> None:
        """A tarball's address may have an empty segment. It is requested as it was listed."""
        url = "https://files.example//a//thing.tgz"
        rendered = render(packument(version("1.0.0", url)))
        assert links(rendered) == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}
        assert listed(rendered, links(rendered)["1.0.0"]).url == url

    def test_relative_links_are_resolved_against_the_packuments_url(self) -> None:
        """A relative link is resolved against the packument's URL. After a redirect, that is another host's."""
        rendered = render(packument(version("1.0.0", "-/thing.tgz")), url="https://mirror.example/npm/thing/")
        assert listed(rendered, links(rendered)["1.0.0"]).url == "https://mirror.example/npm/thing/-/thing.tgz"


class TestAbbreviatedPackuments:
    """The abbreviated form of packuments."""

    def test_abbreviated_packuments_have_only_an_installers_fields(self) -> None:
        """
        The abbreviated form has only the fields that an installer needs.

        They are those of the npm registry's documentation, and those that it has added since.
        """
        needed: dict[str, Any] = {
            "dependencies": {"a": "^1"},
            "optionalDependencies": {"b": "*"},
            "devDependencies": {"c": "1"},
            "bundleDependencies": ["a"],
            "peerDependencies": {"d": ">=2"},
            "peerDependenciesMeta": {"d": {"optional": True}},
            "bin": {"thing": "cli.js"},
            "directories": {"lib": "lib"},
            "engines": {"node": ">=18"},
            "os": ["linux"],
            "cpu": ["x64"],
            "libc": ["glibc"],
            "funding": {"url": "https://money.example"},
            "deprecated": "use another",
            "_hasShrinkwrap": False,
            "hasInstallScript": True,
        }
        dist = {"integrity": integrity("sha512"), "signatures": [{"keyid": "k", "sig": "s"}], "fileCount": 1, "new": 1}
        other: dict[str, Any] = {
            "scripts": {"test": "x"},
            "readme": "long",
            "_npmUser": {"name": "x"},
            "maintainers": [],
            "_id": "x",
        }
        tags, modified = {"latest": "1.0.0"}, "2026-01-02T03:04:05.678Z"
        full = packument(version(dist=dist, **needed, **other), time={"modified": modified}, readme="long")
        short = form(render(full | {"dist-tags": tags}), "abbreviated")
        assert short == {
            "name": "thing",
            "dist-tags": tags,
            "time": {"modified": modified},
            "modified": modified,
            "versions": {
                "1.0.0": {
                    "name": "thing",
                    "version": "1.0.0",
                    **needed,
                    "dist": {"tarball": f"{BASE}/thing/-/thing-1.0.0.tgz", **dist},
                }
            },
        }

    def test_the_times_of_all_versions_are_copied_byte_for_byte(self) -> None:
        """The abbreviated form has upstream's ``time``, which pnpm needs to choose versions by their age."""
        time = b'{"created":"then","1.0.0" : "\\u0032026-01-02T03:04:05.678Z","0.9.0":"then"}'
        body = b'{"name":"thing","time":%s,"versions":{"1.0.0":{"version":"1.0.0","dist":{"tarball":"thing.tgz"}}}}'
        assert b'"time":' + time in render(body % time).forms["abbreviated"].body

    @pytest.mark.parametrize("time", [None, [], "then", 1])
    def test_a_time_that_is_no_object_is_left_out(self, time: object) -> None:
        """The abbreviated form has no ``time`` that a client could not read."""
        assert "time" not in form(render(packument(version(), time=time)), "abbreviated")

    def test_values_are_copied_byte_for_byte(self) -> None:
        """Values are copied byte for byte. A number keeps its digits, a string its escapes."""
        members = b'"engines":{"node":1.10,"e":1E400}', b'"deprecated":"\\u00e9\\/"'
        body = b'{"name":"thing","versions":{"1.0.0":{"version":"1.0.0",%s,"dist":{"tarball":"thing.tgz"}}}}'
        short = render(body % b",".join(members)).forms["abbreviated"].body
        assert [member in short for member in members] == [True, True]

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"scripts": {"preinstall": "x"}}, True),
            ({"scripts": {"install": "x"}}, True),
            ({"scripts": {"postinstall": "x"}}, True),
            ({"scripts": {"test": "x", "prepare": "y"}}, None),
            ({"scripts": "x"}, None),
            ({"scripts": {"install": "x"}, "hasInstallScript": False}, False),
            ({}, None),
        ],
    )
    def test_install_scripts_are_flagged(self, fields: dict[str, Any], expected: bool | None) -> None:  # noqa: FBT001 - an example
        """
        ``hasInstallScript`` says whether installing runs a script.

        The scripts are left out, as the npm registry does.
        """
        short = form(render(packument(version(**fields))), "abbreviated")["versions"]["1.0.0"]
        assert (short.get("hasInstallScript"), "scripts" in short) == (expected, False)


class TestDigests:
    """The digests of tarballs."""

    @pytest.mark.parametrize(
        ("dist", "expected"),
        [
            ({"integrity": integrity("sha512")}, "sha512"),
            ({"integrity": integrity("sha384")}, "sha384"),
            ({"integrity": integrity("sha1")}, "sha1"),
            ({"integrity": f"{integrity('sha1')} {integrity('sha512')}  {integrity('sha256')}"}, "sha512"),
            ({"integrity": f"{integrity('sha512')}?with=options"}, "sha512"),
            ({"integrity": integrity("sha512"), "shasum": "0" * 40}, "sha512"),
            ({"shasum": hashlib.sha1(b"x").hexdigest()}, "sha1"),  # noqa: S324 - as registries gave it
            ({"shasum": hashlib.sha1(b"x").hexdigest().upper()}, "sha1"),  # noqa: S324 - as before
        ],
    )
    def test_the_strongest_digest_is_used(self, dist: dict[str, Any], expected: str) -> None:
        """A file has the strongest digest of ``integrity`` (Subresource Integrity, section 3.5), else ``shasum``."""
        rendered = render(packument(version(dist=dist)))
        digest = Digest(expected, hashlib.new(expected, b"x").hexdigest())
        assert listed(rendered, links(rendered)["1.0.0"]).digest == digest

    @pytest.mark.parametrize(
        "useless",
        [
            "",
            "garbage",
            "sha512-",
            "sha512-AAAA",
            "sha512-!!!!",
            f"sha256-{'A' * 45}",
            integrity("md5"),
            None,
            7,
            [integrity("sha512")],
        ],
    )
    def test_invalid_digests_are_skipped(self, useless: object) -> None:
        """
        An invalid ``integrity`` is skipped, and ``shasum`` is used.

        If that is invalid as well, there is no digest to check.
        """
        shasum = hashlib.sha1(b"x").hexdigest()  # noqa: S324 - as registries gave it
        found = [
            listed(rendered, links(rendered)["1.0.0"]).digest
            for dist in ({"integrity": useless, "shasum": shasum}, {"integrity": useless, "shasum": "garbage"})
            for rendered in [render(packument(version(dist=dist)))]
        ]
        assert found == [Digest("sha1", shasum), None]


TAGS = {"latest": "1.0.0", "next": "2.0.0-rc.1+b", "gone": "9.9.9"}
TAGGED = packument(version("1.0.0", deprecated="old"), version("2.0.0-rc.1+b")) | {"dist-tags": TAGS}


class TestPartsOfPackuments:
    """The endpoints for a part of a packument: one version, the tags, the time."""

    @pytest.mark.parametrize(
        ("wanted", "number"),
        [("1.0.0", "1.0.0"), ("latest", "1.0.0"), ("next", "2.0.0-rc.1+b"), ("2.0.0-rc.1+b", "2.0.0-rc.1+b")],
    )
    def test_a_version_is_cut_out_by_number_or_tag(self, wanted: str, number: str) -> None:
        """A version's bytes are cut out of the packument, link included."""
        full = render(TAGGED).forms["full"].body
        cut = manifest(full, wanted)
        assert cut in full
        assert json.loads(cut) == form(render(TAGGED))["versions"][number]

    @pytest.mark.parametrize("wanted", ["9.9.9", "gone", "^1", ""])
    def test_a_missing_version_is_not_found(self, wanted: str) -> None:
        """A missing version raises NotFound, even if a tag names it."""
        with pytest.raises(NotFound, match="version not found"):
            manifest(render(TAGGED).forms["full"].body, wanted)

    def test_the_tags_are_cut_out(self) -> None:
        """All tags are cut out, even those of missing versions."""
        assert json.loads(dist_tags(render(TAGGED).forms["full"].body)) == TAGS
        assert json.loads(dist_tags(b'{"name":"thing"}')) == {}

    @pytest.mark.parametrize(
        ("time", "expected"),
        [
            ({"modified": "2026-01-02T03:04:05.678Z"}, "Fri, 02 Jan 2026 03:04:05 GMT"),
            ({"modified": "2026-01-02T03:04:05Z"}, "Fri, 02 Jan 2026 03:04:05 GMT"),
            ({"modified": "2026-01-02T05:04:05+02:00"}, "Fri, 02 Jan 2026 03:04:05 GMT"),
            ({"modified": "2026-01-02T03:04:05"}, "Fri, 02 Jan 2026 03:04:05 GMT"),
            ({"modified": "yesterday"}, ""),
            ({"modified": 5}, ""),
            ({}, ""),
            ("2026-01-02", ""),
            (None, ""),
        ],
    )
    def test_the_time_of_the_last_change_is_an_http_date(self, time: object, expected: str) -> None:
        """
        The time of the last change is an HTTP date for Last-Modified, which pnpm 12 reads.

        It is empty if upstream gives no valid time.
        """
        assert render(packument(time=time)).modified == expected


class TestOtherPages:
    """Pages other than packuments: signing keys and attestations."""

    @pytest.mark.parametrize("page", [PageId("keys"), PageId("attestations", "@acme/thing@1.0.0")])
    def test_other_pages_are_passed_on_unchanged(self, page: PageId) -> None:
        """Signed documents are passed on unchanged, and list no files."""
        body = b'{ "keys" : [ {"keyid":"SHA256:x", "key":"\\/"} ] }'
        rendered = npm.render(page, SourceDocument(body, FULL, f"{REGISTRY}/-/npm/v1/keys"), PageRules())
        assert {name: (each.body, each.based) for name, each in rendered.forms.items()} == {"full": (body, False)}
        assert (npm.listing_form(page, ["full"]), rendered.modified) == (None, "")

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"keys":'])
    def test_a_body_that_is_not_an_object_is_refused(self, body: bytes) -> None:
        """A body that is not a JSON object is refused. It is neither stored nor shown."""
        with pytest.raises(BadUpstreamResponse):
            npm.render(PageId("keys"), SourceDocument(body, FULL, REGISTRY), PageRules())


class TestRequestedLinks:
    """The links that clients request."""

    @pytest.mark.parametrize(
        ("link", "pages"),
        [
            ("thing/-/thing-1.0.0.tgz", (PAGE,)),
            ("@acme/thing/-/thing-1.0.0.tgz", (PageId("packument", "@acme/thing"),)),
            ("thing/-/whatever", (PAGE,)),
            ("thing/thing-1.0.0.tgz", ()),
            ("../-/x.tgz", (PageId("packument", ".."),)),
            ("a/b/-/x.tgz", ()),
        ],
    )
    def test_a_link_names_the_packument_that_may_list_it(self, link: str, pages: tuple[PageId, ...]) -> None:
        """A link names the packument that may list it. So a file is found even if nothing is known yet."""
        assert npm.pages_for(link) == pages

    @pytest.mark.parametrize(
        ("link", "key"),
        [
            ("thing/-/thing-1.0.0+b.tgz", "https/registry.example/thing/-/thing-1.0.0+b.tgz"),
            ("@acme/thing/-/thing-1.0.0.tgz", "https/registry.example/@acme/thing/-/thing-1.0.0.tgz"),
            ("thing/-/../../x", None),
        ],
    )
    def test_a_link_gives_the_storage_key(self, link: str, key: str | None) -> None:
        """
        A link gives the storage key if upstream's links are conventional.

        So a stored file is served with Redis emptied and upstream down.
        """
        assert npm.key_for(link) == key

    def test_key_of_a_link_is_that_of_the_listing(self) -> None:
        """The key from a link is the key from the listing."""
        files = listing(render(packument(version("1.0.0+build"), version("2.0.0"))))
        assert {link: file.key for link, file in files.items()} == {link: npm.key_for(link) for link in files}
