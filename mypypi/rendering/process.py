"""A render process, at both ends: the serving process sends tasks, the render process does them one by one.

A task and its result are bytes with their length in front. Knows pipes, processes and resource limits. Must never know
what a task is about.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mypypi.errors import BadUpstreamResponse

#: Bytes of address space that a render process may use (RLIMIT_AS).
MOST_MEMORY = 1024 * 1024 * 1024
#: Bytes of resident memory after a task above which the process is replaced.
GROWN = 96 * 1024 * 1024
#: Seconds after which a task ends its own process, in case that the serving process is gone and can't kill it.
_LAST_RESORT = 60
#: Bytes of a task after which garbage is collected.
_COLLECT = 64 * 1024
#: Prefixes of environment variables that a process that reads foreign pages must not have.
_SECRETS = ("MYPYPI_", "AWS_")
#: Priority (nice) of a process that does large tasks.
_LARGE_NICE = 10
#: A Ctrl-C, or the end of the terminal, is for the daemon alone. Before Python 3.11, `_limit` is the first to do this.
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {}
_HEADER = struct.Struct("!IB")
#: prctl(2): the death of the parent kills the child. Linux only.
_PR_SET_PDEATHSIG = 1


class RenderProcessEnded(BadUpstreamResponse):
    """The render process ended in the middle of a task: it was killed, or an error ended it."""


class RenderProcess:
    """The serving process's end. `perform` and `close` block; one thread at a time calls them."""

    def __init__(self) -> None:
        """
        Start the process. Raises OSError.

        The thread that calls this must outlive the process: the kernel kills a child with the thread that started it.
        """
        self.has_grown = self.is_slow = False
        self._killed = False
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with a module of this project
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)},
            **_OWN_GROUP,
        )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs. An idle one may have been killed by the operator or by the kernel."""
        return self._process.poll() is None

    def perform(self, task: bytes) -> bytes:
        """Send a task and wait for its result. Raises RenderProcessEnded if the process ends before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write(self._process.stdin, task)
            result, grown = _read(self._process.stdout)
        except (OSError, EOFError, ValueError):
            reason = "it takes too long" if self._killed else "the process ended, see its output in the log"
            raise RenderProcessEnded(f"upstream's page can't be rendered: {reason}") from None
        self.has_grown = bool(grown)
        return result

    def slow_down(self) -> None:
        """
        Lower the process's priority, so that large tasks do not take the processor from clients.

        It can't be raised again: `is_slow` says that the process is one for large tasks from now on.
        """
        self.is_slow = True
        with suppress(OSError):  # it has just died
            os.setpriority(os.PRIO_PROCESS, self.pid, _LARGE_NICE)

    def kill(self) -> None:
        """End the process at once. A `perform` that runs in another thread raises RenderProcessEnded."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for its end."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()


def _write(pipe: IO[bytes], data: bytes, flag: int = 0) -> None:
    pipe.write(_HEADER.pack(len(data), flag))
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[bytes, int]:
    """Return the next message and its flag. Raises EOFError at the end of the pipe."""
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    length, flag = _HEADER.unpack(header)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data, flag


# The render process's end


def _limit() -> None:
    """
    Limit this process's memory, and let it end with its parent.

    A Ctrl-C is for the daemon, which ends its children itself, so they have a process group of their own. They stay in
    the daemon's session: Linux compares the priorities of processes within a session only (sched(7), "autogroup").
    """
    parent = os.getppid()
    with suppress(OSError):  # it leads a group already
        os.setpgid(0, 0)
    with suppress(ValueError, OSError):  # not on every platform, and not above a limit that is set already
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not on every platform

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died just before
            sys.exit(1)


def _resident_bytes() -> int:
    """Return this process's resident memory; 0 where the platform does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Do tasks from standard input until it ends."""
    from mypypi.rendering.tasks import perform  # noqa: PLC0415 - the serving process's end does not need them

    _limit()
    gc.disable()  # it would visit millions of objects that a page is parsed into, again and again
    gc.freeze()  # what is imported stays, and need not be visited after each task
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # text that a library prints must not get between the results
    with suppress(EOFError, BrokenPipeError):  # the serving process has ended
        while True:
            task, _ = _read(tasks)
            signal.alarm(_LAST_RESORT)
            result = perform(task)
            signal.alarm(0)
            if len(task) > _COLLECT:
                gc.collect()
            del task
            _write(results, result, _resident_bytes() > GROWN)


if __name__ == "__main__":
    main()
