"""Checks, when a daemon starts, that it can write to the directories that its settings name.

Knows settings and directories. Must never know what is stored in them.
"""

from __future__ import annotations

import errno
import os
import pwd
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from mypypi.daemon.lifecycle import CannotStart

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings

#: Errors of a full disk, and of a broken one. A daemon that restarts meanwhile serves what it has.
_FULL, _BROKEN = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EIO)
#: The directories in the data directory. An earlier run as another user may have left them.
_PARTS = ("drafts", "waiting", "redis")

_log = Logger()


def check_directories(settings: Settings) -> None:
    """
    Create the directories that the settings name, and check that files can be created there.

    Raises CannotStart with the first directory that can't be used, the reason, and what to do. A full disk is only
    logged, and so is a read-only one that has data already: a disk error may cause that state. To be called when the
    daemon has its final user.
    """
    data = settings.data_directory
    _check(data, "MYPYPI_DATA_DIRECTORY", make=make_private)
    for name in _PARTS:
        if (data / name).exists():
            _check(data / name, "MYPYPI_DATA_DIRECTORY")
    if settings.file_storage_driver == "local":
        _check(settings.file_storage_directory, "MYPYPI_FILE_STORAGE_DIRECTORY")


def make_private(directory: Path) -> None:
    """
    Create a data directory, which only this user can enter. An existing one keeps its mode.

    It has the queue, the pages and Redis's socket beside the files. Raises OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _make(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)


def _check(directory: Path, setting: str, make: Callable[[Path], None] = _make) -> None:
    try:
        make(directory)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        why = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror
        trouble = (
            f"the directory {directory} can't be written by {_user()}: {why}; let this user write there, or set"
            f" {setting} to another directory"
        )
        if error.errno in _FULL or (error.errno in _BROKEN and _has_data(directory)):
            _log.error("{trouble}", trouble=trouble)
        else:
            raise CannotStart(trouble) from error


def _has_data(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except OSError:
        return False


def _user() -> str:
    with suppress(KeyError):
        return f"user {pwd.getpwuid(os.geteuid()).pw_name}"
    return f"user {os.geteuid()}"
