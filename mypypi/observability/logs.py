"""Formats log lines: text, or one JSON object per event.

twistd and its options decide where the lines go: standard output, syslog, or a file. Knows events, twistd's loggers and
the log file. Must never know what is logged.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from attrs import frozen
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsJSON,
    formatEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from twisted.python.logfile import LogFile
from twisted.scripts._twistd_unix import UnixAppLogger

#: The environment variable with a server process's number, from 1 on. Only the supervisor's child processes have it.
PROCESS = "_MYPYPI_PROCESS"
_OWN_NAMESPACE = "mypypi."
#: Twisted's messages at level info are for its own developers, except for this one.
_TWISTED_LINE = "Server Shut Down."
#: Seconds for which health tells that lines were lost: it may be long until the next line.
_LOST_SECONDS = 60.0
#: Bytes of a log file from which on it is rotated, and how many older ones are kept. A logrotate should come first.
_FILE_BYTES, _OLD_FILES = 100_000_000, 5


#: Characters that could forge a line, act on a terminal, or hide or reorder text there: control characters, line and
#: paragraph separators, marks of direction, and the surrogates of undecodable bytes.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class CannotLog(ValueError):
    """twistd's options exclude the configured log format."""


@frozen
class LogFormat:
    """
    The format of log lines: `json` or text.

    Events below `level` are left out. `process` is the server process's number, if it has one.
    """

    json: bool = False
    level: LogLevel = LogLevel.info
    process: str | None = None

    def line(self, event: LogEvent) -> str:
        """Format an event; empty if it is below the level."""
        if _level(event) < self.level:
            return ""
        return json_line(self.process, event) if self.json else text_line(self.process, event)


