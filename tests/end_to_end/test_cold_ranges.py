"""Tests ranges and HEADs of files that are not stored: upstream is asked for the same, and not for the whole file."""

from __future__ import annotations

import pytest

from tests.conftest import Sites
from tests.rig.faults import Status, WrongBytes
from tests.support.kinds import Kind, NPMKind, Published, PyPIKind
from tests.support.site import Site

LARGE = 100_000


def ranges_asked(site: Site, thing: Published) -> list[str | None]:
    """The Range headers of the requests for a file that upstream received."""
    return [request.headers["Range"] for request in site.asked(thing)]


class ColdRanges:
    """The tests, for either ecosystem."""

    kind: Kind

    @pytest.fixture
    def without_ranges(self, sites: Sites) -> Site:
        """A site whose upstream answers every Range with the whole file."""
        site = sites(self.kind, UPSTREAM_CONCURRENCY="63")  # another site than that of the other tests
        site.upstream.ranges = False
        return site

    @pytest.fixture
    def strict(self, sites: Sites) -> Site:
        return sites(self.kind, UPSTREAM_STRICT="true")

    @pytest.fixture
    def redirecting(self, sites: Sites) -> Site:
        return sites(self.kind, COLD_FILES="redirect")

    @pytest.mark.parametrize(("asked", "start", "stop"), [("100-199", 100, 200), ("-70", LARGE, None)])
    def test_a_range_is_answered_by_a_range(self, site: Site, asked: str, start: int, stop: int | None) -> None:
        """Only the bytes that a client asks for are fetched, from the front or from the end."""
        thing = site.publish(LARGE)
        start, stop = (len(thing.content) - 70, len(thing.content)) if stop is None else (start, stop)
        answer = site.get(thing, {"Range": f"bytes={asked}"})
        assert (answer.status, answer.body) == (206, thing.content[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(thing.content)}"
        assert answer.headers["ETag"] is None  # these bytes are not checked
        site.settle()
        assert ranges_asked(site, thing) == [f"bytes={asked}"]
        assert not site.drafts
        assert not site.stored(thing)

    def test_a_range_outside_the_file(self, site: Site) -> None:
        """A range outside the file is 416 with the file's length, and fetches nothing more."""
        thing = site.publish(LARGE)
        answer = site.get(thing, {"Range": "bytes=5000000-5000009"})
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(thing.content)}")
        assert ranges_asked(site, thing) == ["bytes=5000000-5000009"]

    @pytest.mark.parametrize("asked", ["0-", "500-", "0-9,20-29"])
    def test_a_client_that_wants_the_rest_gets_the_whole_file_fetched(self, site: Site, asked: str) -> None:
        """Who asks for all from a byte on is downloading the file. Several ranges come from the whole, too."""
        thing = site.publish(LARGE)
        answer = site.get(thing, {"Range": f"bytes={asked}"})
        assert answer.status == 206
        site.wait_stored(thing)
        assert ranges_asked(site, thing) == [None]

    def test_ranges_that_add_up_to_most_of_the_file(self, site: Site) -> None:
        """Once the ranges have more than half of the file, it is fetched as a whole, and ranges come from it."""
        thing = site.publish(LARGE)
        total, step = len(thing.content), 20_000
        for start in range(0, total, step):
            answer = site.get(thing, {"Range": f"bytes={start}-{start + step - 1}"})
            assert (answer.status, answer.body) == (206, thing.content[start : start + step])
        site.wait_stored(thing)
        asked = ranges_asked(site, thing)
        assert None in asked
        assert asked.index(None) in (2, 3)

    def test_a_resumed_download_is_a_download(self, site: Site) -> None:
        """With If-Range, a client resumes a download: the whole file is fetched."""
        thing = site.publish(LARGE)
        answer = site.get(thing, {"Range": "bytes=0-9", "If-Range": '"of-another-server"'})
        assert (answer.status, answer.body) == (200, thing.content)
        assert ranges_asked(site, thing) == [None]

    def test_wrong_bytes_in_a_range_are_not_kept(self, site: Site) -> None:
        """A range can't be checked, so its bytes never become part of a stored file."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, WrongBytes())
        site.get(thing, {"Range": "bytes=-70"})
        fault.wait_served()
        assert site.get(thing).body == thing.content
        assert site.get(thing, {"Range": "bytes=-70"}).body == thing.content[-70:]

    def test_a_head_asks_for_a_head(self, site: Site) -> None:
        """A HEAD has the size that upstream's file has, and fetches nothing."""
        thing = site.publish(LARGE)
        answer = site.get(thing, method="HEAD")
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(thing.content)))
        assert [request.method for request in site.asked(thing)] == ["HEAD"]

    def test_a_refused_range_is_refused(self, site: Site) -> None:
        """A range of a file that upstream refuses ends as a request for the whole file does."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, Status(403), times=None)
        assert site.get(thing, {"Range": "bytes=-70"}).status == 403
        fault.wait_served()

    def test_upstream_without_ranges(self, without_ranges: Site) -> None:
        """If upstream answers with the whole file, that is fetched, and upstream is not asked for ranges again."""
        site = without_ranges
        for number in range(2):
            thing = site.publish(LARGE)
            answer = site.get(thing, {"Range": "bytes=-70"})
            assert (answer.status, answer.body) == (206, thing.content[-70:])
            site.wait_stored(thing)
            assert ranges_asked(site, thing) == (["bytes=-70", None] if number == 0 else [None])

    def test_strict_operation_waits_for_the_whole_file(self, strict: Site) -> None:
        """No unchecked byte goes out: a range comes from the file once it is complete and checked."""
        thing = strict.publish(LARGE)
        fault = strict.misbehave(thing, WrongBytes())
        assert strict.get(thing, {"Range": "bytes=-70"}).status == 502
        fault.wait_served()
        other = strict.publish(LARGE)
        assert strict.get(other, {"Range": "bytes=-70"}).body == other.content[-70:]
        assert ranges_asked(strict, other) == [None]

    def test_a_redirected_range_starts_no_fetch(self, redirecting: Site) -> None:
        """With MYPYPI_COLD_FILES=redirect, a range is redirected, and no worker fetches the file."""
        thing = redirecting.publish(LARGE)
        answer = redirecting.get(thing, {"Range": "bytes=-70"})
        assert (answer.status, answer.headers["Location"]) == (302, redirecting.upstream_url(thing))
        other = redirecting.publish(LARGE)
        assert redirecting.get(other).status == 302
        redirecting.wait_stored(other)  # had a job for the range been queued before, it would be done, too
        assert not redirecting.stored(thing)
        assert not redirecting.asked(thing)


class TestPyPI(ColdRanges):
    kind = PyPIKind()


class TestNPM(ColdRanges):
    kind = NPMKind()
