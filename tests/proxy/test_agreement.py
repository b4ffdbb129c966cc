"""Tests of files and pages that disagree: the page is looked at again, and no client gets other bytes than listed."""

from __future__ import annotations

import hashlib
import os
import zlib

from mypypi.digests import Digest
from mypypi.errors import DigestMismatch, NotFound, UpstreamRefused
from mypypi.files.content import HELD_BACK
from mypypi.model import PackageFile
from mypypi.proxy.answers import FileDescription, LocalContent
from tests.proxy.test_proxy import DATA, DIGEST, FILE, FILE_URL, LINK, NAME, PAGE, SIZE, THING, ProxyTestCase, listed
from tests.support.memory import response, sha256

OTHER = DATA[::-1]


def bytes_of(answer: LocalContent) -> bytes:
    return os.pread(answer.content.fd, SIZE + 1, 0)


class ReplacedFileTest(ProxyTestCase):
    """Upstream has replaced a file while its page is fresh here."""

    def setUp(self) -> None:
        super().setUp()
        self.cache_page()
        self.clock.advance(10)
        self.upstream_lists(listed(hashes={"sha256": sha256(OTHER).hex}))

    def test_other_bytes_lead_to_the_new_page_and_one_more_fetch(self) -> None:
        """After a wrong digest the page is fetched again, and the next request gets the file that it lists now."""
        pending = self.request_file()
        self.wire.last.answer(body=OTHER)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertIsInstance(answer.content.error, DigestMismatch)
        self.assertEqual([PAGE, FILE, PAGE], self.wire.paths)
        pending = self.request_file()
        self.wire.last.answer(body=OTHER)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertEqual((None, OTHER), (answer.content.error, bytes_of(answer)))
        self.assertEqual([PAGE, FILE, PAGE, FILE], self.wire.paths)

    def test_missing_file_leads_to_the_new_page(self) -> None:
        """After a 404, the same request gets the file that the page lists now."""
        self.check_status(404)

    def test_refused_file_leads_to_the_new_page(self) -> None:
        """After a 403, the same request gets the file that the page lists now."""
        self.check_status(403)

    def check_status(self, status: int) -> None:
        pending = self.request_file()
        self.wire.last.answer(status)
        self.clock.advance(0)
        self.assertEqual([PAGE, FILE, PAGE, FILE], self.wire.paths)
        self.wire.last.answer(body=OTHER)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertEqual(OTHER, bytes_of(answer))

    def test_small_file_is_right_at_the_first_request(self) -> None:
        """Of a file that is no longer than what is held back, nothing was sent: the same request gets the new one."""
        small = b"Metadata-Version: 2.1\n"
        self.upstream_lists(listed(hashes={"sha256": sha256(small).hex}))
        pending = self.request_file()
        self.wire.last.answer(body=small)
        self.clock.advance(0)
        self.assertEqual([PAGE, FILE, PAGE, FILE], self.wire.paths)
        self.wire.last.answer(body=small)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertEqual(small, bytes_of(answer))


class UnchangedPageTest(ProxyTestCase):
    """The file fails, and its page lists it as before."""

    def setUp(self) -> None:
        super().setUp()
        self.cache_page()
        self.clock.advance(10)

    def test_failure_is_the_answer(self) -> None:
        """If the page has not changed, the failure is the answer, after one look at the page."""
        for status, kind in ((404, NotFound), (403, UpstreamRefused)):
            self.clock.advance(100)
            pending = self.request_file()
            self.wire.last.answer(status)
            self.failing(pending, kind)
            self.assertEqual([FILE, PAGE], self.wire.paths[-2:])

    def test_page_is_asked_for_once_in_five_seconds(self) -> None:
        """Many requests for a file that is wrong do not become as many for its page."""
        for _ in range(3):
            pending = self.request_file()
            if self.wire.last.path == FILE and not self.wire.last.closed:
                self.wire.last.answer(403)
            self.failing(pending, UpstreamRefused)
        self.assertEqual(2, self.wire.paths.count(PAGE))

    def test_small_file_with_other_bytes_is_an_error(self) -> None:
        """Nothing of it was sent, so the client gets a status and a reason, not a broken transfer."""
        pending = self.request_file()
        self.wire.last.answer(body=b"x" * HELD_BACK)
        error = self.failing(pending, DigestMismatch)
        self.assertEqual(502, error.status)
        self.assertIn("do not match the index's digest", str(error))

    def test_metadata_with_other_bytes_is_taken_off_the_page(self) -> None:
        """``.metadata`` whose bytes differ is not advertised any more. Clients read the wheel then."""
        self.check_metadata(20)

    def test_long_metadata_with_other_bytes_is_taken_off_the_page(self) -> None:
        """The same goes for ``.metadata`` of which clients have got the first bytes."""
        self.check_metadata(2 * HELD_BACK)

    def check_metadata(self, length: int) -> None:
        self.upstream_lists(listed(core_metadata={"sha256": sha256(b"metadata").hex}))
        self.clock.advance(300)
        self.cache_page()
        pending = self.request_file(f"{LINK}.metadata")
        self.wire.last.answer(body=b"x" * length)
        pending.addErrback(lambda failure: failure.trap(DigestMismatch) and None)
        self.now(pending)
        form = self.now(self.pages.get(THING)).page.forms["json"]
        self.assertNotIn(b"core-metadata", zlib.decompress(form.body, 31))


