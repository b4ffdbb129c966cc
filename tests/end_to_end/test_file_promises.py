"""Tests the promises about package files, for every ecosystem, with real processes.

The tests of a class share a site (an upstream and a daemon in front of it). Each test has packages of its own.
"""

from __future__ import annotations

import resource
import shutil
from email.parser import BytesParser
from email.policy import HTTP
from threading import Barrier
from urllib.parse import unquote

import pytest
from attrs import define, evolve

from tests.conftest import Sites
from tests.rig.faults import (
    CloseEarly,
    Fault,
    Gzipped,
    Hang,
    Redirect,
    Stall,
    Status,
    Trickle,
    Unsized,
    WrongBytes,
    WrongLength,
)
from tests.rig.host import FileHost
from tests.rig.http import Answer, SlowReader, eventually, get, head, parallel, raw
from tests.rig.wire import BOUND, Reply, Wire
from tests.support.kinds import Kind, NPMKind, Published, PyPIKind
from tests.support.site import Site

#: Size of a package that is large enough for tests to observe its transfer; bytes.
LARGE = 100_000


@define(eq=False)
class Mislabelled(Fault):
    """
    Adds ``Content-Encoding: gzip`` to a body that it sends unchanged.

    The body is no gzip, or is a file that happens to be one.
    """

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.reply(evolve(reply, headers={**reply.headers, "Content-Encoding": "gzip"}))
        self._happened()


def is_complete(answer: Answer, thing: Published) -> bool:
    return (answer.status, answer.complete) == (200, True) and answer.body == thing.content


def is_aborted(answer: Answer, thing: Published) -> bool:
    """
    Tell whether the client sees that the transfer failed.

    It has less than the file, and possibly not even the head.
    """
    begun = thing.content.startswith(answer.body) and len(answer.body) < len(thing.content)
    return answer.status in (0, 200) and not answer.complete and begun


