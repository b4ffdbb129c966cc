"""How close this process is to the limit of its file descriptors, and which errors say that none is left.

Knows the limits of the operating system. Must never know what a descriptor is for.
"""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress

from mypypi.error_chain import chain_of

#: Errors of a process, and of a whole host, without a free descriptor.
_SHORTAGE = (errno.EMFILE, errno.ENFILE)
#: The descriptors that are kept free of clients' connections: one of so many, and at most so many. Files, drafts and
#: connections to upstream need them, so that the clients that are connected can be answered.
_SHARE, _MOST = 8, 64
#: The descriptors of a client that gets a file: its socket twice, as the kernel copies to the second, and the file.
_FOR_A_CLIENT = 3
#: Connections of clients that are enough by default, however many descriptors there are: each takes some 15 kB.
_ENOUGH_CONNECTIONS = 8192
#: The directory that lists this process's open descriptors, on Linux as on macOS.
_OPEN = "/dev/fd"
#: The message for clients, and for the log.
NONE_LEFT = "this server has run out of file descriptors"


def is_shortage(error: BaseException | None) -> bool:
    """
    Whether an error, or one that it came from, says that there is no descriptor left.

    Twisted's errors keep the number as ``osError``.
    """
    return any(
        getattr(each, "errno", None) in _SHORTAGE or getattr(each, "osError", None) in _SHORTAGE
        for each in chain_of(error)
    )


def are_used_up() -> bool:
    """Whether this process can't open another descriptor now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return is_shortage(error)
    return False


def in_use() -> tuple[int, int | None]:
    """
    Return how many descriptors are open, and how many may be; None if that is unlimited or unknown.

    Blocks: it lists the descriptors, which takes milliseconds if there are many.
    """
    limit = _limit()
    if limit is None:
        return 0, None
    try:
        return len(os.listdir(_OPEN)) - 1, limit  # the listing itself needs one
    except OSError as error:
        return (limit, limit) if is_shortage(error) else (0, None)


def scarcity(newest: int) -> float:
    """
    Return how far the descriptors that are kept free are used: 0 or less if they are not, 1 if all of them are.

    `newest` is the descriptor that was opened last. The kernel gives the lowest number that is free, so all lower ones
    are in use; higher ones may be, too.
    """
    limit = _limit()
    if limit is None:
        return 0.0
    return 1 - (limit - 1 - newest) / _kept(limit)


def for_connections() -> int:
    """
    Return how many connections of clients this process should have at most.

    A client that gets a file needs `_FOR_A_CLIENT` descriptors, and all may get one at once.
    """
    limit = _limit()
    if limit is None:
        return _ENOUGH_CONNECTIONS
    return max(1, min((limit - _kept(limit)) // _FOR_A_CLIENT, _ENOUGH_CONNECTIONS))


def _kept(limit: int) -> int:
    """Return how many descriptors, of so many, are kept free of clients' connections."""
    return max(1, min(limit // _SHARE, _MOST))


def _limit() -> int | None:
    """Return how many descriptors this process may have open; None if that is unlimited or unknown."""
    limit = resource.RLIM_INFINITY
    with suppress(OSError, ValueError):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY or limit <= 0 else limit
