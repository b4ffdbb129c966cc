"""Tests of metadata that is read out of wheels at upstream, from the page that advertises it to the client's answer."""

from __future__ import annotations

import os
import zipfile
from io import BytesIO
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogLevel

from mypypi.byte_range import ByteRange
from mypypi.errors import (
    BadUpstreamResponse,
    DigestMismatch,
    NoMetadata,
    NotFound,
    StorageDown,
    TemporarilyUnavailable,
    UpstreamDown,
    UpstreamRefused,
)
from mypypi.model import PackageFile, Page
from mypypi.proxy.answers import FileAnswer, FileRequest, LocalContent, RedirectToUpstream
from mypypi.proxy.cold_files import ColdFilePolicy
from mypypi.upstream.responses import FileRange
from tests.proxy.test_proxy import FILE, FILE_URL, LINK, NAME, PAGE, THING, ProxyTestCase, listed
from tests.rig.packages import incompressible, make_wheel
from tests.support.memory import Exchange, response, sha256

METADATA_LINK = f"{LINK}.metadata"
KIB = 1024


def packed(metadata: bytes, before: int, after: int) -> bytes:
    """Return a wheel with this metadata, and so many kilobytes in front of it and behind it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("before.bin", incompressible(before * KIB))
        archive.writestr("thing-1.0.dist-info/METADATA", metadata)
        archive.writestr("after.bin", incompressible(after * KIB))
    return buffer.getvalue()


METADATA = b"Metadata-Version: 2.2\nName: thing\nVersion: 1.0\nRequires-Dist: rabbit\n"
OTHER_METADATA = METADATA.replace(b"rabbit", b"knight")
#: Its metadata is neither in the last bytes, nor in the first.
WHEEL = packed(METADATA, 100, 100)
OTHER_WHEEL = packed(OTHER_METADATA, 100, 100)


def lists(wheel: bytes = WHEEL, **fields: object) -> dict[str, object]:
    return listed(**{"hashes": {"sha256": sha256(wheel).hex}, "size": len(wheel)} | fields)  # type: ignore[arg-type]


class WheelMetadataTestCase(ProxyTestCase):
    """A proxy whose upstream lists a wheel without metadata. Its origin is known to answer ranges."""

    reads_wheels = True
    #: Whether the origin of the wheel is known to answer ranges from the beginning.
    is_known = True

    def setUp(self) -> None:
        super().setUp()
        self.upstream_lists(lists())
        if self.is_known:
            self.now(self.catalog.put_answers_ranges("https/files.example", True))
        self.errors = self.log_events()

    # Requests

    def request(self, *, describe: bool = False, asked: ByteRange | None = None) -> Deferred[FileAnswer]:
        """Request the metadata. The answer may come later."""
        pending = self.start(self.proxy.file(METADATA_LINK, FileRequest("a client", describe, asked)))
        pending.addCallback(self.close_after_test)
        self.clock.advance(0)
        return pending

    def answer_ranges(self, wheel: bytes = WHEEL) -> int:
        """Answer the ranges that upstream is asked for, until it is asked for no more. Return how many these were."""
        answered = 0
        while (exchange := self.wire.last).path == FILE and "range" in exchange.headers and not exchange.closed:
            if exchange in self.answered:
                break
            self.answered.append(exchange)
            self.answer_range(exchange, wheel)
            answered += 1
            self.clock.advance(0)
        return answered

    @property
    def answered(self) -> list[Exchange]:
        return self.__dict__.setdefault("_answered", [])  # type: ignore[no-any-return]

    @staticmethod
    def answer_range(exchange: Exchange, wheel: bytes = WHEEL) -> None:
        first, _, last = exchange.headers["range"].removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(wheel) - int(last))
        stop = min(int(last) + 1, len(wheel)) if first else len(wheel)
        exchange.answer(206, wheel[start:stop], content_range=f"bytes {start}-{stop - 1}/{len(wheel)}")

    def read(self, wheel: bytes = WHEEL) -> LocalContent:
        """Request the metadata, and answer the ranges."""
        pending = self.request()
        self.assertLessEqual(self.answer_ranges(wheel), 3)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent), answer
        return answer

    def store_wheel(self, wheel: bytes = WHEEL) -> None:
        """Let a client request the wheel, which is fetched and stored."""
        pending = self.request_file()
        self.assertEqual((FILE, False), (self.wire.last.path, "range" in self.wire.last.headers))
        self.wire.last.answer(body=wheel)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertIsNotNone(self.now(self.storage.find(LINK)))

    # Results

    @staticmethod
    def content(answer: FileAnswer) -> bytes:
        if isinstance(answer, FileRange):
            assert (answer.start, answer.total) == (0, len(answer.content))
            return answer.content
        assert isinstance(answer, LocalContent), answer
        assert answer.content.error is None
        assert answer.content.whole
        return os.pread(answer.content.fd, 1_000_000, 0)

    def page(self) -> Page:
        return self.now(self.pages.get(THING)).page

    def advertised(self) -> PackageFile | None:
        """The metadata on the page as clients get it now, fresh or revalidated."""
        return self.now(self.pages.listing(self.page())).get(METADATA_LINK)

    @property
    def ranges_asked(self) -> list[str]:
        return [exchange.headers["range"] for exchange in self.wire.exchanges if "range" in exchange.headers]

    def assert_nothing_but_the_wheel_is_requested(self) -> None:
        """Assert that upstream was never asked for the metadata, which it does not have."""
        self.assertLessEqual(set(self.wire.paths), {PAGE, FILE})

    @property
    def logged(self) -> list[str]:
        """The errors in the log."""
        return [str(event["log_format"]) for event in self.errors if event["log_level"] >= LogLevel.error]


class ProbeTest(WheelMetadataTestCase):
    """A page asks whether the origin of its wheels answers ranges."""

    is_known = False

    def test_new_page_advertises_metadata_at_once(self) -> None:
        """The first client of a page waits for the probe, and gets the page with metadata."""
        pending = self.start(self.pages.get(THING))
        self.clock.advance(0)
        self.assertEqual(["bytes=-1"], self.ranges_asked)
        self.answer_range(self.wire.last)
        page = self.now(pending).page
        metadata = self.now(self.pages.listing(page)).get(METADATA_LINK)
        assert metadata is not None
        self.assertEqual(metadata.wheel, self.now(self.pages.listing(page)).get(LINK))
        self.assertTrue(page.extracts)
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_origin_without_ranges(self) -> None:
        """Where upstream answers with the whole file, the page is upstream's, and the file is not fetched."""
        pending = self.start(self.pages.get(THING))
        self.clock.advance(0)
        self.wire.last.send(response(200, b"", content_length=str(len(WHEEL))))
        self.assertIsNone(self.now(self.pages.listing(self.now(pending).page)).get(METADATA_LINK))
        self.assert_fails(NotFound, METADATA_LINK)
        self.assertTrue(self.wire.last.closed)
        self.assertEqual([PAGE, FILE], self.wire.paths[:2])
        self.assertEqual(["bytes=-1"], self.ranges_asked)

    def test_silent_origin(self) -> None:
        """A page does not wait for long. It is rendered again at its next revalidation, since nothing is known yet."""
        self.wire.reply(PAGE, 200, self.wire.replies[PAGE].body, content_type="application/json", etag='"1"')
        pending = self.start(self.pages.get(THING))
        self.clock.advance(0)
        self.clock.advance(3)
        self.assertFalse(self.now(pending).page.extracts)
        self.answer_range(self.wire.last)
        self.clock.advance(301)
        self.assertIsNotNone(self.advertised())
        self.assertNotIn("if-none-match", self.wire.last.headers)

    def test_upstream_with_its_own_metadata_is_not_probed(self) -> None:
        """Where upstream advertises metadata of every wheel, nothing changes."""
        self.upstream_lists(lists(core_metadata={"sha256": sha256(METADATA).hex}))
        self.assertIsNotNone(self.advertised())
        self.assertEqual([PAGE], self.wire.paths)
        pending = self.request()
        self.assertEqual(f"{FILE}.metadata", self.wire.last.path)
        self.wire.last.answer(body=METADATA)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertTrue(answer.immutable)


