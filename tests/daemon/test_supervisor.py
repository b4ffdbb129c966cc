"""Tests of the supervisor's decisions: when children are started, replaced and ended. No process is started."""

from __future__ import annotations

import os
import re
import socket
from io import StringIO
from typing import Any
from unittest.mock import patch

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from mypypi.daemon import supervisor
from mypypi.daemon.child_process import LIFELINE, LISTENING, REPORT, ChildProcess, log_to_supervisor
from mypypi.daemon.lifecycle import CannotStart
from mypypi.daemon.supervisor import Supervisor
from mypypi.observability.logs import PROCESS
from mypypi.settings.loading import load_settings
from tests.support.memory import MemoryTestCase


class FakeProcess:
    """A child process that the test controls."""

    def __init__(
        self, reactor: FakeReactor, run: ChildProcess, env: dict[str, str], descriptors: dict[int, object]
    ) -> None:
        self.pid = 1000 + len(reactor.spawned)
        self.run = run
        self.env = env
        self.descriptors = descriptors
        self.signals: list[str] = []
        self.running = True

    @property
    def number(self) -> str:
        return self.env[PROCESS]

    def signalProcess(self, name: str) -> None:
        if not self.running:
            raise ProcessExitedAlready
        self.signals.append(name)

    def report_ready(self) -> None:
        self.run.childDataReceived(REPORT, b"ans")
        self.run.childDataReceived(REPORT, b"wers\n")

    def end(self, code: int | None = None, signal: int | None = None) -> None:
        self.running = False
        reason = ProcessDone(0) if code == 0 else ProcessTerminated(code, signal)
        self.run.processExited(Failure(reason))


