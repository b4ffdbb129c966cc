"""What is promised of package files, whatever their ecosystem: seen from outside, with real processes.

The tests of a class share a site (an upstream and the daemon before it); each has packages of its own.
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

#: Of a package that is large enough to be seen arriving, in bytes.
LARGE = 100_000


@define(eq=False)
class Mislabelled(Fault):
    """Says that the body is encoded with gzip, which it is not, or which is what it is meant to be."""

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.reply(evolve(reply, headers={**reply.headers, "Content-Encoding": "gzip"}))
        self._happened()


def is_whole(answer: Answer, thing: Published) -> bool:
    return (answer.status, answer.complete) == (200, True) and answer.body == thing.content


def is_broken(answer: Answer, thing: Published) -> bool:
    """Whether no client could take this for the file, though it may have begun well: with the head, or with less."""
    begun = thing.content.startswith(answer.body) and len(answer.body) < len(thing.content)
    return answer.status in (0, 200) and not answer.complete and begun


class ColdFilePolicy:
    """A file that is not stored yet."""

    def test_a_cold_file_arrives_while_upstream_still_sends_it(self, site: Site) -> None:
        """What upstream has sent is handed on at once, all but the last bytes of it."""
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
        """While one byte is missing, a client can't have all the others."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, len(thing.content) - 1)
        with SlowReader(site.url(thing)) as client:
            gate.wait_sent(len(thing.content) - 1)
            client.read(len(thing.content) - 10_000)
            with pytest.raises(TimeoutError):
                client.read(9_999, timeout=0.3)
        gate.allow_all()
        assert is_whole(site.get(thing), thing)
        assert len(site.asked(thing)) == 1

    @pytest.mark.parametrize("padding", [0, LARGE])
    def test_wrong_bytes_break_the_transfer_and_are_not_kept(self, site: Site, padding: int) -> None:
        """The client sees it, the log says it once, and the next request fetches again and works."""
        thing = site.publish(padding)
        fault = site.misbehave(thing, WrongBytes())
        assert is_broken(site.get(thing), thing)
        site.wait_dropped(thing)
        fault.wait_served()
        assert (site.drafts, site.stored(thing)) == ([], [])
        assert len(site.logged_failures(thing)) == 1
        assert is_whole(site.get(thing), thing)
        assert len(site.asked(thing)) == 2

    @pytest.mark.parametrize("seen", [True, False])
    def test_fifty_clients_at_once_make_one_request_to_upstream(self, site: Site, *, seen: bool) -> None:
        """And get identical bytes; where nobody has seen the page, that is asked for once as well."""
        thing = site.publish(LARGE, seen=seen)
        gate = site.hold(thing)
        all_wait = Barrier(50, gate.allow_all)

        def take(_: int) -> Answer:
            with site.reader(thing) as client:
                all_wait.wait(BOUND)
                return client.rest()

        assert all(is_whole(answer, thing) for answer in parallel(50, take))
        assert gate.served == 1
        assert len(site.asked(thing)) == 1
        assert site.upstream.count(self.kind.upstream_page_path(thing.name)) == 1

    def test_a_second_client_joins_late_and_gets_everything(self, site: Site) -> None:
        """From the start, from the same transfer."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 60_000)
        with site.reader(thing) as first:
            assert first.read(50_000) == thing.content[:50_000]
            with site.reader(thing) as second:
                assert second.read(50_000) == thing.content[:50_000]
                gate.allow_all()
                assert first.rest().body == second.rest().body == thing.content[50_000:]
        assert len(site.asked(thing)) == 1

    @pytest.mark.parametrize("staying", [0, 1])
    def test_a_client_that_leaves_stops_nothing(self, site: Site, staying: int) -> None:
        """Neither for one who stays nor for the cache, even where nobody stays."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 50_000)
        stays = [site.reader(thing) for _ in range(staying)]
        for _ in range(2):
            with site.reader(thing) as leaves:
                leaves.read(1000)
        site.settle()
        gate.allow_all()
        for client in stays:
            assert is_whole(client.rest(), thing)
            client.close()
        site.wait_stored(thing)
        with site.upstream.refusing():
            assert is_whole(site.get(thing), thing)
        assert (gate.served, len(site.asked(thing))) == (1, 1)

    def test_a_range_of_a_cold_file_is_answered_once_its_bytes_are_there(self, site: Site) -> None:
        """And the whole file is fetched for it."""
        thing = site.publish(LARGE)
        gate = site.hold(thing, 50_000)
        answer = site.get(thing, {"Range": "bytes=30000-30099"})
        assert (answer.status, answer.body) == (206, thing.content[30_000:30_100])
        assert answer.headers["Content-Range"] == f"bytes 30000-30099/{len(thing.content)}"
        assert not site.asked(thing)[0].done
        gate.allow_all()
        site.wait_stored(thing)
        assert [request.headers["Range"] for request in site.asked(thing)] == [None]

    def test_the_end_of_a_cold_file_comes_when_it_is_checked(self, site: Site) -> None:
        """A suffix range is answered from the one transfer; not with bytes that turn out wrong."""
        wrong, right = site.publish(LARGE), site.publish(LARGE)
        fault = site.misbehave(wrong, WrongBytes())
        broken = site.get(wrong, {"Range": "bytes=-7"})
        fault.wait_served()
        assert (broken.status, broken.body, broken.complete) == (206, b"", False)
        answer = site.get(right, {"Range": "bytes=-7"})
        assert (answer.status, answer.body) == (206, right.content[-7:])

    def test_a_head_of_a_cold_file_says_what_a_get_will(self, site: Site) -> None:
        """Length, validator and freshness are those of the file once it is stored."""
        thing = site.publish(LARGE)
        cold = site.get(thing, method="HEAD")
        assert is_whole(site.get(thing), thing)
        site.wait_stored(thing)
        warm = site.get(thing, method="HEAD")
        assert (cold.status, cold.body) == (warm.status, warm.body) == (200, b"")
        for name in ("Content-Length", "ETag", "Cache-Control", "Accept-Ranges", "Content-Type"):
            assert cold.headers[name] == warm.headers[name] is not None

    kind: Kind