class ReadTest(WheelMetadataTestCase):
    """A request for metadata reads ranges of the wheel, once for all."""

    def test_metadata_is_read_by_ranges(self) -> None:
        """The client gets the METADATA of the wheel, which is not fetched."""
        self.assertIsNotNone(self.advertised())
        answer = self.read()
        self.assertEqual((METADATA, False), (self.content(answer), answer.hit))
        self.assertEqual("bytes=-32768", self.ranges_asked[0])
        self.assertEqual([PAGE] + [FILE] * len(self.ranges_asked), self.wire.paths)
        self.assertEqual(2, len(self.ranges_asked))
        self.assertIsNone(self.now(self.storage.find(LINK)))

    def test_page_need_not_be_cached(self) -> None:
        """A lock file may name the metadata before this server has its page."""
        self.assertEqual(METADATA, self.content(self.read()))
        self.assert_nothing_but_the_wheel_is_requested()

    def test_metadata_in_the_end_of_the_wheel_is_one_request(self) -> None:
        """Most wheels have their metadata at the end."""
        wheel = make_wheel("thing", requires=["rabbit"], padding=200_000)
        self.upstream_lists(lists(wheel.content))
        self.assertEqual(wheel.metadata, self.content(self.read(wheel.content)))
        self.assertEqual(["bytes=-32768"], self.ranges_asked)

    def test_small_wheel_is_one_request(self) -> None:
        """A wheel of less than 32 KiB comes as a whole, and is not kept."""
        wheel = make_wheel("thing").content
        self.upstream_lists(lists(wheel))
        self.assertEqual(make_wheel("thing").metadata, self.content(self.read(wheel)))
        self.assertEqual(["bytes=-32768"], self.ranges_asked)

    def test_second_request_is_answered_from_storage(self) -> None:
        """Later requests, also of other processes, cause none upstream."""
        self.read()
        before = list(self.wire.paths)
        self.assertEqual((METADATA, True), (self.content(found := self.read()), found.hit))
        self.proxy = self.make_proxy()
        self.assertEqual((METADATA, True), (self.content(found := self.read()), found.hit))
        self.assertEqual(before, self.wire.paths)

    def test_stored_metadata_is_served_while_upstream_is_gone(self) -> None:
        """Stored metadata is served without upstream, and without the catalog (promise 6)."""
        self.read()
        self.wire.refuses = True
        self.assertEqual(METADATA, self.content(self.read()))
        self.catalog.down = "gone"
        self.proxy = self.make_proxy()
        self.assertEqual(METADATA, self.content(self.read()))

    def test_clients_share_one_read(self) -> None:
        """Clients that ask at once cause the requests of one (promise 3)."""
        pending = [self.request() for _ in range(5)]
        self.answer_ranges()
        self.assertEqual([METADATA] * 5, [self.content(self.now(each)) for each in pending])
        self.assertEqual(2, len(self.ranges_asked))

    def test_client_that_leaves_does_not_stop_the_read(self) -> None:
        """Another client gets the metadata, with the requests that were sent (promise 4)."""
        first, second = self.request(), self.request()
        first.cancel()
        self.failing(first, CancelledError)
        self.answer_ranges()
        self.assertEqual(METADATA, self.content(self.now(second)))
        self.assertEqual(2, len(self.ranges_asked))

    def test_only_client_that_leaves_does_not_stop_the_read(self) -> None:
        """The metadata is stored, and the next client gets it."""
        pending = self.request()
        pending.cancel()
        self.failing(pending, CancelledError)
        self.answer_ranges()
        self.assertTrue(self.read().hit)

    def test_head_describes_the_metadata(self) -> None:
        """A HEAD is answered from the metadata, since upstream can't be asked for its size."""
        pending = self.request(describe=True)
        self.answer_ranges()
        self.assertEqual(METADATA, self.content(self.now(pending)))
        self.assert_nothing_but_the_wheel_is_requested()
        self.assertEqual(["GET"], sorted({exchange.method for exchange in self.wire.exchanges}))

    def test_range_of_the_metadata_reads_it(self) -> None:
        """A range of metadata comes from the metadata, and is no range of any file of upstream's."""
        pending = self.request(asked=ByteRange(0, 9))
        self.answer_ranges()
        self.assertEqual(METADATA, self.content(self.now(pending)))
        self.assertNotIn("bytes=0-9", self.ranges_asked)

    def test_signature_of_the_metadata_does_not_exist(self) -> None:
        """Nothing else appears beside the wheel."""
        self.cache_page()
        for suffix in (".asc", ".metadata.metadata", ".metadata.asc"):
            self.assert_fails(NotFound, LINK + suffix)

    def test_wheel_with_a_local_version(self) -> None:
        """The name in a URL is encoded, and the wheel's own metadata is found among vendored ones."""
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("rabbit-1.0.dist-info/METADATA", OTHER_METADATA)
            archive.writestr("thing-1.0+cu12.dist-info/METADATA", METADATA)
        name = "thing-1.0+cu12-py3-none-any.whl"
        url = f"https://files.example/{name.replace('+', '%2B')}"
        self.upstream_lists(lists(buffer.getvalue(), url=url, filename=name))
        pending = self.start(self.proxy.file(f"https/files.example/{name}.metadata", FileRequest()))
        pending.addCallback(self.close_after_test)
        self.clock.advance(0)
        self.answer_range(self.wire.last, buffer.getvalue())
        self.assertEqual(METADATA, self.content(self.now(pending)))

    def test_link_that_ends_otherwise_than_the_name(self) -> None:
        """A URL may have another end than the file's name. Clients that append to it get the metadata, too."""
        self.upstream_lists(lists(url="https://files.example/download/7", filename=NAME))
        self.cache_page()
        for link in ("https/files.example/download/7.metadata", f"https/files.example/download/7/{NAME}.metadata"):
            pending = self.start(self.proxy.file(link, FileRequest()))
            pending.addCallback(self.close_after_test)
            self.clock.advance(0)
            while not pending.called:
                self.answer_range(self.wire.last)
                self.clock.advance(0)
            self.assertEqual(METADATA, self.content(self.now(pending)))
        self.assertEqual({PAGE, "/download/7"}, set(self.wire.paths))
        self.assertEqual(2, len(self.ranges_asked))


