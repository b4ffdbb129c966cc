"""Tests of storages: the promises of all, and those of disk and bucket."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from mypypi.coordination import fetch_lease
from mypypi.digests import Digest
from mypypi.errors import CatalogDown, NotFound, StorageDown, StorageFull
from mypypi.file_keys import key_of
from mypypi.interfaces import IStorage
from mypypi.model import Link, StoredFile
from mypypi.storage.bucket import BucketStorage
from mypypi.storage.bucket_breaker import FIRST_PAUSE
from mypypi.storage.disk import DiskStorage
from tests.rig.http import get, head
from tests.rig.s3 import ACCESS_KEY, SECRET_KEY, RcloneServer, Refuse
from tests.support.buckets import KEY, LARGE, BucketTestCase
from tests.support.fakes import MemoryStorage
from tests.support.memory import AtOnce, MemoryTestCase, WhenTold, sha256


class StoragePromises(MemoryTestCase):
    """The promises of every storage. A test case implements `make` and `read`."""

    __test__ = False
    storage: IStorage

    def setUp(self) -> None:
        super().setUp()
        self.drafts = self.directory()
        self.storage = self.make()

    @abstractmethod
    def make(self) -> IStorage:
        """Return an empty storage."""

    @abstractmethod
    def read(self, stored: StoredFile) -> bytes:
        """Return the bytes, as a client would get them."""

    def draft(self, content: bytes) -> Path:
        path = self.drafts / "a.draft"
        path.write_bytes(content)
        path.chmod(0o644)
        return path

    def commit(self, content: bytes, key: str = KEY) -> StoredFile:
        return self.now(self.storage.commit(key, self.draft(content), sha256(content)))

    def find(self, key: str = KEY) -> StoredFile | None:
        return self.now(self.storage.find(key))

    def test_provides_the_interface(self) -> None:
        """The storage has every method of IStorage."""
        self.assertTrue(verifyObject(IStorage, self.storage))

    def test_unknown_file_is_not_found(self) -> None:
        """An unknown file is not found, and deleting it is no error."""
        self.assertIsNone(self.find())
        self.now(self.storage.delete(KEY))

    def test_committed_file_is_found(self) -> None:
        """A committed file is found with size, digest and bytes. The draft is gone."""
        stored = self.commit(b"a wheel")
        self.assertEqual((KEY, 7, sha256(b"a wheel")), (stored.key, stored.size, stored.digest))
        self.assertEqual(stored, self.find())
        self.assertEqual(b"a wheel", self.read(stored))
        self.assertEqual([], os.listdir(self.drafts))

    def test_empty_file_is_stored(self) -> None:
        """An empty file is stored like any other."""
        self.commit(b"")
        stored = self.find()
        assert stored is not None
        self.assertEqual((0, b""), (stored.size, self.read(stored)))

    def test_file_is_replaced(self) -> None:
        """Other bytes under the same key replace the old ones. The same bytes once more change nothing."""
        self.commit(b"old")
        self.commit(b"newer")
        self.commit(b"newer")
        stored = self.find()
        assert stored is not None
        self.assertEqual((5, sha256(b"newer"), b"newer"), (stored.size, stored.digest, self.read(stored)))

    def test_open_draft_can_be_read_during_a_commit(self) -> None:
        """A reader of a draft continues while the draft is committed."""
        with self.draft(b"being read").open("rb") as reader:
            self.now(self.storage.commit(KEY, self.drafts / "a.draft", sha256(b"being read")))
            self.assertEqual(b"being read", reader.read())

    def test_deleted_file_is_gone(self) -> None:
        """A deleted file is not found, and can be stored again."""
        self.commit(b"a wheel")
        self.now(self.storage.delete(KEY))
        self.assertIsNone(self.find())
        self.commit(b"a wheel")
        self.assertIsNotNone(self.find())

    def test_keys_do_not_mix(self) -> None:
        """Each key has its own file, even if another key continues it. The continuation may look like a digest."""
        keys = [KEY, f"{KEY}.metadata", f"{KEY}/more", f"{KEY}/{sha256(b'x')}.1", "https/files.example/a"]
        for key in keys:
            self.assertIsNone(self.find(key))
            self.commit(key.encode(), key)
        for key in keys:
            stored = self.find(key)
            assert stored is not None
            self.assertEqual(key.encode(), self.read(stored))
        self.now(self.storage.delete(KEY))
        self.assertEqual([False, True, True, True, True], [self.find(key) is not None for key in keys])

    def test_longest_key_is_accepted(self) -> None:
        """A storage accepts the longest key that `key_of` returns."""
        key = f"https/files.example/{'a' * 255}/{'%E2%82%AC' * 28}"
        self.assertIsNone(self.find(key))
        self.assertEqual(key, self.commit(b"x", key).key)

    def test_working_storage_passes_its_check(self) -> None:
        """The check of a working storage succeeds, and leaves nothing behind."""
        self.now(self.storage.check())
        self.assertIsNone(self.find())


class DiskStorageTest(StoragePromises):
    """Files in a directory tree that can be read without other data."""

    __test__ = True

    def make(self) -> IStorage:
        self.root = self.directory() / "files"
        return DiskStorage(self.root, AtOnce())

    def read(self, stored: StoredFile) -> bytes:
        assert stored.path is not None
        return stored.path.read_bytes()

    def test_path_has_key_digest_and_size(self) -> None:
        """
        A file's path has its key, digest and size.

        So storage can be read, checked and copied without the catalog.
        """
        self.commit(b"a wheel")
        self.assertEqual(b"a wheel", (self.root / KEY / f"{sha256(b'a wheel')}.7").read_bytes())

    def test_file_that_was_cut_short_is_not_found(self) -> None:
        """
        Promise 2: a file that was cut short is not found.

        So no client gets a short 200; the file can be stored again.
        """
        stored = self.commit(b"a wheel")
        assert stored.path is not None
        stored.path.write_bytes(b"a whe")
        self.assertIsNone(self.find())
        self.assertEqual(b"a wheel", self.read(self.commit(b"a wheel")))

    def test_other_files_in_a_directory_are_ignored(self) -> None:
        """
        Other files in a key's directory are neither served nor deleted.

        A copy that was cut off, or a person, may leave some.
        """
        other = self.root / KEY / "README"
        other.parent.mkdir(parents=True)
        other.write_bytes(b"mine")
        (self.root / KEY / ".arriving-x").write_bytes(b"half")
        self.assertIsNone(self.find())
        self.commit(b"a wheel")
        self.now(self.storage.delete(KEY))
        self.assertEqual(b"mine", other.read_bytes())

    def test_file_that_was_removed_is_not_found(self) -> None:
        """Promise 6: a file that was removed is not found. So it is fetched again, without an error."""
        stored = self.commit(b"a wheel")
        assert stored.path is not None
        stored.path.unlink()
        self.assertIsNone(self.find())

    def test_draft_on_another_file_system_is_copied(self) -> None:
        """
        A draft on another file system is copied, then renamed.

        The file is complete and has the draft's mode; the draft is deleted.
        """
        with mock.patch("pathlib.Path.replace", side_effect=OSError(errno.EXDEV, "cross-device")):
            stored = self.commit(b"a wheel")
        assert stored.path is not None
        self.assertEqual((b"a wheel", 0o644), (self.read(stored), stored.path.stat().st_mode & 0o777))
        self.assertEqual([], os.listdir(self.drafts))
        self.assertEqual([stored.path.name], os.listdir(stored.path.parent))

    def test_copy_that_fails_leaves_no_part(self) -> None:
        """A copy that fails leaves no part of a file. The draft stays for another try."""
        with (
            mock.patch("pathlib.Path.replace", side_effect=OSError(errno.EXDEV, "cross-device")),
            mock.patch("shutil.copy", side_effect=OSError(errno.ENOSPC, "full")),
        ):
            self.failing(self.storage.commit(KEY, self.draft(b"a wheel"), sha256(b"a wheel")), StorageFull)
        self.assertEqual([], os.listdir(self.root / KEY))
        self.assertEqual(["a.draft"], os.listdir(self.drafts))

    def test_full_disk_differs_from_a_broken_one(self) -> None:
        """A full disk and a broken one raise different errors, with the reason. They never raise OSError."""
        kinds = {errno.ENOSPC: StorageFull, errno.EDQUOT: StorageFull, errno.EIO: StorageDown, errno.EROFS: StorageDown}
        for code, kind in kinds.items():
            with mock.patch("pathlib.Path.replace", side_effect=OSError(code, os.strerror(code))):
                error = self.failing(self.storage.commit(KEY, self.draft(b"x"), sha256(b"x")), StorageDown)
            self.assertEqual(kind, type(error))
            self.assertIn(os.strerror(code), str(error))

    def test_directory_that_can_not_be_created_is_storage_down(self) -> None:
        """A file in place of the directory raises StorageDown, for any user."""
        self.root.write_bytes(b"in the way")
        self.failing(self.storage.commit(KEY, self.draft(b"x"), sha256(b"x")), StorageDown)
        self.failing(self.storage.check(), StorageDown)
        self.assertIsNone(self.find())

    def test_directory_that_can_not_be_read_is_storage_down(self) -> None:
        """A directory that can't be read raises StorageDown. Its file does not count as missing."""
        with mock.patch("os.scandir", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            self.failing(self.storage.find(KEY), StorageDown)

    def test_large_directory_is_listed_in_a_thread(self) -> None:
        """The directory of a short key may have the directories of many longer ones. They do not stop the reactor."""
        self.commit(b"a wheel")
        for number in range(300):
            (self.root / Path(KEY).parent / f"other{number}").mkdir()
        threads = WhenTold()
        storage = DiskStorage(self.root, threads)
        found = Deferred.fromCoroutine(storage.find(str(Path(KEY).parent)))
        self.assertNoResult(found)
        threads.finish()
        threads.finish()
        self.assertIsNone(self.now(found))
        self.assertIsNotNone(self.now(Deferred.fromCoroutine(storage.find(KEY))))

    def test_large_directory_is_listed_once(self) -> None:
        """A large directory is listed once for many requests, and again after a change, so that its file is found."""
        directory = self.root / KEY
        for number in range(300):
            (directory / f"other{number}").mkdir(parents=True)
        os.utime(directory, (1, 1))
        threads = WhenTold()
        storage = DiskStorage(self.root, threads)
        with mock.patch("os.scandir", side_effect=os.scandir) as listed:
            found = [Deferred.fromCoroutine(storage.find(KEY)) for _ in range(8)]
            first_look = listed.call_count
            threads.finish()
            threads.finish()
            self.assertEqual([None] * 8, [self.now(each) for each in found])
            self.assertEqual(1, listed.call_count - first_look)
            again = Deferred.fromCoroutine(storage.find(KEY))
            threads.finish()
            self.assertIsNone(self.now(again))
            self.assertEqual(2, listed.call_count - first_look)  # the few entries that tell that it is large
            self.commit(b"a wheel")
            changed = Deferred.fromCoroutine(storage.find(KEY))
            if not changed.called:  # the file may be among the few entries
                threads.finish()
                threads.finish()
            self.assertIsNotNone(self.now(changed))


class MemoryStorageTest(StoragePromises):
    """The storage that the tests of other parts use."""

    __test__ = True

    def make(self) -> IStorage:
        return MemoryStorage(self.directory())

    def read(self, stored: StoredFile) -> bytes:
        assert stored.path is not None
        return stored.path.read_bytes()

    def test_storage_that_is_down(self) -> None:
        """Every method fails while the storage is down, and works afterwards."""
        storage = MemoryStorage(self.directory())
        storage.down = "unplugged"
        for work in (storage.find(KEY), storage.delete(KEY), storage.check()):
            self.assertEqual("unplugged", str(self.failing(work, StorageDown)))
        self.failing(storage.commit(KEY, self.draft(b"x"), sha256(b"x")), StorageDown)
        storage.down = None
        self.now(storage.check())


class BucketPromises(StoragePromises, BucketTestCase):
    """The promises of a bucket at any provider. Each file is uploaded as soon as it is committed."""

    storage: BucketStorage

    def make(self) -> BucketStorage:
        return self.storage

    def read(self, stored: StoredFile) -> bytes:
        return BucketTestCase.read(self, stored)

    def commit(self, content: bytes, key: str = KEY) -> StoredFile:
        self.keep(content, key)
        self.upload(key)
        return self.found(key)

    def test_file_waits_on_the_disk_until_it_is_uploaded(self) -> None:
        """
        A file is served from the disk until it is uploaded.

        After that it is served from the bucket, and nothing stays on the disk.
        """
        waiting = self.keep(b"a wheel")
        self.assertEqual(waiting, self.find())
        self.assertEqual(b"a wheel", self.read(waiting))
        self.assertEqual([], self.server.names())
        self.upload()
        self.assertEqual(StoredFile(KEY, 7, sha256(b"a wheel")), self.find())
        self.assertEqual([self.name()], self.server.names())
        self.assertEqual(b"a wheel", self.read(self.found()))
        self.assertEqual([], self.waiting.keys())

    def test_upload_is_a_job_for_this_disk(self) -> None:
        """
        An upload is one job for workers with access to the disk.

        There is no second job if the file is stored again.
        """
        self.keep(b"a wheel")
        self.keep(b"another")
        self.assertEqual([self.upload_job()], self.queued())

    def test_headers_let_a_client_save_the_file(self) -> None:
        """The response's headers let a client save the bytes, unchanged, under the file's own name."""
        response = get(self.now(self.storage.link(self.commit(b"a wheel"))).url)
        self.assertEqual(
            ["application/octet-stream", "attachment; filename*=UTF-8''b%2Bc-1.0.whl", "7"],
            [response.headers[name] for name in ("Content-Type", "Content-Disposition", "Content-Length")],
        )

    def test_keys_with_odd_characters(self) -> None:
        """
        Keys with any characters survive bucket and link.

        They have percent signs, plus, tilde, spaces, letters of other alphabets and queries.
        """
        odd = [
            "a%2Bb.whl",
            "a+b.whl",
            "a~b.whl",
            "a b.whl",
            "a%20b/\N{LATIN SMALL LETTER E WITH ACUTE}.whl",
            "a.whl?x=1&y=%2F+2",
        ]
        odd += ["!$&'()*,;=:@.whl", "a%25b.whl", "-/.hidden", "a%3Fb.whl"]
        keys = [key_of(f"https://files.example:8443/{path}") for path in odd] + [
            "https/files.example/\N{SNOWMAN} 100%.whl"
        ]
        for key in keys:
            self.commit(key.encode(), key)
        for key in keys:
            self.assertEqual(key.encode(), self.read(self.found(key)))
            self.now(self.catalog.forget_stored(key))
            self.assertEqual(len(key.encode()), self.found(key).size)
        self.assertLessEqual(set(keys), self.bucket.keys())

    def test_key_that_is_too_long_for_s3(self) -> None:
        """Keys of up to 2048 bytes are accepted, although S3 allows half of that."""
        keys = ["https/files.example/" + "/".join(["d" * 99] * 20) + end for end in ("", "2")]
        for key in keys:
            self.commit(key[-1].encode(), key)
        self.assertEqual([b"d", b"2"], [self.read(self.found(key)) for key in keys])
        self.now(self.storage.sweep_records())
        self.assertEqual([True, True], [self.now(self.catalog.stored(key)) is not None for key in keys])

    def test_file_is_deleted_everywhere(self) -> None:
        """Deleting removes a file from the disk, the bucket and the catalog."""
        self.commit(b"a wheel")
        self.keep(b"another")
        self.now(self.storage.delete(KEY))
        self.assertEqual(([], [], None), (self.server.names(), self.waiting.keys(), self.now(self.catalog.stored(KEY))))
        self.assertIsNone(self.find())

    def test_upload_that_runs_twice(self) -> None:
        """An upload can run twice without harm, whether or not the file still waits."""
        waiting = self.keep(b"a wheel")
        assert waiting.path is not None
        copy = waiting.path.read_bytes()
        self.upload()
        self.upload()
        waiting.path.parent.mkdir(parents=True)
        waiting.path.write_bytes(copy)
        self.upload()
        self.assertEqual([self.name()], self.server.names())
        self.assertEqual(([], b"a wheel"), (self.waiting.keys(), self.read(self.found())))

    def test_upload_of_a_file_that_is_gone(self) -> None:
        """The upload of a file that is gone does nothing. Another worker was faster."""
        self.keep(b"a wheel")
        self.now(self.waiting.delete(KEY))
        self.upload()
        self.keep(b"a wheel")

        def vanish(path: Path, *_: Any) -> None:
            path.unlink()
            path.stat()

        with mock.patch.object(self.bucket, "upload", side_effect=vanish):
            self.upload()
        self.assertEqual(([], None), (self.server.names(), self.find()))

    def test_file_that_is_replaced_during_its_upload(self) -> None:
        """
        A file that replaces another during its upload is uploaded as well.

        It is never deleted in place of the other.
        """
        self.keep(b"old")
        upload = self.bucket.upload

        def replace_then_upload(path: Path, *more: Any) -> StoredFile:
            stored = upload(path, *more)
            if self.waiting_digest() == sha256(b"old"):
                self.keep(b"newer")
            return stored

        with mock.patch.object(self.bucket, "upload", side_effect=replace_then_upload) as uploads:
            self.upload()
        self.assertEqual(2, uploads.call_count)
        self.assertEqual((sha256(b"newer"), b"newer"), (self.found().digest, self.read(self.found())))

    def waiting_digest(self) -> Digest | None:
        waiting = self.now(self.waiting.find(KEY))
        return None if waiting is None else waiting.digest

    def test_large_file_is_uploaded_in_parts(self) -> None:
        """A large file is uploaded in parts, and downloaded in one piece."""
        self.keep(LARGE)
        self.upload()
        self.assertEqual(len(LARGE), self.found().size)
        self.assertEqual(LARGE, self.read(self.found()))
        self.assertEqual((3, []), (self.asked("PUT"), self.server.pending()))

    def test_parts_of_a_killed_worker_are_removed(self) -> None:
        """The next upload of a file removes the parts that a killed worker left. Parts of other files stay."""
        other = f"{self.name()}.metadata"
        for name in (self.name(), other):
            begun = self.server.client.create_multipart_upload(Bucket=self.server.bucket, Key=name)["UploadId"]
            self.server.client.upload_part(
                Bucket=self.server.bucket, Key=name, UploadId=begun, PartNumber=1, Body=b"left behind"
            )
        self.keep(LARGE)
        self.upload()
        self.assertEqual([other], self.server.pending())
        self.assertEqual(LARGE, self.read(self.found()))

    def test_object_without_a_record_is_found(self) -> None:
        """
        An object without a record is found by one request to the bucket.

        Redis may have lost the record, or another program has uploaded the object.
        """
        self.commit(b"a wheel")
        self.now(self.catalog.forget_stored(KEY))
        before = self.asked("HEAD")
        self.assertEqual([7, 7, 7], [self.found().size for _ in range(3)])
        self.assertEqual(before + 1, self.asked("HEAD"))
        self.assertEqual(self.found(), self.now(self.catalog.stored(KEY)))

    def test_unknown_file_costs_one_request(self) -> None:
        """A look-up of an unknown file costs one request. A recorded or waiting file costs none."""
        self.assertIsNone(self.find())
        self.assertEqual(1, self.asked("HEAD"))
        self.keep(b"a wheel", "https/files.example/other")
        self.find("https/files.example/other")
        self.assertEqual(1, len(self.proxy.requests))

    def test_record_of_a_missing_object_is_deleted(self) -> None:
        """Promise 6: the record of a missing object is deleted. So the file is fetched again; other records stay."""
        keys = [KEY, "https/files.example/a%2Bb", "https/files.example/c"]
        for key in keys:
            self.commit(b"x", key)
        self.server.delete(self.name(KEY))
        self.now(self.storage.sweep_records())
        self.assertEqual([False, True, True], [self.now(self.catalog.stored(key)) is not None for key in keys])
        self.assertIsNone(self.find())

    def test_file_that_is_read_and_missing_is_forgotten(self) -> None:
        """The record and the link of a file are deleted after a client has found nothing behind its link."""
        stored = self.commit(b"a wheel")
        self.now(self.storage.link(stored))
        self.server.delete(self.name())
        self.assertIsNotNone(self.find())
        self.assertFalse(self.now(self.storage.note_read(stored, self.clock.seconds(), NotFound("gone"))))
        self.assertEqual((None, None), (self.find(), self.now(self.catalog.link(KEY))))

    def test_missing_bucket(self) -> None:
        """The check reports a missing bucket, without any secret."""
        storage = self.make_storage(self.make_bucket(name="no-such-bucket"))
        self.assertEqual("S3 answered 404 to HeadBucket", str(self.failing(storage.check(), StorageDown)))


class MotoStorageTest(BucketPromises):
    """Buckets on moto's server, which has all of S3's features, and accepts any signature."""

    __test__ = True

    def test_client_may_cache_the_file(self) -> None:
        """Clients and proxies may cache a file for ever."""
        response = head(self.now(self.storage.link(self.commit(b"a wheel"))).url)
        self.assertEqual("public, max-age=31536000, immutable", response.headers["Cache-Control"])

    def test_digest_is_noted_on_the_object(self) -> None:
        """
        The object's metadata has the digest, in case Redis has lost it.

        This holds for uploads in one piece and in parts.
        """
        for content in (b"a wheel", LARGE):
            self.commit(content)
            self.assertEqual({"digest": str(sha256(content))}, self.server.get(self.name()).head["Metadata"])
            self.now(self.catalog.forget_stored(KEY))
            self.assertEqual(sha256(content), self.found().digest)

    def test_large_file_is_not_sent_twice(self) -> None:
        """A job that runs twice sends a large file once. Other bytes of the same size are sent."""
        for content in (LARGE, LARGE, LARGE[::-1]):
            self.keep(content)
            self.upload()
        self.assertEqual((6, LARGE[::-1]), (self.asked("PUT"), self.read(self.found())))

    def test_public_bucket_has_plain_links(self) -> None:
        """The link of a public bucket has only the object's name, and never expires."""
        self.commit(b"a wheel")
        storage = self.make_storage(self.make_bucket(public=True), public=True)
        link = self.now(storage.link(self.found()))
        quoted = KEY.replace("%", "%25")
        self.assertEqual(Link(f"{self.proxy.url}/{self.server.bucket}/pre/fix/{quoted}", None), link)
        self.server.client.put_object_acl(Bucket=self.server.bucket, Key=self.name(), ACL="public-read")
        self.assertEqual(b"a wheel", get(link.url).body)

    def test_link_stays_the_same_while_it_is_valid_for_a_minute(self) -> None:
        """
        A link stays the same while it is valid for another minute.

        So clients and proxies can cache its target, for as long as `max_age` says.
        """
        stored = self.commit(b"a wheel")
        first = self.now(self.storage.link(stored))
        self.assertEqual(540, first.max_age)
        self.clock.advance(540)
        self.assertEqual(Link(first.url, 0), self.now(self.storage.link(stored)))
        self.clock.advance(1)
        later = datetime.now(timezone.utc) + timedelta(seconds=541)
        with mock.patch("botocore.auth.get_current_datetime", return_value=later.replace(tzinfo=None)):
            second = self.now(self.storage.link(stored))
        self.assertEqual((540, False), (second.max_age, first.url == second.url))

    def test_link_without_a_catalog(self) -> None:
        """While Redis is down, each client gets a link of its own."""
        stored = self.commit(b"a wheel")
        self.catalog.down = "unplugged"
        self.assertEqual(b"a wheel", self.read(stored))

    def test_link_shows_no_secret(self) -> None:
        """Neither a link nor a storage shows a secret in the log."""
        link = self.now(self.storage.link(self.commit(b"a wheel")))
        self.assertNotIn(SECRET_KEY, link.url)
        for value in (link, self.bucket, self.bucket._settings, self.storage):
            self.assertNotIn(SECRET_KEY, repr(value))
            self.assertNotIn(ACCESS_KEY, repr(value))

    def test_file_waits_while_the_queue_is_down(self) -> None:
        """A file is stored and served while the queue is down. A sweep queues its upload."""
        self.queue.down = "unplugged"
        self.keep(b"a wheel")
        self.assertIsNotNone(self.find())
        self.queue.down = None
        self.assertEqual([], self.queued())
        self.now(self.storage.sweep())
        self.assertEqual([self.upload_job()], self.queued())

    def test_files_that_a_dead_process_left_are_uploaded(self) -> None:
        """A new process queues the uploads of all files that wait, once Redis answers, and only once."""
        self.queue.down = "unplugged"
        self.keep(b"a wheel")
        self.queue.down = None
        after = self.make_storage(self.bucket)
        self.catalog.down = "unplugged"
        self.now(after.look())
        self.assertEqual([], self.queued())
        self.catalog.down = None
        self.now(after.look())
        self.assertEqual([self.upload_job()], self.queued())
        with mock.patch.object(self.waiting, "keys", side_effect=AssertionError):
            self.now(after.look())

    def test_waiting_file_is_not_fetched_by_other_hosts(self) -> None:
        """
        A sweep keeps the lease of a waiting file.

        So no other host fetches it. If the file was uploaded meanwhile, the lease is released.
        """
        self.keep(b"a wheel")
        uploaded = f"{KEY}-gone"
        with mock.patch.object(self.waiting, "keys", return_value=[KEY, uploaded]):
            self.now(self.storage.sweep())
        self.assertIsNotNone(self.now(self.catalog.take_lease(fetch_lease(KEY), "another", 1)))
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(uploaded), "another", 1)))
        self.assertEqual([self.upload_job()], self.queued())
        self.upload()
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(KEY), "another", 1)))

    def test_file_waits_while_the_catalog_is_down(self) -> None:
        """A file whose upload can't be recorded stays on the disk. The job runs again and records it."""
        self.keep(b"a wheel")
        self.catalog.down = "unplugged"
        self.upload_error(CatalogDown)
        self.assertIsNotNone(self.found().path)
        self.catalog.down = None
        self.upload()
        self.assertIsNone(self.found().path)

    def test_file_is_found_while_the_catalog_is_down(self) -> None:
        """While the catalog is down, the bucket is asked."""
        self.commit(b"a wheel")
        self.catalog.down = "unplugged"
        self.assertEqual(7, self.found().size)

    def test_look_up_in_a_bucket_that_does_not_answer(self) -> None:
        """
        A look-up ends after three seconds, independent of S3's own limits.

        The file counts as missing. Look-ups then pause.
        """
        self.server.put(self.name(), b"a wheel", Metadata={"digest": str(sha256(b"a wheel"))})
        threads = WhenTold()
        storage = self.make_storage(self.bucket, threads)
        finding = self.start(storage.find(KEY))
        self.clock.advance(2.9)
        self.assertNoResult(finding)
        self.clock.advance(0.2)
        self.assertIsNone(self.successResultOf(finding))
        self.assertEqual((None, 1), (self.now(storage.find(KEY)), len(threads.waiting)))
        threads.waiting.clear()
        self.clock.advance(FIRST_PAUSE)
        finding = self.start(storage.find(KEY))
        threads.finish()
        self.assertIsNotNone(self.successResultOf(finding))

    def test_check_of_a_bucket_that_does_not_answer(self) -> None:
        """The check fails after three seconds without an answer."""
        checking = self.start(self.make_storage(self.bucket, WhenTold()).check())
        self.clock.advance(3.1)
        error = self.failureResultOf(checking, StorageDown)
        self.assertEqual("S3 did not answer within 3 s", str(error.value))

    def test_check_reports_a_failed_upload(self) -> None:
        """The check reports a failed upload until one succeeds. A failed look-up is not reported."""
        self.keep(b"a wheel")
        fault = self.proxy.fault(f"PUT {self.proxy.path_of(self.name())}", Refuse(403, "AccessDenied"))
        self.upload_error(StorageDown)
        fault.wait_served()
        error = self.failing(self.storage.check(), StorageDown)
        self.assertEqual("the last upload failed: S3 answered AccessDenied to PutObject", str(error))
        self.proxy.mend()
        self.upload()
        self.proxy.fault("/", Refuse(500, "InternalError"))
        with mock.patch("time.sleep"):
            self.assertIsNone(self.find("https/files.example/other"))
        self.proxy.mend()
        self.now(self.storage.check())


