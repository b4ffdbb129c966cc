"""Tests of the files in which several server processes keep their metrics: where they are, and what happens without."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pytest
from prometheus_client.mmap_dict import MmapedDict

from mypypi.observability.multiprocess import (
    DIRECTORY,
    PROCESS_BYTES,
    MetricsDirectory,
    NoRoom,
    make_files,
    places,
    shrink_files,
)
from tests.observability.test_metrics import scrape, value
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.redis import Redis

#: Runs a command with another, small file system at some directories.
MOUNTED = """
for place in {places}; do mount -t tmpfs -o size=1m tmpfs "$place" || exit 1; done
exec "$@"
"""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is written to it
REMOVED = "metrics are those of one server process, not of all"


@contextmanager
def serving(index: FakeIndex, redis: Redis, data: Path, small: tuple[Path, ...] = (), **env: str) -> Iterator[Daemon]:
    """A server with two processes, for which these directories are on a disk of 1 MB."""
    daemon = Daemon(
        "mypypi-server",
        data,
        {"WORKERS": "2", "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_REDIS_URL": redis.url, **env},
    )
    if small:
        script = MOUNTED.format(places=" ".join(map(str, small)))
        mounting = ["unshare", "--mount", "sh", "-c", script, "sh"]
        if subprocess.run([*mounting, "true"], check=False, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        daemon._command = [*mounting, *daemon._command]
    with daemon:
        yield daemon
    assert daemon.complaints == []


def children_of(daemon: Daemon) -> list[psutil.Process]:
    return [each for each in psutil.Process(daemon.pid).children() if "mypypi-server" in each.cmdline()]


def directory_of(daemon: Daemon) -> Path | None:
    """The directory of the metrics that the children got."""
    (found,) = {child.environ().get(DIRECTORY) for child in children_of(daemon)}
    return None if found is None else Path(found)


def pages_counted(daemon: Daemon) -> float:
    samples = scrape(daemon)
    return sum(
        number for (name, labels), number in samples.items()
        if name == "mypypi_requests_total" and ("kind", "page") in labels
    )  # fmt: skip


class TestLittleSharedMemory:
    """A container may have 1 MB of shared memory or none, and a full directory for temporary files."""

    @pytest.mark.parametrize("also", ["nothing else", "temporary files"])
    def test_metrics_are_kept_elsewhere(self, also: str, index: FakeIndex, redis: Redis, tmp_path: Path) -> None:
        """With too little shared memory, the metrics of all processes are in another directory, and add up."""
        index.add(make_wheel("thing"))
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        small = (SHARED_MEMORY, *([temporary] if also == "temporary files" else []))
        with serving(index, redis, tmp_path / "data", small, TMPDIR=str(temporary)) as daemon:
            for _ in range(8):
                assert get(f"{daemon.url}/simple/thing/").status == 200
            assert pages_counted(daemon) == 8
            found = directory_of(daemon)
            assert found is not None
            assert found.parent == (tmp_path / "data" if also == "temporary files" else temporary)
        assert not found.exists()

    def test_a_server_without_room_for_metrics_serves(self, index: FakeIndex, redis: Redis, tmp_path: Path) -> None:
        """With no room anywhere, a server starts all the same. A scrape has one process's numbers; the log says so."""
        index.add(make_wheel("thing"))
        data = tmp_path / "data"
        data.mkdir()
        with serving(index, redis, data, (SHARED_MEMORY, data), TMPDIR=str(data)) as daemon:
            assert directory_of(daemon) is None
            for _ in range(4):
                assert get(f"{daemon.url}/simple/thing/").status == 200
                assert 0 <= pages_counted(daemon) <= 4
            assert (
                daemon.log.count("each server process reports its own metrics, not those of all: 4 MB are needed") == 1
            )