class StoredWheelTest(WheelMetadataTestCase):
    """Once the whole wheel is stored, its metadata comes from it, or is compared with it."""

    def test_metadata_of_a_stored_wheel_is_read_from_it(self) -> None:
        """There is no request upstream for it, and the answer is right for ever after."""
        self.store_wheel()
        self.wire.refuses = True
        answer = self.read()
        self.assertEqual(METADATA, self.content(answer))
        self.assertEqual([], self.ranges_asked)
        self.assertTrue(self.read().immutable)

    def test_metadata_is_immutable_once_it_was_compared(self) -> None:
        """Before the wheel is stored, clients may keep the metadata, and must check it. Afterwards it never changes."""
        self.assertFalse(self.read().immutable)
        self.assertFalse(self.read().immutable)
        self.store_wheel()
        before = list(self.wire.paths)
        for _ in range(2):
            answer = self.read()
            self.assertEqual((True, True, METADATA), (answer.hit, answer.immutable, self.content(answer)))
        self.assertEqual(before, self.wire.paths)
        self.assertEqual([], self.logged)

    def test_wrong_metadata_is_replaced(self) -> None:
        """Ranges can't be checked. If they had other metadata than the wheel, the client gets that of the wheel."""
        self.assertEqual(OTHER_METADATA, self.content(self.read(OTHER_WHEEL)))
        self.store_wheel()
        before = list(self.wire.paths)
        self.assertEqual(METADATA, self.content(self.read()))
        for _ in range(2):
            answer = self.read()
            self.assertEqual((True, True, METADATA), (answer.hit, answer.immutable, self.content(answer)))
        self.assertEqual(before, self.wire.paths)
        self.assertEqual(1, len(self.logged))
        self.assertIn("is not that in the wheel", self.logged[0])

    def test_wrong_metadata_is_noticed_by_another_process(self) -> None:
        """Another process, or this one after a restart, compares it, too."""
        self.read(OTHER_WHEEL)
        self.proxy = self.make_proxy()
        self.store_wheel()
        self.proxy = self.make_proxy()
        self.assertEqual(METADATA, self.content(self.read()))

    def test_wheel_that_arrives_meanwhile_counts(self) -> None:
        """If the wheel is stored while ranges of it are read, its own metadata is served."""
        pending = self.request()
        self.store_file_of(WHEEL)
        self.answer_ranges(OTHER_WHEEL)
        self.assertEqual(METADATA, self.content(self.now(pending)))

    def store_file_of(self, wheel: bytes) -> None:
        draft = self.root / "a.draft"
        draft.write_bytes(wheel)
        self.now(self.storage.commit(LINK, draft, sha256(wheel)))

    def test_stored_wheel_that_is_not_the_listed_one_is_not_read(self) -> None:
        """A stored wheel of another digest is an old one. The listed one is read at upstream."""
        self.store_file_of(OTHER_WHEEL)
        self.assertEqual(METADATA, self.content(self.read()))
        self.assertEqual(2, len(self.ranges_asked))

    def test_replaced_wheel_has_new_metadata(self) -> None:
        """If the page lists the wheel with another digest now, its metadata is read again."""
        self.read()
        self.upstream_lists(lists(OTHER_WHEEL))
        self.clock.advance(301)
        self.cache_page()
        self.assertEqual(OTHER_METADATA, self.content(self.read(OTHER_WHEEL)))

    def test_metadata_that_no_page_lists_is_not_immutable(self) -> None:
        """If the catalog has lost the page, metadata that was not compared yet may still be wrong (promise 6)."""
        self.read()
        self.now(self.catalog.delete_page(THING))
        self.wire.refuses = True
        self.proxy = self.make_proxy()
        answer = self.read()
        self.assertEqual((METADATA, False), (self.content(answer), answer.immutable))

    def test_wheel_that_was_removed_later_changes_nothing(self) -> None:
        """An operator may delete wheels. Their metadata stays."""
        self.read()
        self.store_wheel()
        self.assertTrue(self.read().immutable)
        self.now(self.storage.delete(LINK))
        self.assertEqual(METADATA, self.content(self.read()))

    def test_stored_metadata_is_served_while_wheels_can_not_be_read(self) -> None:
        """If the comparison is not possible now, since render processes are busy, the metadata is served."""
        self.read()
        self.store_wheel()
        self.page()
        with mock.patch(
            "tests.support.memory.perform", side_effect=TemporarilyUnavailable("too many pages wait")
        ) as busy:
            answer = self.read()
        self.assertGreater(busy.call_count, 0)
        self.assertEqual((METADATA, False), (self.content(answer), answer.immutable))
        self.assertTrue(self.read().immutable)


