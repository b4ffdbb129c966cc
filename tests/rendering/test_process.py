"""Tests of a render process: a real one, which is killed, fed with too much, and left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mypypi.errors import BadUpstreamResponse
from mypypi.model import RenderedForm
from mypypi.rendering.forms import compress
from mypypi.rendering.process import MOST_MEMORY, RenderProcess, RenderProcessEnded
from mypypi.rendering.tasks import DeriveTask, decode_result, encode_task, perform
from tests.rendering.bombs import ENDLESS, JSON_OBJECTS
from tests.rendering.processes import (
    HTML,
    SMALL,
    URL,
    FakeProcess,
    children,
    cpu_seconds,
    document,
    encoded,
    executable,
    has_ended,
    peak_bytes,
    python,
    real_process,
    render_task,
)
from tests.rig.http import eventually

TASK = encoded(document(SMALL))
RESULT = perform(TASK)
#: A program that changes something, and is a render process then.
RENDER_PROCESS = "import mypypi.rendering.process as process, mypypi.rendering.tasks as tasks, os\n{}\nprocess.main()"


@pytest.fixture
def process() -> Iterator[RenderProcess]:
    yield from real_process()


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[Callable[[str], RenderProcess]]:
    """Return a function that starts a render process with a change in its code."""
    started = []

    def start(change: str) -> RenderProcess:
        with python(tmp_path, RENDER_PROCESS.format(change)):
            started.append(RenderProcess())
        return started[-1]

    yield start
    for process in started:
        process.close()


def perform_until_ended(process: RenderProcess, task: bytes, end: Callable[[], object]) -> str:
    """Give the process a task that takes long, call `end` in the middle of it, and return the error's message."""
    assert process.perform(TASK) == RESULT
    before = cpu_seconds(process.pid)
    errors: list[str] = []

    def run() -> None:
        try:
            process.perform(task)
        except RenderProcessEnded as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: cpu_seconds(process.pid), lambda seconds: seconds > before + 0.3)
    end()
    thread.join(10)
    (error,) = errors
    return error


@pytest.mark.parametrize("kind", [RenderProcess, FakeProcess])
class TestBoth:
    """A render process, and the fake that stands for it in the pool's tests."""

    def test_it_does_one_task_after_the_other(self, kind: Callable[[], Any]) -> None:
        """A process returns the result of each task, and stays."""
        process = kind()
        try:
            assert [process.perform(TASK) for _ in range(3)] == [RESULT] * 3
            assert (process.is_alive, process.has_grown) == (True, False)
        finally:
            process.close()
        assert not process.is_alive

    def test_a_killed_process_does_no_task(self, kind: Callable[[], Any]) -> None:
        """A task for a process that was killed fails. It may be killed more than once, and closed then."""
        process = kind()
        try:
            process.kill()
            process.kill()
            with pytest.raises(RenderProcessEnded):
                process.perform(TASK)
            eventually(lambda: process.is_alive, lambda alive: not alive)
        finally:
            process.close()


def test_a_large_result_comes_back_whole(process: RenderProcess) -> None:
    """A result may be much larger than what a pipe holds."""
    form = compress(RenderedForm("text/html", os.urandom(3_000_000)))
    task = encode_task("pypi", URL, DeriveTask(form, ""))
    result = process.perform(task)
    assert len(result) > 3_000_000
    assert result == perform(task)


def test_a_process_that_is_killed_in_the_middle_of_a_task_ends_it(process: RenderProcess) -> None:
    """The serving process kills a task that takes too long. The task fails at once, and says so."""
    error = perform_until_ended(process, encoded(ENDLESS.source), process.kill)
    assert error == "upstream's page can't be rendered: it takes too long"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_process_that_something_else_ends_fails_its_task(process: RenderProcess, number: signal.Signals) -> None:
    """The kernel may kill the process for its memory, and an operator by hand. The task fails, and says so."""
    error = perform_until_ended(process, encoded(ENDLESS.source), lambda: os.kill(process.pid, number))
    assert error == "upstream's page can't be rendered: the process ended, see its output in the log"


def test_a_task_gets_no_more_memory_than_the_limit(process: RenderProcess) -> None:
    """
    A page that needs more than 1 GiB ends with that reason.

    The process lives on. The serving process holds nothing of it.
    """
    task = render_task(JSON_OBJECTS.source)
    with pytest.raises(BadUpstreamResponse, match="upstream's page takes too much memory"):
        decode_result(task, process.perform(encode_task("pypi", URL, task)))
    assert 0.9 * MOST_MEMORY < peak_bytes(process.pid, "VmPeak") <= MOST_MEMORY
    assert process.perform(TASK) == RESULT


def test_a_page_is_never_cut_off_where_the_memory_ends(changed: Callable[[str], RenderProcess]) -> None:
    """
    A page is rendered as a whole, or not at all.

    The HTML parser itself only notes that it got no memory, and leaves out the rest.
    """
    comment = b"<!--" + b"x" * 8_000_000 + b"-->"
    task = encoded(document(b'<a href="thing-1.zip">1</a>' + comment + b'<a href="thing-2.zip">2</a>', HTML))
    whole = perform(task)
    results = []
    for limit in range(60, 240, 10):
        process = changed(f"process.MOST_MEMORY = {limit} * 1024 * 1024")
        try:
            results.append(process.perform(task))
        except RenderProcessEnded:  # it had no room to say more
            continue
        if results[-1] == whole:
            break
    assert len(results) > 1, "the memory did not end"
    assert results.pop() == whole
    assert all(b"too much memory" in result for result in results)


