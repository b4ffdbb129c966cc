"""npm registries: a packument comes out as upstream wrote it, but for its tarball links, which lead here."""

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

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.ecosystems.npm import NPM, check_name, dist_tags, manifest
from mypypi.errors import BadRequest, BadUpstreamResponse, NotFound
from mypypi.interfaces import IEcosystem
from mypypi.model import BASE_PLACEHOLDER, Digest, PackageFile, PageId, PageRequest, RenderedPage, SourceDocument

BASE = BASE_PLACEHOLDER.decode()
REGISTRY = "https://registry.example"
FULL, ABBREVIATED = "application/json", "application/vnd.npm.install-v1+json"
PAGE = PageId("packument", "thing")

npm = NPM(REGISTRY)


def render(document: object, name: str = "thing", url: str = "") -> RenderedPage:
    """Render what an upstream sent: bytes and text as they are, everything else as JSON."""
    if isinstance(document, str):
        body = document.encode()
    else:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return npm.render(PageId("packument", name), SourceDocument(body, FULL, url or f"{REGISTRY}/{name}"), frozenset())


def packument(*versions: dict[str, Any], name: str = "thing", **fields: Any) -> dict[str, Any]:
    return {"name": name, "versions": {version["version"]: version for version in versions}, **fields}


def version(number: str = "1.0.0", tarball: str | None = None, name: str = "thing", **fields: Any) -> dict[str, Any]:
    """A version's object; `dist` is added to where its tarball is."""
    usual = f"{REGISTRY}/{name}/-/{name.rpartition('/')[2]}-{number}.tgz"
    dist = fields.pop("dist", {})
    return {"name": name, "version": number, **fields, "dist": {"tarball": tarball or usual, **dist}}


def form(rendered: RenderedPage, name: str = "full") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(rendered.forms[name].body)
    return document


def links(rendered: RenderedPage, name: str = "full") -> dict[str, str]:
    """The tarball links of a form, by version."""
    return {number: each["dist"]["tarball"] for number, each in form(rendered, name)["versions"].items()}


def listing(rendered: RenderedPage, name: str = "thing") -> dict[str, PackageFile]:
    return npm.listing(PageId("packument", name), {"files": rendered.forms["files"].body})


def listed(rendered: RenderedPage, link: str, name: str = "thing") -> PackageFile:
    """What the listing says of a link, as a client asks for it."""
    assert link.startswith(f"{BASE}/"), link
    return listing(rendered, name)[unquote(link.removeprefix(f"{BASE}/"))]


def integrity(algorithm: str, data: bytes = b"x") -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class TestTheTable:
    def test_knows_npm(self) -> None:
        """A package type's constructor takes upstream's URL and gives an ecosystem of that name."""
        ecosystem = ECOSYSTEMS["npm"](REGISTRY)
        assert verifyObject(IEcosystem, ecosystem)
        assert (ecosystem.name, ecosystem.scoped) == ("npm", True)

    def test_shows_what_to_type(self) -> None:
        """The line to copy names the registry as npm wants it."""
        assert npm.example("http://here.example:8080/") == "npm install --registry http://here.example:8080/ express"


class TestNames:
    @pytest.mark.parametrize(
        "name", ["a", "thing", "@acme/thing", "JSONStream", "@Acme/Thing", "a.b_c-d~", "-", "it's!"]
    )
    def test_that_can_be_are_kept_as_they_are(self, name: str) -> None:
        """Legacy names may have capitals and odd characters; nothing is normalised."""
        assert check_name(name) == name

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", ".hidden", "@acme", "@acme/", "@/thing", "a/b", "a b", "a\n", "é", "%41", "@a/b/c", "a" * 215],
    )
    def test_that_cannot_be_are_the_clients_mistake(self, name: str) -> None:
        """Nothing that could not be a package's name gets as far as upstream."""
        with pytest.raises(BadRequest, match="not the name of an npm package"):
            check_name(name)


class TestAskingUpstream:
    @pytest.mark.parametrize(
        ("page", "path"),
        [
            (PAGE, "/thing"),
            (PageId("packument", "@acme/thing"), "/@acme%2fthing"),
            (PageId("packument", "JSONStream"), "/JSONStream"),
            (PageId("keys"), "/-/npm/v1/keys"),
        ],
    )
    def test_has_a_path_for_each_page(self, page: PageId, path: str) -> None:
        """The scope's slash is sent as npm sends it; always the full form, of which the other is made."""
        assert npm.page_request(page) == PageRequest(path, FULL)

    def test_names_the_version_that_attestations_are_of(self) -> None:
        """In the form ``name@version``."""
        request = npm.page_request(PageId("attestations", "@acme/thing@1.0.0+build"))
        assert unquote(request.path) == "/-/npm/v1/attestations/@acme/thing@1.0.0+build"