class RcloneStorageTest(BucketPromises):
    """Buckets on rclone's server, which checks signatures, and stores objects as files."""

    __test__ = True
    kind = RcloneServer

    def test_keys_do_not_mix(self) -> None:
        """Each key has its own file. No key here continues another as a path, since rclone stores objects as files."""
        keys = [KEY, f"{KEY}.metadata", "https/files.example/a/b"]
        for key in keys:
            self.assertIsNone(self.find(key))
            self.commit(key.encode(), key)
        self.assertEqual([key.encode() for key in keys], [self.read(self.found(key)) for key in keys])

    def test_link_is_signed(self) -> None:
        """A link works only with its own signature, name and expiry."""
        url = self.now(self.storage.link(self.commit(b"a wheel"))).url
        longer = url.replace("Expires=600", "Expires=6000")
        self.assertEqual(
            [True, False, False, False],
            [get(each).status == 200 for each in (url, longer, url.replace("whl?", "whl2?"), url.partition("?")[0])],
        )

    def test_link_expires(self) -> None:
        """A link expires after the ten minutes in the settings, and not before."""
        stored = self.commit(b"a wheel")
        statuses = []
        for age in (590, 610):
            then = datetime.now(timezone.utc) - timedelta(seconds=age)
            with mock.patch("botocore.auth.get_current_datetime", return_value=then.replace(tzinfo=None)):
                statuses.append(get(self.bucket.link(stored.key)).status)
        self.assertEqual([200, True], [statuses[0], statuses[1] in (400, 403)])

    def test_wrong_secret_differs_from_a_missing_bucket(self) -> None:
        """A wrong secret has another error than a missing bucket. The error has no key."""
        storage = self.make_storage(self.make_bucket(secret_key="C" * 40))
        self.assertEqual("S3 answered 403 to HeadBucket", str(self.failing(storage.check(), StorageDown)))