class ColdFiles:
    """Tests files that are not stored yet."""

    def test_a_cold_file_arrives_while_upstream_still_sends_it(self, site: Site) -> None:
        """Bytes are passed on at once, except for the last ones."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 50_000)
        with site.reader(thing) as client:
            assert client.headers["Content-Length"] == str(len(thing.content))
            assert client.read(40_000) == thing.content[:40_000]
            assert not site.asked(thing)[0].done
            gate.allow_all()
            assert client.rest().body == thing.content[40_000:]
        assert gate.served == 1

    def test_the_last_bytes_are_held_back_until_the_digest_agrees(self, site: Site) -> None:
        """A client can't get the last bytes while upstream owes one."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, len(thing.content) - 1)
        with SlowReader(site.url(thing)) as client:
            gate.wait_sent(len(thing.content) - 1)
            client.read(len(thing.content) - 10_000)
            with pytest.raises(TimeoutError):
                client.read(9_999, timeout=0.3)
        gate.allow_all()
        assert is_complete(site.get(thing), thing)
        assert len(site.asked(thing)) == 1

    @pytest.mark.parametrize("padding", [0, LARGE])
    def test_wrong_bytes_abort_the_transfer_and_are_not_stored(self, site: Site, padding: int) -> None:
        """
        Wrong bytes abort the transfer, or are a 502 where none was sent yet, and nothing is stored.

        The log has one line for it, and the next request fetches again and works.
        """
        thing = site.publish(padding)
        fault = site.misbehave(thing, WrongBytes())
        answer = site.get(thing)
        assert is_aborted(answer, thing) if padding else answer.status == 502
        site.wait_dropped(thing)
        fault.wait_served()
        assert (site.drafts, site.stored(thing)) == ([], [])
        assert len(site.logged_failures(thing)) == 1
        assert is_complete(site.get(thing), thing)
        assert len(site.asked(thing)) == 2

    @pytest.mark.parametrize("seen", [True, False])
    def test_fifty_clients_at_once_make_one_request_to_upstream(self, site: Site, *, seen: bool) -> None:
        """All clients get identical bytes from one fetch. If the page was not read before, it is also fetched once."""
        thing = site.publish(LARGE, seen=seen)
        gate = site.hold(thing)
        all_connected = Barrier(50, gate.allow_all)

        def download(_: int) -> Answer:
            with site.reader(thing) as client:
                all_connected.wait(BOUND)
                return client.rest()

        assert all(is_complete(answer, thing) for answer in parallel(50, download))
        assert gate.served == 1
        assert len(site.asked(thing)) == 1
        assert site.upstream.count(self.kind.upstream_page_path(thing.name)) == 1

    def test_a_second_client_joins_late_and_gets_everything(self, site: Site) -> None:
        """A late client gets the first bytes too, from the same fetch."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 60_000)
        with site.reader(thing) as first:
            assert first.read(50_000) == thing.content[:50_000]
            with site.reader(thing) as second:
                assert second.read(50_000) == thing.content[:50_000]
                gate.allow_all()
                assert first.rest().body == second.rest().body == thing.content[50_000:]
        assert len(site.asked(thing)) == 1

    @pytest.mark.parametrize("remaining", [0, 1])
    def test_a_client_that_disconnects_does_not_stop_the_fetch(self, site: Site, remaining: int) -> None:
        """
        A disconnected client does not stop the fetch.

        It continues for the other clients, and for the storage if there are none.
        """
        thing = site.publish(LARGE)
        gate = site.hold(thing, 50_000)
        others = [site.reader(thing) for _ in range(remaining)]
        for _ in range(2):
            with site.reader(thing) as leaving:
                leaving.read(1000)
        site.settle()
        gate.allow_all()
        for client in others:
            assert is_complete(client.rest(), thing)
            client.close()
        site.wait_stored(thing)
        with site.upstream.refusing():
            assert is_complete(site.get(thing), thing)
        assert (gate.served, len(site.asked(thing))) == (1, 1)

    def test_a_range_of_a_file_that_is_being_fetched_comes_from_the_fetch(self, site: Site) -> None:
        """A range whose bytes have arrived is sent from the running fetch. Upstream is asked for later ones."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 50_000)
        with site.reader(thing) as reader:
            assert reader.read(30_100) == thing.content[:30_100]
            answer = site.get(thing, {"Range": "bytes=30000-30099"})
            assert (answer.status, answer.body) == (206, thing.content[30_000:30_100])
            assert answer.headers["Content-Range"] == f"bytes 30000-30099/{len(thing.content)}"
            assert site.get(thing, {"Range": "bytes=-7"}).body == thing.content[-7:]
            gate.allow_all()
        site.wait_stored(thing)
        assert [request.headers["Range"] for request in site.asked(thing)] == [None, "bytes=-7"]

    def test_a_head_of_a_cold_file_has_the_headers_of_a_get(self, site: Site) -> None:
        """HEAD of a cold file has the stored file's length, validator and freshness."""
        thing = site.publish(LARGE)
        cold = site.get(thing, method="HEAD")
        assert is_complete(site.get(thing), thing)
        site.wait_stored(thing)
        warm = site.get(thing, method="HEAD")
        assert (cold.status, cold.body) == (warm.status, warm.body) == (200, b"")
        for name in ("Content-Length", "ETag", "Cache-Control", "Accept-Ranges", "Content-Type"):
            assert cold.headers[name] == warm.headers[name] is not None

    kind: Kind


