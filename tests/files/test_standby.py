"""Tests of fetches that no client waits for: they give way to other requests, and go on when there is room."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from mypypi.digests import Digest
from mypypi.errors import NotFound, StillFetching
from mypypi.files.content import Content
from mypypi.files.fetches import Fetches
from mypypi.files.resuming import FRUITLESS
from mypypi.files.standby import ASIDE
from mypypi.model import PackageFile, PageRequest
from mypypi.observability import metrics
from mypypi.upstream.client import Upstream
from tests.files.test_fetch import DATA, DIGEST, SIZE, FetchTestCase
from tests.support.memory import Exchange, gzipped, response

#: Hosts of files: one that is slow, and upstream's own.
SLOW, OWN = "https://files.example", "https://index.example"


def file_at(path: str, host: str = SLOW, digest: Digest | None = DIGEST) -> PackageFile:
    url = f"{host}/{path}"
    return PackageFile(url.replace("://", "/"), url, digest, None)


class StandbyTestCase(FetchTestCase):
    """Fetches with one place at each origin, so that each one needs the place of the one before."""

    def make_fetches(self, **options: Any) -> Fetches:
        return super().make_fetches(concurrency=1, min_rate=1, **options)

    @property
    def upstream(self) -> Upstream:
        return self.fetches._tools.upstream

    def begin(self, file: PackageFile, sent: int = 5000, **headers: Any) -> tuple[Content, Exchange]:
        """Request a file, and let upstream send so many bytes of it."""
        content = self.fetches.start(file, f"client of {file.url}")
        exchange = self.wire.last
        exchange.send(response(200, b"", content_length=str(SIZE), **headers) + DATA[:sent])
        return content, exchange

    def want(self, file: PackageFile) -> Content:
        """Request a file as another client."""
        content = self.fetches.start(file, "another client")
        self.clock.advance(0)
        return content

    def gave_way(self) -> float:
        return float(metrics.GAVE_WAY._value.get())

    def assert_both_stored(self, *files: PackageFile) -> None:
        for file in files:
            stored = self.now(self.storage.find(file.key))
            assert stored is not None
            assert stored.path is not None
            self.assertEqual(DATA, stored.path.read_bytes())


class StandbyTest(StandbyTestCase):
    """A transfer gives way while it has no reader and another request needs its place."""

    def test_transfer_without_readers_gives_way(self) -> None:
        """It stops when a client wants another file of its host, and is finished when there is room (promise 4)."""
        slow, other = file_at("slow.whl"), file_at("other.whl")
        content, exchange = self.begin(slow)
        content.close()
        self.assertFalse(exchange.closed, "it is not interrupted while nobody needs its place")
        self.close_after_test(self.want(other))
        self.assertEqual((True, "/other.whl"), (exchange.closed, self.wire.last.path))
        self.clock.advance(2 * ASIDE)
        self.assertEqual(2, len(self.wire.exchanges), "it waits for as long as the place is needed")
        self.wire.last.answer(body=DATA)
        self.clock.advance(ASIDE)
        self.assertEqual("bytes=5000-", self.wire.last.headers["range"])
        self.send_rest(5000)
        self.assert_both_stored(slow, other)

    def test_transfer_with_a_reader_keeps_its_place(self) -> None:
        """A client that reads keeps its transfer. Others wait."""
        content, exchange = self.begin(file_at("slow.whl"))
        self.close_after_test(content)
        other = self.want(file_at("other.whl"))
        self.assertEqual((False, 1), (exchange.closed, len(self.wire.exchanges)))
        exchange.send(DATA[5000:])
        self.assertEqual("/other.whl", self.wire.last.path)
        self.wire.last.answer(body=DATA)
        other.close()

    def test_transfer_gives_way_once_its_last_reader_leaves(self) -> None:
        """A request that waits gets the place in the moment in which the transfer loses its last reader."""
        content, exchange = self.begin(file_at("slow.whl"))
        joined = self.fetches.join(file_at("slow.whl"))
        assert joined is not None
        other = self.want(file_at("other.whl"))
        joined.close()
        self.assertFalse(exchange.closed)
        content.close()
        self.clock.advance(0)
        self.assertEqual((True, "/other.whl"), (exchange.closed, self.wire.last.path))
        self.wire.last.answer(body=DATA)
        other.close()
        self.finish_rest()

    def test_request_without_an_answer_gives_way(self) -> None:
        """So does a transfer that waits for the head of upstream's answer. It asks again later."""
        content = self.fetches.start(file_at("slow.whl"), "a client")
        exchange = self.wire.last
        content.close()
        self.close_after_test(self.want(file_at("other.whl")))
        self.assertEqual((True, "/other.whl"), (exchange.closed, self.wire.last.path))
        self.wire.last.answer(body=DATA)
        self.clock.advance(ASIDE)
        self.assertEqual("/slow.whl", self.wire.last.path)
        self.wire.last.answer(body=DATA)
        self.assert_both_stored(file_at("slow.whl"), file_at("other.whl"))

    def test_transfer_of_another_origin_gives_way_to_the_limit_of_all(self) -> None:
        """Other origins share their places: an idle transfer of one gives way to a request to another one."""
        hosts = [f"https://files{number}.example" for number in range(3)]
        begun = [self.begin(file_at("slow.whl", host)) for host in hosts[:2]]
        begun[0][0].close()
        self.close_after_test(begun[1][0])
        other = self.want(file_at("other.whl", hosts[2]))
        self.assertEqual([True, False], [exchange.closed for _, exchange in begun])
        self.assertEqual(f"{hosts[2]}/other.whl", self.wire.last.url)
        self.wire.last.answer(body=DATA)
        other.close()
        begun[1][1].send(DATA[5000:])
        self.finish_rest()

    def test_own_origin_has_places_of_its_own(self) -> None:
        """A page of upstream's own is sent while files of other hosts hold all places there, and none gives way."""
        content, exchange = self.begin(file_at("slow.whl"))
        content.close()
        page = self.start(self.upstream.page(PageRequest("/simple/a/", "text/html", "page")))
        self.assertEqual((False, "/simple/a/"), (exchange.closed, self.wire.last.path))
        self.wire.last.answer(404)
        self.failing(page, NotFound)
        exchange.send(DATA[5000:])

    def test_pages_take_the_place_of_an_idle_file_of_their_origin(self) -> None:
        """An npm tarball without readers gives way to a packument of the same registry."""
        tarball = file_at("slow.tgz", OWN)
        content, exchange = self.begin(tarball)
        content.close()
        page = self.start(self.upstream.page(PageRequest("/other", "application/json", "page")))
        self.clock.advance(0)
        self.assertEqual((True, "/other"), (exchange.closed, self.wire.last.path))
        self.wire.last.answer(404)
        self.failing(page, NotFound)
        self.finish_rest()
        self.assert_both_stored(tarball)

    def test_reader_brings_its_transfer_back_at_once(self) -> None:
        """A client that asks for a file whose transfer rests gets it as soon as there is a place."""
        content, _ = self.begin(file_at("slow.whl"))
        content.close()
        other = self.want(file_at("other.whl"))
        again = self.fetches.join(file_at("slow.whl"))
        assert again is not None
        self.close_after_test(again)
        self.clock.advance(0)
        self.wire.last.answer(body=DATA)
        other.close()
        self.assertEqual("/slow.whl", self.wire.last.path)
        self.send_rest(5000)
        self.assertTrue(again.whole)

    def test_giving_way_is_not_a_failure(self) -> None:
        """A transfer that gives way many times without a new byte is stored in the end, and asks rarely."""
        before = self.gave_way()
        slow = file_at("slow.whl")
        content, _ = self.begin(slow)
        content.close()
        for number in range(3 * FRUITLESS):
            other = self.want(file_at(f"other{number}.whl"))
            self.wire.last.answer(body=DATA)
            other.close()
            self.clock.advance(ASIDE - 0.1)
            self.assertEqual(f"/other{number}.whl", self.wire.last.path)
            self.clock.advance(0.1)
            self.assertEqual("/slow.whl", self.wire.last.path)
        self.assertEqual(before + 3 * FRUITLESS, self.gave_way())
        self.send_rest(5000)
        self.assert_both_stored(slow)

    def test_file_that_cannot_be_resumed_is_begun_anew(self) -> None:
        """An encoded body, and one that neither a digest nor a validator describes, is requested from its start."""
        encoded = gzipped(DATA)
        answers = {
            DIGEST: response(200, encoded[:-9], content_encoding="gzip", content_length=str(len(encoded))),
            None: response(200, DATA[:5000], content_length=str(SIZE)),
        }
        for number, (digest, answer) in enumerate(answers.items()):
            slow = file_at(f"slow{number}.whl", digest=digest)
            content = self.fetches.start(slow, "a client")
            self.wire.last.send(answer)
            content.close()
            other = self.want(file_at(f"other{number}.whl"))
            self.wire.last.answer(body=DATA)
            other.close()
            self.clock.advance(ASIDE)
            self.assertEqual((slow.url, None), (self.wire.last.url, self.wire.last.headers.get("range")))
            self.wire.last.answer(body=DATA)
            self.assert_both_stored(slow)

    def test_job_that_waits_for_a_file_keeps_its_transfer(self) -> None:
        """A worker's job waits for its file as a client does."""
        job = self.start(self.fetches.fetch_and_store(file_at("slow.whl")))
        exchange = self.wire.last
        other = self.want(file_at("other.whl"))
        self.assertEqual((False, 1), (exchange.closed, len(self.wire.exchanges)))
        exchange.answer(body=DATA)
        self.now(job)
        self.wire.last.answer(body=DATA)
        other.close()

    def test_job_does_not_wait_for_a_slow_file(self) -> None:
        """A job ends after half a minute, so that other jobs run. Its fetch goes on, and the next try joins it."""
        job = self.start(self.fetches.fetch_and_store(file_at("slow.whl")))
        exchange = self.wire.last
        exchange.send(response(200, b"", content_length=str(SIZE)))
        for sent in range(3):
            self.clock.advance(10)
            exchange.send(DATA[sent * 5000 : (sent + 1) * 5000])
        self.failing(job, StillFetching)
        again = self.start(self.fetches.fetch_and_store(file_at("slow.whl")))
        exchange.send(DATA[15_000:])
        self.now(again)
        self.assertEqual(1, len(self.wire.exchanges))
        self.assert_both_stored(file_at("slow.whl"))

    def test_resting_transfer_stops_with_its_process(self) -> None:
        """A process that stops hands over a transfer that rests, and one that waits for a place."""
        content, _ = self.begin(file_at("slow.whl"))
        content.close()
        other = self.close_after_test(self.want(file_at("other.whl")))
        for _ in range(2):
            self.clock.advance(ASIDE)
        self.now(self.start(self.fetches.stop()))
        self.assertEqual((0, True), (len(self.fetches), other.ended))
        self.fetches.start(file_at("slow.whl")).close()
        self.wire.last.answer(206, DATA[5000:], content_range=f"bytes 5000-{SIZE - 1}/{SIZE}")
        self.fetches.start(file_at("other.whl")).close()
        self.wire.last.answer(body=DATA)

    def finish_rest(self) -> None:
        """Let the transfer that gave way go on to its end."""
        self.clock.advance(ASIDE)
        self.assertEqual("bytes=5000-", self.wire.last.headers["range"])
        self.send_rest(5000)