class FakePort:
    """A listening port that records whether it is read from."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.fileno = self.listener.fileno
        self.reads = True

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", *self.listener.getsockname())

    def stopReading(self) -> None:
        self.reads = False

    def stopListening(self) -> Deferred[None]:
        self.listener.close()
        return succeed(None)


class FakeReactor(Clock):
    """A clock that starts fake processes."""

    def __init__(self) -> None:
        super().__init__()
        self.port = FakePort()
        self.spawned: list[FakeProcess] = []
        self.stopped = False
        self.spawns = True

    def listenTCP(self, *_: object, **__: object) -> FakePort:
        return self.port

    def spawnProcess(self, run: ChildProcess, executable: str, command: list[str], env: Any, childFDs: Any) -> None:  # noqa: N803
        if not self.spawns:
            raise BlockingIOError("no more processes")
        process = FakeProcess(self, run, env, childFDs)
        self.spawned.append(process)
        run.makeConnection(process)

    def stop(self) -> None:
        self.stopped = True

    def callWhenRunning(self, function: Any) -> None:
        function()


class SupervisionTests(MemoryTestCase):
    """A supervisor with two children."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.addCleanup(self.reactor.port.listener.close)
        self.log_lines: list[str] = []
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        settings = load_settings({"WORKERS": "2", "MYPYPI_DRAIN_TIME": "30", "MYPYPI_LISTEN": "tcp:0"})
        self.service = Supervisor(settings, self.reactor, redis_url="unix:///run/redis.sock")
        self.service.privilegedStartService()
        self.service.startService()
        self.addCleanup(self._end)

    def _observe(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("mypypi.daemon.supervisor"):
            self.log_lines.append(formatEvent(event))

    def _end(self) -> None:
        if self.service.running:
            stopping = self.service.stopService()
            for process in self.alive:
                process.end(signal=15)
            self.successResultOf(stopping)

    @property
    def alive(self) -> list[FakeProcess]:
        return [process for process in self.reactor.spawned if process.running]

    def make_all_ready(self) -> None:
        for process in self.alive:
            process.report_ready()

    def test_each_child_has_a_number_and_the_socket(self) -> None:
        """Each child gets a number, the listening socket, and its supervisor's settings."""
        first, second = self.reactor.spawned
        assert [first.number, second.number] == ["1", "2"]
        assert first.descriptors == {LIFELINE: "w", LISTENING: self.reactor.port.fileno(), REPORT: "r", 1: 1, 2: 2}
        assert first.env["MYPYPI_LISTEN"] == "tcp:0"
        assert first.env["MYPYPI_REDIS_URL"] == "unix:///run/redis.sock"
        assert os.path.isdir(first.env["PROMETHEUS_MULTIPROC_DIR"])  # noqa: PTH112 - it is text
        assert not self.reactor.port.reads

    def test_ready_is_logged_once_all_children_serve(self) -> None:
        """The supervisor logs "ready" once all children serve. A child that is started later does not repeat it."""
        first, second = self.reactor.spawned
        first.report_ready()
        assert not any(line.startswith("ready: ") for line in self.log_lines)
        second.report_ready()
        (line,) = [line for line in self.log_lines if line.startswith("ready: ")]
        assert re.search(
            r"listens at http://127.0.0.1:\d+/\n  serves .*\n.*\n  Redis    unix:\S+ answers\n  try ", line
        )
        first.end(signal=9)
        self.reactor.advance(0.1)
        self.make_all_ready()
        assert sum(line.startswith("ready: ") for line in self.log_lines) == 1

    def test_restart_delays_grow_until_a_good_run(self) -> None:
        """
        The delay before a restart grows until a good run resets it.

        So a child that ends again and again does not keep a processor busy.
        """
        self.make_all_ready()
        delays: list[float] = []
        for _ in range(9):
            self.reactor.spawned[-1].end(signal=11) if delays else self.reactor.spawned[0].end(signal=11)
            (call,) = self.reactor.getDelayedCalls()
            delays.append(round(call.getTime() - self.reactor.seconds(), 3))
            self.reactor.advance(delays[-1])
            self.reactor.spawned[-1].report_ready()
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
        self.reactor.advance(60)
        self.reactor.spawned[-1].end(signal=11)
        assert self.log_lines[-1].endswith("ended (signal 11); it is started again in 0.1 s")

    def test_the_supervisor_stops_when_no_child_can_start(self) -> None:
        """
        The supervisor stops if no child can start.

        It does not stop at the first failures, since their cause may pass.
        """
        stopped: list[Any] = []
        self.patch(supervisor, "stop_with_failure", stopped.append)
        for process in self.alive:
            process.end(code=1)
        assert stopped == []
        self.reactor.advance(0.1)
        for process in self.alive:
            process.end(code=1)
        assert stopped == [self.reactor]
        assert self.log_lines[-1].startswith("no server process can start: ")
        assert "the last with exit code 1" in self.log_lines[-1]
        self.reactor.advance(60)
        assert self.alive == []

    def test_the_supervisor_does_not_stop_while_one_child_serves(self) -> None:
        """While one child serves, the other is restarted without limit."""
        stopped: list[Any] = []
        self.patch(supervisor, "stop_with_failure", stopped.append)
        self.reactor.spawned[0].report_ready()
        for _ in range(10):
            self.alive[-1].end(code=1)
            self.reactor.advance(60)
        assert stopped == []
        assert len(self.alive) == 2

    def test_once_a_child_has_served_the_supervisor_goes_on(self) -> None:
        """
        Once a child has served, the supervisor starts children without limit, though all end before they are ready.

        They may be killed, or a full disk may end them. The program and its settings have worked.
        """
        stopped: list[Any] = []
        self.patch(supervisor, "stop_with_failure", stopped.append)
        self.make_all_ready()
        for end in ({"signal": 9}, {"code": 1}) * 5:
            assert len(self.alive) == 2
            for process in self.alive:
                process.end(**end)
            assert self.alive == []
            self.reactor.advance(5)
        assert stopped == []
        self.make_all_ready()
        assert self.log_lines[-1].startswith("child 2 serves")

    def test_a_child_that_does_not_get_ready_is_killed(self) -> None:
        """A child that is not ready after a minute is killed."""
        self.reactor.advance(59)
        assert self.reactor.spawned[0].signals == []
        self.reactor.advance(1)
        assert self.reactor.spawned[0].signals == ["KILL"]

    def test_a_start_that_fails_is_tried_again(self) -> None:
        """A start that fails is tried again. The machine may be short of processes for a while."""
        self.make_all_ready()
        self.reactor.spawns = False
        self.reactor.spawned[0].end(signal=9)
        self.reactor.pump([0.1, 0])
        assert "not started: no more processes" in self.log_lines[-1]
        self.reactor.spawns = True
        self.reactor.advance(0.2)
        assert [process.number for process in self.alive] == ["2", "1"]

    def test_a_reload_replaces_children_one_by_one(self) -> None:
        """A reload replaces children one by one. A new child serves before the old one is stopped."""
        self.make_all_ready()
        first, second = self.alive
        self.service.reload()
        *_, new_first = self.alive
        assert (len(self.alive), new_first.number, first.signals) == (3, "1", [])
        new_first.report_ready()
        *_, new_second = self.alive
        assert (len(self.alive), new_second.number, first.signals, second.signals) == (4, "2", ["TERM"], [])
        first.end(signal=15)
        new_second.report_ready()
        second.end(signal=15)
        assert self.alive == [new_first, new_second]
        self.reactor.advance(60)
        assert self.alive == [new_first, new_second]

    def test_a_reload_ends_at_a_child_that_does_not_start(self) -> None:
        """A reload ends when a new child can't start. The old children go on serving."""
        self.make_all_ready()
        before = self.alive
        self.service.reload()
        self.alive[-1].end(code=1)
        self.reactor.advance(60)
        assert self.alive == before
        assert [process.signals for process in before] == [[], []]

    def test_a_reload_during_another_follows_it(self) -> None:
        """A reload during another one follows it. So changes made meanwhile are not missed."""
        self.make_all_ready()
        self.service.reload()
        self.service.reload()
        for _ in range(4):
            self.alive[-1].report_ready()
        assert len(self.reactor.spawned) == 6
        assert [process.number for process in self.alive if not process.signals] == ["1", "2"]

    def test_a_reload_replaces_children_that_are_still_starting(self) -> None:
        """A child that starts during a reload is replaced when it is ready: it may have read the old certificate."""
        first, second = self.alive
        self.service.reload()
        assert len(self.alive) == 2
        self.make_all_ready()
        self.alive[-1].report_ready()
        self.alive[-1].report_ready()
        assert [process.signals for process in (first, second)] == [["TERM"], ["TERM"]]
        assert [process.number for process in self.alive if not process.signals] == ["1", "2"]

    def test_a_reload_without_a_usable_certificate_replaces_no_child(self) -> None:
        """If the certificate can't be used, no child is started in vain. The error has the reason."""
        self.make_all_ready()
        before = self.alive
        unusable = load_settings({"WORKERS": "2", "MYPYPI_LISTEN": "ssl:0:privateKey=/no/such/key.pem"})
        self.patch(self.service, "_settings", unusable)
        with self.assertRaisesRegex(CannotStart, "/no/such/key.pem: No such file or directory"):
            self.service.reload()
        assert self.alive == before
        assert [process.signals for process in before] == [[], []]

    def test_a_child_that_dies_during_its_replacement_is_replaced_once(self) -> None:
        """A child that dies while its replacement starts gets no second one. The replacement keeps the slot."""
        self.make_all_ready()
        first = self.alive[0]
        self.service.reload()
        new = self.alive[-1]
        first.end(signal=9)
        new.report_ready()
        self.reactor.advance(1)
        assert [process.number for process in self.alive if not process.signals] == ["2", "1", "2"]

    def test_a_stop_waits_for_all_children_and_kills_late_ones(self) -> None:
        """A stop waits for all children. Some seconds after MYPYPI_DRAIN_TIME, it kills those that have not ended."""
        self.make_all_ready()
        first, second = self.alive
        directory = first.env["PROMETHEUS_MULTIPROC_DIR"]
        stopping = self.service.stopService()
        assert first.signals == second.signals == ["TERM"]
        first.end(signal=15)
        self.reactor.advance(39)
        assert second.signals == ["TERM"]
        self.reactor.advance(1)
        assert second.signals == ["TERM", "KILL"]
        self.assertNoResult(stopping)
        second.end(signal=9)
        self.successResultOf(stopping)
        assert self.reactor.getDelayedCalls() == []
        assert not os.path.exists(directory)  # noqa: PTH110 - it is text

    def test_a_stop_during_a_reload_ends_all_children(self) -> None:
        """A stop during a reload ends all children, even one that is starting. No other child is started."""
        self.make_all_ready()
        self.service.reload()
        stopping = self.service.stopService()
        assert [process.signals for process in self.alive] == [["TERM"]] * 3
        for process in self.alive:
            process.end(signal=15)
        self.successResultOf(stopping)
        assert self.reactor.getDelayedCalls() == []
        assert self.alive == []


def ignore(_child: ChildProcess, _words: str) -> None:
    pass


class RelayTests(MemoryTestCase):
    """The output of children, in their supervisor's log."""

    def test_a_line_keeps_its_level_and_time(self) -> None:
        """
        A child's event keeps its level and time, and gets the child's number.

        Output that is not an event becomes a line of its own.
        """
        relayed: list[LogEvent] = []
        observer: Any = relayed.append
        run = ChildProcess(2, self.clock, 30, ignore, ignore)
        sent: LogEvent = {
            "log_format": "it is {what}",
            "what": "late",
            "log_time": 7.0,
            "log_namespace": "mypypi.x",
            "log_level": LogLevel.warn,
        }
        out = StringIO()
        with patch("sys.stdout", out):
            log_to_supervisor()(sent)
        data = out.getvalue().encode()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        run.childDataReceived(1, data[:20])
        run.childDataReceived(1, data[20:] + b"Traceback")
        run.childDataReceived(1, b" of something\n")
        event, line = relayed
        assert (formatEvent(event), event["log_time"], event["log_level"]) == ("it is late", 7.0, LogLevel.warn)
        assert event["log_system"] == "2 warn"
        assert formatEvent(line) == "child 2: Traceback of something"