#: Any JSON, as it may stand in a field that nobody here reads.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("tarball"), inner, max_size=3),
    max_leaves=8,
)
numbers = st.from_regex(r"[0-9]{1,3}\.[0-9]\.[0-9](-[a-z0-9.]{1,5})?(\+[a-z0-9.]{1,5})?", fullmatch=True)
#: Hosts, ports and layouts; each with a place for what tells the versions apart.
homes = st.sampled_from(
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
    """Packuments of several versions, each tarball somewhere else, full of fields that nobody knows."""
    versions = [
        version(number, draw(homes).format(place), extra=draw(anything), dist={"extra": draw(anything)})
        for place, number in enumerate(draw(st.lists(numbers, unique=True, max_size=4)))
    ]
    return packument(*versions, readme=draw(st.text()), extra=draw(anything))


#: What has the outline of a packument, with anything in the place of what is read.
oddities = st.fixed_dictionaries(
    {"name": st.just("thing")},
    optional={
        "versions": anything | st.dictionaries(st.text(), anything | st.fixed_dictionaries({"dist": anything | dists})),
        "time": anything,
        "dist-tags": anything,
    },
)


class TestFullPackuments:
    @given(document=packuments(), ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
    def test_are_upstreams_byte_for_byte_but_for_the_links(
        self,
        document: dict[str, Any],
        ascii_only: bool,  # noqa: FBT001 - hypothesis passes by name
        indent: int | None,
    ) -> None:
        """Signatures are made over what is in there: put upstream's links back, and it is what upstream sent."""
        body = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
        rendered = render(body)
        restored = rendered.forms["full"].body.decode()
        for number, link in links(rendered).items():
            url = document["versions"][number]["dist"]["tarball"]
            restored = restored.replace(json.dumps(link), json.dumps(url, ensure_ascii=ascii_only))
        assert restored == body

    @given(document=packuments())
    def test_have_links_that_lead_here_and_from_here_to_upstream(self, document: dict[str, Any]) -> None:
        """In both forms: every one in the conventional form, and known to the listing with upstream's own URL."""
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
    def test_keep_what_only_looks_like_a_tarball_link(self, field: dict[str, Any]) -> None:
        """In a readme, a string, another field, a dependency of that name."""
        rendered = render(packument(version("1.0.0", extra=field), **field))
        full = form(rendered)
        assert full["versions"]["1.0.0"].pop("extra") == field
        assert {name: full[name] for name in field} == field
        assert links(rendered) == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}

    def test_know_a_link_however_it_is_escaped(self) -> None:
        """JSON may write a slash, or any letter, in more than one way."""
        url = f"{REGISTRY}/thing/-/thing-1.0.0.tgz".replace("/", r"\/").replace("example", r"\u0065xample")
        rendered = render(f'{{"name":"thing","versions":{{"1.0.0":{{"dist":{{ "tarball" :\n"{url}"}}}}}}}}')
        assert links(rendered) == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}

    @pytest.mark.parametrize("readme", [r"cut \ud83d", r"\udc00 first", r"\\\ud83d", r"a pair \ud83d\ude00, \ud83d"])
    def test_with_half_a_character_are_read_all_the_same(self, readme: str) -> None:
        """The registry cuts readmes to a length, between the two halves of a character if need be."""
        body = json.dumps(packument(version(), readme="README")).replace("README", readme)
        rendered = render(body)
        assert readme.encode() in rendered.forms["full"].body
        assert links(rendered) == links(rendered, "abbreviated") == {"1.0.0": f"{BASE}/thing/-/thing-1.0.0.tgz"}
        assert json.loads(manifest(rendered.forms["full"].body, "1.0.0"))["version"] == "1.0.0"

    def test_are_marked_to_hold_this_servers_address(self) -> None:
        """Both forms, which the answer then fills in; their media types are those of the registry."""
        forms = render(packument(version())).forms
        assert [(forms[name].media_type, forms[name].based) for name in ("full", "abbreviated")] == [
            (FULL, True),
            (ABBREVIATED, True),
        ]

    def test_without_versions_are_packuments(self) -> None:
        """What is left of a package that was unpublished."""
        document = {"name": "thing", "time": {"unpublished": {"versions": ["1.0.0"]}}}
        rendered = render(document)
        assert (form(rendered), listing(rendered)) == (document, {})
        assert form(rendered, "abbreviated") == {"name": "thing", "dist-tags": {}, "versions": {}}

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[]", b'"x"', b'{"name":"thing","versions":[]}', b'{"name":"thing"']
    )
    def test_that_are_none_are_upstreams_mistake(self, body: bytes) -> None:
        """Never kept, never shown."""
        with pytest.raises(BadUpstreamResponse):
            render(body)

    def test_of_another_package_are_upstreams_mistake(self) -> None:
        """A registry that mixes them up would have clients install something else."""
        with pytest.raises(BadUpstreamResponse, match="another package"):
            render(packument(name="other"))

    @given(body=st.binary() | (anything | oddities).map(lambda each: json.dumps(each).encode()))
    def test_of_whatever_shape_are_pressed_or_refused(self, body: bytes) -> None:
        """No upstream brings us down with what it sends."""
        try:
            rendered = render(body)
        except BadUpstreamResponse:
            return
        assert form(rendered)["name"] == "thing"