class AlgorithmTest(ProxyTestCase):
    """A stored file has a digest of one algorithm, and the page gives another."""

    def setUp(self) -> None:
        super().setUp()
        self.md5 = Digest("md5", hashlib.md5(DATA, usedforsecurity=False).hexdigest())

    def test_stored_file_is_hashed_by_the_pages_algorithm(self) -> None:
        """The stored bytes are hashed again. If they are the listed ones, the file is a hit, with one more hash."""
        self.store_as(self.md5)
        self.cache_page()
        for _ in range(2):
            self.assertTrue(self.get_content().hit)
        self.assertEqual([PAGE], self.wire.paths)

    def test_other_bytes_are_fetched_anew(self) -> None:
        """If the page lists other bytes now, the stored ones are never served, and the file is fetched."""
        self.store_as(self.md5)
        self.upstream_lists(listed(hashes={"sha256": sha256(OTHER).hex}))
        self.cache_page()
        pending = self.request_file()
        self.wire.last.answer(body=OTHER)
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertEqual((False, OTHER), (answer.hit, bytes_of(answer)))
        answer = self.get_content()
        self.assertEqual((True, sha256(OTHER)), (answer.hit, answer.digest))

    def store_as(self, digest: Digest) -> None:
        draft = self.root / "a.draft"
        draft.write_bytes(DATA)
        self.now(self.storage.commit(LINK, draft, digest))


