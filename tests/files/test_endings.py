"""Tests of files for which nobody tells a length or a digest: they end with upstream's connection."""

from __future__ import annotations

import gzip
import io
import os
import zipfile

from mypypi.errors import Truncated
from mypypi.files.content import Content
from tests.files.test_fetch import DATA, FetchTestCase, listed
from tests.support.memory import sha256


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", data)
    return file.getvalue()


class OpenEndTest(FetchTestCase):
    """A file without a digest and a length ends with its connection."""

    def send(self, body: bytes) -> Content:
        """Fetch the file; upstream sends this body and closes the connection in order."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=body, content_length="")
        self.assertFalse(content.whole)
        self.wire.last.end()
        self.clock.advance(0)
        return content

    def test_file_is_served(self) -> None:
        """Clients get the file. It is not stored, since nothing shows that it is complete."""
        for body in (DATA, b"short", b""):
            content = self.send(body)
            self.assertEqual((True, None, sha256(body)), (content.whole, content.error, content.digest))
            self.assertEqual(body, os.pread(content.fd, len(body) + 1, 0))
            self.assertIsNone(self.find_stored())

    def test_complete_archive_is_stored(self) -> None:
        """An archive shows its end itself, so it is stored and served ever after."""
        for body in (
            zipped(DATA),
            gzip.compress(DATA),
            gzip.compress(b"") + gzip.compress(DATA),
            gzip.compress(DATA) + b"\0",
        ):
            self.assertTrue(self.send(body).whole)
            stored = self.find_stored()
            assert stored is not None
            assert stored.path is not None
            self.assertEqual(body, stored.path.read_bytes())
            self.delete_stored()

    def test_short_archive_is_refused(self) -> None:
        """An archive whose end is missing is a broken transfer, and is not stored."""
        for body in (zipped(DATA)[:-1], zipped(DATA)[:9000], gzip.compress(DATA)[:-1], gzip.compress(DATA)[:20]):
            self.assert_failed(self.send(body), Truncated)
            self.wait_out_backoff()

    def test_damaged_archive_is_refused(self) -> None:
        """A gzip file whose checksum is wrong is a broken transfer."""
        body = bytearray(gzip.compress(DATA))
        body[-5] ^= 1
        self.assert_failed(self.send(bytes(body)), Truncated)