class ConfiguredLogger:
    """
    Builds the log observer from the command line and the settings.

    twistd's ``--logger`` is the name of a function without arguments that returns an observer. So this class holds the
    observer's arguments and the log file, once per process.
    """

    NAME = f"{__name__}.ConfiguredLogger.make"
    _make: ClassVar[Callable[[], FileLogObserver]]
    _file: ClassVar[LogFile | None] = None

    @classmethod
    def name(cls, options: Mapping[str, Any], log_format: LogFormat) -> str | None:
        """
        Return the value for twistd's option ``--logger``, or None to leave logging to twistd.

        `options` are twistd's other options. Raises CannotLog if they exclude the log format.
        """
        if options.get("logger") is not None:
            return None
        if options.get("syslog"):
            if log_format.json:
                raise CannotLog("--syslog does not go with MYPYPI_LOG_FORMAT=json: log to a file instead (--logfile)")
            return None
        cls._make = partial(_observer, options, log_format)
        return cls.NAME

    @classmethod
    def make(cls) -> ILogObserver:
        """Return the observer; twistd calls this."""
        observer = cls._make()
        out = observer._outFile  # noqa: SLF001 - there is no public way
        if isinstance(out, LogFile):
            cls._file, out.rotateLength, out.maxRotatedFiles = out, _FILE_BYTES, _OLD_FILES
        return observer

    @classmethod
    def trouble(cls) -> str:
        """Say why lines were lost in the last minute, if some were and none has been written since."""
        why, at = _Observer.lost
        return f"lines of the log are lost: {why}" if why and time.monotonic() - at < _LOST_SECONDS else ""

    @classmethod
    def reopen(cls) -> None:
        """
        Open the log file again, if there is one: another program has moved it away.

        Raises OSError with its path if it can't be opened; lines then go on to the file that is open.
        """
        if cls._file is None:
            return
        # The descriptor stays the same, since any thread may be writing to it. `LogFile.reopen` would close it first.
        written = cls._file._file.fileno()  # noqa: SLF001
        mode = stat.S_IMODE(os.fstat(written).st_mode)
        opened = os.open(cls._file.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
        os.dup2(opened, written, inheritable=False)
        os.close(opened)
        cls._file.size = os.fstat(written).st_size

    @classmethod
    def rotate(cls) -> None:
        """Rotate the log file, if there is one; open it again if another program has moved it away. Raises OSError."""
        if cls._file is None:
            return
        try:
            there = Path(cls._file.path).stat()
            in_place = os.path.samestat(there, os.fstat(cls._file._file.fileno()))  # noqa: SLF001
        except FileNotFoundError:
            in_place = False
        if in_place:
            cls._file.rotate()
        else:
            cls.reopen()


class _Observer(FileLogObserver):
    """Writes lines, and remembers why the last one was lost, and when."""

    lost: ClassVar[tuple[str, float]] = ("", 0.0)

    def __call__(self, event: LogEvent) -> None:
        line = self.formatEvent(event)
        if not line:
            return
        try:
            self._outFile.write(line if self._encoding is None else line.encode(self._encoding))
            self._outFile.flush()
        except OSError as error:
            _Observer.lost = error.strerror or str(error), time.monotonic()
        else:
            _Observer.lost = "", 0.0


def _observer(options: Mapping[str, Any], log_format: LogFormat) -> FileLogObserver:
    """Return twistd's own observer, with our line format."""
    made: FileLogObserver = UnixAppLogger(options)._getLogObserver()  # noqa: SLF001 - there is no public way
    return _Observer(made._outFile, log_format.line)  # noqa: SLF001


def _is_own(event: LogEvent) -> bool:
    """Whether the event is this project's, or the one of Twisted's that is treated alike."""
    own = event.get("log_namespace", "-").startswith(_OWN_NAMESPACE)
    return own or (event.get("log_format") or "").startswith(_TWISTED_LINE)


def _level(event: LogEvent) -> LogLevel:
    """Return the event's level. Twisted's own info events, also those of its old log, count as debug."""
    level: LogLevel = event.get("log_level", LogLevel.info)
    debug: LogLevel = LogLevel.debug
    return level if _is_own(event) or level is not LogLevel.info else debug


def text_line(process: str | None, event: LogEvent) -> str:
    """
    Format an event as ``2026-11-28T13:26:53+0000 [info] message``.

    If there are several processes, the process's number comes before the level. The logger's name follows the level for
    debug events and for events of other projects. Control characters are escaped, since another party may have sent
    them. A traceback and an event with `several_lines` have lines of their own, each indented.
    """
    record = event.get("record")
    is_record = event.get("log_format") == "{record}" and "several_lines" not in event and _is_own(event)
    if is_record and isinstance(record, msgspec.Struct):  # a request: its line costs a third of another one
        words = " ".join(filter(None, (event.get("log_process", process), _level(event).name)))
        line = f"{_time_of(int(event['log_time']))} [{words}] {record}"
        return _UNSAFE.sub(_escaped, line) + "\n"
    text = formatEventAsClassicLogText(marked(event, event.get("log_process", process)), formatTime)
    if not text:
        return ""
    lines = text.removesuffix("\n").split("\n\t")  # Twisted indents what follows a line break
    has_lines = event.get("log_failure") is not None or event.get("several_lines", False)
    between = "\n\t" if has_lines else "\\n"
    return between.join(_UNSAFE.sub(_escaped, line) for line in lines) + "\n"


@lru_cache(maxsize=4)
def _time_of(second: int) -> str:
    return formatTime(second)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def marked(event: LogEvent, process: str | None) -> LogEvent:
    """Add the process's number to an event, in the fields that `text_line` and `json_line` read."""
    level = _level(event)
    namespace = "" if _is_own(event) and level > LogLevel.debug else event.get("log_namespace", "-")
    words = [process or "", level.name, namespace]
    return {**event, "log_system": " ".join(filter(None, words)), "log_process": process}


def for_supervisor(event: LogEvent) -> str:
    """
    Serialise an event as a line for the supervisor.

    The supervisor formats it again for its own log. A record's fields are kept by their names.
    """
    record = event.get("record")
    if isinstance(record, msgspec.Struct):
        event = {**event, "record": str(record), "log_record": msgspec.structs.asdict(record)}
    return f"\x1e{eventAsJSON(event)}\n"


def json_line(process: str | None, event: LogEvent) -> str:
    """
    Format an event as ``{"time", "level", "logger", "process", "message"}``, one line of JSON.

    ``process`` is there only if there are several processes. A logged record (a `msgspec.Struct` called ``record``)
    adds its fields; a failure adds ``exception`` and ``traceback``.
    """
    failure, record = event.get("log_failure"), event.get("record")
    process = event.get("log_process", process)
    if isinstance(record, msgspec.Struct):
        record = msgspec.structs.asdict(record)
    elif "log_record" in event:
        record = event["log_record"]
    else:
        record = None
    line = {
        "time": datetime.fromtimestamp(event["log_time"], timezone.utc).isoformat(timespec="milliseconds"),
        "level": _level(event).name,
        "logger": event.get("log_namespace", "-"),
    }
    if process is not None:
        line["process"] = process
    if failure is None:
        line["message"] = formatEvent(event)
        line |= record or {}
    else:
        line["message"] = formatEvent(event) or str(failure.value)
        line["exception"] = failure.type.__name__
        line["traceback"] = failure.getTraceback()
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", _encoded(line)) + "\n"


def _encoded(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 contains surrogates
        return msgspec.json.encode({name: _printable(value) for name, value in line.items()}).decode()


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