class WithoutRangesTest(WheelMetadataTestCase):
    """The origin answers no ranges any more, although it did when the page was rendered."""

    def request_whole(self) -> Deferred[FileAnswer]:
        """Request the metadata of a wheel on a cached page; upstream answers the range with the whole file."""
        self.cache_page()
        pending = self.request()
        self.assertEqual(["bytes=-32768"], self.ranges_asked)
        self.wire.last.send(response(200, b"", content_length=str(len(WHEEL))))
        self.clock.advance(0)
        return pending

    def test_small_wheel_is_fetched(self) -> None:
        """The wheel is fetched and stored, and the metadata read from it. Clients share that, too."""
        pending = [self.request_whole(), self.request()]
        self.assertEqual(([PAGE, FILE, FILE], False), (self.wire.paths, "range" in self.wire.last.headers))
        self.wire.last.answer(body=WHEEL)
        self.assertEqual([METADATA] * 2, [self.content(self.now(each)) for each in pending])
        self.assertTrue(self.get_content().hit)
        self.assertTrue(self.read().immutable)
        self.assertEqual([PAGE, FILE, FILE], self.wire.paths)

    def test_wheel_with_wrong_bytes(self) -> None:
        """A wheel that is fetched for its metadata is checked like any other."""
        pending = self.request_whole()
        self.wire.last.answer(body=OTHER_WHEEL)
        self.failing(pending, DigestMismatch)
        self.assertIsNone(self.now(self.storage.find(LINK)))

    def check_not_fetched(self, size: int | None) -> None:
        """Assert that a wheel of this size by its page is not fetched for its metadata, which is withheld."""
        self.upstream_lists(lists(size=size))
        self.assertEqual(502, self.failing(self.request_whole(), NoMetadata).status)
        self.assertIsNone(self.advertised())
        self.assertIsNotNone(self.now(self.pages.listing(self.page())).get(LINK))
        self.assertEqual(({PAGE, FILE}, ["bytes=-32768"]), (set(self.wire.paths), self.ranges_asked))
        self.assertEqual(1, self.wire.paths.count(FILE))

    def test_large_wheel_is_not_fetched(self) -> None:
        """For a wheel of more than 64 MiB, the metadata is withheld: clients read the wheel as before."""
        self.check_not_fetched(64 * KIB * KIB + 1)

    def test_wheel_of_unknown_size_is_not_fetched(self) -> None:
        """A wheel whose size the page does not tell may be large."""
        self.check_not_fetched(None)

    def test_wheel_of_exactly_the_limit_is_fetched(self) -> None:
        """The limit itself is not too much."""
        self.upstream_lists(lists(size=64 * KIB * KIB))
        pending = self.request_whole()
        self.wire.last.answer(body=WHEEL)
        self.assertEqual(METADATA, self.content(self.now(pending)))

    def test_other_pages_advertise_nothing_there(self) -> None:
        """What a range tells about its origin counts for the pages that are rendered next."""
        pending = self.request_whole()
        self.wire.last.answer(body=WHEEL)
        self.now(pending)
        other = self.make_proxy()
        self.upstream_lists(lists(), listed("https://files.example/thing-2.0-py3-none-any.whl"))
        self.clock.advance(301)
        page = self.now(other.page(THING)).page
        self.assertIsNone(self.now(other.pages.listing(page)).get(METADATA_LINK))


