"""Tests of `mypypi.daemon.checks` and `mypypi.daemon.own_process`: which state is trouble, and what is said of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import cast
from unittest import mock

import pytest
from prometheus_client import REGISTRY

from mypypi import descriptors
from mypypi.daemon.checks import queue_trouble
from mypypi.daemon.own_process import OwnProcess
from mypypi.job import QueueState
from mypypi.observability import metrics
from mypypi.observability.logs import ConfiguredLogger, LogFormat
from mypypi.rendering.pool import RenderPool
from tests.support.memory import AtOnce, MemoryTestCase


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (QueueState(5, 0, 0), []),
        (QueueState(1, 0, 0, 1), ["1 job waits for a worker", "start twistd mypypi-worker"]),
        (QueueState(2, 1, 0, 3), ["3 jobs wait for a worker", "1 job has failed and will be retried"]),
        (QueueState(0, 0, 2), ["2 jobs were set aside after failing too often", "mypypi jobs retry"]),
    ],
)
def test_trouble_of_the_queue_says_what_to_do(state: QueueState, words: list[str]) -> None:
    """Jobs without a worker, failed jobs, and jobs that were set aside are trouble. Jobs that just wait are none."""
    trouble = queue_trouble(state)
    assert bool(trouble) == bool(words)
    for each in words:
        assert each in trouble


class OwnProcessTest(MemoryTestCase):
    """What a process lacks."""

    def setUp(self) -> None:
        super().setUp()
        self.pool = mock.Mock(spec=RenderPool)
        self.pool.trouble.return_value = ""
        self.own = OwnProcess(AtOnce(), cast("RenderPool", self.pool))
        self.addCleanup(metrics.PROCESSES_DEGRADED.set, 0)

    def look(self) -> str:
        trouble = self.now(self.own.look())
        assert REGISTRY.get_sample_value("mypypi_processes_degraded") == bool(trouble)
        return trouble

    def with_descriptors(self, used: int, limit: int | None) -> str:
        with mock.patch.object(descriptors, "in_use", return_value=(used, limit)):
            return self.look()

    def test_descriptors_run_low_and_are_free_again(self) -> None:
        """The trouble begins when fewer than 15 % are free, and ends when 20 % are, so that it does not flap."""
        found = [bool(self.with_descriptors(used, 100)) for used in (50, 85, 86, 85, 81, 80, 85, 100)]
        assert found == [False, False, True, True, True, False, False, True]
        trouble = self.with_descriptors(97, 100)
        assert "97 of 100 file descriptors are in use" in trouble
        assert "LimitNOFILE" in trouble
        assert REGISTRY.get_sample_value("mypypi_open_descriptors") == 97
        assert REGISTRY.get_sample_value("mypypi_max_descriptors") == 100

    def test_no_limit_is_no_trouble(self) -> None:
        """Where the system sets no limit, or tells none, nothing is said."""
        assert self.with_descriptors(1_000_000, None) == ""

    def test_open_descriptors_are_counted(self) -> None:
        """The count is that of the system; if it can't be listed for want of a descriptor, all are in use."""
        before, limit = descriptors.in_use()
        with Path(os.devnull).open(), Path(os.devnull).open():
            assert descriptors.in_use() == (before + 2, limit)
        with mock.patch("os.listdir", side_effect=OSError(errno.EMFILE, "Too many open files")):
            assert descriptors.in_use() == (limit, limit)
        with mock.patch("os.listdir", side_effect=FileNotFoundError):
            assert descriptors.in_use() == (0, None)

    def test_trouble_of_the_render_pool_is_told(self) -> None:
        """Render processes that can't be started are trouble of the process."""
        self.pool.trouble.return_value = "no render process can be started"
        assert self.look() == "no render process can be started"

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
    def test_lines_that_are_lost_are_told(self) -> None:
        """A log on a full disk loses lines. It is over when a line is written, or none was lost for a minute."""
        self.addCleanup(lambda: self.write_line("/dev/null"))
        self.write_line("/dev/full")
        assert self.look() == "lines of the log are lost: No space left on device"
        self.write_line("/dev/null")
        assert self.look() == ""
        self.write_line("/dev/full")
        with mock.patch("mypypi.observability.logs._LOST_SECONDS", 0.0):
            assert self.look() == ""

    def write_line(self, logfile: str) -> None:
        """Log one event to this file, as twistd does."""
        ConfiguredLogger.name({"logfile": logfile}, LogFormat())
        observer = ConfiguredLogger.make()
        observer({"log_time": 0.0, "log_format": "hello", "log_namespace": "mypypi.test"})
        observer({"log_time": 0.0, "log_format": "not shown", "log_namespace": "other"})
        file, ConfiguredLogger._file = ConfiguredLogger._file, None  # no other test may rotate it
        assert file is not None
        file.close()
