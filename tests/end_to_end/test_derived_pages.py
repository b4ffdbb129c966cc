"""Tests of clients that want many answers of one page: for many addresses, or of versions that do not exist."""

from __future__ import annotations

import random
import re
import time

import pytest

from mypypi.pages.guesses import MOST_GUESSES
from mypypi.pages.page_cache import RECHECK_AFTER
from tests.conftest import Sites
from tests.rig.http import Answer, get, head, parallel
from tests.rig.packages import make_tarball
from tests.rig.registry import FakeRegistry
from tests.support.kinds import NPMKind, PyPIKind
from tests.support.site import Site

#: Clients with an address each, and versions that do not exist.
CLIENTS, INVENTED = 120, 150
TEXT = random.Random(1).randbytes(10_000).hex()  # noqa: S311


def kept_bytes(site: Site) -> float:
    """The bytes of pages and derived forms in memory."""
    found = re.search(r"^mypypi_hot_pages_bytes (\S+)", get(f"{site.daemon.url}/-/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


class TestPackument:
    """A packument of 16 MB."""

    kind = NPMKind()

    @pytest.fixture
    def registry(self, site: Site) -> FakeRegistry:
        """A registry with the package, which the daemon has."""
        assert isinstance(site.upstream, FakeRegistry)
        if not site.upstream.count("/big"):
            for number in range(40):
                site.upstream.add(make_tarball("big", f"1.0.{number}"), extra={"readme": TEXT * 20})
            assert len(get(f"{site.daemon.url}/big").body) > 16_000_000
        return site.upstream

    def test_heads_with_many_hosts_make_nothing(self, site: Site, registry: FakeRegistry) -> None:
        """A hundred clients ask with HEAD, each with another Host. Each gets its own etag, and nothing is made."""
        assert registry.count("/big") == 1
        other = self.kind.publish(registry, "small")
        assert site.links(other)
        kept = kept_bytes(site)

        def ask(number: int) -> Answer:
            return head(f"{site.daemon.url}/big", {"Host": f"host{number}.example"})

        answers = parallel(CLIENTS, ask)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["ETag"] for answer in answers}) == CLIENTS
        assert site.links(other)
        assert kept_bytes(site) == kept

    def test_hosts_beyond_the_known_ones_get_their_links(self, site: Site, registry: FakeRegistry) -> None:
        """The address is put into the whole page while it is sent: each link is right."""
        assert registry.count("/big")
        known = get(f"{site.daemon.url}/big").body
        here = site.daemon.url.encode()
        for number in range(10):
            answer = get(f"{site.daemon.url}/big", {"Host": f"host{number}.example"})
            assert answer.complete
            assert answer.body == known.replace(here, b"http://host%d.example" % number)

    def test_upstream_is_rarely_asked_for_versions_that_do_not_exist(self, site: Site, registry: FakeRegistry) -> None:
        """However many versions are invented, upstream is asked for the page every few seconds."""
        before, kept, began = registry.count("/big"), kept_bytes(site), time.monotonic()
        for number in range(INVENTED):
            assert get(f"{site.daemon.url}/big/9.9.{number}").status == 404
        most = 1 + (time.monotonic() - began) / RECHECK_AFTER
        assert before <= registry.count("/big") <= before + most
        assert kept_bytes(site) - kept < len(TEXT)
        assert get(f"{site.daemon.url}/big/1.0.7").json() is not None

    def test_upstream_is_rarely_asked_for_attestations_of_such_versions(
        self, site: Site, registry: FakeRegistry
    ) -> None:
        """The packument says which versions there are, so upstream is not asked for each of their attestations."""
        for number in range(INVENTED):
            assert get(f"{site.daemon.url}/-/npm/v1/attestations/big@9.9.{number}").status == 404
        assert registry.count("/-/npm/v1/attestations/") == MOST_GUESSES
        assert get(f"{site.daemon.url}/-/npm/v1/attestations/big@1.0.1").status == 404, "it has none"
        assert registry.requests[-1].path.endswith("big@1.0.1")


class TestProject:
    """A project with PyPI's JSON."""

    def test_upstream_is_rarely_asked_for_releases_that_do_not_exist(self, sites: Sites) -> None:
        """The project's own JSON says which releases there are, so upstream is not asked for each invented one."""
        site = sites(PyPIKind())
        thing = site.publish()
        began = time.monotonic()
        for number in range(INVENTED):
            assert get(f"{site.daemon.url}/pypi/{thing.name}/9.9.{number}/json").status == 404
        most = MOST_GUESSES + 1 + (time.monotonic() - began) / RECHECK_AFTER
        assert MOST_GUESSES < site.upstream.count(f"/pypi/{thing.name}/") <= most
        assert get(f"{site.daemon.url}/pypi/{thing.name}/1.0/json").status == 200