class FailureTest(WheelMetadataTestCase):
    """Wheels without readable metadata, and failures of upstream."""

    def assert_withheld(self) -> None:
        """Assert that the page does not advertise the metadata any more, and lists the wheel."""
        self.assertIsNone(self.advertised())
        self.assertIsNotNone(self.now(self.pages.listing(self.page())).get(LINK))
        self.assert_nothing_but_the_wheel_is_requested()
        asked = len(self.ranges_asked)
        self.assert_fails(NotFound, METADATA_LINK)
        self.assertEqual(asked, len(self.ranges_asked))

    def check_damaged(self, wheel: bytes) -> None:
        """Assert that such a wheel ends in a 502, and that clients are not led to its metadata again."""
        self.cache_page()
        pending = self.request()
        self.answer_ranges(wheel)
        self.assertEqual(502, self.failing(pending, NoMetadata).status)
        self.assert_withheld()

    def test_file_that_is_no_wheel(self) -> None:
        """A file that is no zip has no metadata."""
        self.check_damaged(bytes(100_000))

    def test_wheel_without_metadata(self) -> None:
        """A zip without METADATA has none."""
        self.check_damaged(WHEEL.replace(b"METADATA", b"NETADATA"))

    def test_damaged_wheel(self) -> None:
        """Metadata that does not match its checksum is not served."""
        self.check_damaged(WHEEL.replace(b"rabbit", b"rabbIt"))

    def test_damaged_wheel_on_a_page_with_validators(self) -> None:
        """The page is rendered again without it although upstream's has not changed."""
        self.wire.reply(PAGE, 200, self.wire.replies[PAGE].body, content_type="application/json", etag='"1"')
        self.cache_page()
        pending = self.request()
        self.answer_ranges(bytes(100_000))
        self.failing(pending, NoMetadata)
        self.assert_withheld()
        self.clock.advance(301)
        self.assert_withheld()

    def test_missing_wheel(self) -> None:
        """A wheel that upstream lists and does not have has no metadata either. The error is upstream's."""
        self.cache_page()
        pending = self.request()
        self.wire.last.answer(404)
        self.failing(pending, NotFound)
        self.assert_withheld()

    def test_refused_wheel(self) -> None:
        """The metadata of a wheel that upstream refuses is refused. It stays on the page, as other files do."""
        self.cache_page()
        pending = self.request()
        self.wire.last.answer(403, b'{"error": "blocked by policy"}', content_type="application/json")
        self.assertIn("blocked by policy", str(self.failing(pending, UpstreamRefused)))
        self.assertIsNotNone(self.advertised())

    def test_failing_upstream(self) -> None:
        """After a failure of upstream, the metadata stays on the page, and is read after the back-off."""
        self.cache_page()
        pending = self.request()
        self.wire.last.answer(503)
        self.failing(pending, UpstreamDown)
        self.assertIsNotNone(self.advertised())
        self.clock.advance(10)
        self.assertEqual(METADATA, self.content(self.read()))

    def test_failure_in_the_second_range(self) -> None:
        """A read that breaks off stores nothing, and the next one begins anew."""
        self.cache_page()
        pending = self.request()
        self.answer_range(self.wire.last)
        self.clock.advance(0)
        self.assertEqual(2, len(self.ranges_asked))
        span = f"{self.ranges_asked[1].replace('=', ' ')}/{len(WHEEL)}"
        self.wire.last.send(response(206, b"x" * 100, content_range=span, content_length="1000"))
        self.wire.last.cut()
        self.failing(pending, UpstreamDown)
        self.assertIsNone(self.now(self.storage.find(METADATA_LINK)))
        self.clock.advance(10)
        self.assertEqual(METADATA, self.content(self.read()))

    def test_wheel_that_is_replaced_between_two_ranges(self) -> None:
        """Ranges of two different files are never put together."""
        self.cache_page()
        pending = self.request()
        self.answer_range(self.wire.last)
        self.clock.advance(0)
        self.assertEqual(2, len(self.ranges_asked))
        self.answer_range(self.wire.last, WHEEL + b"x")
        self.assertIn("replaced", str(self.failing(pending, BadUpstreamResponse)))
        self.clock.advance(60)
        self.assertEqual(METADATA, self.content(self.read()))

    def test_endless_wheel(self) -> None:
        """A wheel whose list is never complete is given up after a few reads."""
        self.cache_page()
        pending = self.request()
        wheel = packed(METADATA, 1, 1)
        files = {f"{number:0200}": b"" for number in range(2000)}
        buffer = BytesIO(wheel)
        with zipfile.ZipFile(buffer, "a") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.comment = b"x" * 0xFFFF
        self.assertLessEqual(self.answer_ranges(buffer.getvalue()), 6)
        self.assertEqual(METADATA, self.content(self.now(pending)))