class NoDigestTest(ProxyTestCase):
    """A file whose page gives no digest is checked with upstream when its page was."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_lists(listed(hashes={}))
        pending = self.request_file()
        self.wire.last.answer(body=DATA, etag='"1"', last_modified="Sun, 01 Nov 2026 10:00:00 GMT")
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertFalse(answer.immutable)

    def pass_page(self) -> None:
        """Let the page become stale, and be confirmed again."""
        self.clock.advance(301)
        self.cache_page()

    def test_file_is_served_while_its_page_is_fresh(self) -> None:
        """Upstream is not asked while the page is fresh. Clients may keep the file, and must check it."""
        answer = self.get_content()
        self.assertEqual((True, False), (answer.hit, answer.immutable))
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_confirmed_file_is_served(self) -> None:
        """After its page, the file is confirmed by its validators, once."""
        self.pass_page()
        pending = self.request_file()
        headers = self.wire.last.headers
        self.assertEqual('"1"', headers["if-none-match"])
        self.assertEqual("Sun, 01 Nov 2026 10:00:00 GMT", headers["if-modified-since"])
        self.wire.last.send(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertTrue(answer.hit)
        self.assertTrue(self.get_content().hit)
        self.assertEqual([PAGE, FILE, PAGE, FILE], self.wire.paths)

    def test_replaced_file_is_fetched(self) -> None:
        """If upstream has another file now, it is fetched, and replaces the stored one."""
        self.pass_page()
        pending = self.request_file()
        self.wire.last.send(response(200, b"", etag='"2"', content_length=str(SIZE)))
        self.assertEqual([FILE, FILE], self.wire.paths[-2:])
        self.wire.last.answer(body=OTHER, etag='"2"')
        answer = self.now(pending)
        assert isinstance(answer, LocalContent)
        self.assertEqual((False, OTHER), (answer.hit, bytes_of(answer)))
        self.assertEqual((True, sha256(OTHER)), (self.get_content().hit, self.get_content().digest))

    def test_stored_file_stays_available(self) -> None:
        """If upstream fails or refuses, the stored file is served, and upstream is not asked again at once."""
        for status in (503, 404, 403):
            self.pass_page()
            pending = self.request_file()
            self.wire.last.answer(status)
            answer = self.now(pending)
            assert isinstance(answer, LocalContent)
            self.assertTrue(answer.hit)
            before = len(self.wire.exchanges)
            self.assertTrue(self.get_content().hit)
            self.assertEqual(before, len(self.wire.exchanges))

    def test_length_is_compared_without_validators(self) -> None:
        """Where upstream sends no validators, the length tells whether the file is the same."""
        for length, hit in ((SIZE, True), (SIZE + 1, False)):
            self.pass_page()
            pending = self.request_file()
            self.wire.last.send(response(200, b"", content_length=str(length)))
            if not hit:
                self.wire.last.answer(body=OTHER + b"x")
            answer = self.now(pending)
            assert isinstance(answer, LocalContent)
            self.assertEqual(hit, answer.hit)


class SizeTest(ProxyTestCase):
    """The size on a page proves nothing."""

    def test_wrong_size_is_no_reason_to_refuse(self) -> None:
        """A stored file and a fetched one may have another size than the page says, with and without a digest."""
        for hashes in ({"sha256": DIGEST.hex}, {}):
            self.upstream_lists(listed(size=SIZE + 1, hashes=hashes))
            self.clock.advance(301)
            self.cache_page()
            pending = self.request_file()
            if self.wire.last.path == FILE:
                self.wire.last.answer(body=DATA)
            answer = self.now(pending)
            assert isinstance(answer, LocalContent)
            self.assertEqual(DATA, bytes_of(answer))


class KeyTest(ProxyTestCase):
    """A stored file is found by its key, also when no page lists it any more."""

    def store_under(self, key: str) -> None:
        draft = self.root / "a.draft"
        draft.write_bytes(DATA)
        self.now(self.storage.commit(key, draft, DIGEST))

    def test_file_that_version_0_1_has_stored_is_found(self) -> None:
        """Version 0.1 stored a file under its whole URL. It is served, and not fetched again."""
        self.store_under(f"{LINK}%3Fsig=1")
        self.upstream_lists(listed(f"{FILE_URL}?sig=1", filename=NAME))
        self.cache_page()
        self.assertTrue(self.get_content().hit)
        self.assertEqual([PAGE], self.wire.paths)

    def test_signed_link_is_fetched_once(self) -> None:
        """A link whose signature differs in each page is fetched and stored once."""
        for number in range(3):
            self.upstream_lists(listed(f"{FILE_URL}?sig={number}", filename=NAME))
            self.clock.advance(301)
            self.cache_page()
            pending = self.request_file()
            if number == 0:
                self.wire.last.answer(body=DATA)
            answer = self.now(pending)
            assert isinstance(answer, LocalContent)
            self.assertEqual(number > 0, answer.hit)
        self.assertEqual([f"{FILE}?sig=0"], [path for path in self.wire.paths if path != PAGE])

    def test_file_with_an_unusual_link_is_found_when_no_page_lists_it(self) -> None:
        """A file whose link does not tell its key is found when its page has gone, like any other (promise 6)."""
        link = f"https/files.example/download/{NAME}"
        self.upstream_lists(listed("https://files.example/download", filename=NAME))
        pending = self.request_file(link)
        self.wire.last.answer(body=DATA)
        self.now(pending)
        self.wire.reply(PAGE, 404)
        self.clock.advance(301)
        self.failing(self.pages.get(THING), NotFound)
        self.assertTrue(self.get_content(link).hit)


class SeveralDigestsTest(ProxyTestCase):
    """A file for which its page gives several digests may have any of them."""

    def test_answer_to_a_head_names_none_of_them(self) -> None:
        """Only the bytes tell which digest the file has, so the ETag of a HEAD is not that of another file."""
        for also, digest in (((), DIGEST), ((sha256(OTHER),), None)):
            pending = self.start(self.cold.describe(PackageFile(LINK, FILE_URL, DIGEST, also=also), ""))
            self.wire.last.send(response(200, b"", content_length=str(SIZE)))
            self.assertEqual(FileDescription(digest, SIZE), self.now(pending))