class TestLinks:
    def test_of_a_scoped_package_have_its_scope_once(self) -> None:
        """``@scope/name/-/name-version.tgz``: so lock files keep the version only."""
        rendered = render(packument(version(name="@acme/thing"), name="@acme/thing"), "@acme/thing")
        assert links(rendered) == {"1.0.0": f"{BASE}/@acme/thing/-/thing-1.0.0.tgz"}
        assert (
            listed(rendered, links(rendered)["1.0.0"], "@acme/thing").url == f"{REGISTRY}/@acme/thing/-/thing-1.0.0.tgz"
        )

    def test_keep_a_plus_as_it_is(self) -> None:
        """Build metadata in a version: registries and clients write it so, and it is found as either."""
        rendered = render(packument(version("1.0.0+build.5")))
        assert links(rendered) == {"1.0.0+build.5": f"{BASE}/thing/-/thing-1.0.0+build.5.tgz"}
        assert "thing/-/thing-1.0.0+build.5.tgz" in listing(rendered)

    def test_of_legacy_names_keep_their_capitals(self) -> None:
        """They are other packages than those without."""
        rendered = render(packument(version(name="JSONStream"), name="JSONStream"), "JSONStream")
        assert links(rendered) == {"1.0.0": f"{BASE}/JSONStream/-/JSONStream-1.0.0.tgz"}

    def test_lead_to_a_file_by_upstreams_own_name_for_it_too(self) -> None:
        """Which a lock file that was written against upstream may have."""
        url = f"{REGISTRY}/thing/-/odd%20name.tgz"
        files = listing(render(packument(version("1.0.0", url))))
        assert {link: file.url for link, file in files.items()} == {
            "thing/-/thing-1.0.0.tgz": url,
            "thing/-/odd name.tgz": url,
        }

    def test_prefer_the_version_of_that_name_to_another_ones_file(self) -> None:
        """Where upstream's names are crossed, ours are not."""
        crossed = {"1.0.0": f"{REGISTRY}/thing/-/thing-2.0.0.tgz", "2.0.0": f"{REGISTRY}/thing/-/thing-1.0.0.tgz"}
        rendered = render(packument(*(version(number, url) for number, url in crossed.items())))
        assert {number: listed(rendered, link).url for number, link in links(rendered).items()} == crossed

    @pytest.mark.parametrize(
        "url", ["file:///etc/passwd", "https://user:secret@files.example/a.tgz", "//[", "ftp://x/a"]
    )
    def test_that_can_not_be_served_from_here_stay_as_they_are(self, url: str) -> None:
        """And nothing is fetched for them."""
        rendered = render(packument(version("1.0.0", url)))
        assert (links(rendered), listing(rendered)) == ({"1.0.0": url}, {})

    def test_that_are_relative_are_taken_from_where_the_packument_came(self) -> None:
        """After a redirect, that is another host."""
        rendered = render(packument(version("1.0.0", "-/thing.tgz")), url="https://mirror.example/npm/thing/")
        assert listed(rendered, links(rendered)["1.0.0"]).url == "https://mirror.example/npm/thing/-/thing.tgz"

    def test_of_a_version_without_one_are_none(self) -> None:
        """It is shown as upstream has it."""
        rendered = render(packument({"version": "1.0.0"}, {"version": "2.0.0", "dist": {"tarball": None}}))
        assert listing(rendered) == {}
        assert form(rendered)["versions"]["2.0.0"] == {"version": "2.0.0", "dist": {"tarball": None}}


