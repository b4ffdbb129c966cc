"""How log lines look: as text for people, or as one JSON object for each event.

Where lines go (standard output, a file and its rotation) is twistd's business, and its options. Knows events and
twistd's loggers. Must never know what is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
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
from twisted.scripts._twistd_unix import UnixAppLogger

#: The environment variable that tells a server process its number, from 1 on. Only a supervisor's children have it.
PROCESS = "_MYPYPI_PROCESS"
_OWN = "mypypi."
#: What Twisted says at level info is for its own developers, except for these lines.
_TWISTED_LINES = ("Received SIG", "Server Shut Down.")


class CannotLog(ValueError):
    """twistd's options and the format of log lines do not go together."""


@frozen
class LogFormat:
    """How lines are written: `json` or text, from which `level` up, and the number of the `process`, if it has one."""

    json: bool = False
    level: LogLevel = LogLevel.info
    process: str | None = None

    def line(self, event: LogEvent) -> str:
        """The event as a line; empty where it is below the level."""
        if _level(event) < self.level:
            return ""
        return json_line(self.process, event) if self.json else text_line(self.process, event)


class ConfiguredLogger:
    """
    The log observer that the command line and the settings ask for.

    twistd takes the name of a function that makes an observer, and calls it without an argument. So the observer's
    arguments are kept here, once for a process.
    """

    NAME = f"{__name__}.ConfiguredLogger.make"
    _make: ClassVar[Callable[[], ILogObserver]]

    @classmethod
    def name(cls, options: Mapping[str, Any], log_format: LogFormat) -> str | None:
        """
        The value for twistd's option ``--logger``, given its other `options`; None to leave logging to twistd.

        Raises CannotLog.
        """
        if options.get("logger") is not None:
            return None
        if options.get("syslog"):
            if log_format.json:
                raise CannotLog("--syslog does not go with MYPYPI_LOG_FORMAT=json: let twistd log to a file")
            return None
        cls._make = partial(_observer, options, log_format)
        return cls.NAME

    @classmethod
    def make(cls) -> ILogObserver:
        """The observer."""
        return cls._make()


def _observer(options: Mapping[str, Any], log_format: LogFormat) -> ILogObserver:
    """Twistd's own observer, with its choice of a file, rotation and SIGUSR1; only the lines are ours."""
    observer: FileLogObserver = UnixAppLogger(options)._getLogObserver()  # noqa: SLF001 - else all of it would be copied
    observer.formatEvent = log_format.line
    return observer


def _is_own(event: LogEvent) -> bool:
    """Whether the event is this project's, or one of the few of Twisted's that are shown like those."""
    own = event.get("log_namespace", "-").startswith(_OWN)
    return own or (event.get("log_format") or "").startswith(_TWISTED_LINES)


def _level(event: LogEvent) -> LogLevel:
    """The event's level. Twisted's own info is debug here, as are events of its old log."""
    level: LogLevel = event.get("log_level", LogLevel.info)
    debug: LogLevel = LogLevel.debug
    return level if _is_own(event) or level is not LogLevel.info else debug


def text_line(process: str | None, event: LogEvent) -> str:
    """``2026-11-28T13:26:53+0000 [info] message``: time, the process's number where there are several, level, message.

    The logger's name is added for events that are not this project's own, and for debug events.
    """
    return formatEventAsClassicLogText(marked(event, event.get("log_process", process)), formatTime) or ""


def marked(event: LogEvent, process: str | None) -> LogEvent:
    """The event with its process, in the fields that text and JSON lines are made from."""
    level = _level(event)
    namespace = "" if _is_own(event) and level > LogLevel.debug else event.get("log_namespace", "-")
    words = [process or "", level.name, namespace]
    return {**event, "log_system": " ".join(filter(None, words)), "log_process": process}


def for_supervisor(event: LogEvent) -> str:
    """The event as a line for the supervisor, which makes its own line of it; a record's fields by their names."""
    record = event.get("record")
    if isinstance(record, msgspec.Struct):
        event = {**event, "record": str(record), "log_record": msgspec.structs.asdict(record)}
    return f"\x1e{eventAsJSON(event)}\n"


def json_line(process: str | None, event: LogEvent) -> str:
    """
    ``{"time", "level", "logger", "process", "message"}`` as one line of JSON; ``process`` where there are several.

    A logged record (a `msgspec.Struct` called ``record``) adds its fields; a failure adds ``exception`` and
    ``traceback``.
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
    return _encoded(line) + "\n"


def _encoded(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 holds surrogates
        return msgspec.json.encode({name: _printable(value) for name, value in line.items()}).decode()


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