class OtherProcessTest(StandbyTestCase):
    """Clients of other processes of the host count as well."""

    def test_reader_in_another_process_keeps_the_transfer(self) -> None:
        """A transfer keeps its place for a client of a process that follows the draft, until that client leaves."""
        slow = file_at("slow.whl")
        content, exchange = self.begin(slow)
        follower = self.make_fetches()
        self.addCleanup(lambda: self.assertEqual(0, len(follower)))
        followed = follower.start(slow, "client of the other process")
        self.pump()
        content.close()
        waiting = self.other_request()
        self.assertEqual((False, 1), (exchange.closed, len(self.wire.exchanges)))
        followed.close()
        self.pump(1.1)
        self.assertEqual((True, "/other.whl"), (exchange.closed, self.wire.last.path))
        self.now(waiting).close()
        self.pump(ASIDE)
        self.send_rest(5000)
        self.pump()
        self.assert_both_stored(slow)

    def test_taken_over_transfer_without_readers_gives_way(self) -> None:
        """A transfer that another process takes over, although no client waits there either, gives way as any other."""
        slow = file_at("slow.whl")
        content, _ = self.begin(slow)
        follower = self.make_fetches()
        follower.start(slow, "client of the other process").close()
        self.pump()
        self.assertTrue(follower.make_room(file_at("other.whl"), "client of the other process", 1))
        content.close()
        self.now(self.start(self.fetches.stop()))
        self.pump(0.5)
        exchange = self.wire.last
        self.assertEqual("bytes=5000-", exchange.headers["range"])
        self.fetches = follower
        waiting = self.other_request()
        self.assertTrue(exchange.closed)
        self.now(waiting).close()
        self.pump(ASIDE + 0.1)
        self.send_rest(5000)
        self.assert_both_stored(slow)

    def test_reader_in_another_process_brings_the_transfer_back(self) -> None:
        """A client of another process brings a transfer back that rests."""
        slow = file_at("slow.whl")
        content, exchange = self.begin(slow)
        content.close()
        waiting = self.other_request()
        self.assertTrue(exchange.closed)
        self.now(waiting).close()
        follower = self.make_fetches()
        followed = self.close_after_test(follower.start(slow, "client of the other process"))
        self.pump(1.2)
        self.assertEqual("bytes=5000-", self.wire.last.headers["range"])
        self.send_rest(5000)
        self.pump()
        self.assertTrue(followed.whole)

    def other_request(self) -> Deferred[Any]:
        """Send a request that needs the place, and answer it once upstream gets it."""
        asked = self.start(self.upstream.file(f"{SLOW}/other.whl", {}, "another client"))
        self.clock.advance(0)
        if self.wire.last.path == "/other.whl":
            self.wire.last.send(response(200, b"x", content_length="9"))
        else:
            self.answer_when_sent(asked)
        return asked

    def answer_when_sent(self, asked: Deferred[Any]) -> None:
        def look() -> None:
            if self.wire.last.path == "/other.whl":
                self.wire.last.send(response(200, b"x", content_length="9"))
            elif not asked.called:
                self.clock.callLater(0.05, look)

        self.clock.callLater(0.05, look)

    def pump(self, seconds: float = 0.2) -> None:
        self.clock.pump([0.02] * round(seconds * 50))