def test_a_directory_that_was_removed(index: FakeIndex, redis: Redis, tmp_path: Path) -> None:
    """
    A scrape has one process's numbers if a program that cleans up has removed the directory, and the log says so once.

    Clients notice nothing. Processes that start later share their metrics again.
    """
    index.add(make_wheel("thing"))
    with serving(index, redis, tmp_path / "data") as daemon:
        directory = directory_of(daemon)
        assert directory is not None
        shutil.rmtree(directory)
        for _ in range(6):  # these begin series that there were not before
            assert get(f"{daemon.url}/simple/thing/").status == 200
            assert get(f"{daemon.url}/simple/nothing/").status == 404
            assert 0 <= pages_counted(daemon) <= 12
        assert 1 <= daemon.log.count(REMOVED) <= 2  # once for each process that answered a scrape
        old = children_of(daemon)
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: [each for each in old if each.is_running()], lambda left: left == [])
        assert get(f"{daemon.url}/simple/thing/").status == 200
        eventually(partial(pages_counted, daemon), lambda count: count == 1)
        assert len(list(directory.glob("histogram_*.db"))) == 2
        assert "was removed; metrics of older processes are lost" in daemon.log
        assert value(scrape(daemon), "connections") is not None
    assert not directory.exists()


class TestDirectory:
    """Where the directory is, and what is in it."""

    def small(self, monkeypatch: pytest.MonkeyPatch, **free: int) -> None:
        """Let directories with these names have so many free bytes, and all others none."""

        def statvfs(place: Path) -> Any:
            return SimpleNamespace(f_bavail=free.get(place.name, 0), f_frsize=1)

        monkeypatch.setattr("os.statvfs", statvfs)

    def test_the_first_place_with_room_for_all_processes_is_used(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A place with room for only some processes is passed over, as is one that is missing."""
        for name in ("little", "enough", "more"):
            (tmp_path / name).mkdir()
        self.small(monkeypatch, missing=9 * PROCESS_BYTES, little=3 * PROCESS_BYTES, enough=4 * PROCESS_BYTES)
        names = [tmp_path / name for name in ("missing", "little", "enough", "more")]
        directory = MetricsDirectory.in_first(names, 4)
        assert directory.path.parent == tmp_path / "enough"
        directory.remove()
        with pytest.raises(NoRoom, match=r"5 MB are needed, and can't be had in .*missing, .*little"):
            MetricsDirectory.in_first(names, 5)

    def test_there_may_be_no_directory_for_temporary_files(self, tmp_path: Path) -> None:
        """The data directory is left if no directory for temporary files can be written."""
        with mock.patch("tempfile.gettempdir", side_effect=FileNotFoundError("no usable temporary directory")):
            assert places(tmp_path)[1:] == [tmp_path]

    def test_it_is_locked_against_programs_that_clean_up(self, tmp_path: Path) -> None:
        """The directory is locked as systemd-tmpfiles expects it, also after it was created again."""
        directory = MetricsDirectory(tmp_path)
        for _ in range(2):
            opened = os.open(directory.path, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(opened)
            assert not directory.restore()
            directory.path.rmdir()
            assert directory.restore()
        directory.remove()
        assert not directory.path.exists()

    def test_files_that_can_not_be_created_leave_nothing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A process without room for all its files counts for itself only, and leaves no part of a file for others."""
        monkeypatch.setenv(DIRECTORY, str(tmp_path))
        write, written = Path.write_bytes, []

        def write_some(path: Path, data: bytes) -> int:
            written.append(path)
            if len(written) == 3:
                write(path, data[:1])
                raise OSError(28, "No space left on device")
            return write(path, data)

        with mock.patch.object(Path, "write_bytes", write_some):
            assert "No space left on device" in make_files()
        assert DIRECTORY not in os.environ
        assert list(tmp_path.iterdir()) == []

    def test_files_of_a_process_that_ended_are_cut(self, tmp_path: Path) -> None:
        """The files of a process that has ended keep their numbers and give back the rest of their space."""
        with ExitStack() as ending:
            path = tmp_path / "counter_7.db"
            path.write_bytes(bytes(PROCESS_BYTES // 4))
            numbers = MmapedDict(str(path))
            ending.callback(numbers.close)
            for each in range(300):
                numbers.write_value(f"[{each}]", each, 0.0)
        before = list(MmapedDict.read_all_values_from_file(str(path)))
        shrink_files(7, tmp_path)
        assert list(MmapedDict.read_all_values_from_file(str(path))) == before
        assert path.stat().st_size < PROCESS_BYTES // 16
