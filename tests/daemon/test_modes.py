"""Tests of who can read what a daemon writes: the modes of its directories and files, with real daemons."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.conftest import DaemonFactory
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """The umask of processes that are started meanwhile."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def modes(daemon: Daemon) -> dict[str, int]:
    """The mode of each file and directory that the daemon has, but for those that it removes meanwhile."""
    found = {}
    for path in daemon.paths:
        with suppress(FileNotFoundError):
            if not path.is_symlink():
                found[str(path)] = mode(path)
    return found


def store_a_file(daemon: Daemon, index: FakeIndex) -> Path:
    """Have the daemon store a file, and return it."""
    wheel = make_wheel("thing", "1.0")
    index.add(wheel)
    page = f"{daemon.url}/simple/thing/"
    found: Any = get(page, {"Accept": "application/vnd.pypi.simple.v1+json"}).json()
    assert get(urljoin(page, found["files"][0]["url"])).status == 200
    return eventually(lambda: list(daemon.data.parent.glob("**/files/**/sha256-*")), bool)[0]


class TestModes:
    """Users outside the group can't read what a daemon writes."""

    @pytest.mark.parametrize(("mask", "expected"), [(0o000, 0o640), (0o077, 0o600)])
    def test_a_new_data_directory_is_private(
        self, daemon_factory: DaemonFactory, index: FakeIndex, mask: int, expected: int
    ) -> None:
        """The directory is for its user alone, and files for the group at most. A stricter umask stays."""
        with umask(mask):
            daemon = daemon_factory()
        stored = store_a_file(daemon, index)
        assert mode(daemon.data) == 0o700
        assert mode(stored) == expected
        below = modes(daemon)
        assert len(below) > 5
        assert [(path, oct(found)) for path, found in below.items() if found & 0o027] == []

    def test_an_existing_directory_keeps_its_mode(
        self, daemon_factory: DaemonFactory, index: FakeIndex, tmp_path: Path
    ) -> None:
        """The operator may have opened the data directory. One for files elsewhere is made for the group."""
        data, files = tmp_path / "data", tmp_path / "elsewhere" / "files"
        with umask(0):
            data.mkdir(mode=0o755)
            daemon = daemon_factory(env={"MYPYPI_FILE_STORAGE_DIRECTORY": str(files)})
        stored = store_a_file(daemon, index)
        assert mode(data) == 0o755
        assert [mode(path) for path in (files, files.parent, stored.parent, stored)] == [0o750, 0o750, 0o750, 0o640]

    @pytest.mark.parametrize(("options", "expected"), [((), 0o640), (("--umask", "0007"), 0o660)])
    def test_log_file(self, index: FakeIndex, tmp_path: Path, options: tuple[str, ...], expected: int) -> None:
        """A log is for the group at most, unless the operator gives a umask."""
        log = tmp_path / "server.log"
        env = {"MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi", tmp_path / "data", env, options=("--logfile", str(log), *options))
        with umask(0o007):
            daemon.launch()
        try:
            eventually(lambda: log.read_text() if log.exists() else "", lambda text: "ready: " in text)
            assert mode(log) == expected
            assert mode(tmp_path / "data") == 0o700
        finally:
            daemon.stop()
            daemon.sweep()
