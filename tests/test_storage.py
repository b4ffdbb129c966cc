"""What every storage promises, in one class that each of them passes; and what is the disk's own."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from pathlib import Path
from unittest import mock

from zope.interface.verify import verifyObject

from mypypi.errors import StorageDown, StorageFull
from mypypi.interfaces import IStorage
from mypypi.model import StoredFile
from mypypi.storage.disk import DiskStorage
from tests.memory import AtOnce, MemoryTestCase, sha256

KEY = "https/files.example/a/b+c-1.0.whl"


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
