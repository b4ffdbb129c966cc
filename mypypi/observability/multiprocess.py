"""The directory and files in which several server processes keep their metrics.

prometheus_client maps these files into memory, and would create them at the first count. On a full disk that would fail
the request; with a block missing under the mapping, it would kill the process. So the files are in shared memory, if
the system has it, and are created with all their blocks before anything is counted. Knows their names. Must never
import prometheus_client, which looks for the directory when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

#: The environment variable that names the directory to prometheus_client.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory is made in it, with a name that can't be guessed
#: The kinds of metrics in `metrics`, as prometheus_client names their files; gauges have their mode in the name.
_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
#: Bytes of a file: room for a thousand series, although there are only some dozens.
_SIZE = 256 * 1024


def make_directory() -> TemporaryDirectory[str]:
    """Create the directory, in shared memory if possible. Raises OSError."""
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK | os.X_OK) else None
    return TemporaryDirectory(prefix="mypypi-metrics-", dir=place, ignore_cleanup_errors=True)


def make_files() -> None:
    """
    Create this process's files, if it shares its metrics with other processes.

    If that fails, the process counts for itself only.
    """
    directory = os.environ.get(DIRECTORY)
    if directory is None:
        return
    try:
        for kind in _KINDS:
            Path(directory, f"{kind}_{os.getpid()}.db").write_bytes(bytes(_SIZE))
    except OSError:
        del os.environ[DIRECTORY]