class StoredFiles:
    """Tests files that are stored, and damage to them."""

    kind: Kind

    def test_a_stored_file_is_served_without_upstream(self, site: Site) -> None:
        """A stored file has the same strong ETag after a restart."""
        thing = site.publish(LARGE)
        cold = site.get(thing)
        site.wait_stored(thing)
        with site.upstream.refusing():
            warm = site.get(thing)
            site.restart()
            later = site.get(thing)
        assert is_complete(warm, thing)
        assert is_complete(later, thing)
        assert cold.headers["ETag"] == warm.headers["ETag"] == later.headers["ETag"]
        assert cold.headers["ETag"].startswith('"')
        assert "hit" in later.headers["Cache-Status"]
        assert "fwd=miss" in cold.headers["Cache-Status"]

    def test_an_emptied_redis_loses_no_file(self, site: Site) -> None:
        """
        Stored files are served without upstream after Redis was emptied.

        A file that was only listed is found by reading its page again.
        """
        stored, listed = site.publish_stored(), site.publish()
        site.empty_redis()
        with site.upstream.refusing():
            assert is_complete(site.get(stored), stored)
        site.restart()
        with site.upstream.refusing():
            assert is_complete(site.get(stored), stored)
        assert is_complete(site.get(listed), listed)
        assert site.upstream.count(self.kind.upstream_page_path(listed.name)) == 2
        assert len(site.asked(stored)) == 1

    def test_a_stored_file_that_was_deleted_is_fetched_again(self, site: Site) -> None:
        """A file is fetched again after it or the whole storage was deleted."""
        thing = site.publish_stored()
        (path,) = site.stored(thing)
        path.unlink()
        assert is_complete(site.get(thing), thing)
        site.wait_stored(thing, times=2)
        shutil.rmtree(site.data / "files")
        assert is_complete(site.get(thing), thing)
        assert len(site.asked(thing)) == 3

    def test_a_stored_file_that_was_truncated_is_fetched_again(self, site: Site) -> None:
        """A truncated file is never sent as a short 200."""
        thing = site.publish_stored(LARGE)
        (path,) = site.stored(thing)
        with path.open("r+b") as file:
            file.truncate(1000)
        assert is_complete(site.get(thing), thing)
        assert len(site.asked(thing)) == 2

    def test_new_bytes_at_the_same_address_are_served_once_the_page_lists_them(self, sites: Sites) -> None:
        """The new page never comes with the old bytes. A client that resumes the old file gets the complete new one."""
        site = sites(self.kind, CACHE_TIME="0")
        thing = site.publish_stored()
        old = site.get(thing)
        assert is_complete(old, thing)
        new = self.kind.replace(site.upstream, thing)
        assert new.content != thing.content
        assert [unquote(link) for link in site.links(thing)] == [unquote(site.url(new))]
        resumed = site.get(new, {"Range": "bytes=10-", "If-Range": old.headers["ETag"]})
        assert is_complete(resumed, new)
        assert resumed.headers["ETag"] != old.headers["ETag"]
        assert is_complete(site.get(new), new)


