"""Tests the promises about npm registries over HTTP, with a real daemon.

Upstream is a registry on loopback.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.conftest import Sites
from tests.rig.faults import Status
from tests.rig.host import FileHost
from tests.rig.http import Answer, get, head, post, raw
from tests.rig.packages import incompressible, make_tarball
from tests.rig.packuments import ABBREVIATED, FULL, Package
from tests.rig.registry import FakeRegistry
from tests.support.kinds import NPMKind
from tests.support.site import Site

_NUMBERS = count(1)

#: The Accept header of npm 6 and 8, pnpm, yarn 1 and bun.
INSTALLER = f"{ABBREVIATED}; q=1.0, {FULL}; q=0.8, */*"
#: How clients write the slash after a scope.
SLASHES = ["/", "%2f", "%2F"]
#: The daemon's limit for the body of a query; bytes.
LARGEST_BODY = 8 * 1024 * 1024


def ask(site: Site, path: str, method: str = "GET", **headers: str) -> Answer:
    return get(site.daemon.url + path, headers, method=method)


def document(answer: Answer) -> dict[str, Any]:
    assert (answer.status, answer.complete) == (200, True), answer
    found = answer.json()
    assert isinstance(found, dict)
    return found


def reason(answer: Answer) -> str:
    """Return the message of an error. The error is JSON, and npm shows the message."""
    found = answer.json()
    assert isinstance(found, dict)
    assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (FULL, "no-store")
    assert re.fullmatch(r"[^\x00-\x1f<>]{10,300}", found["error"])
    return str(found["error"])


def with_links_to(base: str, packument: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the packument with its tarball links below `base`, in the conventional form.

    All other fields are unchanged.
    """
    name = packument["name"]
    there: dict[str, Any] = json.loads(json.dumps(packument))
    for number, version in there["versions"].items():
        version["dist"]["tarball"] = f"{base}/{name}/-/{name.rpartition('/')[2]}-{number}.tgz"
    return there


def abbreviated(package: Package) -> dict[str, Any]:
    """Return the abbreviated form as the daemon has it: the registry's own lacks ``time``, which pnpm can use."""
    return {**package.abbreviated(), "time": package.full()["time"]}


@pytest.fixture
def registry(site: Site) -> FakeRegistry:
    assert isinstance(site.upstream, FakeRegistry)
    return site.upstream


@pytest.fixture
def name() -> str:
    """The name of a package that only this test uses."""
    return f"thing-{next(_NUMBERS):03}"


@pytest.fixture
def scoped(name: str) -> str:
    return f"@acme/{name}"


class OverHTTP:
    """Base of the classes below. The tests of a class share one registry and one daemon."""

    kind = NPMKind()