class DiskTest(WheelMetadataTestCase):
    """Clients get metadata while it can't be stored (promise 8)."""

    def without_drafts(self) -> None:
        """Make drafts impossible: replace their directory with a file."""
        drafts = self.root / "drafts"
        if drafts.exists():
            drafts.rmdir()
        drafts.write_bytes(b"")

    def test_metadata_is_served_without_being_stored(self) -> None:
        """Each client gets the bytes. There is nowhere to redirect it to. Clients that ask at once share the read."""
        self.cache_page()
        self.without_drafts()
        with mock.patch.object(self.cold, "log") as log:
            for asked in (2, 4):
                pending = [self.request() for _ in range(3)]
                self.answer_ranges()
                expected = FileRange(0, len(METADATA), METADATA)
                self.assertEqual([expected] * 3, [self.now(each) for each in pending])
                self.assertEqual(asked, len(self.ranges_asked))
        self.assertEqual(1, log.error.call_count)
        self.assert_nothing_but_the_wheel_is_requested()

    def test_damaged_wheel_is_an_error_then_too(self) -> None:
        """Without drafts, a wheel that can't be read is withheld as usual."""
        self.cache_page()
        self.without_drafts()
        pending = self.request()
        self.answer_ranges(bytes(100_000))
        self.failing(pending, NoMetadata)
        self.assertIsNone(self.advertised())

    def test_disk_that_fills_up_while_the_wheel_is_read(self) -> None:
        """The client gets the bytes if the draft can be created and not be written."""
        self.cache_page()
        pending = self.request()
        with mock.patch("os.pwrite", side_effect=OSError(28, "No space left on device")) as write:
            self.answer_ranges()
            self.assertGreater(write.call_count, 0)
            self.answer_ranges()
        self.assertEqual(METADATA, self.content(self.now(pending)))
        self.assertIsNone(self.now(self.storage.find(METADATA_LINK)))


class RedirectTest(WheelMetadataTestCase):
    """With MYPYPI_COLD_FILES=redirect."""

    cold_files = ColdFilePolicy(redirect=True)

    def test_metadata_is_read_here(self) -> None:
        """A client can't be redirected to metadata that upstream does not have. The wheel is redirected as before."""
        answer = self.read()
        self.assertEqual(METADATA, self.content(answer))
        self.assertTrue(self.read().hit)
        self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.assert_nothing_but_the_wheel_is_requested()

    def test_head_and_range_are_not_redirected(self) -> None:
        """Nor is a HEAD, or a range."""
        for pending in (self.request(describe=True), self.request(asked=ByteRange(0, 9))):
            self.answer_ranges()
            self.assertEqual(METADATA, self.content(self.now(pending)))


class ManyFetchesTest(WheelMetadataTestCase):
    """While too many fetches run."""

    cold_files = ColdFilePolicy(most_fetches=0)

    def test_metadata_is_read_without_a_fetch(self) -> None:
        """The client gets the metadata, and is not redirected."""
        pending = self.request()
        self.answer_ranges()
        self.assertEqual(FileRange(0, len(METADATA), METADATA), self.now(pending))


