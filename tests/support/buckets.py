"""A bucket storage before a real S3 server, one step after the other, for the tests of both.

Knows how the parts of a storage fit together. Must never decide what they promise.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, ClassVar
from unittest import mock

from mypypi.model import Job, StoredFile
from mypypi.storage.bucket import UPLOAD, BucketStorage
from mypypi.storage.disk import DiskStorage
from mypypi.storage.s3 import BucketSettings, S3Bucket
from mypypi.threads import Threads
from tests.rig.http import get
from tests.rig.s3 import ACCESS_KEY, REGION, SECRET_KEY, S3Proxy, S3Server
from tests.support.fakes import MemoryCatalog, MemoryQueue
from tests.support.memory import AtOnce, MemoryTestCase, sha256

KEY = "https/files.example/a/b%2Bc-1.0.whl"
DISK = "this-disk"
#: The smallest part that S3 takes, unless it is the last one; and a file of three of them.
PART = 5 << 20
LARGE = os.urandom(1 << 20) * 11

_numbers = count()


class StopAfter(Event):
    """Is set once it was looked at so often: in the middle of an upload."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class BucketTestCase(MemoryTestCase):
    """`storage` has nothing in it; what it says to `server` goes through `proxy`."""

    __test__ = False
    kind: ClassVar[type[S3Server]] = S3Server
    server: ClassVar[S3Server]
    _ending: ClassVar[ExitStack]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls._ending = ExitStack()
        cls.server = cls._ending.enter_context(cls.kind())

    @classmethod
    def tearDownClass(cls) -> None:
        cls._ending.close()
        super().tearDownClass()

    def setUp(self) -> None:
        super().setUp()
        # What is in the environment of whoever runs this is nobody else's business.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        ending = ExitStack()
        self.addCleanup(ending.close)
        ending.enter_context(mock.patch.dict(os.environ, clean, clear=True))
        ending.enter_context(self.server.another(f"bucket-{next(_numbers)}"))
        self.proxy = ending.enter_context(S3Proxy(self.server))
        self.drafts = self.directory()
        self.catalog = MemoryCatalog(self.clock)
        self.queue = MemoryQueue(self.clock, DISK)
        self.waiting = DiskStorage(self.directory() / "waiting", AtOnce())
        self.bucket = self.make_bucket()
        self.storage = self.make_storage(self.bucket)

    def make_bucket(self, **settings: Any) -> S3Bucket:
        """With these settings in place of the usual ones."""
        usual = {
            "name": self.server.bucket,
            "prefix": "pre/fix",
            "endpoint_url": self.proxy.url,
            "region": REGION,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
        }
        return S3Bucket(BucketSettings(**(usual | settings)), part_bytes=PART)

    def make_storage(self, bucket: S3Bucket, threads: Threads | None = None, *, public: bool = False) -> BucketStorage:
        """Over this bucket, and the waiting files, catalog and queue that there are."""
        return BucketStorage(
            bucket,
            self.waiting,
            self.catalog,
            self.queue,
            threads or AtOnce(),
            self.clock,
            disk=DISK,
            public=public,
            link_seconds=600,
        )

    def read(self, stored: StoredFile) -> bytes:
        """As a client gets it, from the disk or by an ordinary GET."""
        if stored.path is not None:
            return stored.path.read_bytes()
        answer = get(self.now(self.storage.link(stored)).url)
        self.assertEqual(
            (200, True), (answer.status, answer.complete), answer.text[:500] if answer.status != 200 else ""
        )
        return answer.body

    def keep(self, content: bytes, key: str = KEY) -> StoredFile:
        """Commit it; it waits."""
        draft = Path(self.drafts, "a.draft")
        draft.write_bytes(content)
        return self.now(self.storage.commit(key, draft, sha256(content)))

    def upload(self, key: str = KEY) -> None:
        """As a worker does."""
        self.now(self.storage.upload(key))

    def upload_error(self, kind: type[Exception], key: str = KEY) -> Any:
        """How the upload fails."""
        return self.failing(self.storage.upload(key), kind)

    def find(self, key: str = KEY) -> StoredFile | None:
        return self.now(self.storage.find(key))

    def found(self, key: str = KEY) -> StoredFile:
        """As `find`, and it is there."""
        stored = self.find(key)
        assert stored is not None
        return stored

    def name(self, key: str = KEY) -> str:
        """What the object under this key is called."""
        return f"pre/fix/{key}"

    def asked(self, method: str, key: str = KEY) -> int:
        """How often S3 was asked this for an object."""
        return len(self.proxy.asked(method, self.name(key)))

    def queued(self) -> list[Job]:
        """The jobs that wait, which are taken."""
        return [taken.job for taken in self.now(self.queue.take(100))] if self.now(self.queue.state()).waiting else []

    def upload_job(self, key: str = KEY) -> Job:
        return Job(UPLOAD, key, disk=DISK)
