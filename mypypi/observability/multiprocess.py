"""Where several server processes count together: a directory in memory, and the files of one of them in it.

prometheus_client maps these files into memory, and would make them when it counts something for the first time. A disk
that is full by then would end the request, or, where a block is missing under the memory, the process. So they lie in
shared memory where there is some, and are made with all their blocks before anything is counted. Knows their names.
Must never import prometheus_client, which looks for the directory when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

#: The variable in which prometheus_client finds the directory.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory is made in it, with a name that nobody can know
#: The kinds of instruments in `metrics`, as prometheus_client names their files; gauges carry their mode.
_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
#: Bytes of a file: room for a thousand series, of which there are some dozens.
_SIZE = 256 * 1024


def make_directory() -> TemporaryDirectory[str]:
    """A place for processes to count in. Raises OSError."""
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK | os.X_OK) else None
    return TemporaryDirectory(prefix="mypypi-metrics-", dir=place, ignore_cleanup_errors=True)


def make_files() -> None:
    """This process's files, where it counts together with others. Where they can't be made it counts for itself."""
    directory = os.environ.get(DIRECTORY)
    if directory is None:
        return
    try:
        for kind in _KINDS:
            Path(directory, f"{kind}_{os.getpid()}.db").write_bytes(bytes(_SIZE))
    except OSError:
        del os.environ[DIRECTORY]
