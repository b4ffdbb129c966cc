"""Tests of the log: one line per event, as text or JSON, without secrets."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.logger import LogEvent, Logger, LogLevel, eventFromJSON
from twisted.python.failure import Failure

from mypypi.observability.logs import (
    CannotLog,
    ConfiguredLogger,
    LogFormat,
    for_supervisor,
    json_line,
    marked,
    text_line,
)
from tests.conftest import DaemonFactory
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.redis import Redis, free_port


class Record(msgspec.Struct):
    path: str
    size: int

    def __str__(self) -> str:
        return f"{self.path} of {self.size}"


def event_of(text: str, **fields: Any) -> LogEvent:
    """Return the event that a logger creates for this message."""
    events: list[LogEvent] = []
    log = Logger("thing", observer=events.append)  # type: ignore[arg-type] # any callable is an observer
    if "failure" in fields:
        log.failure(text, **fields)
    else:
        log.warn(text, **fields)
    return events[0] | {"log_time": 1_793_000_000.25}


def objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a text, one per line."""
    return [json.loads(line) for line in text.splitlines()]


class TestLines:
    """The format of log lines, and the choice of twistd's logger."""

    def test_event(self) -> None:
        """A JSON line has time, level, logger and message. If there are several processes, it has the process too."""
        line = json_line(None, event_of("{who} came\nhere", who="he"))
        assert line.count("\n") == 1
        assert json.loads(line) == {
            "time": "2026-10-26T07:33:20.250+00:00",
            "level": "warn",
            "logger": "thing",
            "message": "he came\nhere",
        }
        assert json.loads(json_line("3", event_of("x")))["process"] == "3"

    def test_record(self) -> None:
        """The fields of a logged record are fields of its line."""
        fields = json.loads(json_line(None, event_of("{record}", record=Record("/a", 7))))
        assert (fields["message"], fields["path"], fields["size"]) == ("/a of 7", "/a", 7)

    def test_failure(self) -> None:
        """A failure is one JSON object that contains the traceback."""
        try:
            raise ValueError("odd")
        except ValueError:
            (fields,) = objects(json_line(None, event_of("it failed", failure=Failure())))
        assert (fields["message"], fields["exception"], fields["level"]) == ("it failed", "ValueError", "critical")
        assert "test_failure" in fields["traceback"]

    def test_any_text(self) -> None:
        """A filename that is not UTF-8, or a malformed event, still gives a line."""
        assert json.loads(json_line(None, event_of("{name}", name="a\udcff")))["message"] == "a\\udcff"
        assert "nothing" in json.loads(json_line(None, event_of("{nothing}")))["message"]

    @pytest.mark.parametrize("unsafe", ["\n", "\r", "\t", "\x00", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\udcff"])
    def test_no_line_can_be_forged(self, unsafe: str) -> None:
        """A message stays on its line, and acts on no terminal: control characters are escaped in both formats."""
        name = f"x{unsafe}\n2026-11-28T13:26:53+0000 [info] forged"
        relayed = marked(eventFromJSON(for_supervisor(event_of("{name}", name=name))[1:]), "1")
        for event in (event_of("{name}", name=name), event_of(name), relayed):
            for line in (text_line(None, event), json_line(None, event)):
                assert line.endswith("\n")
                assert not re.search(r"[^\x20-\x7e]", line[:-1])
        if not "\ud800" <= unsafe <= "\udfff":
            assert json.loads(json_line(None, event_of("{name}", name=name)))["message"] == name

    def test_a_traceback_has_its_own_lines(self) -> None:
        """The lines of a traceback are indented, so that what an error quotes starts no line."""
        try:
            raise ValueError("odd\x1b[31m\n2026-11-28T13:26:53+0000 [info] forged")
        except ValueError:
            first, *others = text_line(None, event_of("it failed", failure=Failure())).splitlines()
        assert first.endswith("] it failed")
        assert len(others) > 3
        assert [line for line in others if not line.startswith("\t") or "\x1b" in line] == []

    def test_text_names_the_process(self) -> None:
        """A text line has the process's number before the level."""
        assert re.fullmatch(r"\S+ \[3 warn thing\] x\n", text_line("3", event_of("x")))

    def test_event_of_a_child(self) -> None:
        """The supervisor writes a child's event just as the child would."""
        event = event_of("{record}", record=Record("/a", 7))
        relayed = marked(eventFromJSON(for_supervisor(event)[1:]), "3")
        assert json_line(None, relayed) == json_line("3", event)
        assert text_line("3", relayed) == text_line("3", event)

    def test_level(self) -> None:
        """Events below the level are not written. Twisted's own info events count as debug."""
        warning, own = event_of("x"), event_of("x") | {"log_level": LogLevel.info, "log_namespace": "mypypi.x"}
        twisted = own | {"log_namespace": "twisted.internet"}
        written = {
            level.name: [bool(LogFormat(level=level).line(event)) for event in (warning, own, twisted)]
            for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error)
        }
        assert written == {
            "debug": [True, True, True],
            "info": [True, True, False],
            "warn": [True, False, False],
            "error": [False, False, False],
        }

    def test_twistd_logs_by_itself_for_some_options(self) -> None:
        """With ``--syslog`` or ``--logger``, twistd logs by itself. JSON is refused with ``--syslog``."""
        assert ConfiguredLogger.name({"syslog": True}, LogFormat()) is None
        assert ConfiguredLogger.name({"logger": print}, LogFormat(json=True)) is None
        with pytest.raises(CannotLog):
            ConfiguredLogger.name({"syslog": True}, LogFormat(json=True))


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The file that this process's logger writes, with one line in it."""
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    handler = signal.getsignal(signal.SIGUSR1)
    ConfiguredLogger.name({"logfile": str(path)}, LogFormat())
    ConfiguredLogger.make()(event_of("first"))
    signal.signal(signal.SIGUSR1, handler)
    yield path
    assert ConfiguredLogger._file is not None
    ConfiguredLogger._file.close()
    ConfiguredLogger._file = None


def write(text: str) -> None:
    assert ConfiguredLogger._file is not None
    ConfiguredLogger._file.write(text)


class TestFile:
    """The log file, which is bounded, and which other programs move."""

    def test_it_is_bounded(self, log_file: Path) -> None:
        """A log file is rotated, and older ones are deleted."""
        file = ConfiguredLogger._file
        assert file is not None
        assert (file.rotateLength, file.maxRotatedFiles) == (100_000_000, 5)
        for number in range(8):
            write(f"{number}\n")
            ConfiguredLogger.rotate()
        names = sorted(path.name for path in log_file.parent.iterdir())
        assert names == ["log", *(f"log.{number}" for number in range(1, 6))]

    @pytest.mark.parametrize("reopen", [ConfiguredLogger.reopen, ConfiguredLogger.rotate])
    def test_a_file_that_was_moved_is_opened_again(self, reopen: Callable[[], None], log_file: Path) -> None:
        """After another program has moved the file, lines go to a new one. Its size counts from the start."""
        moved = log_file.rename(log_file.with_suffix(".old"))
        write("second\n")
        reopen()
        write("third\n")
        assert moved.read_text().endswith("second\n")
        assert log_file.read_text() == "third\n"
        assert ConfiguredLogger._file is not None
        assert ConfiguredLogger._file.size == len("third\n")

    def test_a_file_that_can_not_be_opened_again_is_written_on(self, log_file: Path) -> None:
        """If the new file can't be created, the error names it, and lines go to the old one."""
        moved = log_file.parent.rename(log_file.parent.with_name("moved")) / "log"
        with pytest.raises(FileNotFoundError, match=re.escape(str(log_file))):
            ConfiguredLogger.reopen()
        write("second\n")
        assert moved.read_text().endswith("second\n")


class TestDaemons:
    """Every daemon logs in the configured format, to standard output or to a file."""

    @pytest.mark.parametrize("plugin", ["mypypi", "mypypi-server", "mypypi-worker"])
    def test_json_on_standard_output(self, plugin: str, redis: Redis, index: FakeIndex, tmp_path: Path) -> None:
        """Every line of a daemon's output is JSON, from the first to the last."""
        env = {"MYPYPI_LOG_FORMAT": "json", "MYPYPI_UPSTREAM_URL": index.url, "WORKERS": "1"}
        env |= {"MYPYPI_REDIS_URL": redis.url} if plugin != "mypypi" else {}
        daemon = Daemon(plugin, tmp_path / "data", env)
        daemon.launch()
        try:
            daemon.wait_for_log("ready: .*")
        finally:
            daemon.stop()
        lines = objects(daemon.log)
        assert lines[-1]["message"] == "Server Shut Down."
        assert not any("process" in each for each in lines)
        assert all(each.keys() >= {"time", "level", "logger", "message"} for each in lines)

    @pytest.mark.parametrize("log_format", ["text", "json"])
    @pytest.mark.parametrize("to_file", [False, True])
    def test_lines_of_several_processes(
        self, log_format: str, redis: Redis, index: FakeIndex, tmp_path: Path, *, to_file: bool
    ) -> None:
        """
        Each line has the number of its process, written by the child or by the supervisor.

        The line of a request is the same in both cases.
        """
        index.add(make_wheel("thing"))
        file = tmp_path / "log"
        env = {"MYPYPI_LOG_FORMAT": log_format, "MYPYPI_UPSTREAM_URL": index.url, "WORKERS": "2"}
        env |= {"MYPYPI_REDIS_URL": redis.url, "MYPYPI_REDIS_PREFIX": f"{log_format}-{to_file}"}
        port = free_port()
        env["MYPYPI_LISTEN"] = f"tcp:{port}:interface=127.0.0.1"
        options = ["--logfile", str(file)] if to_file else []
        daemon = Daemon("mypypi-server", tmp_path / "data", env, options=options)

        def log() -> str:
            return file.read_text() if to_file and file.exists() else daemon.log

        daemon.launch()
        try:
            eventually(log, lambda text: "ready: " in text)
            get(f"http://127.0.0.1:{port}/simple/thing/?s3cret", {"X-Request-ID": "build-7"})
            eventually(log, lambda text: "build-7" in text)
        finally:
            daemon.stop()
        (line,) = [line for line in log().splitlines() if "build-7" in line]
        assert "s3cret" not in log()
        if log_format == "text":
            assert re.search(r" \[[12] info\] 127\.0\.0\.1 200 .* GET /simple/thing/ ", line)
        else:
            fields = json.loads(line)
            assert fields["process"] in ("1", "2")
            assert (fields["path"], fields["status"], fields["kind"]) == ("/simple/thing/", 200, "page")
            assert len(objects(log())) > 5

    def test_json_in_a_file_that_is_rotated(self, index: FakeIndex, tmp_path: Path) -> None:
        """A log file in JSON is rotated on SIGUSR1, as any log of twistd."""
        file = tmp_path / "log"
        env = {"MYPYPI_LOG_FORMAT": "json", "MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi", tmp_path / "data", env, options=["--logfile", str(file)])
        daemon.launch()
        try:
            eventually(lambda: file.exists() and file.read_text(), lambda text: "ready: " in (text or ""))
            before = file.read_text()
            daemon._running().send_signal(signal.SIGUSR1)
            eventually(lambda: [path.name for path in tmp_path.glob("log*")], lambda names: len(names) == 2)
        finally:
            daemon.stop()
        assert objects(before)
        assert objects(file.read_text())[-1]["message"] == "Server Shut Down."
        assert daemon.log == ""

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_no_secret_is_logged(
        self, log_format: str, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path
    ) -> None:
        """The log has no credentials of upstream, S3 or clients, and no link's signature."""
        wheel = make_wheel("thing")
        index.add(wheel)
        index.auth = ("me", "s3cret-upstream")
        daemon = daemon_factory(
            env={
                "MYPYPI_LOG_FORMAT": log_format,
                "MYPYPI_UPSTREAM_USERNAME": "me",
                "MYPYPI_UPSTREAM_PASSWORD": "s3cret-upstream",
                "MYPYPI_FILE_STORAGE_DRIVER": "s3",
                "MYPYPI_S3_BUCKET": "bucket",
                "MYPYPI_S3_ENDPOINT_URL": "http://127.0.0.1:9",
                "MYPYPI_S3_ACCESS_KEY": "s3cret-access",
                "MYPYPI_S3_SECRET_KEY": "s3cret-secret",
                "MYPYPI_S3_REGION": "here-1",
            }
        )
        headers = {"Authorization": "Bearer s3cret-token", "X-Request-ID": "mine", "Cookie": "a=s3cret-cookie"}
        paths = [
            "/simple/thing/?token=s3cret-query",
            f"/file/{index.url_of(wheel.filename).replace('://', '/')}?X-Amz-Signature=s3cret-signature",
            "/-/health/ready?s3cret-query",
            "/nothing?s3cret-query",
        ]
        for path in paths:
            get(daemon.url + path, headers)
        assert get(daemon.url + paths[0], headers).status == 200
        daemon.stop()
        request_lines = [line for line in daemon.log.splitlines() if re.search(r"mine\b", line)]
        assert len(request_lines) == len(paths) + 1
        assert "s3cret" not in daemon.log
        assert "bWU6" not in daemon.log  # "me:" in base64

    def test_line_of_a_request_in_json(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """The line of a request has all its fields by name. Its id joins it with the client's own log."""
        index.add(make_wheel("thing"))
        daemon = daemon_factory(env={"MYPYPI_LOG_FORMAT": "json"})
        for _ in range(2):
            answer = get(f"{daemon.url}/simple/thing/?a=b", {"X-Request-ID": "build-7"})
            assert answer.headers["X-Request-ID"] == "build-7"
        daemon.stop()
        first, second = [each for each in objects(daemon.log) if each.get("request_id") == "build-7"]
        assert (first["cache"], second["cache"]) == ("miss", "hit")
        del second["time"], second["message"], second["seconds"]
        assert second == {
            "level": "info",
            "logger": "mypypi.requests",
            "client": "127.0.0.1",
            "method": "GET",
            "path": "/simple/thing/",
            "status": 200,
            "size": len(answer.body),
            "cache": "hit",
            "kind": "page",
            "request_id": "build-7",
            "broken": False,
        }

    def test_syslog_is_refused(self, tmp_path: Path) -> None:
        """JSON with ``--syslog`` is refused at start, since twistd's syslog takes only text."""
        env = {"MYPYPI_LOG_FORMAT": "json"}
        daemon = Daemon("mypypi-worker", tmp_path / "data", env, options=["--syslog"])
        daemon.launch()
        assert daemon.wait_ended() == 1
        assert "--syslog does not go with MYPYPI_LOG_FORMAT=json" in daemon.log
