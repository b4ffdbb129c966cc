"""What every storage promises, in one class that each of them passes; what is the disk's own, and a bucket's."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from zope.interface.verify import verifyObject

from mypypi.errors import CatalogDown, StorageDown, StorageFull
from mypypi.interfaces import IStorage
from mypypi.keys import key_of
from mypypi.model import Digest, Link, StoredFile, fetch_lease
from mypypi.storage.bucket import BucketStorage
from mypypi.storage.disk import DiskStorage
from tests.rig.http import get, head
from tests.rig.s3 import ACCESS_KEY, SECRET_KEY, RcloneServer, Refuse
from tests.support.buckets import KEY, LARGE, BucketTestCase
from tests.support.fakes import MemoryStorage
from tests.support.memory import AtOnce, MemoryTestCase, WhenTold, sha256


class StoragePromises(MemoryTestCase):
    """What every storage promises. A test case for one says how it is made, and how its bytes are read."""

    __test__ = False
    storage: IStorage

    def setUp(self) -> None:
        super().setUp()
        self.drafts = self.directory()
        self.storage = self.make()

    @abstractmethod
    def make(self) -> IStorage:
        """A storage with nothing in it."""

    @abstractmethod
    def read(self, stored: StoredFile) -> bytes:
        """The bytes, as a client would get them."""

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
        """It has every method that IStorage names."""
        self.assertTrue(verifyObject(IStorage, self.storage))

    def test_what_was_never_kept_is_not_there(self) -> None:
        """Nothing is found, and deleting it is no error."""
        self.assertIsNone(self.find())
        self.now(self.storage.delete(KEY))

    def test_committed_file_is_found(self) -> None:
        """With its size, its digest and its bytes; the draft is gone."""
        stored = self.commit(b"a wheel")
        self.assertEqual((KEY, 7, sha256(b"a wheel")), (stored.key, stored.size, stored.digest))
        self.assertEqual(stored, self.find())
        self.assertEqual(b"a wheel", self.read(stored))
        self.assertEqual([], os.listdir(self.drafts))

    def test_empty_file_is_a_file(self) -> None:
        """Of no bytes."""
        self.commit(b"")
        stored = self.find()
        assert stored is not None
        self.assertEqual((0, b""), (stored.size, self.read(stored)))

    def test_file_is_replaced(self) -> None:
        """Other bytes under the same key take the place of those before; the same bytes once more change nothing."""
        self.commit(b"old")
        self.commit(b"newer")
        self.commit(b"newer")
        stored = self.find()
        assert stored is not None
        self.assertEqual((5, sha256(b"newer"), b"newer"), (stored.size, stored.digest, self.read(stored)))

    def test_draft_that_is_open_can_be_read_on(self) -> None:
        """Readers of a draft go on while it is committed."""
        with self.draft(b"being read").open("rb") as reader:
            self.now(self.storage.commit(KEY, self.drafts / "a.draft", sha256(b"being read")))
            self.assertEqual(b"being read", reader.read())

    def test_deleted_file_is_forgotten(self) -> None:
        """And can be kept again."""
        self.commit(b"a wheel")
        self.now(self.storage.delete(KEY))
        self.assertIsNone(self.find())
        self.commit(b"a wheel")
        self.assertIsNotNone(self.find())

    def test_keys_do_not_meet(self) -> None:
        """One key may continue another, even with what looks like a digest; each has its own file."""
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

    def test_longest_key_is_taken(self) -> None:
        """What `key_of` makes, a storage takes."""
        key = f"https/files.example/{'a' * 255}/{'%E2%82%AC' * 28}"
        self.assertIsNone(self.find(key))
        self.assertEqual(key, self.commit(b"x", key).key)

    def test_working_storage_passes_its_check(self) -> None:
        """Without leaving anything behind."""
        self.now(self.storage.check())
        self.assertIsNone(self.find())


class DiskStorageTest(StoragePromises):
    """Files in a directory tree that reads without anything else."""

    __test__ = True

    def make(self) -> IStorage:
        self.root = self.directory() / "files"
        return DiskStorage(self.root, AtOnce())

    def read(self, stored: StoredFile) -> bytes:
        assert stored.path is not None
        return stored.path.read_bytes()

    def test_file_lies_where_its_key_says_under_its_digest_and_size(self) -> None:
        """So that storage can be read, checked and copied without the catalog."""
        self.commit(b"a wheel")
        self.assertEqual(b"a wheel", (self.root / KEY / f"{sha256(b'a wheel')}.7").read_bytes())

    def test_file_that_has_lost_its_end_is_not_there(self) -> None:
        """Promise 2: never a short 200. It can be kept again."""
        stored = self.commit(b"a wheel")
        assert stored.path is not None
        stored.path.write_bytes(b"a whe")
        self.assertIsNone(self.find())
        self.assertEqual(b"a wheel", self.read(self.commit(b"a wheel")))

    def test_nothing_else_in_a_directory_is_a_file(self) -> None:
        """What a copy that was cut off has left, or a person has put there, is neither served nor touched."""
        other = self.root / KEY / "README"
        other.parent.mkdir(parents=True)
        other.write_bytes(b"mine")
        (self.root / KEY / ".arriving-x").write_bytes(b"half")
        self.assertIsNone(self.find())
        self.commit(b"a wheel")
        self.now(self.storage.delete(KEY))
        self.assertEqual(b"mine", other.read_bytes())

    def test_file_that_is_taken_away_is_not_there(self) -> None:
        """Promise 6: bytes that are gone mean "fetch again", not an error."""
        stored = self.commit(b"a wheel")
        assert stored.path is not None
        stored.path.unlink()
        self.assertIsNone(self.find())

    def test_another_file_system_is_copied_across(self) -> None:
        """Drafts may lie elsewhere: the file comes whole and by a rename, with the same mode, and the draft goes."""
        with mock.patch("pathlib.Path.replace", side_effect=OSError(errno.EXDEV, "cross-device")):
            stored = self.commit(b"a wheel")
        assert stored.path is not None
        self.assertEqual((b"a wheel", 0o644), (self.read(stored), stored.path.stat().st_mode & 0o777))
        self.assertEqual([], os.listdir(self.drafts))
        self.assertEqual([stored.path.name], os.listdir(stored.path.parent))

    def test_copy_that_fails_leaves_nothing_half_done(self) -> None:
        """Neither a file nor a part of one; the draft stays for whoever wants to try again."""
        with (
            mock.patch("pathlib.Path.replace", side_effect=OSError(errno.EXDEV, "cross-device")),
            mock.patch("shutil.copy", side_effect=OSError(errno.ENOSPC, "full")),
        ):
            self.failing(self.storage.commit(KEY, self.draft(b"a wheel"), sha256(b"a wheel")), StorageFull)
        self.assertEqual([], os.listdir(self.root / KEY))
        self.assertEqual(["a.draft"], os.listdir(self.drafts))

    def test_full_disk_is_told_from_a_broken_one(self) -> None:
        """Each in words that say what to do; never an OSError."""
        kinds = {errno.ENOSPC: StorageFull, errno.EDQUOT: StorageFull, errno.EIO: StorageDown, errno.EROFS: StorageDown}
        for code, kind in kinds.items():
            with mock.patch("pathlib.Path.replace", side_effect=OSError(code, os.strerror(code))):
                error = self.failing(self.storage.commit(KEY, self.draft(b"x"), sha256(b"x")), StorageDown)
            self.assertEqual(kind, type(error))
            self.assertIn(os.strerror(code), str(error))

    def test_directory_that_can_not_be_made_is_storage_down(self) -> None:
        """A file in the place of the directory, whoever runs this."""
        self.root.write_bytes(b"in the way")
        self.failing(self.storage.commit(KEY, self.draft(b"x"), sha256(b"x")), StorageDown)
        self.failing(self.storage.check(), StorageDown)
        self.assertIsNone(self.find())

    def test_directory_that_can_not_be_read_is_storage_down(self) -> None:
        """And not a file that is missing."""
        with mock.patch("os.listdir", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            self.failing(self.storage.find(KEY), StorageDown)


class MemoryStorageTest(StoragePromises):
    """What stands for a storage in the tests of others."""

    __test__ = True

    def make(self) -> IStorage:
        return MemoryStorage(self.directory())

    def read(self, stored: StoredFile) -> bytes:
        assert stored.path is not None
        return stored.path.read_bytes()

    def test_storage_that_is_down(self) -> None:
        """It says so whatever it is asked, and works again afterwards."""
        storage = MemoryStorage(self.directory())
        storage.down = "unplugged"
        for work in (storage.find(KEY), storage.delete(KEY), storage.check()):
            self.assertEqual("unplugged", str(self.failing(work, StorageDown)))
        self.failing(storage.commit(KEY, self.draft(b"x"), sha256(b"x")), StorageDown)
        storage.down = None
        self.now(storage.check())


class BucketPromises(StoragePromises, BucketTestCase):
    """What holds for files in a bucket, whoever provides it. Each is uploaded as soon as it is kept."""

    storage: BucketStorage

    def make(self) -> BucketStorage:
        return self.storage

    def read(self, stored: StoredFile) -> bytes:
        return BucketTestCase.read(self, stored)

    def commit(self, content: bytes, key: str = KEY) -> StoredFile:
        self.keep(content, key)
        self.upload(key)
        return self.found(key)

    def test_file_waits_until_it_is_uploaded(self) -> None:
        """It is served from the disk until then, and from the bucket afterwards; nothing stays on the disk."""
        waiting = self.keep(b"a wheel")
        self.assertEqual(waiting, self.find())
        self.assertEqual(b"a wheel", self.read(waiting))
        self.assertEqual([], self.server.names())
        self.upload()
        self.assertEqual(StoredFile(KEY, 7, sha256(b"a wheel")), self.find())
        self.assertEqual([self.name()], self.server.names())
        self.assertEqual(b"a wheel", self.read(self.found()))
        self.assertEqual([], self.waiting.keys())

    def test_upload_is_a_job_for_those_who_see_the_disk(self) -> None:
        """One, however often the same file is kept meanwhile."""
        self.keep(b"a wheel")
        self.keep(b"another")
        self.assertEqual([self.upload_job()], self.queued())

    def test_client_is_told_what_it_gets(self) -> None:
        """Bytes, to be saved under the file's own name, which stay what they are."""
        answer = get(self.now(self.storage.link(self.commit(b"a wheel"))).url)
        self.assertEqual(
            ["application/octet-stream", "attachment; filename*=UTF-8''b%2Bc-1.0.whl", "7"],
            [answer.headers[name] for name in ("Content-Type", "Content-Disposition", "Content-Length")],
        )

    def test_keys_with_odd_characters(self) -> None:
        """Percent signs, plus, tilde, spaces, letters from elsewhere and queries come through bucket and link."""
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
        """What `key_of` makes, a storage takes: up to 2048 bytes, where S3 has room for half of it."""
        keys = ["https/files.example/" + "/".join(["d" * 99] * 20) + end for end in ("", "2")]
        for key in keys:
            self.commit(key[-1].encode(), key)
        self.assertEqual([b"d", b"2"], [self.read(self.found(key)) for key in keys])
        self.now(self.storage.sweep_records())
        self.assertEqual([True, True], [self.now(self.catalog.stored(key)) is not None for key in keys])

    def test_file_is_deleted_everywhere(self) -> None:
        """On the disk, in the bucket, and in the catalog."""
        self.commit(b"a wheel")
        self.keep(b"another")
        self.now(self.storage.delete(KEY))
        self.assertEqual(([], [], None), (self.server.names(), self.waiting.keys(), self.now(self.catalog.stored(KEY))))
        self.assertIsNone(self.find())

    def test_upload_that_is_done_twice(self) -> None:
        """Without harm, whether the file still waits or does not."""
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

    def test_upload_of_what_has_vanished(self) -> None:
        """Another worker was faster: nothing happens."""
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

    def test_file_that_came_in_the_middle_of_an_upload(self) -> None:
        """It is uploaded as well, and never thrown away in place of the other."""
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

    def test_large_file_goes_in_parts(self) -> None:
        """And comes out in one piece."""
        self.keep(LARGE)
        self.upload()
        self.assertEqual(len(LARGE), self.found().size)
        self.assertEqual(LARGE, self.read(self.found()))
        self.assertEqual((3, []), (self.asked("PUT"), self.server.pending()))

    def test_parts_that_a_killed_worker_left_are_taken_back(self) -> None:
        """Whoever does its job does that first; other files' parts stay."""
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

    def test_object_that_nobody_noted_is_found(self) -> None:
        """Redis was lost: the bucket is asked once, and not again. Others than `upload` put it there all the same."""
        self.commit(b"a wheel")
        self.now(self.catalog.forget_stored(KEY))
        before = self.asked("HEAD")
        self.assertEqual([7, 7, 7], [self.found().size for _ in range(3)])
        self.assertEqual(before + 1, self.asked("HEAD"))
        self.assertEqual(self.found(), self.now(self.catalog.stored(KEY)))

    def test_file_that_was_never_kept_costs_one_question(self) -> None:
        """And one that is noted or waits costs none."""
        self.assertIsNone(self.find())
        self.assertEqual(1, self.asked("HEAD"))
        self.keep(b"a wheel", "https/files.example/other")
        self.find("https/files.example/other")
        self.assertEqual(1, len(self.proxy.requests))

    def test_record_whose_object_is_gone_is_forgotten(self) -> None:
        """Promise 6: then it is fetched again. The others stay."""
        keys = [KEY, "https/files.example/a%2Bb", "https/files.example/c"]
        for key in keys:
            self.commit(b"x", key)
        self.server.delete(self.name(KEY))
        self.now(self.storage.sweep_records())
        self.assertEqual([False, True, True], [self.now(self.catalog.stored(key)) is not None for key in keys])
        self.assertIsNone(self.find())

    def test_forgotten_file_is_looked_for_again(self) -> None:
        """Who was sent to the bucket and found nothing there says so; the link goes too."""
        stored = self.commit(b"a wheel")
        self.now(self.storage.link(stored))
        self.server.delete(self.name())
        self.assertIsNotNone(self.find())
        self.now(self.storage.forget(KEY))
        self.assertEqual((None, None), (self.find(), self.now(self.catalog.link(KEY))))

    def test_bucket_that_is_not_there(self) -> None:
        """The check says so, without any secret."""
        storage = self.make_storage(self.make_bucket(name="no-such-bucket"))
        self.assertEqual("S3 answered 404 to HeadBucket", str(self.failing(storage.check(), StorageDown)))