class TestPackuments(OverHTTP):
    """Tests packuments in full and abbreviated form. Except for the links, they are upstream's."""

    @pytest.fixture
    def detailed(self, registry: FakeRegistry, name: str) -> str:
        """A package whose packument has every kind of field."""
        registry.add(make_tarball(name, "1.0.0", funding="https://money.example"), extra={"deprecated": "use 1.1.0"})
        registry.add(make_tarball(name, "1.1.0", dependencies={"tarball": "^1.0.0"}, scripts={"install": "x"}))
        registry.add(make_tarball(name, "2.0.0-rc.1"), tag="next", attested=True)
        registry.add(make_tarball(name, "1.1.1+build.7"), tag=None, dist={"new": {"not": ["invented", 1.5, None]}})
        registry.describe(name, {"readme": f'"tarball":"{registry.url}/{name}/-/{name}-1.0.0.tgz" \ud83d', "new": 1})
        return name

    @pytest.mark.parametrize("accept", [FULL, None, "*/*", "text/html,application/xhtml+xml,*/*;q=0.8", f"{FULL}, */*"])
    def test_npm_10_and_yarn_4_get_the_full_one(
        self, site: Site, registry: FakeRegistry, detailed: str, accept: str
    ) -> None:
        """
        Clients that do not name the abbreviated form get the full one.

        It includes signatures, attestations and times.
        """
        answer = ask(site, f"/{detailed}", **({"Accept": accept} if accept else {}))
        assert answer.headers["Content-Type"] == FULL
        assert document(answer) == with_links_to(site.daemon.url, registry.package(detailed).full())

    @pytest.mark.parametrize("accept", [INSTALLER, ABBREVIATED, f"{FULL};q=0.5, {ABBREVIATED};q=0.9"])
    def test_installers_get_the_abbreviated_one(
        self, site: Site, registry: FakeRegistry, detailed: str, accept: str
    ) -> None:
        """The daemon abbreviates the full form, with the same result as upstream, and the times of all versions."""
        answer = ask(site, f"/{detailed}", Accept=accept)
        assert answer.headers["Content-Type"] == ABBREVIATED
        assert document(answer) == with_links_to(site.daemon.url, abbreviated(registry.package(detailed)))
        assert [request.headers["Accept"] for request in registry.seen(f"/{detailed}")] == [FULL]

    def test_a_registry_without_validators_is_served_in_both_forms(
        self, site: Site, registry: FakeRegistry, detailed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both forms have an ETag and a date that upstream did not send."""
        monkeypatch.setattr(registry, "plain", True)
        package = registry.package(detailed)
        for accept, expected in ((FULL, package.full()), (INSTALLER, abbreviated(package))):
            answer = ask(site, f"/{detailed}", Accept=accept)
            assert document(answer) == with_links_to(site.daemon.url, expected)
            assert answer.headers["Last-Modified"] == format_datetime(package.modified, usegmt=True)
            assert answer.headers["ETag"]

    def test_each_form_has_an_etag_of_its_own(self, site: Site, detailed: str) -> None:
        """Each form has its own ETag. Otherwise a cache between daemon and client would confuse the two."""
        full, short = (ask(site, f"/{detailed}", Accept=accept) for accept in (FULL, INSTALLER))
        assert full.headers["ETag"] != short.headers["ETag"]
        assert full.headers["Vary"] == short.headers["Vary"] == "Accept, Accept-Encoding"
        assert ask(site, f"/{detailed}", **{"Accept": INSTALLER, "If-None-Match": full.headers["ETag"]}).status == 200
        assert ask(site, f"/{detailed}", **{"Accept": INSTALLER, "If-None-Match": short.headers["ETag"]}).status == 304

    def test_a_head_has_the_date_of_the_last_change(self, site: Site, registry: FakeRegistry, detailed: str) -> None:
        """
        HEAD has a Last-Modified, also for a cold package.

        pnpm 12 sends it for each package of a frozen lock file.
        """
        answer = head(f"{site.daemon.url}/{detailed}", {"Accept": INSTALLER})
        modified = format_datetime(registry.package(detailed).modified, usegmt=True)
        assert (answer.status, answer.body, answer.headers["Last-Modified"]) == (200, b"", modified)

    def test_a_client_with_the_date_of_the_last_change_gets_304(
        self, site: Site, registry: FakeRegistry, detailed: str
    ) -> None:
        """If-Modified-Since counts if the client names no ETag (RFC 9110, section 13.2.2)."""
        package = registry.package(detailed)
        then, before = (
            format_datetime(each, usegmt=True) for each in (package.modified, package.versions["1.0.0"].published)
        )
        for since, status in ((then, 304), (before, 200), ("yesterday", 200)):
            answer = ask(site, f"/{detailed}", **{"If-Modified-Since": since})
            assert (answer.status, answer.headers["Last-Modified"]) == (status, then)
        other = {"If-None-Match": '"other"', "If-Modified-Since": then}
        assert ask(site, f"/{detailed}", **other).status == 200

    @pytest.mark.parametrize("slash", SLASHES)
    def test_of_scoped_packages_are_found_for_each_spelling_of_the_slash(
        self, site: Site, registry: FakeRegistry, scoped: str, slash: str
    ) -> None:
        """Every spelling of the slash finds the packument. Upstream is asked once, in npm's spelling."""
        registry.add(make_tarball(scoped))
        first = ask(site, f"/{scoped}")
        again = ask(site, f"/{scoped.replace('/', slash)}")
        assert document(again) == with_links_to(site.daemon.url, registry.package(scoped).full())
        assert (again.headers["ETag"], registry.count(f"/{scoped.replace('/', '%2f')}")) == (first.headers["ETag"], 1)

    def test_of_legacy_names_are_case_sensitive(self, site: Site, registry: FakeRegistry) -> None:
        """Names with capitals are packages of their own."""
        registry.add(make_tarball("JSONStream"))
        assert document(ask(site, "/JSONStream"))["name"] == "JSONStream"
        assert ask(site, "/jsonstream").status == 404

    def test_are_found_with_a_slash_or_a_query_after_the_name(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """A slash or a query after the name is ignored. Some clients add one."""
        registry.add(make_tarball(name))
        assert [document(ask(site, f"/{name}{end}"))["name"] for end in ("/", "?write=true")] == [name, name]


class TestAddresses(OverHTTP):
    """Tests the server's address in links. It is the address by which the client knows the server."""

    #: The setting that names the believed headers, headers, and the address that they tell.
    FORWARDED = (
        (
            "x-forwarded",
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "npm.example", "X-Forwarded-Prefix": "/cache"},
            "https://npm.example/cache",
        ),
        ("forwarded", {"Forwarded": 'for=192.0.2.7;proto=https;host="npm.example"'}, "https://npm.example"),
    )

    @pytest.mark.parametrize("accept", [FULL, INSTALLER])
    def test_the_host_of_the_request_is_in_the_links(self, site: Site, name: str, accept: str) -> None:
        """Each request has its own Host in the links, and its own ETag."""
        self.kind.publish(site.upstream, name, "1.0.0")
        answers = {host: ask(site, f"/{name}", Host=host, Accept=accept) for host in ("one.example", "two.example:81")}
        for host, answer in answers.items():
            assert self.kind.file_links("", document(answer)) == [f"http://{host}/{name}/-/{name}-1.0.0.tgz"]
        assert len({answer.headers["ETag"] for answer in answers.values()}) == 2

    @pytest.mark.parametrize("headers", [headers for _, headers, _ in FORWARDED])
    def test_forwarded_headers_of_an_untrusted_peer_are_ignored(
        self, site: Site, name: str, headers: dict[str, str]
    ) -> None:
        """Forwarded headers are ignored, since no peer is trusted by default."""
        self.kind.publish(site.upstream, name, "1.0.0")
        assert self._link(site, name, headers) == f"{site.daemon.url}/{name}/-/{name}-1.0.0.tgz"

    @pytest.mark.parametrize(("family", "headers", "address"), FORWARDED)
    def test_forwarded_headers_of_a_trusted_proxy_are_used(
        self, sites: Sites, name: str, family: str, headers: dict[str, str], address: str
    ) -> None:
        """Forwarded headers count only from peers in MYPYPI_TRUSTED_PROXIES."""
        trusting, doubting = (
            sites(self.kind, TRUSTED_PROXIES=each, TRUSTED_HEADERS=family)
            for each in ("192.0.2.1, 127.0.0.0/8", "192.0.2.1")
        )
        for site in (trusting, doubting):
            self.kind.publish(site.upstream, name, "1.0.0")
        assert self._link(trusting, name, headers) == f"{address}/{name}/-/{name}-1.0.0.tgz"
        assert self._link(doubting, name, headers) == f"{doubting.daemon.url}/{name}/-/{name}-1.0.0.tgz"

    def test_the_public_url_is_in_the_links_if_it_is_set(self, sites: Sites, name: str) -> None:
        """MYPYPI_PUBLIC_URL overrides the Host of every request."""
        site = sites(self.kind, PUBLIC_URL="https://npm.example/cache", TRUSTED_PROXIES="127.0.0.1")
        self.kind.publish(site.upstream, name, "1.0.0")
        for headers in ({}, {"Host": "other.example"}, {"X-Forwarded-Host": "other.example"}):
            assert self._link(site, name, headers) == f"https://npm.example/cache/{name}/-/{name}-1.0.0.tgz"

    def test_an_invalid_host_is_a_bad_request(self, site: Site, name: str) -> None:
        """An invalid Host gets 400, so that links have valid addresses only."""
        self.kind.publish(site.upstream, name, "1.0.0")
        answer = ask(site, f"/{name}", Host='x"><script>')
        assert (answer.status, "Host" in answer.text) == (400, True)

    def _link(self, site: Site, name: str, headers: Mapping[str, str]) -> str:
        (link,) = self.kind.file_links("", document(ask(site, f"/{name}", **headers)))
        return link


class TestVersionsAndTags(OverHTTP):
    """Tests the parts of a packument that have their own addresses."""

    @pytest.fixture(params=["{}", "@acme/{}"])
    def tagged(self, registry: FakeRegistry, name: str, request: pytest.FixtureRequest) -> str:
        package: str = request.param.format(name)
        registry.add(make_tarball(package, "1.0.0"))
        registry.add(make_tarball(package, "2.0.0-rc.1+b"), tag="next")
        return package

    @pytest.mark.parametrize("slash", SLASHES)
    @pytest.mark.parametrize(
        ("wanted", "number"),
        [
            ("1.0.0", "1.0.0"),
            ("latest", "1.0.0"),
            ("next", "2.0.0-rc.1+b"),
            ("2.0.0-rc.1+b", "2.0.0-rc.1+b"),
            ("2.0.0-rc.1%2Bb", "2.0.0-rc.1+b"),
        ],
    )
    def test_a_version_is_found_by_number_and_by_tag(
        self, site: Site, registry: FakeRegistry, tagged: str, wanted: str, number: str, slash: str
    ) -> None:
        """A version is the packument's own entry. Upstream is asked for the packument."""
        found = document(ask(site, f"/{tagged.replace('/', slash)}/{wanted}"))
        assert found == with_links_to(site.daemon.url, registry.package(tagged).full())["versions"][number]
        assert get(found["dist"]["tarball"]).body == registry.package(tagged).versions[number].tarball.content

    @pytest.mark.parametrize("slash", SLASHES)
    def test_the_tags_are_those_of_the_packument(self, site: Site, tagged: str, slash: str) -> None:
        """The tags have an address of their own, for ``npm dist-tag ls``."""
        found = document(ask(site, f"/-/package/{tagged.replace('/', slash)}/dist-tags"))
        assert found == {"latest": "1.0.0", "next": "2.0.0-rc.1+b"}

    @pytest.mark.parametrize("path", ["/{}/next", "/-/package/{}/dist-tags"])
    def test_a_part_has_an_etag_of_its_own(self, site: Site, tagged: str, path: str) -> None:
        """A part of a packument has its own ETag, gzip body and HEAD."""
        whole, part = ask(site, f"/{tagged}"), ask(site, path.format(tagged))
        assert part.headers["ETag"] != whole.headers["ETag"]
        assert ask(site, path.format(tagged), **{"If-None-Match": part.headers["ETag"]}).status == 304
        assert ask(site, path.format(tagged), **{"Accept-Encoding": "gzip"}).content == part.body
        assert ask(site, path.format(tagged), "HEAD").headers["Content-Length"] == str(len(part.body))

    def test_a_moved_tag_appears(self, sites: Sites, name: str) -> None:
        """A moved tag appears at once if the cache time is 0."""
        site = sites(self.kind, CACHE_TIME="0")
        registry = site.upstream
        assert isinstance(registry, FakeRegistry)
        for number in ("1.0.0", "2.0.0"):
            registry.add(make_tarball(name, number))
            assert document(ask(site, f"/{name}/latest"))["version"] == number
        registry.tag(name, "latest", "1.0.0")
        assert document(ask(site, f"/{name}/latest"))["version"] == "1.0.0"
        assert document(ask(site, f"/-/package/{name}/dist-tags")) == {"latest": "1.0.0"}

    @pytest.mark.parametrize("wanted", ["9.9.9", "beta", "^1.0.0"])
    def test_a_version_that_is_not_there_is_404(self, site: Site, tagged: str, wanted: str) -> None:
        answer = ask(site, f"/{tagged}/{quote(wanted)}")
        assert (answer.status, reason(answer)) == (404, f"version not found: {wanted}")


class TestTarballs(OverHTTP):
    """
    Tests tarballs under their conventional paths.

    They are found wherever upstream has them, and checked against the packument.
    """

    def test_of_scoped_packages_are_found_for_each_spelling_of_the_slash(
        self, site: Site, registry: FakeRegistry, scoped: str
    ) -> None:
        """Every spelling of the slash finds the tarball. yarn 4 encodes it in a tarball's path too."""
        tarball = make_tarball(scoped)
        registry.add(tarball)
        paths = [f"/{scoped.replace('/', slash)}/-/{tarball.filename}" for slash in SLASHES]
        assert [ask(site, path).body for path in paths] == [tarball.content] * 3
        assert registry.count(f"/{scoped}/-/{tarball.filename}") == 1

    def test_are_recognised_by_their_path(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """A tarball is sent for any Accept header. pnpm and yarn 1 send that of a packument."""
        tarball = make_tarball(name)
        registry.add(tarball)
        answer = ask(site, f"/{name}/-/{tarball.filename}", Accept=INSTALLER, **{"Accept-Encoding": "gzip, br"})
        assert (answer.status, answer.body, answer.headers["Content-Encoding"]) == (200, tarball.content, None)

    @pytest.mark.parametrize(
        "path",
        [
            "/download/{name}/1.0.0/anything.tgz",
            "/{name}/-/{name}/Odd%20Name-v1.0.0.tar.gz",
            "/{name}/-/odd.tgz?token=a%2Fb&x=1",
            "/npm/{name}/download/{name}-1.0.0.tgz",
        ],
    )
    @pytest.mark.parametrize("elsewhere", [True, False])
    def test_on_another_host_port_or_path_are_served(
        self, site: Site, registry: FakeRegistry, name: str, path: str, *, elsewhere: bool
    ) -> None:
        """Every tarball has the conventional link. Once it is stored, it is served without upstream."""
        tarball = make_tarball(name)
        with FileHost() as other:
            host = other if elsewhere else registry
            registry.add(tarball, at=host, path=path.format(name=name))
            (link,) = self.kind.file_links("", document(ask(site, f"/{name}")))
            assert link == f"{site.daemon.url}/{name}/-/{name}-1.0.0.tgz"
            assert get(link).body == tarball.content
            site.daemon.wait_for_log(rf"stored \S*{name}")
            site.settle()
        with registry.refusing():
            assert get(link).body == tarball.content

    def test_are_found_by_upstreams_filename(self, site: Site, registry: FakeRegistry, scoped: str) -> None:
        """
        A tarball is found by upstream's filename, without an earlier page request.

        A lock file that was written with upstream has that name.
        """
        tarball = make_tarball(scoped)
        registry.add(tarball, path=f"/{scoped}/-/acme-odd_name-v1.tgz")
        assert ask(site, f"/{scoped}/-/acme-odd_name-v1.tgz").body == tarball.content
        assert ask(site, f"/{scoped}/-/{tarball.filename}").body == tarball.content
        assert registry.count(f"/{scoped}/-/acme-odd_name-v1.tgz") == 1

    @pytest.mark.parametrize("plus", ["+", "%2B", "%2b"])
    def test_with_a_plus_in_their_name_are_found_for_each_spelling(
        self, site: Site, registry: FakeRegistry, name: str, plus: str
    ) -> None:
        """Every spelling of the plus in build metadata finds the tarball."""
        tarball = make_tarball(name, "1.0.0+build.7")
        registry.add(tarball)
        assert ask(site, f"/{name}/-/{tarball.filename.replace('+', plus)}").body == tarball.content

    @pytest.mark.parametrize(
        ("says", "agrees"),
        [
            ({}, True),
            ({"integrity": None}, True),
            ({"shasum": "0" * 40}, True),
            ({"integrity": "garbage"}, True),
            ({"integrity": "sha1-AAAA sha512-"}, True),
            ({"integrity": "", "shasum": None}, True),
            ({"integrity": f"sha512-{base64.b64encode(bytes(64)).decode()}"}, False),
            ({"integrity": f"sha1-{base64.b64encode(bytes(20)).decode()}"}, False),
            ({"integrity": None, "shasum": "0" * 40}, False),
        ],
    )
    def test_are_checked_against_the_strongest_digest_of_the_version(
        self, site: Site, registry: FakeRegistry, name: str, says: dict[str, object], *, agrees: bool
    ) -> None:
        """
        A tarball is checked against its integrity, or else its shasum.

        A wrong digest aborts the transfer, and nothing is stored.
        """
        tarball = make_tarball(name, padding=100_000)
        registry.add(tarball, dist=says)
        path = f"/{name}/-/{tarball.filename}"
        for times in (1, 2):
            answer = ask(site, path)
            assert (answer.status, answer.complete) == (200, agrees)
            assert (answer.body == tarball.content) == agrees
            assert tarball.content.startswith(answer.body)
            if agrees:
                site.daemon.wait_for_log(rf"stored \S*{re.escape(tarball.filename)}")
            assert registry.count(path) == (1 if agrees else times)
        assert bool(list(site.data.glob(f"files/**/{tarball.filename}/*"))) == agrees

    def test_that_upstream_lost_are_404_and_others_are_served(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """A tarball that upstream lost is 404, as it is upstream."""
        there, lost = make_tarball(name, "1.0.0"), make_tarball(name, "2.0.0")
        registry.add(there)
        registry.add(lost)
        registry.drop(f"/{name}/-/{lost.filename}")
        assert reason(ask(site, f"/{name}/-/{lost.filename}"))
        assert ask(site, f"/{name}/-/{lost.filename}").status == 404
        assert ask(site, f"/{name}/-/{there.filename}").body == there.content

    def test_that_no_version_lists_are_404_without_an_upstream_request(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """Only listed tarballs can be fetched, although upstream would serve others."""
        registry.add(make_tarball(name))
        registry.put(f"/{name}/-/secret.tgz", b"nobody lists me")
        answer = ask(site, f"/{name}/-/secret.tgz")
        assert (answer.status, registry.count(f"/{name}/-/secret.tgz")) == (404, 0)
        assert reason(answer)


class TestSignatures(OverHTTP):
    """Tests the data that ``npm audit signatures`` needs."""

    @pytest.mark.parametrize("package", ["{}", "@acme/{}"])
    def test_are_valid_for_the_keys_of_the_daemon(
        self, site: Site, registry: FakeRegistry, name: str, package: str
    ) -> None:
        """
        Signatures can be verified with data from the daemon alone.

        A signature is over name, version and integrity (npm's documentation, "ECDSA registry signatures").
        """
        registry.add(make_tarball(package.format(name)))
        keys = {key["keyid"]: key["key"] for key in document(ask(site, "/-/npm/v1/keys"))["keys"]}
        version = document(ask(site, f"/{package.format(name)}"))["versions"]["1.0.0"]
        (signature,) = version["dist"]["signatures"]
        message = f"{version['name']}@{version['version']}:{version['dist']['integrity']}".encode()
        key = load_der_public_key(base64.b64decode(keys[signature["keyid"]]))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(base64.b64decode(signature["sig"]), message, ec.ECDSA(SHA256()))

    def test_keys_and_attestations_are_cached(self, site: Site, registry: FakeRegistry, name: str, scoped: str) -> None:
        """
        Keys and attestations are requested from upstream once. They are then served without upstream.

        The scope's slash may have any spelling.
        """
        for package in (name, scoped):
            registry.add(make_tarball(package), attested=True)
        paths = ["/-/npm/v1/keys", f"/-/npm/v1/attestations/{name}@1.0.0"]
        paths += [f"/-/npm/v1/attestations/{scoped.replace('/', slash)}@1.0.0" for slash in SLASHES]
        first = [ask(site, path) for path in paths]
        with registry.refusing():
            again = [ask(site, path) for path in paths]
        assert [document(each) for each in again] == [document(each) for each in first]
        assert [each.headers["Cache-Status"].startswith("MyPyPi; hit") for each in again] == [True] * 5
        assert document(first[0]) == registry.keys()
        assert document(first[1])["attestations"][0]["predicateType"] == "https://slsa.dev/provenance/v1"
        assert document(first[1]) != document(first[2]) == document(first[3]) == document(first[4])
        assert len([request for request in registry.seen("/-/npm/v1/attestations/") if name in request.path]) == 2

    def test_attestations_that_are_not_there_are_404(self, site: Site, registry: FakeRegistry, name: str) -> None:
        registry.add(make_tarball(name))
        for spec in (f"{name}@1.0.0", f"{name}@9.9.9", name):
            answer = ask(site, f"/-/npm/v1/attestations/{spec}")
            assert answer.status == 404
            assert reason(answer)

    def test_keys_of_a_registry_without_keys_are_404(self, sites: Sites) -> None:
        """A registry without keys answers 404, as npm expects."""
        site = sites(self.kind, CACHE_TIME="299")
        assert isinstance(site.upstream, FakeRegistry)
        site.upstream.plain = True
        assert ask(site, "/-/npm/v1/keys").status == 404


class TestQueries(OverHTTP):
    """
    Tests searches and audits, which the daemon passes on.

    They are not cached: each answer is for one query, and an old answer misleads.
    """

    AUDITS = ("advisories/bulk", "audits/quick", "audits")

    @staticmethod
    def _audit(site: Site, kind: str, query: bytes, **headers: str) -> Answer:
        url = f"{site.daemon.url}/-/npm/v1/security/{kind}"
        return post(url, query, {"Content-Type": FULL, **headers})

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    @pytest.mark.parametrize("kind", AUDITS)
    def test_an_audit_is_passed_on_as_it_is_and_never_cached(
        self, site: Site, registry: FakeRegistry, name: str, kind: str, encoding: str
    ) -> None:
        """
        An audit reaches upstream unchanged and is never cached.

        npm and bun send it as gzip. A new advisory is in the next answer.
        """
        query = {name: ["1.0.0"]} if kind == "advisories/bulk" else {"dependencies": {name: {"version": "1.0.0"}}}
        body = json.dumps(query).encode()
        if encoding == "gzip":
            body = gzip.compress(body, mtime=0)
        send = partial(self._audit, site, kind, body, **{"Content-Encoding": encoding})
        before = send()
        registry.advise(name, "<2.0.0")
        after = send()
        assert ("<2.0.0" in before.text, "<2.0.0" in after.text) == (False, True)
        assert registry.audits[-2:] == [query, query]
        asked = registry.seen(f"/-/npm/v1/security/{kind}")[-2:]
        assert [(request.body, request.headers["Content-Encoding"]) for request in asked] == [(body, encoding)] * 2
        for answer in (before, after):
            assert (answer.status, answer.headers["Cache-Status"]) == (200, "MyPyPi; fwd=bypass")
            assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (FULL, "no-store")

    def test_a_search_is_passed_on_with_its_query(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """A search reaches upstream with its query and is never cached."""
        query = f"text={name}&size=20&from=0&quality=0.65&popularity=0.98&maintenance=0.5"
        found = []
        for number in ("1.0.0", "2.0.0"):
            registry.add(make_tarball(name, number))
            answer = ask(site, f"/-/v1/search?{query}")
            found += [each["package"]["version"] for each in document(answer)["objects"]]
            assert answer.headers["Cache-Control"] == "no-store"
        assert found == ["1.0.0", "2.0.0"]
        assert [request.query for request in registry.seen("/-/v1/search")][-2:] == [query, query]

    def test_a_clients_credentials_are_not_passed_on(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """The client's tokens and cookies do not reach upstream. Headers that describe the query do."""
        private = {
            "Authorization": "Bearer s3cret",
            "Cookie": "a=b",
            "npm-session": "0123",
            "X-Forwarded-For": "192.0.2.7",
        }
        self._audit(site, "advisories/bulk", b"{}", **private, **{"User-Agent": "npm/11.19.0", "Accept": "*/*"})
        headers = registry.seen("/-/npm/v1/security/advisories/bulk")[-1].headers
        assert [headers[each] for each in private] == [None] * 4
        assert [headers[each] for each in ("User-Agent", "Accept", "Content-Type")] == ["npm/11.19.0", "*/*", FULL]

    def test_upstreams_credentials_are_sent(self, sites: Sites, name: str) -> None:
        """A private registry gets upstream's credentials with each query."""
        site = sites(self.kind, auth=("someone", "s3cret-word"))
        self.kind.publish(site.upstream, name)
        assert [each["package"]["name"] for each in document(ask(site, f"/-/v1/search?text={name}"))["objects"]] == [
            name
        ]
        assert document(self._audit(site, "advisories/bulk", b"{}")) == {}

    @pytest.mark.parametrize("status", [400, 404, 429, 500])
    def test_upstreams_status_is_passed_on(self, sites: Sites, status: int) -> None:
        """
        The client gets upstream's status and Retry-After.

        The daemon remembers the Retry-After, so each test has its own daemon.
        """
        site = sites(self.kind, NEGATIVE_CACHE_TIME=str(status))
        fault = site.upstream.fault("/-/npm/v1/security/advisories/bulk", Status(status, retry_after=7), times=1)
        answer = self._audit(site, "advisories/bulk", b"{}")
        fault.wait_served()
        assert (answer.status, answer.headers["Retry-After"]) == (status, "7")

    @pytest.mark.parametrize("kind", AUDITS)
    def test_a_large_audit_is_passed_on(self, site: Site, registry: FakeRegistry, kind: str) -> None:
        """An audit of a project with 50,000 packages is passed on."""
        names = {f"package-{number}": ["1.0.0"] for number in range(50_000)}
        query = names if kind == "advisories/bulk" else {"dependencies": names}
        assert self._audit(site, kind, json.dumps(query).encode()).status == 200
        assert registry.audits[-1] == query

    def test_a_query_that_is_too_large_is_413(self, site: Site, registry: FakeRegistry) -> None:
        """
        Upstream never gets a query that is too large.

        Its length may be announced or not. The client may wait for the answer or send the whole body.
        """
        before = registry.connections
        body = bytes(LARGEST_BODY + 1024 * 1024)
        start = b"POST /-/npm/v1/security/advisories/bulk HTTP/1.1\r\nHost: here\r\n"
        announced = start + b"Content-Length: %d\r\n\r\n" % len(body)
        chunked = start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        for data in (announced, announced + body, chunked):
            answer = raw("127.0.0.1", site.daemon.port, data)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.count(b"HTTP/1.1") == answer.count(b'{"error":') == 1
        assert registry.connections == before

    def test_ping_is_answered_by_the_daemon(self, site: Site, registry: FakeRegistry) -> None:
        """A ping works while upstream is down."""
        with registry.refusing():
            assert document(ask(site, "/-/ping?write=true")) == {}

    @pytest.mark.parametrize(
        "path",
        [
            "/-/whoami",
            "/-/npm/v1/user",
            "/-/npm/v1/tokens",
            "/-/user/org.couchdb.user:someone",
            "/-/team/acme/developers/user",
            "/-/org/acme/user",
            "/-/package/thing/collaborators",
            "/-/package/@acme%2fthing/access",
        ],
    )
    def test_requests_for_users_are_401(self, site: Site, registry: FakeRegistry, path: str) -> None:
        """The daemon answers 401 itself, since it has no users."""
        answer = ask(site, path, Authorization="Bearer s3cret")
        assert (answer.status, "no users" in reason(answer), "read-only" in reason(answer)) == (401, True, True)
        assert registry.count(path) == 0


class TestRefusals(OverHTTP):
    """Tests refused requests, which get JSON with a reason."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", "/thing"),
            ("PUT", "/@acme%2fthing"),
            ("DELETE", "/thing/-rev/1-0123"),
            ("DELETE", "/thing/-/thing-1.0.0.tgz/-rev/1-0123"),
            ("PATCH", "/thing"),
            ("POST", "/thing"),
            ("PUT", "/-/user/org.couchdb.user:someone"),
            ("POST", "/-/npm/v1/tokens"),
            ("PUT", "/-/package/thing/dist-tags/beta"),
            ("DELETE", "/-/package/thing/dist-tags/beta"),
            ("POST", "/-/v1/search"),
            ("POST", "/"),
        ],
    )
    def test_every_write_is_405(self, site: Site, registry: FakeRegistry, method: str, path: str) -> None:
        """A write is refused, since the registry is read-only. Upstream gets no request."""
        before = registry.connections
        answer = get(site.daemon.url + path, {"Content-Type": FULL}, method=method, body=b"{}")
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert "read-only" in reason(answer)
        assert registry.connections == before

    def test_a_login_is_501(self, site: Site, registry: FakeRegistry) -> None:
        """A login in the browser is refused with 501. After a 4xx, npm asks for a password."""
        before = registry.connections
        answer = get(f"{site.daemon.url}/-/v1/login", {"Content-Type": FULL}, method="POST", body=b"{}")
        assert (answer.status, "read-only" in reason(answer)) == (501, True)
        assert registry.connections == before

    @pytest.mark.parametrize("kind", TestQueries.AUDITS)
    def test_an_audit_that_is_not_posted_is_405(self, site: Site, kind: str) -> None:
        answer = ask(site, f"/-/npm/v1/security/{kind}")
        assert (answer.status, answer.headers["Allow"], "POST" in reason(answer)) == (405, "POST", True)

    @pytest.mark.parametrize(
        "path",
        [
            "/..",
            "/%2e%2e",
            "/.hidden",
            "/@acme",
            "/@acme%2f",
            "/@%2fthing",
            "/a%2fb",
            "/@acme%2fthing%2fmore",
            "/@acme%2f..%2fthing",
            "/@acme/%2e%2e",
            "/a%00b",
            "/a%5cb",
            "/a%20b",
            "/%ff",
            "/%C3%A9",
            "/a%",
            "/a%zz",
            "//a",
            f"/{'a' * 215}",
            "/.hidden/1.0.0",
            "/.hidden/-/x.tgz",
            "/-/package/.hidden/dist-tags",
            "/-/npm/v1/attestations/.hidden@1.0.0",
            "/thing/-/..",
            "/thing/-/a%2fb.tgz",
        ],
    )
    def test_an_invalid_name_is_400(self, site: Site, registry: FakeRegistry, path: str) -> None:
        """An invalid name is refused without a request to upstream. The log has only the request's line."""
        before, start = registry.connections, len(site.daemon.log)
        answer = ask(site, path)
        assert (answer.status, registry.connections) == (400, before)
        assert reason(answer)
        site.settle()
        assert "Traceback" not in site.daemon.log[start:]

    def test_an_unknown_package_is_404(self, site: Site, registry: FakeRegistry, name: str, scoped: str) -> None:
        """Every address of an unknown package is 404, with JSON. Upstream is asked once."""
        for package in (name, scoped):
            for path in (
                f"/{package}",
                f"/{package}/latest",
                f"/-/package/{package}/dist-tags",
                f"/{package}/-/x-1.tgz",
            ):
                answer = ask(site, path, Accept=INSTALLER if path == f"/{package}" else FULL)
                assert answer.status == 404
                assert reason(answer)
        assert (registry.count(f"/{name}"), registry.count(f"/{scoped.replace('/', '%2f')}")) == (1, 1)

    @pytest.mark.parametrize(
        "path",
        [
            "/{}",
            "/@acme%2f{}",
            "/{}/latest",
            "/{}/-/{}-1.0.0.tgz",
            "/-/package/{}/dist-tags",
            "/-/npm/v1/keys",
            "/-/npm/v1/attestations/{}@1.0.0",
            "/-/v1/search?text={}",
        ],
    )
    def test_an_upstream_that_is_down_is_503_and_never_404(
        self, site: Site, registry: FakeRegistry, name: str, path: str
    ) -> None:
        """
        Every address is 503 with Retry-After while upstream is down.

        A client would take 404 to mean that there is no package.
        """
        with registry.refusing():
            answer = ask(site, path.format(name, name))
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert "upstream can't be reached" in reason(answer)

    @pytest.mark.parametrize("kind", TestQueries.AUDITS)
    def test_an_audit_while_upstream_is_down_is_503(self, site: Site, registry: FakeRegistry, kind: str) -> None:
        """An audit is 503 with Retry-After while upstream is down. An install continues without its audit."""
        with registry.refusing():
            answer = post(f"{site.daemon.url}/-/npm/v1/security/{kind}", b"{}", {"Content-Type": FULL})
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert reason(answer)

    @pytest.mark.parametrize("path", ["/thing/-/x/y", "/-/v1/unheard-of", "/-/npm/v1/security"])
    def test_an_unknown_address_is_refused(self, site: Site, path: str) -> None:
        answer = get(site.daemon.url + path, method="POST" if path.endswith("security") else "GET")
        assert answer.status in (404, 405)
        assert reason(answer)


class TestLargePackuments(OverHTTP):
    """Tests packuments of tens of megabytes."""

    def test_one_of_20_mb_does_not_delay_small_ones(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """Small packuments are served while a large one is processed."""
        for number in range(400):
            tarball = make_tarball(name, f"1.{number}.0")
            registry.add(tarball, extra={"notes": incompressible(25_000, tarball.version).hex()})
        small = f"{name}-small"
        registry.add(make_tarball(small))
        assert document(ask(site, f"/{small}"))["name"] == small
        waits = []
        with ThreadPoolExecutor(1) as pool:
            large = pool.submit(ask, site, f"/{name}", Accept=FULL)
            registry.wait_for(lambda: any(request.done for request in registry.seen(f"/{name}")))
            while not large.done():
                began = time.monotonic()
                assert ask(site, f"/{small}", Accept=FULL).status == 200
                waits.append(time.monotonic() - began)
        assert len(waits) >= 3, "the large packument was processed before any small request could wait"
        assert max(waits) < 1
        answer = large.result()
        assert len(answer.body) > 20_000_000
        assert document(answer) == with_links_to(site.daemon.url, registry.package(name).full())
        short = ask(site, f"/{name}", **{"Accept": INSTALLER, "Accept-Encoding": "gzip"})
        assert document(short) == with_links_to(site.daemon.url, abbreviated(registry.package(name)))
        (link, *_) = self.kind.file_links("", document(short))
        assert get(link).body == registry.package(name).versions["1.0.0"].tarball.content
