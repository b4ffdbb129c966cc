"""What is promised of npm registries over HTTP, with a real daemon before a registry on loopback."""

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
from tests.rig.packuments import ABBREVIATED, FULL
from tests.rig.registry import FakeRegistry
from tests.support.kinds import NPMKind
from tests.support.site import Site

_NUMBERS = count(1)

#: What npm 6 and 8, pnpm, yarn 1 and bun send.
INSTALLER = f"{ABBREVIATED}; q=1.0, {FULL}; q=0.8, */*"
#: The three ways in which clients write the slash after a scope.
SLASHES = ["/", "%2f", "%2F"]
LARGEST_BODY = 8 * 1024 * 1024


def ask(site: Site, path: str, method: str = "GET", **headers: str) -> Answer:
    return get(site.daemon.url + path, headers, method=method)


def document(answer: Answer) -> dict[str, Any]:
    assert (answer.status, answer.complete) == (200, True), answer
    found = answer.json()
    assert isinstance(found, dict)
    return found


def reason(answer: Answer) -> str:
    """The sentence of an error, which is JSON, as npm shows it."""
    found = answer.json()
    assert isinstance(found, dict)
    assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (FULL, "no-store")
    assert re.fullmatch(r"[^\x00-\x1f<>]{10,300}", found["error"])
    return str(found["error"])


def pointing_to(base: str, packument: Mapping[str, Any]) -> dict[str, Any]:
    """The packument with each tarball link in the conventional form below this address; all else as it is."""
    name = packument["name"]
    there: dict[str, Any] = json.loads(json.dumps(packument))
    for number, version in there["versions"].items():
        version["dist"]["tarball"] = f"{base}/{name}/-/{name.rpartition('/')[2]}-{number}.tgz"
    return there


@pytest.fixture
def registry(site: Site) -> FakeRegistry:
    assert isinstance(site.upstream, FakeRegistry)
    return site.upstream


@pytest.fixture
def name() -> str:
    """Of a package that this test alone knows."""
    return f"thing-{next(_NUMBERS):03}"


@pytest.fixture
def scoped(name: str) -> str:
    return f"@acme/{name}"


class OverHTTP:
    """What the classes below have in common: each has one registry, and one daemon before it."""

    kind = NPMKind()