class MotoStorageTest(BucketPromises):
    """moto's server, which keeps and tells all that S3 does, and takes any signature."""

    __test__ = True

    def test_client_may_keep_what_it_gets(self) -> None:
        """For ever, and so may whatever stands between."""
        answer = head(self.now(self.storage.link(self.commit(b"a wheel"))).url)
        self.assertEqual("public, max-age=31536000, immutable", answer.headers["Cache-Control"])

    def test_digest_is_noted_on_the_object(self) -> None:
        """So that it is known when Redis was lost; in one piece or in parts."""
        for content in (b"a wheel", LARGE):
            self.commit(content)
            self.assertEqual({"digest": str(sha256(content))}, self.server.get(self.name()).head["Metadata"])
            self.now(self.catalog.forget_stored(KEY))
            self.assertEqual(sha256(content), self.found().digest)

    def test_large_file_is_not_sent_twice(self) -> None:
        """A job that is done again sees that it is there. Other bytes of the same size are sent."""
        for content in (LARGE, LARGE, LARGE[::-1]):
            self.keep(content)
            self.upload()
        self.assertEqual((6, LARGE[::-1]), (self.asked("PUT"), self.read(self.found())))

    def test_public_bucket_has_plain_links(self) -> None:
        """The same for ever, with nothing in them but the name."""
        self.commit(b"a wheel")
        storage = self.make_storage(self.make_bucket(public=True), public=True)
        link = self.now(storage.link(self.found()))
        quoted = KEY.replace("%", "%25")
        self.assertEqual(Link(f"{self.proxy.url}/{self.server.bucket}/pre/fix/{quoted}", None), link)
        self.server.client.put_object_acl(Bucket=self.server.bucket, Key=self.name(), ACL="public-read")
        self.assertEqual(b"a wheel", get(link.url).body)

    def test_link_stays_the_same_while_it_holds_for_a_minute(self) -> None:
        """So that clients and what stands between can keep what it leads to; it is told for how long."""
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
        """Redis is down: there is a link all the same, for each client its own."""
        stored = self.commit(b"a wheel")
        self.catalog.down = "unplugged"
        self.assertEqual(b"a wheel", self.read(stored))

    def test_link_tells_no_secret(self) -> None:
        """Nor does it, or a storage, in a log."""
        link = self.now(self.storage.link(self.commit(b"a wheel")))
        self.assertNotIn(SECRET_KEY, link.url)
        for value in (link, self.bucket, self.bucket._settings, self.storage):
            self.assertNotIn(SECRET_KEY, repr(value))
            self.assertNotIn(ACCESS_KEY, repr(value))

    def test_file_waits_while_the_queue_is_down(self) -> None:
        """It is kept and served, and a sweep queues its upload."""
        self.queue.down = "unplugged"
        self.keep(b"a wheel")
        self.assertIsNotNone(self.find())
        self.queue.down = None
        self.assertEqual([], self.queued())
        self.now(self.storage.sweep())
        self.assertEqual([self.upload_job()], self.queued())

    def test_file_on_its_way_is_no_other_hosts_to_fetch(self) -> None:
        """A sweep sees to it for as long as the file waits; what was uploaded while it looked is everybody's."""
        self.keep(b"a wheel")
        gone = f"{KEY}-gone"
        with mock.patch.object(self.waiting, "keys", return_value=[KEY, gone]):
            self.now(self.storage.sweep())
        self.assertIsNotNone(self.now(self.catalog.take_lease(fetch_lease(KEY), "another", 1)))
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(gone), "another", 1)))
        self.assertEqual([self.upload_job()], self.queued())
        self.upload()
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(KEY), "another", 1)))

    def test_file_waits_while_the_catalog_is_down(self) -> None:
        """What can't be noted is not thrown away; the job that is done again notes it."""
        self.keep(b"a wheel")
        self.catalog.down = "unplugged"
        self.upload_error(CatalogDown)
        self.assertIsNotNone(self.found().path)
        self.catalog.down = None
        self.upload()
        self.assertIsNone(self.found().path)

    def test_catalog_that_is_down_hides_nothing(self) -> None:
        """The bucket is asked instead."""
        self.commit(b"a wheel")
        self.catalog.down = "unplugged"
        self.assertEqual(7, self.found().size)

    def test_bucket_that_does_not_answer_is_one_without_the_file(self) -> None:
        """Within five seconds, whatever S3's own limits are; then it is left alone for ten, and asked again."""
        self.server.put(self.name(), b"a wheel", Metadata={"digest": str(sha256(b"a wheel"))})
        threads = WhenTold()
        storage = self.make_storage(self.bucket, threads)
        finding = self.start(storage.find(KEY))
        self.clock.advance(4.9)
        self.assertNoResult(finding)
        self.clock.advance(0.2)
        self.assertIsNone(self.successResultOf(finding))
        self.assertEqual((None, 1), (self.now(storage.find(KEY)), len(threads.waiting)))
        threads.waiting.clear()
        self.clock.advance(10)
        finding = self.start(storage.find(KEY))
        threads.finish()
        self.assertIsNotNone(self.successResultOf(finding))

    def test_check_of_a_bucket_that_does_not_answer(self) -> None:
        """It says so within five seconds."""
        checking = self.start(self.make_storage(self.bucket, WhenTold()).check())
        self.clock.advance(5.1)
        error = self.failureResultOf(checking, StorageDown)
        self.assertEqual("S3 did not answer within 5 s", str(error.value))

    def test_health_tells_of_an_upload_that_failed(self) -> None:
        """Until one works again; that a file was looked for in vain is no matter of health."""
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
    """rclone's server, which checks signatures, and puts files where keys say."""

    __test__ = True
    kind = RcloneServer

    def test_keys_do_not_meet(self) -> None:
        """Where rclone keeps objects, in a file system, a file is no directory: without such keys."""
        keys = [KEY, f"{KEY}.metadata", "https/files.example/a/b"]
        for key in keys:
            self.assertIsNone(self.find(key))
            self.commit(key.encode(), key)
        self.assertEqual([key.encode() for key in keys], [self.read(self.found(key)) for key in keys])

    def test_link_is_signed(self) -> None:
        """Nobody gets anything without a link, with another one's, or with a longer life."""
        url = self.now(self.storage.link(self.commit(b"a wheel"))).url
        longer = url.replace("Expires=600", "Expires=6000")
        self.assertEqual(
            [True, False, False, False],
            [get(each).status == 200 for each in (url, longer, url.replace("whl?", "whl2?"), url.partition("?")[0])],
        )

    def test_link_runs_out(self) -> None:
        """After the ten minutes that the settings say, and not before."""
        stored = self.commit(b"a wheel")
        statuses = []
        for age in (590, 610):
            then = datetime.now(timezone.utc) - timedelta(seconds=age)
            with mock.patch("botocore.auth.get_current_datetime", return_value=then.replace(tzinfo=None)):
                statuses.append(get(self.bucket.link(stored.key)).status)
        self.assertEqual([200, True], [statuses[0], statuses[1] in (400, 403)])

    def test_wrong_secret_is_told_from_a_missing_bucket(self) -> None:
        """In words that name no key."""
        storage = self.make_storage(self.make_bucket(secret_key="C" * 40))
        self.assertEqual("S3 answered 403 to HeadBucket", str(self.failing(storage.check(), StorageDown)))
