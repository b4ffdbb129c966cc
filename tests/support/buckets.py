"""A bucket storage with a real S3 server, run step by step.

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

from mypypi.job import Job
from mypypi.model import StoredFile
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
#: The smallest part in bytes that S3 accepts, except as the last one; and the content of a file with three parts.
PART = 5 << 20
LARGE = os.urandom(1 << 20) * 11

_numbers = count()


class StopAfter(Event):
    """
    An event that is set after `checks` calls of `is_set`.

    This stops an upload in its middle.
    """

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._checks_left = checks

    def is_set(self) -> bool:
        self._checks_left -= 1
        return self._checks_left < 0


class BucketTestCase(MemoryTestCase):
    """
    A test case with an empty bucket storage.

    The requests of `storage` to `server` pass through `proxy`.
    """

    __test__ = False
    kind: ClassVar[type[S3Server]] = S3Server
    server: ClassVar[S3Server]
    _class_resources: ClassVar[ExitStack]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls._class_resources = ExitStack()
        cls.server = cls._class_resources.enter_context(cls.kind())

    @classmethod
    def tearDownClass(cls) -> None:
        cls._class_resources.close()
        super().tearDownClass()

    def setUp(self) -> None:
        super().setUp()
        # The credentials in the environment of the test run must not be used.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        resources = ExitStack()
        self.addCleanup(resources.close)
        resources.enter_context(mock.patch.dict(os.environ, clean, clear=True))
        resources.enter_context(self.server.another(f"bucket-{next(_numbers)}"))
        self.proxy = resources.enter_context(S3Proxy(self.server))
        self.drafts = self.directory()
        self.catalog = MemoryCatalog(self.clock)
        self.queue = MemoryQueue(self.clock, DISK)
        self.waiting = DiskStorage(self.directory() / "waiting", AtOnce())
        self.bucket = self.make_bucket()
        self.storage = self.make_storage(self.bucket)

    def make_bucket(self, **settings: Any) -> S3Bucket:
        """Make a bucket with these settings in place of the defaults."""
        defaults = {
            "name": self.server.bucket,
            "prefix": "pre/fix",
            "endpoint_url": self.proxy.url,
            "region": REGION,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
        }
        return S3Bucket(BucketSettings(**(defaults | settings)), part_bytes=PART)

    def make_storage(
        self, bucket: S3Bucket, threads: Threads | None = None, *, public: bool = False, proxied: bool = False
    ) -> BucketStorage:
        """
        Make a storage over this bucket.

        It uses the test's waiting files, catalog and queue.
        """
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
            proxied=proxied,
        )

    def read(self, stored: StoredFile) -> bytes:
        """
        Read a file as a client does.

        The file is on disk, or behind a link for an ordinary GET.
        """
        if stored.path is not None:
            return stored.path.read_bytes()
        answer = get(self.now(self.storage.link(stored)).url)
        self.assertEqual(
            (200, True), (answer.status, answer.complete), answer.text[:500] if answer.status != 200 else ""
        )
        return answer.body

    def keep(self, content: bytes, key: str = KEY) -> StoredFile:
        """Commit this content, whose upload then waits."""
        draft = Path(self.drafts, "a.draft")
        draft.write_bytes(content)
        return self.now(self.storage.commit(key, draft, sha256(content)))

    def upload(self, key: str = KEY) -> None:
        """Upload a file, as a worker does."""
        self.now(self.storage.upload(key))

    def upload_error(self, kind: type[Exception], key: str = KEY) -> Any:
        """The error of this kind with which the upload fails."""
        return self.failing(self.storage.upload(key), kind)

    def find(self, key: str = KEY) -> StoredFile | None:
        return self.now(self.storage.find(key))

    def found(self, key: str = KEY) -> StoredFile:
        """Find a file that must be there."""
        stored = self.find(key)
        assert stored is not None
        return stored

    def name(self, key: str = KEY) -> str:
        """The name of the object under this key."""
        return f"pre/fix/{key}"

    def asked(self, method: str, key: str = KEY) -> int:
        """The number of requests of this method for an object."""
        return len(self.proxy.asked(method, self.name(key)))

    def queued(self) -> list[Job]:
        """Take all waiting jobs from the queue."""
        return (
            [claimed.job for claimed in self.now(self.queue.take(100))] if self.now(self.queue.state()).waiting else []
        )

    def upload_job(self, key: str = KEY) -> Job:
        return Job(UPLOAD, key, disk=DISK)
