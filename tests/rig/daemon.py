"""Runs a daemon under twistd as a child process, and observes it.

It reads the daemon's log, port and memory. Knows how to start and end a process. Must never import the code that it
runs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Condition, Thread

import psutil
from typing_extensions import Self

from .wire import BOUND

#: The checkout, where the daemon finds the package and the twistd plugins.
ROOT = Path(__file__).resolve().parents[2]

_TWISTD = "from twisted.scripts.twistd import run; run()"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/")


class Daemon:
    """
    One run of ``twistd -n <plugin>``, over a data directory that outlives it.

    `env` is added to a minimal environment, in which the daemon listens on a free port of loopback, runs one process,
    and drains for at most one second when it stops. `options` are twistd's own and `arguments` the plugin's.

    The daemon is ready when its log has a line with ``ready: `` and its address. Use `start` and `stop`, or use it as a
    context manager, which prints the log if the test fails.
    """

    def __init__(
        self,
        plugin: str,
        data: Path,
        env: Mapping[str, str] | None = None,
        *,
        arguments: Sequence[str] = (),
        options: Sequence[str] = (),
        python_path: Sequence[Path] = (ROOT,),
        ready: re.Pattern[str] = _ADDRESS,
    ) -> None:
        self.data = data
        self.port = 0
        self._command = [sys.executable, "-c", _TWISTD, "-n", "--pidfile=", *options, plugin, *arguments]
        self._env = _clean_environment(data, python_path) | dict(env or {})
        self._ready = ready
        self._lines: list[str] = []
        self._changed = Condition()
        self._ended = False
        self._process: subprocess.Popen[str] | None = None
        self._reader: Thread | None = None
        self._children: list[psutil.Process] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, failure: object, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.sweep()
            if failure is not None:
                self.show()

    def start(self, timeout: float = BOUND) -> Self:
        """
        Start it and wait until it is ready.

        Raises AssertionError, with its log, if it is not ready in time.
        """
        self.launch()
        try:
            self.wait_ready(timeout)
        except AssertionError:
            self.kill()
            self.sweep()
            raise
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        assert self._process is None, "a Daemon runs once; make another over the same data"
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            self._command,
            cwd=self.data.parent,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()

    def wait_ready(self, timeout: float = BOUND) -> None:
        """Wait for the ``ready: `` line and read the port from it."""
        line = self.wait_for_log(r"ready: .*", timeout).group()
        match = self._ready.search(line)
        assert match, f"no address in {line!r}"
        self.port = int(match.group(1))

    @property
    def url(self) -> str:
        """Its address, without a trailing slash."""
        assert self.port, "not ready"
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of twistd."""
        return self._running().pid

    @property
    def log(self) -> str:
        """Its output so far, stdout and stderr together."""
        with self._changed:
            return "".join(self._lines)

    def show(self) -> None:
        """Print its log: pytest shows the output of a failed test."""
        print(self.log)  # noqa: T201

    @property
    def paths(self) -> list[Path]:
        """All files and directories below its data directory. While it runs, some may be gone by now."""
        return [Path(parent, name) for parent, directories, files in os.walk(self.data) for name in directories + files]

    @property
    def ended_in_order(self) -> bool:
        """True if it was asked to end and completed its shutdown."""
        return self._running().poll() in (0, -signal.SIGTERM) and "Server Shut Down." in self.log

    @property
    def complaints(self) -> list[str]:
        """The lines of its log that report an unhandled error."""
        return [line for line in self.log.splitlines() if "Traceback" in line or "Unhandled" in line]

    def wait_for_log(self, pattern: str, timeout: float = BOUND, *, start: int = 0) -> re.Match[str]:
        """
        Wait until the log, from character `start` on, matches this pattern.

        Raises AssertionError, with the log, if it does not match in time or if the daemon ends first.
        """
        found: list[re.Match[str]] = []
        expression = re.compile(pattern)

        def found_or_ended() -> bool:
            found.extend(expression.finditer("".join(self._lines), start))
            return bool(found) or self._ended

        with self._changed:
            self._changed.wait_for(found_or_ended, timeout)
        assert found, f"no {pattern!r} in the log:\n{self.log}"
        return found[0]

    def stop(self, timeout: float = BOUND) -> int:
        """
        Ask it to end (SIGTERM), if it still runs, and return its exit code.

        The exit code is negative for a signal. After its shutdown twistd ends itself by the signal that it received. So
        an orderly end returns ``-signal.SIGTERM``, but so does a SIGTERM before the reactor runs. `ended_in_order`
        distinguishes them.

        Raises AssertionError, with its log, if it does not end in time; it is killed then.
        """
        process = self._running()
        if process.poll() is None:
            self._remember_children()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"did not stop within {timeout} seconds:\n{self.log}") from None
            self._join_reader()
        return int(process.returncode)

    def wait_ended(self, timeout: float = BOUND) -> int:
        """
        Wait until it ends by itself, and return its exit code.

        The exit code is negative for a signal. Raises AssertionError, with its log, if it does not end in time.
        """
        process = self._running()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout} seconds:\n{self.log}") from None
        self._join_reader()
        return int(process.returncode)

    def kill(self) -> None:
        """Kill twistd itself (SIGKILL). Its child processes notice that their parent is gone."""
        process = self._running()
        self._remember_children()
        process.kill()
        process.wait(BOUND)
        self._join_reader()

    def leftovers(self, timeout: float = 5.0) -> list[str]:
        """The command lines of child processes that outlive it by `timeout` seconds."""
        return [" ".join(process.cmdline()) for process in self._survivors(timeout)]

    def sweep(self) -> None:
        """Kill the child processes that outlived it."""
        for process in self._survivors(0):
            process.kill()
        self._survivors(BOUND)

    def rss_bytes(self, *, children: bool = False) -> int:
        """Its resident memory in bytes, optionally with its child processes; those that render pages do not count."""
        process = psutil.Process(self.pid)
        processes = [process, *process.children(recursive=True)] if children else [process]
        return sum(
            int(each.memory_info().rss) for each in processes if "mypypi.rendering.process" not in each.cmdline()
        )

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    def _remember_children(self) -> None:
        """
        Remember its child processes, which can be listed only while it runs.

        psutil distinguishes a process from a later one with the same id.
        """
        if self._running().poll() is None:
            self._children = psutil.Process(self.pid).children(recursive=True)

    def _survivors(self, timeout: float) -> list[psutil.Process]:
        deadline = time.monotonic() + timeout
        while True:
            alive = [process for process in self._children if _runs(process)]
            if not alive or time.monotonic() >= deadline:
                return alive
            psutil.wait_procs(alive, 0.05)

    def _join_reader(self) -> None:
        """Wait for the end of the log. A child process that outlives the daemon may keep it open."""
        if self._reader is not None:
            self._reader.join(0.5 if self._survivors(0) else BOUND)

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _runs(process: psutil.Process) -> bool:
    """True if the process runs. A zombie, which its new parent has yet to reap, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _clean_environment(data: Path, python_path: Sequence[Path]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {
        "HOME": str(data.parent),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(str(path) for path in python_path),
        "PYTHONUNBUFFERED": "1",
        "MYPYPI_DATA_DIRECTORY": str(data),
        "MYPYPI_LISTEN": "tcp:0:interface=127.0.0.1",
        "MYPYPI_DRAIN_TIME": "1",
        "WORKERS": "1",
    }