def test_a_process_that_has_grown_says_so(changed: Callable[[str], RenderProcess]) -> None:
    """A process tells with each result whether it holds more memory than it should."""
    process = changed("process.GROWN = 0")
    assert (process.perform(TASK), process.has_grown) == (RESULT, True)


@pytest.mark.parametrize("noise", ["print('noise')", "os.write(1, b'noise' * 100)", "os.system('echo noise')"])
def test_text_on_standard_output_is_no_result(changed: Callable[[str], RenderProcess], noise: str) -> None:
    """Text that a library prints goes to the log. It never mixes with a page."""
    process = changed(f"real = tasks.perform\ntasks.perform = lambda task: ({noise}, real(task))[1]")
    assert [process.perform(TASK) for _ in range(3)] == [RESULT] * 3


def test_an_unexpected_error_is_in_the_log(
    changed: Callable[[str], RenderProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    """An error that no one expected ends the process. Its traceback is in the log."""
    process = changed("tasks.perform = lambda task: 1 / 0")
    with pytest.raises(RenderProcessEnded, match="see its output in the log"):
        process.perform(TASK)
    process.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_task_ends_its_own_process_at_last(changed: Callable[[str], RenderProcess]) -> None:
    """A task that no one ends, since the serving process hangs, ends its process itself."""
    process = changed("process._LAST_RESORT = 1\ntasks.perform = lambda task: any(iter(int, 1))")
    with pytest.raises(RenderProcessEnded):
        process.perform(TASK)


@pytest.mark.parametrize("command", ["exit 1", "exec true", "exec echo not a result at all"])
def test_a_program_that_is_no_render_process_fails_the_task(tmp_path: Path, command: str) -> None:
    """If the process can't run, each of its tasks fails."""
    with executable(tmp_path, command):
        process = RenderProcess()
    with pytest.raises(RenderProcessEnded):
        process.perform(TASK)
    process.close()


def test_a_program_that_is_missing_can_not_be_started(tmp_path: Path) -> None:
    """If the process can't be started, that is an OSError."""
    with executable(tmp_path, ""):
        (tmp_path / "command").unlink()
        with pytest.raises(OSError, match="No such file"):
            RenderProcess()


def test_signals_for_the_daemon_do_not_reach_it(process: RenderProcess) -> None:
    """A Ctrl-C in the terminal, or a signal for the daemon's group, does not end a task. The daemon does."""
    process.perform(TASK)
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)


def test_it_stays_in_the_session_of_the_daemon(process: RenderProcess) -> None:
    """Linux compares priorities within a session only, so a low one would have no effect in another session."""
    process.perform(TASK)
    assert os.getsid(process.pid) == os.getsid(0)


def test_it_inherits_nothing_but_its_pipes(process: RenderProcess) -> None:
    """A process has no socket or file of the daemon, and no pipe of another process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        other = RenderProcess()
        try:
            other.perform(TASK)
            process.perform(TASK)
            files = [
                {path.name: str(path.readlink()) for path in Path(f"/proc/{each.pid}/fd").iterdir()}
                for each in (process, other)
            ]
        finally:
            other.close()
    for names in files:
        log = names.pop("2")
        assert names.pop("1") == log, "standard output is the log, too"
        assert all(target.startswith("pipe:") for target in names.values()), names
        assert len(names) == 2
    assert set(files[0].values()).isdisjoint(files[1].values())


def test_no_process_is_left_when_it_is_closed() -> None:
    """`close` waits for the end of the process. It leaves no zombie, and may be called again."""
    before = children()
    process = RenderProcess()
    assert process.pid in children()
    process.perform(TASK)
    process.close()
    process.close()
    assert children() == before


def test_it_ends_when_the_pipe_closes() -> None:
    """A process without a task ends in order when the serving process closes the pipe."""
    command = [sys.executable, "-m", "mypypi.rendering.process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.communicate(b"", timeout=30) == (b"", b"")
    assert process.returncode == 0


def test_it_ends_in_the_middle_of_a_task_when_its_parent_is_killed(tmp_path: Path) -> None:
    """A daemon that is killed leaves no render process, even if that is in the middle of a task."""
    (tmp_path / "task").write_bytes(encoded(ENDLESS.source))
    program = (
        "import sys, pathlib\n"
        "from mypypi.rendering.process import RenderProcess\n"
        "process = RenderProcess()\n"
        "print(process.pid, flush=True)\n"
        "process.perform(pathlib.Path(sys.argv[1]).read_bytes())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "task")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        eventually(lambda: cpu_seconds(pid), lambda seconds: seconds > 1)
        parent.kill()
        eventually(lambda: has_ended(pid), bool, timeout=5)


def test_a_slow_process_has_a_low_priority(process: RenderProcess) -> None:
    """A process that is slowed down gives way to others, and still does tasks."""
    before = os.getpriority(os.PRIO_PROCESS, process.pid)
    process.slow_down()
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > before
    assert process.perform(TASK) == RESULT


def test_a_process_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that reads foreign pages does not have the daemon's credentials in its environment."""
    monkeypatch.setenv("MYPYPI_UPSTREAM_PASSWORD", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    for process in real_process():
        assert process.perform(TASK) == RESULT
        assert b"hush" not in Path(f"/proc/{process.pid}/environ").read_bytes()