class TestAbbreviatedPackuments:
    def test_have_what_an_installer_needs_and_no_more(self) -> None:
        """The fields of the registry's documentation, and those that it sends besides."""
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

    def test_are_made_of_pieces_that_stay_as_they_are(self) -> None:
        """A number keeps its digits, a string its escapes."""
        pieces = b'"engines":{"node":1.10,"e":1E400},"deprecated":"\\u00e9\\/"'
        rendered = render(b'{"name":"thing","versions":{"1.0.0":{"version":"1.0.0",%s}}}' % pieces)
        assert pieces in rendered.forms["abbreviated"].body

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
    def test_say_whether_installing_runs_a_script(self, fields: dict[str, Any], expected: bool | None) -> None:  # noqa: FBT001 - an example
        """As the registry does, which leaves the scripts themselves out."""
        short = form(render(packument(version(**fields))), "abbreviated")["versions"]["1.0.0"]
        assert (short.get("hasInstallScript"), "scripts" in short) == (expected, False)


class TestDigests:
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
    def test_are_the_strongest_that_the_version_gives(self, dist: dict[str, Any], expected: str) -> None:
        """Of its integrity (Subresource Integrity, section 3.5), else its shasum."""
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
    def test_that_make_no_sense_are_passed_over(self, useless: object) -> None:
        """The shasum counts then; where there is none, nothing can be checked."""
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
    @pytest.mark.parametrize(
        ("wanted", "number"),
        [("1.0.0", "1.0.0"), ("latest", "1.0.0"), ("next", "2.0.0-rc.1+b"), ("2.0.0-rc.1+b", "2.0.0-rc.1+b")],
    )
    def test_a_version_is_cut_out_by_number_or_tag(self, wanted: str, number: str) -> None:
        """As it stands in the packument, its link included."""
        full = render(TAGGED).forms["full"].body
        cut = manifest(full, wanted)
        assert cut in full
        assert json.loads(cut) == form(render(TAGGED))["versions"][number]

    @pytest.mark.parametrize("wanted", ["9.9.9", "gone", "^1", ""])
    def test_a_version_that_is_not_there_is_not_found(self, wanted: str) -> None:
        """Also where a tag names one."""
        with pytest.raises(NotFound, match="version not found"):
            manifest(render(TAGGED).forms["full"].body, wanted)

    def test_the_tags_are_cut_out(self) -> None:
        """All of them, also those of no version."""
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
        """For Last-Modified, which pnpm 12 reads; none where upstream gives none that is one."""
        assert render(packument(time=time)).modified == expected


class TestOtherPages:
    @pytest.mark.parametrize("page", [PageId("keys"), PageId("attestations", "@acme/thing@1.0.0")])
    def test_are_passed_on_as_they_are(self, page: PageId) -> None:
        """What is signed must not change; they list no files."""
        body = b'{ "keys" : [ {"keyid":"SHA256:x", "key":"\\/"} ] }'
        rendered = npm.render(page, SourceDocument(body, FULL, f"{REGISTRY}/-/npm/v1/keys"), frozenset())
        assert {name: (each.body, each.based) for name, each in rendered.forms.items()} == {"full": (body, False)}
        assert (npm.listing_form(page), rendered.modified) == (None, "")

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"keys":'])
    def test_that_are_no_documents_are_upstreams_mistake(self, body: bytes) -> None:
        """Never kept, never shown."""
        with pytest.raises(BadUpstreamResponse):
            npm.render(PageId("keys"), SourceDocument(body, FULL, REGISTRY), frozenset())


class TestLinksThatCome:
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
    def test_name_the_packument_that_may_list_them(self, link: str, pages: tuple[PageId, ...]) -> None:
        """From the link alone: a file can be found with nothing known yet."""
        assert npm.pages_for(link) == pages

    @pytest.mark.parametrize(
        ("link", "key"),
        [
            ("thing/-/thing-1.0.0+b.tgz", "https/registry.example/thing/-/thing-1.0.0+b.tgz"),
            ("@acme/thing/-/thing-1.0.0.tgz", "https/registry.example/@acme/thing/-/thing-1.0.0.tgz"),
            ("thing/-/../../x", None),
        ],
    )
    def test_name_their_place_in_the_storage(self, link: str, key: str | None) -> None:
        """Where upstream is conventional: a stored file is served with Redis emptied and upstream gone."""
        assert npm.key_for(link) == key

    def test_lie_where_the_listing_says(self) -> None:
        """The two ways to a file's place agree."""
        files = listing(render(packument(version("1.0.0+build"), version("2.0.0"))))
        assert {link: file.key for link, file in files.items()} == {link: npm.key_for(link) for link in files}
