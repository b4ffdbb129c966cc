"""Tests of the rig's fake npm registry.

It must answer as the npm registry's documentation says.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.rig.host import FileHost
from tests.rig.http import Answer, get, head, post
from tests.rig.packages import make_tarball
from tests.rig.packuments import ABBREVIATED, FULL
from tests.rig.registry import FakeRegistry

THING = make_tarball("@acme/thing", "1.0.0", dependencies={"other": "^2"}, scripts={"install": "x"}, source="// hello")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fresh:
        fresh.add(THING)
        yield fresh


def ask(registry: FakeRegistry, path: str, **headers: str) -> Answer:
    return get(registry.url + path, headers)


class TestTarballs:
    """Tests of `make_tarball`, and of the tarballs that the registry serves."""

    def test_contain_the_package(self) -> None:
        """A tarball's package.json is its manifest, and its bytes are always the same."""
        with tarfile.open(fileobj=io.BytesIO(THING.content)) as archive:
            assert archive.getnames() == ["package/package.json", "package/index.js"]
            manifest, index = (archive.extractfile(each) for each in archive.getnames())
            assert manifest is not None
            assert index is not None
            assert json.load(manifest) == THING.manifest
            assert index.read() == b'module.exports = "1.0.0";\n// hello'
        again = make_tarball("@acme/thing", dependencies={"other": "^2"}, scripts={"install": "x"}, source="// hello")
        assert (again.content, again.filename) == (THING.content, "thing-1.0.0.tgz")
        assert THING.shasum == hashlib.sha1(THING.content).hexdigest()  # noqa: S324 - as registries give it

    def test_are_served_at_the_listed_url(self, registry: FakeRegistry) -> None:
        """
        A tarball is served here, on another host, or at another path.

        `replace` changes its bytes, and `drop` makes it a 404.
        """
        other = make_tarball("other", "1.0.0+b")
        with FileHost() as elsewhere:
            urls = [
                registry.add(other),
                registry.add(make_tarball("moved"), at=elsewhere, path="/x/odd%20name.tgz?a=b"),
            ]
            assert urls == [f"{registry.url}/other/-/other-1.0.0+b.tgz", f"{elsewhere.url}/x/odd%20name.tgz?a=b"]
            assert [get(url).body for url in urls] == [other.content, make_tarball("moved").content]
            changed = make_tarball("moved", source="// changed")
            assert (registry.replace(changed), get(urls[1]).body) == (urls[1], changed.content)
        registry.drop("/other/-/other-1.0.0+b.tgz")
        assert get(urls[0]).status == 404