class StoredFiles:
    """A file that is stored, and what may have happened to it since."""

    kind: Kind

    def test_a_stored_file_is_served_without_upstream(self, site: Site) -> None:
        """Also by a daemon that was started while upstream was gone, with the same strong etag."""
        thing = site.publish(LARGE)
        cold = site.get(thing)
        site.wait_stored(thing)
        with site.upstream.refusing():
            warm = site.get(thing)
            site.restart()
            later = site.get(thing)
        assert is_whole(warm, thing)
        assert is_whole(later, thing)
        assert cold.headers["ETag"] == warm.headers["ETag"] == later.headers["ETag"]
        assert cold.headers["ETag"].startswith('"')
        assert "hit" in later.headers["Cache-Status"]
        assert "fwd=miss" in cold.headers["Cache-Status"]

    def test_an_emptied_redis_costs_no_file(self, site: Site) -> None:
        """What is stored is served without upstream; what was only listed is found again by reading its page."""
        stored, listed = site.publish_stored(), site.publish()
        site.empty_redis()
        with site.upstream.refusing():
            assert is_whole(site.get(stored), stored)
        site.restart()
        with site.upstream.refusing():
            assert is_whole(site.get(stored), stored)
        assert is_whole(site.get(listed), listed)
        assert site.upstream.count(self.kind.upstream_page_path(listed.name)) == 2
        assert len(site.asked(stored)) == 1

    def test_a_stored_file_that_was_deleted_is_fetched_again(self, site: Site) -> None:
        """Whether its bytes are gone or everything is."""
        thing = site.publish_stored()
        (path,) = site.stored(thing)
        path.unlink()
        assert is_whole(site.get(thing), thing)
        site.wait_stored(thing, times=2)
        shutil.rmtree(site.data / "files")
        assert is_whole(site.get(thing), thing)
        assert len(site.asked(thing)) == 3

    def test_a_stored_file_that_was_truncated_is_fetched_again(self, site: Site) -> None:
        """Never a short 200."""
        thing = site.publish_stored(LARGE)
        (path,) = site.stored(thing)
        with path.open("r+b") as file:
            file.truncate(1000)
        assert is_whole(site.get(thing), thing)
        assert len(site.asked(thing)) == 2

    def test_other_bytes_at_the_same_address_are_served_once_the_page_says_so(self, sites: Sites) -> None:
        """Never the old bytes with the new page; a client with parts of the old ones gets the new ones whole."""
        site = sites(self.kind, CACHE_TIME="0")
        thing = site.publish_stored()
        old = site.get(thing)
        assert is_whole(old, thing)
        new = self.kind.replace(site.upstream, thing)
        assert new.content != thing.content
        assert [unquote(link) for link in site.links(thing)] == [unquote(site.url(new))]
        resumed = site.get(new, {"Range": "bytes=10-", "If-Range": old.headers["ETag"]})
        assert is_whole(resumed, new)
        assert resumed.headers["ETag"] != old.headers["ETag"]
        assert is_whole(site.get(new), new)


