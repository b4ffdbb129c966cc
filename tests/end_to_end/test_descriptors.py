"""Tests of servers whose file descriptors are used up: clients get a reason or a broken transfer, never a wrong body.

Nobody else is to blame: upstream is not held back, and stored files are not fetched again.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from tests.rig.descriptors import few_descriptors, free_descriptors
from tests.rig.http import Answer, Session, eventually, get
from tests.support.kinds import Kind, NPMKind, Published, PyPIKind
from tests.support.site import Site

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")

#: More bytes than the buffers of a connection hold.
LARGE = 12_000_000
REASON = "this server has run out of file descriptors"


def is_honest(answer: Answer, thing: Published) -> bool:
    """Whether this is the file, a broken transfer of it, or a 503 with the reason."""
    if answer.status == 503:
        return REASON in answer.text and answer.headers["Retry-After"] is not None
    return thing.content.startswith(answer.body) and answer.complete == (answer.body == thing.content)


def close_kept_connections(site: Site) -> None:
    """Close the connections to upstream that the daemon keeps for later requests."""
    with site.upstream.refusing():
        pass


@contextmanager
def only_client(site: Site) -> Iterator[Session]:
    """A client with a connection, once the daemon has closed all others."""
    with Session(site.daemon.url) as session:
        assert session.get(f"{site.daemon.url}/-/health/live").status == 200
        daemon = psutil.Process(site.daemon.pid)
        eventually(
            lambda: [each for each in daemon.net_connections("tcp") if each.status != psutil.CONN_LISTEN],
            lambda found: [each.laddr.port for each in found] == [site.daemon.port],
        )
        yield session


class DescriptorPromises:
    """What clients get while descriptors are used up, and afterwards."""

    kind: Kind

    def test_stored_file_takes_the_last_one(self, site: Site) -> None:
        """A file that is opened with the last descriptor is sent as it is, and the connection stays usable."""
        thing, pid = site.publish_stored(LARGE), site.daemon.pid
        close_kept_connections(site)
        seen: list[int] = []
        with only_client(site) as session:
            for free in (1, 2, 3):
                with few_descriptors([pid], free):
                    answer = session.get(site.url(thing), meanwhile=lambda: seen.append(free_descriptors(pid)))
                assert is_honest(answer, thing)
                if not answer.complete:
                    break
            assert 0 in seen
        assert site.get(thing).body == thing.content

    def test_no_descriptor_is_left(self, site: Site) -> None:
        """A stored file, a new page and a new file get a 503 with the reason; what is in memory is served."""
        stored, known, unknown = site.publish_stored(), site.publish(), site.publish(seen=False)
        page = site.daemon.url + self.kind.page_path(stored.name)
        assert get(page, {"Accept": self.kind.accept}).status == 200
        eventually(lambda: site.health()["checks"]["process"], lambda told: told == "ok")  # after earlier tests
        requests_before, begun = len(site.asked(stored)), len(site.daemon.log)
        close_kept_connections(site)
        with only_client(site) as session, few_descriptors([site.daemon.pid], 0):
            for _ in range(7):  # more than the failures after which an origin is held back
                for url in (site.url(stored), site.url(known), site.daemon.url + self.kind.page_path(unknown.name)):
                    answer = session.get(url)
                    assert answer.status == 503, answer
                    assert is_honest(answer, stored), answer.text
            assert session.get(page, {"Accept": self.kind.accept}).status == 200
            site.daemon.wait_for_log("file descriptors are in use", start=begun)
        assert site.get(stored).body == stored.content
        assert site.get(known).body == known.content
        assert site.links(unknown)
        assert len(site.asked(stored)) == requests_before
        assert site.logged("paused") == []
        site.daemon.wait_for_log("this process has all it needs again", start=begun)
        assert site.daemon.log[begun:].count("descriptors") == 1

    def test_new_connections(self, site: Site) -> None:
        """New connections get a 503 with the reason while the last descriptors are kept for connected clients."""
        thing = site.publish_stored()
        close_kept_connections(site)
        with only_client(site) as session, ExitStack() as idle, few_descriptors([site.daemon.pid], 40):
            answers = []
            for _ in range(60):
                idle.enter_context(Session(site.daemon.url))
                answers.append(get(f"{site.daemon.url}/-/health/live"))
                if answers[-1].status != 200:
                    break
            assert answers[-1].status == 503
            assert is_honest(answers[-1], thing)
            assert 0 < free_descriptors(site.daemon.pid) < 40
            assert session.get(site.url(thing)).body == thing.content
            idle.close()
            eventually(lambda: get(f"{site.daemon.url}/-/health/live"), lambda answer: answer.status == 200)
        assert site.get(thing).body == thing.content


class TestPyPIDescriptors(DescriptorPromises):
    kind = PyPIKind()


class TestNPMDescriptors(DescriptorPromises):
    kind = NPMKind()