class RoomForFetchesTest(StandbyTestCase):
    """The number of fetches has a limit, of which each client and each origin has a share."""

    def start_all(self, client: str, host: str = SLOW, most: int = 8) -> list[Content]:
        """Start fetches of other files for a client until there is no room for one more."""
        contents: list[Content] = []
        while self.fetches.make_room(file := file_at(f"{client}-{len(contents)}", host), client, most):
            contents.append(self.fetches.start(file, client))
        return contents

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.stop_all)

    def stop_all(self) -> None:
        self.now(self.start(self.fetches.stop()))
        for draft in (self.root / "drafts").iterdir():
            draft.unlink()

    def test_a_client_and_an_origin_leave_room_to_others(self) -> None:
        """One client and one host have half of the fetches at most, and both together less. Others find room."""
        contents = self.start_all("greedy")
        self.assertEqual(3, len(contents))
        contents += self.start_all("second")
        self.assertEqual(4, len(contents))
        contents += self.start_all("greedy", OWN)
        self.assertEqual(5, len(contents))
        self.assertFalse(self.fetches.make_room(file_at("x", OWN), "greedy", 8))
        self.assertFalse(self.fetches.make_room(file_at("x"), "modest", 8))
        self.assertTrue(self.fetches.make_room(file_at("x", OWN), "modest", 8))
        for content in contents:
            content.close()

    def test_fetches_without_clients_take_no_room_and_have_a_limit(self) -> None:
        """Fetches whose clients left refuse nobody. Beyond the limit, those with the fewest bytes are stopped."""
        begun, _ = self.begin(file_at("begun"))
        begun.close()
        for number in range(6):
            for content in self.start_all(f"leaves at once {number}"):
                content.close()
        self.assertEqual(11, len(self.fetches))
        self.assertTrue(self.fetches.make_room(file_at("x"), "modest", 8))
        self.assertEqual(8, len(self.fetches))
        self.assertIn("https/files.example/begun", [key for key, _ in self.fetches._running])