class TestPackuments:
    """Tests of packuments, versions and tags."""

    def test_have_the_requested_form(self, registry: FakeRegistry) -> None:
        """
        A packument is full unless Accept names the abbreviated form.

        The slash of a scope may be encoded or not.
        """
        full = ask(registry, "/@acme/thing").json()
        assert full == ask(registry, "/@acme%2Fthing", Accept=FULL).json() == registry.package("@acme/thing").full()
        short = ask(registry, "/@acme%2fthing", Accept=f"{ABBREVIATED}; q=1.0, {FULL}; q=0.8")
        assert (short.headers["Content-Type"], short.json()) == (
            ABBREVIATED,
            registry.package("@acme/thing").abbreviated(),
        )
        version = registry.package("@acme/thing").abbreviated()["versions"]
        assert isinstance(version, dict)
        assert set(version["1.0.0"]) == {"name", "version", "dependencies", "dist", "hasInstallScript"}

    def test_can_be_revalidated(self, registry: FakeRegistry) -> None:
        """
        A packument can be revalidated by ETag or by date, in either encoding.

        A change of the package changes both.
        """
        answer = ask(registry, "/@acme/thing", **{"Accept-Encoding": "gzip"})
        etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
        assert (answer.headers["Content-Encoding"], answer.headers["Cache-Control"]) == ("gzip", "public, max-age=300")
        assert ask(registry, "/@acme/thing", **{"If-None-Match": etag, "Accept-Encoding": "gzip"}).status == 304
        assert ask(registry, "/@acme/thing", **{"If-Modified-Since": modified}).status == 304
        assert ask(registry, "/@acme/thing", **{"If-None-Match": '"x"', "If-Modified-Since": modified}).status == 200
        registry.tag("@acme/thing", "next", "1.0.0")
        changed = head(f"{registry.url}/@acme/thing", {"If-Modified-Since": modified})
        assert (changed.status, changed.headers["ETag"] != etag) == (200, True)
        assert parsedate_to_datetime(changed.headers["Last-Modified"]) > parsedate_to_datetime(modified)

    def test_of_a_plain_registry_have_no_validators(self, registry: FakeRegistry) -> None:
        """
        A plain registry sends full packuments without validators.

        It has no endpoints of its own.
        """
        registry.plain = True
        answer = ask(registry, "/@acme/thing", **{"Accept": ABBREVIATED, "Accept-Encoding": "gzip"})
        assert answer.json() == registry.package("@acme/thing").full()
        names = {name.lower() for name in answer.headers} - {"server", "date"}
        assert names == {"content-type", "content-length"}
        assert [ask(registry, path).status for path in ("/-/npm/v1/keys", "/-/v1/search?text=a")] == [404, 404]
        assert post(f"{registry.url}/-/npm/v1/security/advisories/bulk", b"{}").status == 405

    def test_versions_and_tags_can_be_requested(self, registry: FakeRegistry) -> None:
        """A version is found by its number or tag; the tags have their own URL."""
        registry.add(make_tarball("@acme/thing", "2.0.0-rc.1"), tag="next")
        assert [ask(registry, f"/@acme%2fthing/{each}").status for each in ("1.0.0", "next", "9.9.9")] == [
            200,
            200,
            404,
        ]
        tags = ask(registry, "/-/package/@acme%2fthing/dist-tags").json()
        assert tags == {"latest": "1.0.0", "next": "2.0.0-rc.1"}
        assert ask(registry, "/unknown").json() == {"error": "Not found"}


class TestOwnEndpoints:
    """Tests of the endpoints below ``/-/``."""

    @pytest.mark.parametrize("kind", ["advisories/bulk", "audits", "audits/quick"])
    def test_audits_return_advisories_and_are_recorded(self, registry: FakeRegistry, kind: str) -> None:
        """Each audit returns the advisories and is recorded, with or without gzip."""
        registry.advise("thing", "<2.0.0")
        question = (
            {"thing": ["1.0.0"]} if kind == "advisories/bulk" else {"dependencies": {"thing": {"version": "1.0.0"}}}
        )
        url, body = f"{registry.url}/-/npm/v1/security/{kind}", json.dumps(question).encode()
        answers = [post(url, body), post(url, gzip.compress(body), {"Content-Encoding": "gzip"})]
        assert [(answer.status, "<2.0.0" in answer.text) for answer in answers] == [(200, True)] * 2
        assert registry.audits == [question] * 2

    def test_ping_keys_search_and_attestations_answer(self, registry: FakeRegistry) -> None:
        """Ping, keys, search (by page) and attestations have answers."""
        registry.add(make_tarball("thing-2"), attested=True)
        assert ask(registry, "/-/ping").json() == {}
        assert ask(registry, "/-/npm/v1/keys").json() == registry.keys()
        found = ask(registry, "/-/v1/search?text=thing&size=1&from=1").json()
        assert isinstance(found, dict)
        assert (found["total"], [each["package"]["name"] for each in found["objects"]]) == (2, ["thing-2"])
        specs = ["thing-2@1.0.0", "@acme%2fthing@1.0.0", "unknown@1.0.0"]
        assert [ask(registry, f"/-/npm/v1/attestations/{spec}").status for spec in specs] == [200, 404, 404]