class ChangeTest(WheelMetadataTestCase):
    """Pages that were rendered before this was possible, or are rendered when it is not wanted any more."""

    def setUp(self) -> None:
        super().setUp()
        self.wire.reply(PAGE, 200, self.wire.replies[PAGE].body, content_type="application/json", etag='"1"')

    def restart(self, *, reads_wheels: bool) -> None:
        """Start a process with this setting over the same catalog."""
        self.reads_wheels = reads_wheels
        self.proxy = self.make_proxy()

    def pages_asked(self) -> list[bool]:
        """Return for each request of the page whether it had validators."""
        return ["if-none-match" in exchange.headers for exchange in self.wire.exchanges if exchange.path == PAGE]

    def test_page_of_an_earlier_version_is_rendered_again(self) -> None:
        """Until its next revalidation it is served as it is. Then it is fetched without validators, once."""
        self.restart(reads_wheels=False)
        self.cache_page()
        self.restart(reads_wheels=True)
        self.assertIsNone(self.advertised())
        self.clock.advance(301)
        self.assertIsNotNone(self.advertised())
        self.clock.advance(301)
        self.assertIsNotNone(self.advertised())
        self.assertEqual([False, False, True], self.pages_asked())
        self.assertEqual(METADATA, self.content(self.read()))

    def test_other_processes_see_the_new_page(self) -> None:
        """A process that has the old page in memory serves the new one, although upstream's has not changed."""
        self.restart(reads_wheels=False)
        self.cache_page()
        self.restart(reads_wheels=True)
        first, pages = self.proxy, self.pages
        self.cache_page()
        self.restart(reads_wheels=True)
        self.clock.advance(301)
        self.assertIsNotNone(self.advertised())
        self.clock.advance(5)
        page = self.now(first.page(THING)).page
        self.assertIsNotNone(self.now(pages.listing(page)).get(METADATA_LINK))
        self.assertEqual([False, False], self.pages_asked())

    def test_setting_turned_off(self) -> None:
        """After the next revalidation, the page is upstream's again."""
        self.assertIsNotNone(self.advertised())
        self.read()
        self.restart(reads_wheels=False)
        self.assertIsNotNone(self.advertised())
        self.assertEqual(METADATA, self.content(self.read()))
        self.clock.advance(301)
        self.assertIsNone(self.advertised())
        self.clock.advance(301)
        self.assertIsNone(self.advertised())
        self.assertEqual([False, False, True], self.pages_asked())

    def test_page_that_does_not_change_is_fetched_again_only_once(self) -> None:
        """A page without such wheels stays the same. That it was rendered by the new rules is remembered for all."""
        self.wire.reply(
            PAGE,
            200,
            b'{"meta": {"api-version": "1.0"}, "name": "thing", "files": []}',
            content_type="application/json",
            etag='"1"',
        )
        self.restart(reads_wheels=False)
        self.cache_page()
        for _ in range(3):
            self.clock.advance(301)
            self.restart(reads_wheels=True)
            self.cache_page()
        self.assertEqual([False, False, True, True], self.pages_asked())

    def test_page_of_an_origin_without_ranges_is_fetched_again_only_once(self) -> None:
        """The same goes for a page whose origin answers no ranges."""
        self.now(self.catalog.put_answers_ranges("https/files.example", False))
        self.restart(reads_wheels=False)
        self.cache_page()
        for _ in range(3):
            self.clock.advance(301)
            self.restart(reads_wheels=True)
            self.assertIsNone(self.advertised())
        self.assertEqual([False, False, True, True], self.pages_asked())

    def test_page_without_validators(self) -> None:
        """Where upstream sends no validators, the page is rendered again although its bytes are the same."""
        self.wire.reply(PAGE, 200, self.wire.replies[PAGE].body, content_type="application/json")
        self.restart(reads_wheels=False)
        self.cache_page()
        self.restart(reads_wheels=True)
        self.clock.advance(301)
        self.assertIsNotNone(self.advertised())
        with mock.patch.object(self.catalog, "put_page", wraps=self.catalog.put_page) as put:
            self.clock.advance(301)
            self.assertIsNotNone(self.advertised())
        self.assertEqual([None], [call.args[1] for call in put.call_args_list])  # the fake's way to touch a page


