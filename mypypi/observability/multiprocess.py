"""The directory and files in which several server processes keep their metrics.

prometheus_client maps these files into memory, and would create them at the first count. On a full disk that would fail
the request; with a block missing under the mapping, it would kill the process. So the files are in shared memory, if
the system has enough of it, and are created with all their blocks before anything is counted. Knows their names. Must
never import prometheus_client, which looks for the directory when it is imported.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

#: The environment variable that names the directory to prometheus_client.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory is made in it, with a name that can't be guessed
#: The kinds of metrics in `metrics`, as prometheus_client names their files; gauges have their mode in the name.
_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
#: Bytes of a file: room for a thousand series, although there are only some dozens.
_SIZE = 256 * 1024
#: Bytes of all the files of a process.
PROCESS_BYTES = len(_KINDS) * _SIZE


class NoRoom(OSError):
    """No directory has room for the files."""


class MetricsDirectory:
    """
    A directory for the files of several processes.

    It is locked, so that systemd-tmpfiles, which removes old files from temporary directories, leaves it alone.
    """

    def __init__(self, place: Path) -> None:
        """Create it in this place. Raises OSError."""
        self.path = Path(tempfile.mkdtemp(prefix="mypypi-metrics-", dir=place))
        self._lock = -1
        self._lock_it()

    @classmethod
    def in_first(cls, places: Iterable[Path], processes: int) -> MetricsDirectory:
        """Create it in the first of these places that has room for so many processes. Raises NoRoom."""
        needed, tried = processes * PROCESS_BYTES, []
        for place in places:
            with suppress(OSError):  # it does not exist, or can't be written
                found = os.statvfs(place)
                if found.f_bavail * found.f_frsize >= needed:
                    return cls(place)
            tried.append(str(place))
        raise NoRoom(f"{needed / 1e6:.0f} MB are needed, and can't be had in {', '.join(tried)}")

    def restore(self) -> bool:
        """Create it again if another program has removed it; return whether that was so. Raises OSError."""
        if self.path.is_dir():
            return False
        self.path.mkdir(0o700)
        self._lock_it()
        return True

    def remove(self) -> None:
        """Remove it with its files."""
        os.close(self._lock)
        rmtree(self.path, ignore_errors=True)

    def _lock_it(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)


def places(data_directory: Path) -> list[Path]:
    """Return where the directory may lie: in shared memory, else in the directory for temporary files or for data."""
    with suppress(OSError):  # there is none that can be written
        return [_SHARED_MEMORY, Path(tempfile.gettempdir()), data_directory]
    return [_SHARED_MEMORY, data_directory]


def make_files() -> str:
    """
    Create this process's files, if it shares its metrics with other processes.

    If that fails, the process counts for itself only. Returns why; empty if nothing failed.
    """
    directory = os.environ.get(DIRECTORY)
    if directory is None:
        return ""
    try:
        for path in _files_of(os.getpid(), directory):
            path.write_bytes(bytes(_SIZE))
    except OSError as error:
        del os.environ[DIRECTORY]
        for path in _files_of(os.getpid(), directory):  # a file without all its bytes would confuse the other processes
            with suppress(OSError):
                path.unlink()
        return str(error)
    return ""


def shrink_files(pid: int, directory: Path) -> None:
    """Cut the files of a process that has ended to the bytes that it used, so that each restart needs little room."""
    for path in _files_of(pid, directory):
        with suppress(OSError, struct.error), path.open("r+b") as file:
            (used,) = struct.unpack("i", file.read(4))  # as prometheus_client's MmapedDict writes it
            file.truncate(max(8, used))


def _files_of(pid: int, directory: Path | str) -> list[Path]:
    return [Path(directory, f"{kind}_{pid}.db") for kind in _KINDS]