class MisbehavingUpstream:
    """What a client sees of an upstream that fails it."""

    kind: Kind

    @pytest.fixture
    def impatient(self, sites: Sites) -> Site:
        """A site which waits a second for upstream."""
        return sites(self.kind, UPSTREAM_TIMEOUT="1")

    @pytest.mark.parametrize(("code", "status"), [(500, 503), (503, 503), (429, 503), (404, 404), (403, 502)])
    def test_an_error_before_the_head_is_told_as_what_it_is(self, site: Site, code: int, status: int) -> None:
        """Only upstream's own 404 is one here, and what may work later is said with a time. After that it works."""
        thing = site.publish()
        fault = site.misbehave(thing, Status(code, retry_after=1))
        answer = site.get(thing)
        fault.wait_served()
        assert answer.status == status
        assert answer.headers["Retry-After"] == ("1" if status == 503 else None)
        assert "Traceback" not in answer.text
        site.wait_dropped(thing)
        assert site.drafts == []
        eventually(lambda: site.get(thing), lambda again: is_whole(again, thing))

    def test_an_upstream_that_refuses_connections_is_not_the_end(self, site: Site) -> None:
        """503, with a time to try again, after which it works."""
        thing = site.publish()
        with site.upstream.refusing():
            answer = site.get(thing)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert is_whole(site.get(thing), thing)

    def test_an_upstream_that_hangs_before_the_head_is_given_up(self, impatient: Site) -> None:
        """After MYPYPI_UPSTREAM_TIMEOUT the client is told to come again, and then it works."""
        thing = impatient.publish()
        fault = impatient.misbehave(thing, Hang())
        answer = impatient.get(thing)
        assert (answer.status, answer.headers["Retry-After"], fault.served) == (503, "5", 1)
        assert is_whole(impatient.get(thing), thing)

    def test_an_upstream_that_stalls_in_the_body_is_asked_for_the_rest(self, impatient: Site) -> None:
        """With the validator of the bytes that are here; the client gets the whole file in one answer."""
        thing = impatient.publish(LARGE)
        fault = impatient.misbehave(thing, Stall(20_000))
        assert is_whole(impatient.get(thing), thing)
        fault.wait_served()
        first, second = impatient.asked(thing)
        assert (first.headers["Range"], second.headers["Range"]) == (None, "bytes=20000-")
        assert second.headers["If-Range"] == impatient.upstream_etag(thing)

    def test_an_upstream_that_is_slow_is_not_stalled(self, impatient: Site) -> None:
        """The limit is on silence, not on the whole transfer."""
        thing = impatient.publish(12_000)
        fault = impatient.misbehave(thing, Trickle(rate=8_000, piece=2_000))
        assert is_whole(impatient.get(thing), thing)
        assert (fault.served, len(impatient.asked(thing))) == (1, 1)

    @pytest.mark.parametrize("times", [1, 3])
    def test_an_upstream_that_closes_early_is_asked_for_the_rest(self, site: Site, times: int) -> None:
        """Once for each time, from where it stopped."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, CloseEarly(10_000), times)
        assert is_whole(site.get(thing), thing)
        fault.wait_served(times)
        ranges = [request.headers["Range"] for request in site.asked(thing)]
        assert ranges == [None, *(f"bytes={10_000 * number}-" for number in range(1, times + 1))]
        validators = {request.headers["If-Range"] for request in site.asked(thing)[1:]}
        assert validators == {site.upstream_etag(thing)}

    def test_an_upstream_that_always_closes_early_is_given_up(self, site: Site) -> None:
        """After a few tries the client sees a broken transfer; nothing is left of it, and the next request works."""
        thing = site.publish(LARGE)
        site.misbehave(thing, CloseEarly(10_000))
        always = site.misbehave(thing, CloseEarly(0), None)
        assert is_broken(site.get(thing), thing)
        site.wait_dropped(thing)
        assert 2 <= always.served <= 10
        assert (site.drafts, site.stored(thing)) == ([], [])
        assert len(site.logged_failures(thing)) == 1
        site.upstream.mend()
        assert is_whole(site.get(thing), thing)

    def test_an_upstream_that_knows_no_ranges_sends_all_again(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the client gets every byte once."""
        monkeypatch.setattr(site.upstream, "ranges", False)
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, CloseEarly(30_000))
        assert is_whole(site.get(thing), thing)
        fault.wait_served()
        site.upstream.wait_for(lambda: [request.status for request in site.asked(thing)] == [200, 200])

    def test_other_bytes_on_a_resume_are_not_mixed_with_the_first(self, site: Site) -> None:
        """Upstream has new bytes by then: the client sees a broken transfer, and nothing is kept."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, CloseEarly(30_000))
        with site.reader(thing) as client:
            fault.wait_served()
            self.kind.replace(site.upstream, thing)
            assert not client.rest().complete
        site.wait_dropped(thing)
        assert (site.drafts, site.stored(thing)) == ([], [])

    @pytest.mark.parametrize("by", [1000, -1000])
    def test_an_upstream_that_lies_about_the_length_is_not_believed(self, site: Site, by: int) -> None:
        """The client gets the file or sees a broken transfer, and the next request works."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, WrongLength(by))
        answer = site.get(thing)
        assert is_whole(answer, thing) or not answer.complete
        fault.wait_served()
        assert is_whole(site.get(thing), thing)

    @pytest.mark.parametrize("encoding", [Gzipped, Mislabelled])
    def test_an_encoding_that_nobody_asked_for_is_undone(self, site: Site, encoding: type[Fault]) -> None:
        """Identity is asked of upstream; what comes in another encoding, or is said to, reaches the client as it is."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, encoding())
        answer = site.get(thing, {"Accept-Encoding": "gzip, deflate"})
        assert is_whole(answer, thing)
        assert (answer.headers["Content-Encoding"], answer.headers["Content-Length"]) == (None, str(len(thing.content)))
        fault.wait_served()
        assert [request.headers["Accept-Encoding"] for request in site.asked(thing)] == ["identity"]

    def test_a_redirect_to_another_host_is_followed_here(self, site: Site) -> None:
        """The client sees nothing of it."""
        thing = site.publish(LARGE)
        with FileHost() as other:
            other.put(thing.upstream_path, thing.content)
            fault = site.misbehave(thing, Redirect(other.url + "{path}"))
            assert is_whole(site.get(thing), thing)
            fault.wait_served()
            assert other.count(thing.upstream_path) == 1

    @pytest.mark.parametrize("chunked", [True, False])
    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    def test_a_length_that_upstream_does_not_give_is_not_missed(
        self, site: Site, version: str, *, chunked: bool
    ) -> None:
        """Clients of either version of HTTP get the whole file, and can tell."""
        thing = site.publish(LARGE)
        fault = site.misbehave(thing, Unsized(chunked=chunked))
        if version == "1.1":
            assert is_whole(site.get(thing), thing)
        else:
            answer = raw("127.0.0.1", site.daemon.port, f"GET {thing.path} HTTP/1.0\r\n\r\n".encode())
            headers, _, body = answer.partition(b"\r\n\r\n")
            assert headers.split()[1] == b"200"
            assert f"content-length: {len(thing.content)}" in headers.decode().lower().splitlines()
            assert body == thing.content
        fault.wait_served()


class Requests:
    """What a client can ask of a file, and what it can't."""

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
        """From here to there, from here on, the last so many; RFC 9110, section 14."""
        total = len(thing.content)
        first, end, _ = slice(start, stop).indices(total)
        answer = site.get(thing, {"Range": header})
        assert (answer.status, answer.complete, answer.body) == (206, True, thing.content[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/{total}"
        assert answer.headers["Content-Length"] == str(end - first)
        assert answer.headers["ETag"] == site.get(thing).headers["ETag"]

    def test_several_ranges_are_answered_in_parts(self, site: Site, thing: Published) -> None:
        """As multipart/byteranges, each part with its place, in the order asked for (RFC 9110, section 14.6)."""
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
        """Some overlap is fine; who asks for more than there is gets the whole, once (RFC 9110, section 17.15)."""
        assert site.get(thing, {"Range": "bytes=0-9,5-14"}).status == 206
        assert is_whole(site.get(thing, {"Range": "bytes=0-,0-,0-"}), thing)

    @pytest.mark.parametrize(
        ("header", "status"),
        [("bytes=999999-", 416), ("bytes=-0", 416), ("bytes=a-b", 400), ("bytes=5-2", 400), ("pages=1-2", 200)],
    )
    def test_a_range_that_can_not_be_is_said_to_be_so(
        self, site: Site, thing: Published, header: str, status: int
    ) -> None:
        """416 with the true length, 400 for what is no range, and units that nobody knows are passed over."""
        answer = site.get(thing, {"Range": header})
        assert answer.status == status
        assert answer.headers["Content-Range"] == (f"bytes */{len(thing.content)}" if status == 416 else None)
        assert (answer.body == thing.content) == (status == 200)

    def test_a_range_holds_only_for_the_bytes_it_was_meant_for(self, site: Site, thing: Published) -> None:
        """With If-Range: this very etag, and not another, a weak one or a date (RFC 9110, section 13.1.5)."""
        etag = site.get(thing).headers["ETag"]
        part = site.get(thing, {"Range": "bytes=1-2", "If-Range": etag})
        assert (part.status, part.body) == (206, thing.content[1:3])
        for other in ('"other"', f"W/{etag}", "Mon, 01 Jan 2035 00:00:00 GMT"):
            assert is_whole(site.get(thing, {"Range": "bytes=1-2", "If-Range": other}), thing)

    def test_a_head_has_the_headers_of_a_get_and_no_body(self, site: Site, thing: Published) -> None:
        """Its Range is passed over (RFC 9110, section 14.2)."""
        whole, answer = site.get(thing), site.get(thing, {"Range": "bytes=0-1"}, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
        names = ("Content-Length", "ETag", "Cache-Control", "Accept-Ranges", "Content-Type", "Cache-Status")
        assert {name: answer.headers[name] for name in names} == {name: whole.headers[name] for name in names}
        assert answer.headers["Content-Length"] == str(len(thing.content))

    def test_a_client_that_has_the_file_is_told_so(self, site: Site, thing: Published) -> None:
        """304 for its etag, strong, weak, among others or any; 400 for what is none."""
        etag = site.get(thing).headers["ETag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            answer = site.get(thing, {"If-None-Match": known})
            assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag)
        assert is_whole(site.get(thing, {"If-None-Match": '"other"'}), thing)
        for odd in ("unquoted", '"a"' + ", " * 5000 + "x"):
            assert site.get(thing, {"If-None-Match": odd}).status == 400

    def test_a_file_is_never_encoded_and_never_changes(self, site: Site) -> None:
        """Whatever the client accepts, cold and warm: clients would decode an archive that is compressed itself."""
        thing = site.publish(LARGE)
        cold = site.get(thing, {"Accept-Encoding": "gzip, br, zstd"})
        site.wait_stored(thing)
        warm = site.get(thing, {"Accept-Encoding": "gzip, br, zstd"})
        for answer in (cold, warm):
            assert is_whole(answer, thing)
            assert answer.headers["Content-Encoding"] is None
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"

    def test_a_file_that_no_page_lists_is_not_there(self, site: Site, thing: Published) -> None:
        """Though upstream has it: 404, and nobody is asked, since the project's page is fresh."""
        hidden = thing.upstream_path.replace("1.0", "6.6")
        site.upstream.put(hidden, b"nobody lists me")
        before = site.upstream.connections
        assert get(site.daemon.url + thing.path.replace("1.0", "6.6")).status == 404
        assert (site.upstream.connections, site.upstream.count(hidden)) == (before, 0)

    @pytest.mark.parametrize(
        "odd", ["../x", "%2e%2e/x", "a%2Fb", "a%00b", "a%0ab", "a%5Cb", "a\\b", "%zz", "%ff", "/x"]
    )
    def test_a_path_that_nobody_means_is_refused(self, site: Site, thing: Published, odd: str) -> None:
        """A clear 400; nobody is asked, and nothing is said in the log but the request."""
        before = site.upstream.connections
        answer = get(f"{site.daemon.url}{thing.path.rpartition('/')[0]}/{odd}")
        assert (answer.status, site.upstream.connections) == (400, before)
        assert "the address" in answer.text


class Trouble:
    """A daemon that is killed, and disks that take nothing."""

    kind: Kind

    def test_a_killed_daemon_leaves_nothing_half_done(self, site: Site) -> None:
        """The next request simply works: it asks upstream for what is missing in the draft."""
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
        assert is_whole(site.get(thing), thing)
        assert [request.headers["Range"] for request in site.asked(thing)] == [None, f"bytes={length}-"]
        eventually(lambda: list((site.data / "drafts").iterdir()), lambda left: left == [])

    def test_clients_are_sent_to_upstream_while_no_draft_can_be_made(self, site: Site) -> None:
        """They get their bytes there; it is told once in the log and in the health, and ends by itself."""
        one, two = site.publish(), site.publish()
        with site.without_drafts():
            for thing in (one, two, one):
                answer = site.get(thing)
                assert (answer.status, answer.headers["Location"]) == (302, site.upstream_url(thing))
                assert answer.headers["Cache-Control"] == "no-store"
                assert is_whole(get(answer.headers["Location"]), thing)
            assert len(site.logged("files can't be stored")) == 1
            assert site.health()["status"] == "degraded"
            assert site.health()["checks"]["storage"] != "ok"
        assert is_whole(site.get(one), one)
        site.wait_stored(one)
        assert len(site.logged("files can be stored again")) == 1
        assert site.health()["checks"]["storage"] == "ok"

    def test_a_stored_file_needs_no_draft(self, site: Site) -> None:
        """It is served while none can be made."""
        thing = site.publish_stored()
        with site.without_drafts():
            assert is_whole(site.get(thing), thing)

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process is Linux's")
    def test_a_disk_that_fills_up_in_the_middle_breaks_the_transfer(self, site: Site) -> None:
        """Visibly; the draft is dropped, the log says why, and it works once there is room."""
        thing = site.publish(LARGE)
        limits = resource.prlimit(site.daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(site.daemon.pid, resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            answer = site.get(thing)
            assert answer.status == 302 or is_broken(answer, thing)
            site.wait_dropped(thing)
        finally:
            resource.prlimit(site.daemon.pid, resource.RLIMIT_FSIZE, limits)
        assert (site.drafts, site.stored(thing), len(site.logged_failures(thing))) == ([], [], 1)
        assert is_whole(site.get(thing), thing)


class Settings:
    """What the settings for cold files and upstream's credentials change."""

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
        """A client gets it whole and checked, or not a byte of it."""
        right, wrong = strict.publish(LARGE), strict.publish(LARGE)
        assert is_whole(strict.get(right), right)
        fault = strict.misbehave(wrong, WrongBytes())
        answer = strict.get(wrong)
        fault.wait_served()
        assert (answer.status, answer.complete) == (502, True)
        assert wrong.content[:4] not in answer.body
        assert is_whole(strict.get(wrong), wrong)

    def test_strict_does_not_wait_for_ever(self, strict: Site) -> None:
        """After MYPYPI_STRICT_WAIT it says when to come again; the fetch goes on, and then the file is there."""
        thing = strict.publish(LARGE)
        gate = strict.hold(thing, 50_000)
        for _ in range(2):
            answer = strict.get(thing)
            assert (answer.status, answer.headers["Location"]) == (503, None)
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
        gate.allow_all()
        strict.wait_stored(thing)
        assert is_whole(strict.get(thing), thing)
        assert len(strict.asked(thing)) == 1

    def test_strict_never_sends_a_client_elsewhere(self, strict: Site) -> None:
        """Not even where no draft can be made."""
        thing = strict.publish()
        with strict.without_drafts():
            answer = strict.get(thing)
        assert (answer.status, answer.headers["Location"]) == (503, None)
        assert answer.headers["Retry-After"] is not None
        assert is_whole(strict.get(thing), thing)

    def test_redirect_sends_clients_to_upstream_and_fetches_behind_them(self, redirecting: Site) -> None:
        """At once, to the very address that upstream gave; the next request is served from here."""
        thing = redirecting.publish(LARGE)
        gate = redirecting.hold(thing)
        answer = redirecting.get(thing)
        assert (answer.status, answer.headers["Location"]) == (302, redirecting.upstream_url(thing))
        gate.allow_all()
        redirecting.wait_stored(thing)
        with redirecting.upstream.refusing():
            assert is_whole(redirecting.get(thing), thing)
        assert len(redirecting.asked(thing)) == 1

    def test_redirect_goes_only_to_what_a_page_lists(self, redirecting: Site) -> None:
        """Else anyone could send others anywhere through here."""
        thing = redirecting.publish()
        assert get(redirecting.daemon.url + thing.path.replace("1.0", "6.6")).status == 404

    def test_credentials_reach_upstream_and_no_other_host(self, private: Site) -> None:
        """Its own files are had with them, a redirect's target is asked without, and no log line holds them."""
        own, elsewhere = private.publish_stored(), private.publish()
        with FileHost() as other:
            other.put(elsewhere.upstream_path, elsewhere.content)
            fault = private.misbehave(elsewhere, Redirect(other.url + "{path}"))
            assert is_whole(private.get(elsewhere), elsewhere)
            fault.wait_served()
            assert [request.headers["Authorization"] for request in other.requests] == [None]
        sent = {request.headers["Authorization"] for request in private.asked(own) + private.asked(elsewhere)}
        assert len(sent) == 1
        (authorization,) = sent
        assert authorization.startswith("Basic ")
        assert private.logged("s3cret-word") == private.logged(authorization.removeprefix("Basic ")) == []

    def test_credentials_do_not_come_back_with_a_redirect(self, private: Site) -> None:
        """From another host to upstream again: what sent us there could be anyone, but the host is upstream's."""
        thing = private.publish()
        with FileHost() as other:
            back = other.fault(thing.upstream_path, Redirect(private.upstream.url + "{path}"))
            private.misbehave(thing, Redirect(other.url + "{path}"))
            assert is_whole(private.get(thing), thing)
            back.wait_served()
            assert [request.headers["Authorization"] for request in other.requests] == [None]

    def test_what_a_client_may_not_ask_upstream_for_is_passed_through(self, private: Site) -> None:
        """While no draft can be made: the bytes come through, checked, and are not kept."""
        right, wrong = private.publish(LARGE), private.publish(LARGE)
        with private.without_drafts():
            answer = private.get(right)
            assert is_whole(answer, right)
            assert "fwd=bypass" in answer.headers["Cache-Status"]
            fault = private.misbehave(wrong, WrongBytes())
            assert is_broken(private.get(wrong), wrong)
            fault.wait_served()
        assert private.stored(right) == private.stored(wrong) == []
        assert is_whole(private.get(wrong), wrong)

    def test_a_redirecting_site_keeps_clients_that_lack_credentials(self, sites: Sites) -> None:
        """They are not sent where they would be refused."""
        site = sites(self.kind, auth=("someone", "s3cret-word"), COLD_FILES="redirect")
        thing = site.publish()
        assert head(site.upstream_url(thing)).status == 401
        assert is_whole(site.get(thing), thing)


class FilePromises(ColdFilePolicy, StoredFiles, MisbehavingUpstream, Requests, Trouble, Settings):
    """All of them, for one ecosystem."""

    kind: Kind


class TestPyPIFiles(FilePromises):
    kind = PyPIKind()


class TestNPMFiles(FilePromises):
    kind = NPMKind()
