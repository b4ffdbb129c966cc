"""Tests of requests for files that are stored, but can't be read: on the disk or in a bucket."""

from __future__ import annotations

import errno
from typing import Any
from unittest import mock

from mypypi.errors import StillFetching, StorageDown
from mypypi.files.content import Content
from mypypi.model import StoredFile
from mypypi.proxy.answers import LocalContent
from mypypi.proxy.cold_files import ColdFilePolicy
from tests.proxy.test_proxy import DATA, DIGEST, FILE, LINK, PAGE, SIZE, THING, ProxyTestCase
from tests.support.memory import response


class UnreadableFilesTest(ProxyTestCase):
    """A stored file that can't be read, and that upstream can't give either, or not yet."""

    def unreadable_disk(self) -> Any:
        return mock.patch.object(Content, "stored", side_effect=OSError(errno.EIO, "Input/output error"))

    def unreadable_bucket(self, why: str = "the stored file can't be read: S3 answered 500") -> Any:
        """The file is in a bucket, by its record, and the bucket fails."""
        return mock.patch.multiple(
            self.storage,
            find=mock.AsyncMock(return_value=StoredFile(LINK, SIZE, DIGEST)),
            link=mock.AsyncMock(side_effect=StorageDown(why)),
        )

    def assert_both_reasons(self, pending: Any, unreadable: str, upstream: str) -> None:
        error = self.failing(pending, StorageDown)
        self.assertEqual((503, 5), (error.status, error.retry_after))
        self.assertEqual(f"{unreadable}; and upstream can't give it: {upstream}", str(error))

    def faults(self) -> list[tuple[Any, str]]:
        return [
            (self.unreadable_disk(), "a stored file can't be read: Input/output error"),
            (self.unreadable_bucket(), "the stored file can't be read: S3 answered 500"),
        ]

    def test_stored_file_is_never_answered_with_404(self) -> None:
        """While disk or bucket fail, a file that upstream has deleted is answered with 503, and stays on its page."""
        self.cache_page()
        self.store_file()
        for fault, why in self.faults():
            with fault:
                pending = self.request_file()
                self.wire.last.answer(404)
                self.assert_both_reasons(pending, why, "upstream does not have this")
            self.clock.advance(60)
            self.assertEqual(frozenset(), self.now(self.catalog.withheld(THING)))

    def test_stored_file_that_no_page_lists(self) -> None:
        """A stored file that upstream's page has dropped is answered with 503 as well."""
        self.store_file()
        self.upstream_lists()
        for fault, why in self.faults():
            with fault:
                self.assert_both_reasons(self.request_file(), why, "no page of upstream lists this file")

    def test_upstream_that_does_not_answer_in_time(self) -> None:
        """A client that waits for upstream gets both reasons, and its next try joins the request."""
        self.cache_page()
        with self.unreadable_bucket():
            pending = self.request_file()
            self.clock.advance(15)
            error = self.failing(pending, StorageDown)
            self.assertIn("S3 answered 500; and upstream can't give it: upstream", str(error))
            again = self.request_file()
            self.wire.last.answer(body=DATA)
            assert isinstance(self.now(again), LocalContent)
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_strict_mode_waits_as_ever(self) -> None:
        """In strict mode, a file that takes long is still being fetched: that is no failure."""
        self.cold_files = ColdFilePolicy(strict=True, strict_wait=10)
        self.proxy = self.make_proxy()
        with self.unreadable_bucket():
            pending = self.request_file()
            self.wire.last.send(response(200, DATA[:100], content_length=str(SIZE)))
            self.clock.advance(10)
            self.failing(pending, StillFetching)
