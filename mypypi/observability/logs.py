"""How a log line looks: as twistd writes it, or one JSON object for each event.

Where lines go (standard output, a file and its rotation) is twistd's business, and its options. Knows events and
twistd's loggers. Must never know what is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any, ClassVar

import msgspec
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    eventAsJSON,
    formatEvent,
    formatEventAsClassicLogText,
    formatTime,
)
from twisted.scripts._twistd_unix import UnixAppLogger

#: The variable that tells one of several server processes its number, from 1 on. Whoever has it is a child.
PROCESS = "_MYPYPI_PROCESS"


class CannotLog(ValueError):
    """What twistd is asked for does not go with the form of lines."""


class ConfiguredLogger:
    """
    The observer that the command line and the settings ask for. twistd takes the name of what makes one, and gives it
    no argument: so this is kept here, once for a process.
    """

    NAME = f"{__name__}.ConfiguredLogger.make"
    _make: ClassVar[Callable[[], ILogObserver]]

    @classmethod
    def name(cls, options: Mapping[str, Any], log_format: str, process: str | None = None) -> str | None:
        """
        What twistd's option ``--logger`` is to be, given its `options`: None where that is right as it is.

        Raises CannotLog.
        """
        if options.get("logger") is not None or (log_format == "text" and process is None):
            return None
        if options.get("syslog"):
            raise CannotLog(f"--syslog does not go with MYPYPI_LOG_FORMAT={log_format} here: let it write to a file")
        line = partial(json_line if log_format == "json" else text_line, process)
        cls._make = partial(_observer, options, line)
        return cls.NAME

    @classmethod
    def make(cls) -> ILogObserver:
        """The observer."""
        return cls._make()


def _observer(options: Mapping[str, Any], line: Callable[[LogEvent], str]) -> ILogObserver:
    """Twistd's own observer, with its choice of a file, rotation and SIGUSR1 included; the lines alone are ours."""
    observer: FileLogObserver = UnixAppLogger(options)._getLogObserver()  # noqa: SLF001 - else all of it would be copied
    observer.formatEvent = line
    return observer


def text_line(process: str | None, event: LogEvent) -> str:
    """The line as twistd writes it; before the logger's name the number of the process."""
    return formatEventAsClassicLogText(marked(event, process), formatTime) or ""


def marked(event: LogEvent, process: str | None) -> LogEvent:
    """The event as one of this process: told from others' in text and in JSON."""
    level = getattr(event.get("log_level"), "name", "info")
    system = f"{process or '-'}:{event.get('log_namespace', '-')}#{level}"
    return {**event, "log_system": system, "log_process": process}


def for_supervisor(event: LogEvent) -> str:
    """The event as a line for another process, which makes its own line of it; a record's parts by their names."""
    record = event.get("record")
    if isinstance(record, msgspec.Struct):
        event = {**event, "record": str(record), "log_record": msgspec.structs.asdict(record)}
    return f"\x1e{eventAsJSON(event)}\n"


def json_line(process: str | None, event: LogEvent) -> str:
    """
    ``{"time", "level", "logger", "process", "message"}``, and what a record that is logged (a `msgspec.Struct` called
    ``record``) consists of, or ``{"exception", "traceback"}`` of a failure.

    An event that a server's process handed to its parent names the process, and has the fields of its record alone.
    """
    level, failure, record = event.get("log_level"), event.get("log_failure"), event.get("record")
    process = event.get("log_process", process)
    if isinstance(record, msgspec.Struct):
        record = msgspec.structs.asdict(record)
    elif "log_record" in event:
        record = event["log_record"]
    else:
        record = None
    line = {
        "time": datetime.fromtimestamp(event["log_time"], timezone.utc).isoformat(timespec="milliseconds"),
        "level": level.name if level is not None else "info",
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