class MisbehavingUpstream:
    """Tests the responses to clients while upstream fails."""

    kind: Kind

    @pytest.fixture
    def short_timeout(self, sites: Sites) -> Site:
        """A site that waits one second for upstream."""
        return sites(self.kind, UPSTREAM_TIMEOUT="1")

    @pytest.mark.parametrize(("code", "status"), [(500, 503), (503, 503), (429, 503), (404, 404), (418, 502)])
    def test_an_error_status_is_passed_on_by_its_meaning(self, site: Site, code: int, status: int) -> None:
        """
        Only upstream's 404 becomes a 404.

        A temporary error becomes a 503 with Retry-After, after which the request works.
        """
        thing = site.publish()
        fault = site.misbehave(thing, Status(code, retry_after=1))
        answer = site.get(thing)
        fault.wait_served()
        assert answer.status == status
        assert answer.headers["Retry-After"] == ("1" if status == 503 else None)
        assert "Traceback" not in answer.text
        site.wait_dropped(thing)
        assert site.drafts == []
        eventually(lambda: site.get(thing), lambda again: is_complete(again, thing))

    def test_an_upstream_that_refuses_connections_is_a_503(self, site: Site) -> None:
        """A refused connection is 503 with Retry-After, and a later request works."""
        thing = site.publish()
        with site.upstream.refusing():
            answer = site.get(thing)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert is_complete(site.get(thing), thing)

    def test_an_upstream_that_hangs_before_the_head_times_out(self, short_timeout: Site) -> None:
        """The request is 503 after MYPYPI_UPSTREAM_TIMEOUT. The one to upstream goes on; a later client joins it."""
        thing = short_timeout.publish()
        fault = short_timeout.misbehave(thing, Hang())
        answer = short_timeout.get(thing)
        assert (answer.status, answer.headers["Retry-After"], fault.served) == (503, "5", 1)
        fault.release()
        assert is_complete(short_timeout.get(thing), thing)
        assert len(short_timeout.asked(thing)) == 1

    def test_an_upstream_that_stalls_in_the_body_is_asked_for_the_rest(self, short_timeout: Site) -> None:
        """The fetch resumes with If-Range after the timeout. The client gets the whole file in one response."""
        thing = short_timeout.publish(LARGE)
        fault = short_timeout.misbehave(thing, Stall(20_000))
        assert is_complete(short_timeout.get(thing), thing)
        fault.wait_served()
        first, second = short_timeout.asked(thing)
        assert (first.headers["Range"], second.headers["Range"]) == (None, "bytes=20000-")
        assert second.headers["If-Range"] == short_timeout.upstream_etag(thing)

    def test_an_upstream_that_is_slow_does_not_time_out(self, short_timeout: Site) -> None:
        """The timeout limits silence, not the whole transfer."""
        thing = short_timeout.publish(12_000)
        fault = short_timeout.misbehave(thing, Trickle(rate=8_000, piece=2_000))
        assert is_complete(short_timeout.get(thing), thing)
        assert (fault.served, len(short_timeout.asked(thing))) == (1, 1)

    @pytest.mark.parametrize("times", [1, 3])
    def test_an_upstream_that_closes_early_is_asked_for_the_rest(self, site: Site, times: int) -> None:
        """Each request resumes where the previous transfer ended."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, CloseEarly(10_000), times)
        assert is_complete(site.get(thing), thing)
        fault.wait_served(times)
        ranges = [request.headers["Range"] for request in site.asked(thing)]
        assert ranges == [None, *(f"bytes={10_000 * number}-" for number in range(1, times + 1))]
        validators = {request.headers["If-Range"] for request in site.asked(thing)[1:]}
        assert validators == {site.upstream_etag(thing)}

    def test_an_upstream_that_always_closes_early_fails_the_fetch(self, site: Site) -> None:
        """After a few attempts the client's transfer is aborted. No draft is left, and the next request works."""
        thing = site.publish(LARGE)
        site.misbehave(thing, CloseEarly(10_000))
        always = site.misbehave(thing, CloseEarly(0), None)
        assert is_aborted(site.get(thing), thing)
        site.wait_dropped(thing)
        assert 2 <= always.served <= 10
        assert (site.drafts, site.stored(thing)) == ([], [])
        assert len(site.logged_failures(thing)) == 1
        site.upstream.mend()
        assert is_complete(site.get(thing), thing)

    def test_an_upstream_without_ranges_sends_the_whole_file_again(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fetch starts again, and the client gets every byte once."""
        monkeypatch.setattr(site.upstream, "ranges", False)
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, CloseEarly(30_000))
        assert is_complete(site.get(thing), thing)
        fault.wait_served()
        site.upstream.wait_for(lambda: [request.status for request in site.asked(thing)] == [200, 200])

    def test_a_resume_does_not_mix_bytes_of_two_files(self, site: Site) -> None:
        """A file that changed before the resume aborts the transfer. Nothing of it is stored."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, CloseEarly(30_000))
        with site.reader(thing) as client:
            fault.wait_served()
            self.kind.replace(site.upstream, thing)
            assert not client.rest().complete
        site.wait_dropped(thing)
        assert (site.drafts, site.stored(thing)) == ([], [])

    @pytest.mark.parametrize("by", [1000, -1000])
    def test_a_wrong_length_from_upstream_gives_no_wrong_file(self, site: Site, by: int) -> None:
        """The client gets the complete file or an aborted transfer. The next request works."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, WrongLength(by))
        answer = site.get(thing)
        assert is_complete(answer, thing) or not answer.complete
        fault.wait_served()
        assert is_complete(site.get(thing), thing)

    @pytest.mark.parametrize("encoding", [Gzipped, Mislabelled])
    def test_an_unrequested_encoding_is_removed(self, site: Site, encoding: type[Fault]) -> None:
        """
        The client gets the file without upstream's encoding.

        Upstream was asked for identity, and uses or claims another encoding.
        """
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, encoding())
        answer = site.get(thing, {"Accept-Encoding": "gzip, deflate"})
        assert is_complete(answer, thing)
        assert (answer.headers["Content-Encoding"], answer.headers["Content-Length"]) == (None, str(len(thing.content)))
        fault.wait_served()
        assert [request.headers["Accept-Encoding"] for request in site.asked(thing)] == ["identity"]

    def test_a_redirect_to_another_host_is_followed_by_the_daemon(self, site: Site) -> None:
        """The daemon follows the redirect, and the client gets the file."""
        thing = site.publish(LARGE)
        with FileHost() as other:
            other.put(thing.upstream_path, thing.content)
            fault = site.misbehave(thing, Redirect(other.url + "{path}"))
            assert is_complete(site.get(thing), thing)
            fault.wait_served()
            assert other.count(thing.upstream_path) == 1

    @pytest.mark.parametrize("chunked", [True, False])
    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    def test_an_upstream_may_omit_the_length(self, site: Site, version: str, *, chunked: bool) -> None:
        """Clients of HTTP/1.0 and 1.1 can tell that the file is complete."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, Unsized(chunked=chunked))
        if version == "1.1":
            assert is_complete(site.get(thing), thing)
        else:
            answer = raw("127.0.0.1", site.daemon.port, f"GET {thing.path} HTTP/1.0\r\n\r\n".encode())
            headers, _, body = answer.partition(b"\r\n\r\n")
            assert headers.split()[1] == b"200"
            assert f"content-length: {len(thing.content)}" in headers.decode().lower().splitlines()
            assert body == thing.content
        fault.wait_served()


class Requests:
    """Tests the requests that a client can make for a file."""

    kind: Kind

    @pytest.fixture
    def thing(self, site: Site) -> Published:
        return site.publish_stored()

    @pytest.mark.parametrize(
        ("header", "start", "stop"),
        [("bytes=10-19", 10, 20), ("bytes=-7", -7, None), ("bytes=100-", 100, None), ("bytes=5-999999", 5, None)],
    )
    def test_a_range_is_answered_with_that_part(
        self, site: Site, thing: Published, header: str, start: int, stop: int | None
    ) -> None:
        """
        A range returns that part of the file (RFC 9110, section 14).

        It has both ends, a start or a suffix length.
        """
        total = len(thing.content)
        first, end, _ = slice(start, stop).indices(total)
        answer = site.get(thing, {"Range": header})
        assert (answer.status, answer.complete, answer.body) == (206, True, thing.content[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/{total}"
        assert answer.headers["Content-Length"] == str(end - first)
        assert answer.headers["ETag"] == site.get(thing).headers["ETag"]

    def test_several_ranges_are_answered_in_parts(self, site: Site, thing: Published) -> None:
        """
        Several ranges give a multipart/byteranges response (RFC 9110, section 14.6).

        Each part has its position, in the requested order.
        """
        answer = site.get(thing, {"Range": "bytes=50-59, 0-9,-5"})
        total = len(thing.content)
        assert (answer.status, answer.complete) == (206, True)
        message = BytesParser(policy=HTTP).parsebytes(
            f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode() + answer.body
        )
        assert message.get_content_type() == "multipart/byteranges"
        parts = {str(part["Content-Range"]): part.get_payload(decode=True) for part in message.iter_parts()}
        assert list(parts.items()) == [
            (f"bytes 50-59/{total}", thing.content[50:60]),
            (f"bytes 0-9/{total}", thing.content[:10]),
            (f"bytes {total - 5}-{total - 1}/{total}", thing.content[-5:]),
        ]

    def test_ranges_that_overlap_do_not_add_up_to_more_than_the_file(self, site: Site, thing: Published) -> None:
        """
        Ranges that exceed the file in total get the file once (RFC 9110, section 17.15).

        A small overlap is allowed.
        """
        assert site.get(thing, {"Range": "bytes=0-9,5-14"}).status == 206
        assert is_complete(site.get(thing, {"Range": "bytes=0-,0-,0-"}), thing)

    @pytest.mark.parametrize(
        ("header", "status"),
        [("bytes=999999-", 416), ("bytes=-0", 416), ("bytes=a-b", 400), ("bytes=5-2", 400), ("pages=1-2", 200)],
    )
    def test_an_invalid_range_is_refused_or_ignored(
        self, site: Site, thing: Published, header: str, status: int
    ) -> None:
        """
        An unsatisfiable range is 416 and a malformed one 400.

        The 416 has the true length. Unknown units are ignored.
        """
        answer = site.get(thing, {"Range": header})
        assert answer.status == status
        assert answer.headers["Content-Range"] == (f"bytes */{len(thing.content)}" if status == 416 else None)
        assert (answer.body == thing.content) == (status == 200)

    def test_a_range_needs_a_matching_if_range(self, site: Site, thing: Published) -> None:
        """
        A range is sent only if If-Range has this ETag (RFC 9110, section 13.1.5).

        For another ETag, a weak one or a date, the whole file is sent.
        """
        etag = site.get(thing).headers["ETag"]
        part = site.get(thing, {"Range": "bytes=1-2", "If-Range": etag})
        assert (part.status, part.body) == (206, thing.content[1:3])
        for other in ('"other"', f"W/{etag}", "Mon, 01 Jan 2035 00:00:00 GMT"):
            assert is_complete(site.get(thing, {"Range": "bytes=1-2", "If-Range": other}), thing)

    def test_a_head_has_the_headers_of_a_get_and_no_body(self, site: Site, thing: Published) -> None:
        """Range is ignored for HEAD (RFC 9110, section 14.2)."""
        whole, answer = site.get(thing), site.get(thing, {"Range": "bytes=0-1"}, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
        names = ("Content-Length", "ETag", "Cache-Control", "Accept-Ranges", "Content-Type", "Cache-Status")
        assert {name: answer.headers[name] for name in names} == {name: whole.headers[name] for name in names}
        assert answer.headers["Content-Length"] == str(len(thing.content))

    def test_a_client_that_has_the_file_gets_304(self, site: Site, thing: Published) -> None:
        """
        If-None-Match with the file's ETag gives 304.

        The ETag may be strong, weak, in a list, or ``*``. A malformed header matches nothing: the file is sent.
        """
        etag = site.get(thing).headers["ETag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            answer = site.get(thing, {"If-None-Match": known})
            assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag)
        assert is_complete(site.get(thing, {"If-None-Match": '"other"'}), thing)
        for odd in ("unquoted", '"a"' + ", " * 5000 + "x"):
            assert is_complete(site.get(thing, {"If-None-Match": odd}), thing)

    def test_a_file_is_never_encoded_and_never_changes(self, site: Site) -> None:
        """
        A file is sent without content encoding, cold and warm.

        With one, clients would decode an archive that is compressed itself.
        """
        thing = site.publish(LARGE)
        cold = site.get(thing, {"Accept-Encoding": "gzip, br, zstd"})
        site.wait_stored(thing)
        warm = site.get(thing, {"Accept-Encoding": "gzip, br, zstd"})
        for answer in (cold, warm):
            assert is_complete(answer, thing)
            assert answer.headers["Content-Encoding"] is None
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"

    def test_a_file_that_no_page_lists_is_404(self, site: Site, thing: Published) -> None:
        """
        An unlisted file is 404, although upstream has it.

        Upstream is not asked, since the project's page is fresh.
        """
        hidden = thing.upstream_path.replace("1.0", "6.6")
        site.upstream.put(hidden, b"nobody lists me")
        before = site.upstream.connections
        assert get(site.daemon.url + thing.path.replace("1.0", "6.6")).status == 404
        assert (site.upstream.connections, site.upstream.count(hidden)) == (before, 0)

    @pytest.mark.parametrize(
        "odd", ["../x", "%2e%2e/x", "a%2Fb", "a%00b", "a%0ab", "a%5Cb", "a\\b", "%zz", "%ff", "/x"]
    )
    def test_a_malformed_path_is_refused(self, site: Site, thing: Published, odd: str) -> None:
        """A malformed path is 400, and upstream is not asked. The log has only the request's line."""
        before = site.upstream.connections
        answer = get(f"{site.daemon.url}{thing.path.rpartition('/')[0]}/{odd}")
        assert (answer.status, site.upstream.connections) == (400, before)
        assert "the address" in answer.text


class Failures:
    """Tests a killed daemon and disks that refuse writes."""

    kind: Kind

    def test_a_killed_daemon_leaves_a_draft_that_is_resumed(self, site: Site) -> None:
        """The next request resumes the draft and works. Upstream is asked only for the missing bytes."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 50_000)
        with site.reader(thing) as client:
            client.read(40_000)
            assert len(site.drafts) == 1
            site.crash()
            assert not client.rest().complete
        length = site.drafts[0].stat().st_size
        gate.allow_all()
        site.recover()
        assert site.stored(thing) == []
        assert is_complete(site.get(thing), thing)
        assert [request.headers["Range"] for request in site.asked(thing)] == [None, f"bytes={length}-"]
        eventually(lambda: list((site.data / "drafts").iterdir()), lambda left: left == [])

    def test_clients_are_redirected_while_no_draft_can_be_made(self, site: Site) -> None:
        """
        Clients are redirected to upstream while drafts can't be made.

        The log has one line for it, and the health is degraded. Files are stored again without intervention.
        """
        one, two = site.publish(), site.publish()
        with site.without_drafts():
            for thing in (one, two, one):
                answer = site.get(thing)
                assert (answer.status, answer.headers["Location"]) == (302, site.upstream_url(thing))
                assert answer.headers["Cache-Control"] == "no-store"
                assert is_complete(get(answer.headers["Location"]), thing)
            assert len(site.logged("files can't be stored")) == 1
            assert site.health()["status"] == "degraded"
            assert site.health()["checks"]["storage"] != "ok"
        assert is_complete(site.get(one), one)
        site.wait_stored(one)
        assert len(site.logged("files can be stored again")) == 1
        assert site.health()["checks"]["storage"] == "ok"

    def test_a_stored_file_needs_no_draft(self, site: Site) -> None:
        """A stored file is served while no draft can be made."""
        thing = site.publish_stored()
        with site.without_drafts():
            assert is_complete(site.get(thing), thing)

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
    def test_a_disk_that_fills_up_during_a_fetch_fails_it(self, site: Site) -> None:
        """
        The client sees that the transfer failed, and the draft is deleted.

        The log gives the reason, and the file is fetched once there is space.
        """
        thing = site.publish(LARGE)
        limits = resource.prlimit(site.daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(site.daemon.pid, resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            answer = site.get(thing)
            assert answer.status == 302 or is_aborted(answer, thing)
            site.wait_dropped(thing)
        finally:
            resource.prlimit(site.daemon.pid, resource.RLIMIT_FSIZE, limits)
        assert (site.drafts, site.stored(thing), len(site.logged_failures(thing))) == ([], [], 1)
        assert is_complete(site.get(thing), thing)


class Settings:
    """Tests the settings for cold files and for upstream's credentials."""

    kind: Kind

    @pytest.fixture
    def strict(self, sites: Sites) -> Site:
        return sites(self.kind, UPSTREAM_STRICT="true", STRICT_WAIT="1")

    @pytest.fixture
    def redirecting(self, sites: Sites) -> Site:
        return sites(self.kind, COLD_FILES="redirect")

    @pytest.fixture
    def private(self, sites: Sites) -> Site:
        return sites(self.kind, auth=("someone", "s3cret-word"))

    def test_strict_waits_for_the_whole_file(self, strict: Site) -> None:
        """A client gets the complete, checked file or none of it."""
        right, wrong = strict.publish(LARGE), strict.publish(LARGE)
        assert is_complete(strict.get(right), right)
        fault = strict.misbehave(wrong, WrongBytes())
        answer = strict.get(wrong)
        fault.wait_served()
        assert (answer.status, answer.complete) == (502, True)
        assert wrong.content[:4] not in answer.body
        eventually(lambda: strict.get(wrong), lambda again: is_complete(again, wrong))

    def test_strict_waits_for_a_limited_time(self, strict: Site) -> None:
        """
        A client gets 503 with Retry-After after MYPYPI_STRICT_WAIT.

        The fetch continues, and then the file is served.
        """
        thing = strict.publish(LARGE)
        gate = strict.hold(thing, 50_000)
        for _ in range(2):
            answer = strict.get(thing)
            assert (answer.status, answer.headers["Location"]) == (503, None)
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
        gate.allow_all()
        strict.wait_stored(thing)
        assert is_complete(strict.get(thing), thing)
        assert len(strict.asked(thing)) == 1

    def test_strict_never_redirects_a_client(self, strict: Site) -> None:
        """Strict mode answers 503 even if no draft can be made."""
        thing = strict.publish()
        with strict.without_drafts():
            answer = strict.get(thing)
        assert (answer.status, answer.headers["Location"]) == (503, None)
        assert answer.headers["Retry-After"] is not None
        assert is_complete(strict.get(thing), thing)

    def test_redirect_sends_clients_to_upstream_and_fetches_the_file(self, redirecting: Site) -> None:
        """Clients are redirected at once to upstream's exact address. The next request is served by the daemon."""
        thing = redirecting.publish(LARGE)
        gate = redirecting.hold(thing)
        answer = redirecting.get(thing)
        assert (answer.status, answer.headers["Location"]) == (302, redirecting.upstream_url(thing))
        gate.allow_all()
        redirecting.wait_stored(thing)
        with redirecting.upstream.refusing():
            assert is_complete(redirecting.get(thing), thing)
        assert len(redirecting.asked(thing)) == 1

    def test_redirect_goes_only_to_listed_files(self, redirecting: Site) -> None:
        """
        An unlisted file is 404, not a redirect.

        Otherwise anyone could redirect others to any address through the daemon.
        """
        thing = redirecting.publish()
        assert get(redirecting.daemon.url + thing.path.replace("1.0", "6.6")).status == 404

    def test_credentials_reach_upstream_and_no_other_host(self, private: Site) -> None:
        """Upstream's files are fetched with credentials, a redirect's target without. No line of the log has them."""
        own, elsewhere = private.publish_stored(), private.publish()
        with FileHost() as other:
            other.put(elsewhere.upstream_path, elsewhere.content)
            fault = private.misbehave(elsewhere, Redirect(other.url + "{path}"))
            assert is_complete(private.get(elsewhere), elsewhere)
            fault.wait_served()
            assert [request.headers["Authorization"] for request in other.requests] == [None]
        sent = {request.headers["Authorization"] for request in private.asked(own) + private.asked(elsewhere)}
        assert len(sent) == 1
        (authorization,) = sent
        assert authorization.startswith("Basic ")
        assert private.logged("s3cret-word") == private.logged(authorization.removeprefix("Basic ")) == []

    def test_no_credentials_are_sent_after_a_redirect_back_to_upstream(self, private: Site) -> None:
        """
        A redirect that comes back to upstream from another host is followed without credentials.

        The other host may be anyone's, and would choose what is requested with them.
        """
        thing = private.publish()
        with FileHost() as other:
            back = other.fault(thing.upstream_path, Redirect(private.upstream.url + "{path}"))
            private.misbehave(thing, Redirect(other.url + "{path}"))
            assert private.get(thing).status == 403
            back.wait_served()
            assert [request.headers["Authorization"] for request in other.requests] == [None]
            own = [request.headers["Authorization"] for request in private.upstream.seen(thing.upstream_path)]
            assert (own[0] is None, own[-1]) == (False, None)

    def test_private_files_are_passed_through_while_no_draft_can_be_made(self, private: Site) -> None:
        """The daemon passes private files through while drafts can't be made. The bytes are checked, and not stored."""
        right, wrong = private.publish(LARGE), private.publish(LARGE)
        with private.without_drafts():
            answer = private.get(right)
            assert is_complete(answer, right)
            assert "fwd=bypass" in answer.headers["Cache-Status"]
            fault = private.misbehave(wrong, WrongBytes())
            assert is_aborted(private.get(wrong), wrong)
            fault.wait_served()
        assert private.stored(right) == private.stored(wrong) == []
        assert is_complete(private.get(wrong), wrong)

    def test_redirect_is_not_used_for_clients_that_lack_credentials(self, sites: Sites) -> None:
        """Clients without credentials are not redirected. Upstream would refuse them."""
        site = sites(self.kind, auth=("someone", "s3cret-word"), COLD_FILES="redirect")
        thing = site.publish()
        assert head(site.upstream_url(thing)).status == 401
        assert is_complete(site.get(thing), thing)


class FilePromises(ColdFiles, StoredFiles, MisbehavingUpstream, Requests, Failures, Settings):
    """All the tests, which a subclass runs for one ecosystem."""

    kind: Kind


class TestPyPIFiles(FilePromises):
    kind = PyPIKind()


class TestNPMFiles(FilePromises):
    kind = NPMKind()