class TestPackuments(OverHTTP):
    """In full or abbreviated: as upstream wrote them, but for the links."""

    @pytest.fixture
    def eventful(self, registry: FakeRegistry, name: str) -> str:
        """A package with all that a packument may have."""
        registry.add(make_tarball(name, "1.0.0", funding="https://money.example"), extra={"deprecated": "use 1.1.0"})
        registry.add(make_tarball(name, "1.1.0", dependencies={"tarball": "^1.0.0"}, scripts={"install": "x"}))
        registry.add(make_tarball(name, "2.0.0-rc.1"), tag="next", attested=True)
        registry.add(make_tarball(name, "1.1.1+build.7"), tag=None, dist={"new": {"not": ["invented", 1.5, None]}})
        registry.describe(name, {"readme": f'"tarball":"{registry.url}/{name}/-/{name}-1.0.0.tgz" \ud83d', "new": 1})
        return name

    @pytest.mark.parametrize("accept", [FULL, None, "*/*", "text/html,application/xhtml+xml,*/*;q=0.8", f"{FULL}, */*"])
    def test_npm_10_and_yarn_4_get_the_full_one(
        self, site: Site, registry: FakeRegistry, eventful: str, accept: str
    ) -> None:
        """And whoever does not ask for the other one by its name: signatures, attestations, time and all."""
        answer = ask(site, f"/{eventful}", **({"Accept": accept} if accept else {}))
        assert answer.headers["Content-Type"] == FULL
        assert document(answer) == pointing_to(site.daemon.url, registry.package(eventful).full())

    @pytest.mark.parametrize("accept", [INSTALLER, ABBREVIATED, f"{FULL};q=0.5, {ABBREVIATED};q=0.9"])
    def test_installers_get_the_abbreviated_one(
        self, site: Site, registry: FakeRegistry, eventful: str, accept: str
    ) -> None:
        """Made here, of the full one: the same as upstream's own."""
        answer = ask(site, f"/{eventful}", Accept=accept)
        assert answer.headers["Content-Type"] == ABBREVIATED
        assert document(answer) == pointing_to(site.daemon.url, registry.package(eventful).abbreviated())
        assert [request.headers["Accept"] for request in registry.seen(f"/{eventful}")] == [FULL]

    def test_a_registry_that_sends_nothing_but_the_body_is_served_in_both(
        self, site: Site, registry: FakeRegistry, eventful: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With an ETag and a date all the same."""
        monkeypatch.setattr(registry, "plain", True)
        package = registry.package(eventful)
        for accept, expected in ((FULL, package.full()), (INSTALLER, package.abbreviated())):
            answer = ask(site, f"/{eventful}", Accept=accept)
            assert document(answer) == pointing_to(site.daemon.url, expected)
            assert answer.headers["Last-Modified"] == format_datetime(package.modified, usegmt=True)
            assert answer.headers["ETag"]

    def test_the_two_forms_have_etags_of_their_own(self, site: Site, eventful: str) -> None:
        """Or a cache between us and the clients would take the one for the other."""
        full, short = (ask(site, f"/{eventful}", Accept=accept) for accept in (FULL, INSTALLER))
        assert full.headers["ETag"] != short.headers["ETag"]
        assert full.headers["Vary"] == short.headers["Vary"] == "Accept, Accept-Encoding"
        assert ask(site, f"/{eventful}", **{"Accept": INSTALLER, "If-None-Match": full.headers["ETag"]}).status == 200
        assert ask(site, f"/{eventful}", **{"Accept": INSTALLER, "If-None-Match": short.headers["ETag"]}).status == 304

    def test_a_head_says_when_it_was_changed(self, site: Site, registry: FakeRegistry, eventful: str) -> None:
        """So asks pnpm 12 for each package of a frozen lock file, cold ones included."""
        answer = head(f"{site.daemon.url}/{eventful}", {"Accept": INSTALLER})
        modified = format_datetime(registry.package(eventful).modified, usegmt=True)
        assert (answer.status, answer.body, answer.headers["Last-Modified"]) == (200, b"", modified)

    def test_who_has_it_since_it_was_changed_gets_304(self, site: Site, registry: FakeRegistry, eventful: str) -> None:
        """By date, where the client names no etag (RFC 9110, section 13.2.2)."""
        package = registry.package(eventful)
        then, before = (
            format_datetime(each, usegmt=True) for each in (package.modified, package.versions["1.0.0"].published)
        )
        for since, status in ((then, 304), (before, 200), ("yesterday", 200)):
            answer = ask(site, f"/{eventful}", **{"If-Modified-Since": since})
            assert (answer.status, answer.headers["Last-Modified"]) == (status, then)
        other = {"If-None-Match": '"other"', "If-Modified-Since": then}
        assert ask(site, f"/{eventful}", **other).status == 200

    @pytest.mark.parametrize("slash", SLASHES)
    def test_of_scoped_packages_are_found_however_the_slash_is_written(
        self, site: Site, registry: FakeRegistry, scoped: str, slash: str
    ) -> None:
        """And upstream is asked as npm would, once for all the ways."""
        registry.add(make_tarball(scoped))
        first = ask(site, f"/{scoped}")
        again = ask(site, f"/{scoped.replace('/', slash)}")
        assert document(again) == pointing_to(site.daemon.url, registry.package(scoped).full())
        assert (again.headers["ETag"], registry.count(f"/{scoped.replace('/', '%2f')}")) == (first.headers["ETag"], 1)

    def test_of_legacy_names_are_found_under_their_capitals_alone(self, site: Site, registry: FakeRegistry) -> None:
        """They are other packages than those without."""
        registry.add(make_tarball("JSONStream"))
        assert document(ask(site, "/JSONStream"))["name"] == "JSONStream"
        assert ask(site, "/jsonstream").status == 404

    def test_are_found_with_a_slash_or_a_query_after_the_name(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """Which some clients write."""
        registry.add(make_tarball(name))
        assert [document(ask(site, f"/{name}{end}"))["name"] for end in ("/", "?write=true")] == [name, name]


class TestAddresses(OverHTTP):
    """Links lead to the address by which the client knows this server."""

    FORWARDED = (
        {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "npm.example", "X-Forwarded-Prefix": "/cache"},
        {"Forwarded": 'for=192.0.2.7;proto=https;host="npm.example"', "X-Forwarded-Prefix": "/cache"},
    )

    @pytest.mark.parametrize("accept", [FULL, INSTALLER])
    def test_the_host_of_the_request_is_in_the_links(self, site: Site, name: str, accept: str) -> None:
        """Of each request its own, under an etag of its own."""
        self.kind.publish(site.upstream, name, "1.0.0")
        answers = {host: ask(site, f"/{name}", Host=host, Accept=accept) for host in ("one.example", "two.example:81")}
        for host, answer in answers.items():
            assert self.kind.file_links("", document(answer)) == [f"http://{host}/{name}/-/{name}-1.0.0.tgz"]
        assert len({answer.headers["ETag"] for answer in answers.values()}) == 2

    @pytest.mark.parametrize("headers", FORWARDED)
    def test_what_a_stranger_forwards_is_not(self, site: Site, name: str, headers: dict[str, str]) -> None:
        """Nobody is trusted by default."""
        self.kind.publish(site.upstream, name, "1.0.0")
        assert self._link(site, name, headers) == f"{site.daemon.url}/{name}/-/{name}-1.0.0.tgz"

    @pytest.mark.parametrize("headers", FORWARDED)
    def test_what_a_trusted_proxy_forwards_is(self, sites: Sites, name: str, headers: dict[str, str]) -> None:
        """MYPYPI_TRUSTED_PROXIES names it; a peer that it does not name is a stranger."""
        trusting, doubting = (
            sites(self.kind, TRUSTED_PROXIES=each) for each in ("192.0.2.1, 127.0.0.0/8", "192.0.2.1")
        )
        for site in (trusting, doubting):
            self.kind.publish(site.upstream, name, "1.0.0")
        assert self._link(trusting, name, headers) == f"https://npm.example/cache/{name}/-/{name}-1.0.0.tgz"
        assert self._link(doubting, name, headers) == f"{doubting.daemon.url}/{name}/-/{name}-1.0.0.tgz"

    def test_the_public_url_is_where_that_is_set(self, sites: Sites, name: str) -> None:
        """MYPYPI_PUBLIC_URL is the one address, whatever a request says."""
        site = sites(self.kind, PUBLIC_URL="https://npm.example/cache", TRUSTED_PROXIES="127.0.0.1")
        self.kind.publish(site.upstream, name, "1.0.0")
        for headers in ({}, {"Host": "other.example"}, {"X-Forwarded-Host": "other.example"}):
            assert self._link(site, name, headers) == f"https://npm.example/cache/{name}/-/{name}-1.0.0.tgz"

    def test_what_is_no_address_is_a_bad_request(self, site: Site, name: str) -> None:
        """Nothing but an address gets into a link."""
        self.kind.publish(site.upstream, name, "1.0.0")
        answer = ask(site, f"/{name}", Host='x"><script>')
        assert (answer.status, "Host" in answer.text) == (400, True)

    def _link(self, site: Site, name: str, headers: Mapping[str, str]) -> str:
        (link,) = self.kind.file_links("", document(ask(site, f"/{name}", **headers)))
        return link


class TestVersionsAndTags(OverHTTP):
    """What is cut out of a packument."""

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
        """It is the packument's own, for which upstream is asked."""
        found = document(ask(site, f"/{tagged.replace('/', slash)}/{wanted}"))
        assert found == pointing_to(site.daemon.url, registry.package(tagged).full())["versions"][number]
        assert get(found["dist"]["tarball"]).body == registry.package(tagged).versions[number].tarball.content

    @pytest.mark.parametrize("slash", SLASHES)
    def test_the_tags_are_those_of_the_packument(self, site: Site, tagged: str, slash: str) -> None:
        """``npm dist-tag ls``"""
        found = document(ask(site, f"/-/package/{tagged.replace('/', slash)}/dist-tags"))
        assert found == {"latest": "1.0.0", "next": "2.0.0-rc.1+b"}

    @pytest.mark.parametrize("path", ["/{}/next", "/-/package/{}/dist-tags"])
    def test_a_part_has_an_etag_of_its_own(self, site: Site, tagged: str, path: str) -> None:
        """And is zipped, and has a HEAD, as the whole is and has."""
        whole, part = ask(site, f"/{tagged}"), ask(site, path.format(tagged))
        assert part.headers["ETag"] != whole.headers["ETag"]
        assert ask(site, path.format(tagged), **{"If-None-Match": part.headers["ETag"]}).status == 304
        assert ask(site, path.format(tagged), **{"Accept-Encoding": "gzip"}).content == part.body
        assert ask(site, path.format(tagged), "HEAD").headers["Content-Length"] == str(len(part.body))

    def test_a_moved_tag_is_moved_here_too(self, sites: Sites, name: str) -> None:
        """At once where nothing counts as fresh."""
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
    """Found by their conventional path wherever upstream has them, and checked against what the packument says."""

    def test_of_scoped_packages_are_found_however_the_slash_is_written(
        self, site: Site, registry: FakeRegistry, scoped: str
    ) -> None:
        """For yarn 4 encodes it in tarballs' paths too."""
        tarball = make_tarball(scoped)
        registry.add(tarball)
        paths = [f"/{scoped.replace('/', slash)}/-/{tarball.filename}" for slash in SLASHES]
        assert [ask(site, path).body for path in paths] == [tarball.content] * 3
        assert registry.count(f"/{scoped}/-/{tarball.filename}") == 1

    def test_are_told_by_their_path_whatever_is_accepted(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """For pnpm and yarn 1 send a packument's Accept with them."""
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
    def test_on_another_host_port_or_path_are_served_all_the_same(
        self, site: Site, registry: FakeRegistry, name: str, path: str, *, elsewhere: bool
    ) -> None:
        """Under the conventional link; and from here when upstream is gone."""
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

    def test_are_found_by_the_name_that_upstream_gives_them(
        self, site: Site, registry: FakeRegistry, scoped: str
    ) -> None:
        """Which a lock file that was written against upstream has; no page was asked for before."""
        tarball = make_tarball(scoped)
        registry.add(tarball, path=f"/{scoped}/-/acme-odd_name-v1.tgz")
        assert ask(site, f"/{scoped}/-/acme-odd_name-v1.tgz").body == tarball.content
        assert ask(site, f"/{scoped}/-/{tarball.filename}").body == tarball.content
        assert registry.count(f"/{scoped}/-/acme-odd_name-v1.tgz") == 1

    @pytest.mark.parametrize("plus", ["+", "%2B", "%2b"])
    def test_with_a_plus_in_their_name_are_found_however_it_is_written(
        self, site: Site, registry: FakeRegistry, name: str, plus: str
    ) -> None:
        """Build metadata of a version."""
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
    def test_are_checked_against_the_strongest_digest_that_the_version_has(
        self, site: Site, registry: FakeRegistry, name: str, says: dict[str, object], *, agrees: bool
    ) -> None:
        """Its integrity, else its shasum: where that is wrong, the transfer breaks, and nothing is kept."""
        tarball = make_tarball(name, padding=50_000)
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

    def test_that_upstream_lost_are_404_and_the_others_are_there(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """A missing version is upstream's own 404."""
        there, lost = make_tarball(name, "1.0.0"), make_tarball(name, "2.0.0")
        registry.add(there)
        registry.add(lost)
        registry.drop(f"/{name}/-/{lost.filename}")
        assert reason(ask(site, f"/{name}/-/{lost.filename}"))
        assert ask(site, f"/{name}/-/{lost.filename}").status == 404
        assert ask(site, f"/{name}/-/{there.filename}").body == there.content

    def test_that_no_version_has_are_404_without_asking_for_them(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """Though upstream would serve it: only what is listed can be fetched through here."""
        registry.add(make_tarball(name))
        registry.put(f"/{name}/-/secret.tgz", b"nobody lists me")
        answer = ask(site, f"/{name}/-/secret.tgz")
        assert (answer.status, registry.count(f"/{name}/-/secret.tgz")) == (404, 0)
        assert reason(answer)


class TestSignatures(OverHTTP):
    """What ``npm audit signatures`` needs."""

    @pytest.mark.parametrize("package", ["{}", "@acme/{}"])
    def test_verify_with_the_keys_that_are_served_here(
        self, site: Site, registry: FakeRegistry, name: str, package: str
    ) -> None:
        """The signature is over name, version and integrity ("ECDSA registry signatures"), all read from here."""
        registry.add(make_tarball(package.format(name)))
        keys = {key["keyid"]: key["key"] for key in document(ask(site, "/-/npm/v1/keys"))["keys"]}
        version = document(ask(site, f"/{package.format(name)}"))["versions"]["1.0.0"]
        (signature,) = version["dist"]["signatures"]
        message = f"{version['name']}@{version['version']}:{version['dist']['integrity']}".encode()
        key = load_der_public_key(base64.b64decode(keys[signature["keyid"]]))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(base64.b64decode(signature["sig"]), message, ec.ECDSA(SHA256()))

    def test_keys_and_attestations_are_cached(self, site: Site, registry: FakeRegistry, name: str, scoped: str) -> None:
        """One request upstream for each, and none once upstream is gone; the scope's slash in any form."""
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

    def test_a_registry_without_keys_has_none_here(self, sites: Sites) -> None:
        """404, as npm expects of it."""
        site = sites(self.kind, CACHE_TIME="299")
        assert isinstance(site.upstream, FakeRegistry)
        site.upstream.plain = True
        assert ask(site, "/-/npm/v1/keys").status == 404


class TestQuestions(OverHTTP):
    """Search and audits are passed on: each answer is for one question, and old ones mislead."""

    AUDITS = ("advisories/bulk", "audits/quick", "audits")

    @staticmethod
    def _audit(site: Site, kind: str, question: bytes, **headers: str) -> Answer:
        url = f"{site.daemon.url}/-/npm/v1/security/{kind}"
        return post(url, question, {"Content-Type": FULL, **headers})

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    @pytest.mark.parametrize("kind", AUDITS)
    def test_an_audit_is_passed_on_as_it_is_and_never_cached(
        self, site: Site, registry: FakeRegistry, name: str, kind: str, encoding: str
    ) -> None:
        """As gzip by npm and bun; an advisory of this minute is in the next answer."""
        question = {name: ["1.0.0"]} if kind == "advisories/bulk" else {"dependencies": {name: {"version": "1.0.0"}}}
        body = json.dumps(question).encode()
        if encoding == "gzip":
            body = gzip.compress(body, mtime=0)
        send = partial(self._audit, site, kind, body, **{"Content-Encoding": encoding})
        before = send()
        registry.advise(name, "<2.0.0")
        after = send()
        assert ("<2.0.0" in before.text, "<2.0.0" in after.text) == (False, True)
        assert registry.audits[-2:] == [question, question]
        asked = registry.seen(f"/-/npm/v1/security/{kind}")[-2:]
        assert [(request.body, request.headers["Content-Encoding"]) for request in asked] == [(body, encoding)] * 2
        for answer in (before, after):
            assert (answer.status, answer.headers["Cache-Status"]) == (200, "MyPyPi; fwd=bypass")
            assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (FULL, "no-store")

    def test_a_search_is_passed_on_with_its_query(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """And never cached."""
        query = f"text={name}&size=20&from=0&quality=0.65&popularity=0.98&maintenance=0.5"
        found = []
        for number in ("1.0.0", "2.0.0"):
            registry.add(make_tarball(name, number))
            answer = ask(site, f"/-/v1/search?{query}")
            found += [each["package"]["version"] for each in document(answer)["objects"]]
            assert answer.headers["Cache-Control"] == "no-store"
        assert found == ["1.0.0", "2.0.0"]
        assert [request.query for request in registry.seen("/-/v1/search")][-2:] == [query, query]

    def test_what_a_client_says_of_itself_stays_here(self, site: Site, registry: FakeRegistry, name: str) -> None:
        """Tokens and cookies are for this server, and not for upstream; what the question is in goes along."""
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

    def test_the_credentials_of_upstream_go_along(self, sites: Sites, name: str) -> None:
        """A private registry answers its own questions only to those it knows."""
        site = sites(self.kind, auth=("someone", "s3cret-word"))
        self.kind.publish(site.upstream, name)
        assert [each["package"]["name"] for each in document(ask(site, f"/-/v1/search?text={name}"))["objects"]] == [
            name
        ]
        assert document(self._audit(site, "advisories/bulk", b"{}")) == {}

    @pytest.mark.parametrize("status", [400, 404, 429, 500])
    def test_upstreams_answer_is_the_answer(self, sites: Sites, status: int) -> None:
        """Whatever it is; a time to come again included, which is kept: others do not share this daemon."""
        site = sites(self.kind, NEGATIVE_CACHE_TIME=str(status))
        fault = site.upstream.fault("/-/npm/v1/security/advisories/bulk", Status(status, retry_after=7), times=1)
        answer = self._audit(site, "advisories/bulk", b"{}")
        fault.wait_served()
        assert (answer.status, answer.headers["Retry-After"]) == (status, "7")

    @pytest.mark.parametrize("kind", AUDITS)
    def test_a_large_audit_goes_through(self, site: Site, registry: FakeRegistry, kind: str) -> None:
        """Of a project with tens of thousands of packages."""
        names = {f"package-{number}": ["1.0.0"] for number in range(50_000)}
        question = names if kind == "advisories/bulk" else {"dependencies": names}
        assert self._audit(site, kind, json.dumps(question).encode()).status == 200
        assert registry.audits[-1] == question

    def test_a_question_that_is_too_large_is_413(self, site: Site, registry: FakeRegistry) -> None:
        """Announced or not, and read by a client that waits as by one that sends it all; upstream never sees it."""
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

    def test_ping_is_answered_here(self, site: Site, registry: FakeRegistry) -> None:
        """Also while upstream is gone."""
        with registry.refusing():
            assert document(ask(site, "/-/ping?write=true")) == {}

    @pytest.mark.parametrize("path", ["/-/whoami", "/-/npm/v1/user", "/-/npm/v1/tokens"])
    def test_nobody_is_logged_in(self, site: Site, registry: FakeRegistry, path: str) -> None:
        """401, and upstream is not asked who it might be."""
        answer = ask(site, path, Authorization="Bearer s3cret")
        assert (answer.status, "no users" in reason(answer)) == (401, True)
        assert registry.count(path) == 0


class TestRefusals(OverHTTP):
    """What is not done here is said so, in JSON and with a sentence."""

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
            ("POST", "/-/v1/login"),
            ("POST", "/-/npm/v1/tokens"),
            ("PUT", "/-/package/thing/dist-tags/beta"),
            ("DELETE", "/-/package/thing/dist-tags/beta"),
            ("POST", "/-/v1/search"),
            ("POST", "/"),
        ],
    )
    def test_every_write_is_405(self, site: Site, registry: FakeRegistry, method: str, path: str) -> None:
        """This registry is read-only; upstream never hears of it."""
        before = registry.connections
        answer = get(site.daemon.url + path, {"Content-Type": FULL}, method=method, body=b"{}")
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert "read-only" in reason(answer)
        assert registry.connections == before

    @pytest.mark.parametrize("kind", TestQuestions.AUDITS)
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
    def test_a_name_that_none_can_be_is_400(self, site: Site, registry: FakeRegistry, path: str) -> None:
        """Upstream is not asked, and the log has the request alone."""
        before, start = registry.connections, len(site.daemon.log)
        answer = ask(site, path)
        assert (answer.status, registry.connections) == (400, before)
        assert reason(answer)
        site.settle()
        assert "Traceback" not in site.daemon.log[start:]

    def test_an_unknown_package_is_404(self, site: Site, registry: FakeRegistry, name: str, scoped: str) -> None:
        """As JSON, for every way to ask for it; upstream is asked once."""
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
    def test_an_upstream_that_is_gone_is_503_and_never_404(
        self, site: Site, registry: FakeRegistry, name: str, path: str
    ) -> None:
        """With a time to come again: for 404 a client would give the package up."""
        with registry.refusing():
            answer = ask(site, path.format(name, name))
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert "upstream can't be reached" in reason(answer)

    @pytest.mark.parametrize("kind", TestQuestions.AUDITS)
    def test_an_audit_of_an_upstream_that_is_gone_is_503(self, site: Site, registry: FakeRegistry, kind: str) -> None:
        """With a time to come again; an install goes on without it."""
        with registry.refusing():
            answer = post(f"{site.daemon.url}/-/npm/v1/security/{kind}", b"{}", {"Content-Type": FULL})
        assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert reason(answer)

    @pytest.mark.parametrize("path", ["/thing/-/x/y", "/-/v1/unheard-of", "/-/npm/v1/security"])
    def test_an_address_that_nobody_knows_is_said_to_be_none(self, site: Site, path: str) -> None:
        answer = get(site.daemon.url + path, method="POST" if path.endswith("security") else "GET")
        assert answer.status in (404, 405)
        assert reason(answer)


class TestLargePackuments(OverHTTP):
    """Some have tens of megabytes."""

    def test_one_of_20_mb_is_served_right_and_small_ones_meanwhile(
        self, site: Site, registry: FakeRegistry, name: str
    ) -> None:
        """While it is taken in, nobody waits for it but who asked for it."""
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
        assert len(waits) >= 3, "it was taken in before anybody could have waited for it"
        assert max(waits) < 1
        answer = large.result()
        assert len(answer.body) > 20_000_000
        assert document(answer) == pointing_to(site.daemon.url, registry.package(name).full())
        short = ask(site, f"/{name}", **{"Accept": INSTALLER, "Accept-Encoding": "gzip"})
        assert document(short) == pointing_to(site.daemon.url, registry.package(name).abbreviated())
        (link, *_) = self.kind.file_links("", document(short))
        assert get(link).body == registry.package(name).versions["1.0.0"].tarball.content
