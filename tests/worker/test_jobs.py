"""Tests of `mypypi.worker.jobs`: which failures of a job are worth a retry."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, cast
from unittest import mock

from twisted.internet.defer import Deferred

from mypypi.errors import MyPyPiError, NotFound, StorageFull, UpstreamDown, UpstreamRefused
from mypypi.files.fetches import Fetches
from mypypi.model import PackageFile
from mypypi.worker.jobs import Jobs, fetch_job
from tests.support.fakes import MemoryStorage
from tests.support.memory import MemoryTestCase

FILE = PackageFile.of("a-1.0.whl", "https://files.example/a-1.0.whl", "", 10, "https/files.example/a-1.0.whl")


class FetchJobTest(MemoryTestCase):
    """A job that fetches a file, which fails."""

    def run_job(self, error: MyPyPiError) -> Deferred[None]:
        fetches = mock.Mock(spec=Fetches)
        fetches.fetch_and_store.side_effect = error
        jobs = Jobs(MemoryStorage(self.directory()), cast("Fetches", fetches))
        work = cast("Coroutine[Any, Any, None]", jobs.handlers["fetch"](fetch_job(FILE, "")))
        done = self.start(work)
        fetches.fetch_and_store.assert_called_once()
        return done

    def test_a_refusal_of_upstream_ends_the_job(self) -> None:
        """A client can't make health report failed jobs by requests for files that upstream does not give."""
        for error in (NotFound("upstream has no such file"), UpstreamRefused("upstream forbids it")):
            self.now(self.run_job(error))

    def test_other_failures_are_retried(self) -> None:
        """The job fails, so that the worker tries it again."""
        for error in (UpstreamDown("upstream answered 503"), StorageFull("no room")):
            self.failing(self.run_job(error), type(error))