class OfferTest(WheelMetadataTestCase):
    """The origin of the wheel answers no ranges. Its page offers the metadata once the wheel is stored."""

    is_known = False

    def setUp(self) -> None:
        super().setUp()
        self.now(self.catalog.put_answers_ranges("https/files.example", False))

    def metadata_after(self, seconds: float = 301) -> PackageFile | None:
        """Return the metadata on the page after so many seconds."""
        self.clock.advance(seconds)
        return self.advertised()

    def assert_offered(self) -> None:
        """Assert that the page offers the metadata, which is served without a request to upstream, and is final."""
        self.assertIsNotNone(self.metadata_after())
        before = len(self.wire.exchanges)
        answer = self.now(self.request())
        assert isinstance(answer, LocalContent)
        self.assertEqual((METADATA, True, True), (self.content(answer), answer.hit, answer.immutable))
        self.assertEqual(before, len(self.wire.exchanges))

    def test_page_offers_it_from_its_next_revalidation_on(self) -> None:
        """The page stays as it is while it is fresh. Its version differs afterwards, though upstream's is the same."""
        self.wire.reply(PAGE, 200, self.wire.replies[PAGE].body, content_type="application/json", etag='"1"')
        self.assertIsNone(self.advertised())
        before = self.page().version
        self.store_wheel()
        self.assertIsNone(self.advertised())
        self.assertEqual([PAGE, FILE], self.wire.paths)
        self.assert_offered()
        self.assertNotIn("if-none-match", self.wire.last.headers)
        self.assertNotEqual(before, self.page().version)
        self.assertEqual([], self.ranges_asked)
        self.assertIsNotNone(self.metadata_after())
        self.assertEqual('"1"', self.wire.last.headers["if-none-match"])

    def test_wheel_that_another_process_has_stored(self) -> None:
        """A wheel that was stored before is noticed when a client gets it."""
        self.reads_wheels = False
        self.proxy = self.make_proxy()
        self.store_wheel()
        self.reads_wheels = True
        self.proxy = self.make_proxy()
        self.assertIsNone(self.metadata_after())
        self.now(self.request_file())
        self.assert_offered()

    def test_wheel_that_upstream_replaces(self) -> None:
        """The offer is one of the wheel that is stored: the metadata of another wheel comes from that one."""
        self.store_wheel()
        self.assert_offered()
        self.upstream_lists(lists(OTHER_WHEEL))
        self.assertIsNotNone(self.metadata_after())
        pending = self.request()
        self.assertEqual((FILE, False), (self.wire.last.path, "range" in self.wire.last.headers))
        self.wire.last.answer(body=OTHER_WHEEL)
        self.assertEqual(OTHER_METADATA, self.content(self.now(pending)))

    def test_damaged_wheel(self) -> None:
        """Nothing is offered for a wheel that can't be read, and upstream's page is not requested in vain."""
        self.upstream_lists(lists(b"no zip file"))
        self.store_wheel(b"no zip file")
        with mock.patch.object(self.catalog, "offer") as offer:
            self.assertIsNone(self.metadata_after())
            self.now(self.request_file())
        offer.assert_not_called()

    def test_file_without_a_digest(self) -> None:
        """Nothing shows that a file without a digest is the listed one. Nothing is offered for it."""
        self.upstream_lists(lists(hashes={}))
        self.store_wheel()
        self.assertIsNone(self.metadata_after())

    def test_metadata_of_upstreams(self) -> None:
        """Where upstream advertises metadata, that is used, and none is read out of the wheel."""
        self.upstream_lists(lists(core_metadata={"sha256": sha256(METADATA).hex}))
        self.store_wheel()
        metadata = self.metadata_after()
        assert metadata is not None
        self.assertIsNone(metadata.wheel)
        self.assertIsNone(self.now(self.storage.find(METADATA_LINK)))

    def test_full_disk(self) -> None:
        """If the metadata can't be stored, it is tried again when a client next gets the wheel."""
        with mock.patch.object(self.fetches, "fetch_and_store", side_effect=StorageDown("the disk is full")) as fetch:
            self.store_wheel()
            fetch.assert_called_once()
        self.assertIsNone(self.metadata_after())
        self.now(self.request_file())
        self.assert_offered()

    def test_lost_catalog(self) -> None:
        """Without Redis nothing is offered, and clients notice nothing."""
        self.assertIsNone(self.advertised())
        self.catalog.down = "it is gone"
        self.store_wheel()
        self.catalog.down = None
        self.assertIsNone(self.metadata_after())


class StrictOfferTest(OfferTest):
    """In strict mode, it is the same at an origin that answers ranges: they prove nothing."""

    cold_files = ColdFilePolicy(strict=True, strict_wait=10)

    def setUp(self) -> None:
        super().setUp()
        self.now(self.catalog.put_answers_ranges("https/files.example", True))


class StrictTest(WheelMetadataTestCase):
    """In strict mode, nothing that could not be checked is served."""

    cold_files = ColdFilePolicy(strict=True, strict_wait=10)

    def restart_from(self, *, stored: bool) -> None:
        """Start a process in strict mode. Another one has advertised the metadata before, and may have `stored` it."""
        self.cold_files = ColdFilePolicy()
        self.proxy = self.make_proxy()
        self.assertIsNotNone(self.advertised())
        if stored:
            self.read(OTHER_WHEEL)
        self.cold_files = ColdFilePolicy(strict=True, strict_wait=10)
        self.proxy = self.make_proxy()

    def assert_metadata_of_the_checked_wheel(self) -> None:
        """Assert that the wheel is fetched and checked, and that the metadata comes from it."""
        before = len(self.ranges_asked)
        pending = self.request()
        self.assertNoResult(pending)
        self.assertEqual((FILE, False), (self.wire.last.path, "range" in self.wire.last.headers))
        self.wire.last.answer(body=WHEEL)
        self.assertEqual(METADATA, self.content(self.now(pending)))
        self.assertTrue(self.read().immutable)
        self.assertEqual(before, len(self.ranges_asked))

    def test_nothing_is_advertised(self) -> None:
        """The page is upstream's, and its origin is not asked."""
        self.assertIsNone(self.advertised())
        self.assert_fails(NotFound, METADATA_LINK)
        self.assertEqual([], self.ranges_asked)

    def test_page_that_is_fresh_still(self) -> None:
        """A client may have the page of before. The metadata that it asks for comes from the whole, checked wheel."""
        self.restart_from(stored=False)
        self.assert_metadata_of_the_checked_wheel()

    def test_stored_metadata_that_was_not_compared(self) -> None:
        """Metadata that was read out of ranges before is not served until it was compared."""
        self.restart_from(stored=True)
        self.assert_metadata_of_the_checked_wheel()
