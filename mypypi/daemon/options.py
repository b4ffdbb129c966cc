"""The command lines of the daemons; they load and check the settings before anything starts.

Knows twistd's options. Must never know what a daemon does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import LogLevel
from twisted.python import usage

from mypypi.daemon.lifecycle import CannotStart
from mypypi.observability.logs import PROCESS, CannotLog, ConfiguredLogger, LogFormat
from mypypi.settings.loading import SettingsError, load_settings
from mypypi.settings.reference import describe
from mypypi.settings.settings import Settings

#: Files get the mode 0640 and directories 0750: a proxy that serves stored files itself may be in the group.
_UMASK = 0o027


class SettingsOptions(usage.Options):
    """
    The options of a daemon.

    All settings come from the environment; after parsing they are in `settings`.
    """

    embedded = False
    settings: Settings

    longdesc = "Everything else is set by environment variables, such as MYPYPI_UPSTREAM_URL: see --settings."

    def opt_settings(self) -> None:
        """List every setting with its default, and exit."""
        print(describe())  # noqa: T201 - the output of a command-line option
        sys.exit(0)

    def postOptions(self) -> None:
        environ = dict(os.environ)
        if self.get("listen") is not None:
            environ["MYPYPI_LISTEN"] = self["listen"]
        try:
            self.settings = load_settings(environ, embedded=self.embedded)
            self._set_umask()
            self._set_logger(environ.get(PROCESS))
            self.check(self.settings)
        except (SettingsError, CannotLog, CannotStart) as error:
            # Not a UsageError: for that, twistd prints its help and this daemon's first, 60 lines.
            sys.exit(f"{self._name()}: {error}")

    def _set_logger(self, process: str | None) -> None:
        """Set twistd's option ``--logger`` unless it is given. twistd reads it after this. Raises CannotLog."""
        if self.parent is None:
            return
        level = LogLevel.levelWithName(self.settings.log_level)
        log_format = LogFormat(self.settings.log_format == "json", level, process)
        logger = ConfiguredLogger.name(self.parent, log_format)
        if logger is not None:
            self.parent["logger"] = logger

    def _set_umask(self) -> None:
        """Keep files from users outside the group, unless ``--umask`` is given. A daemon's log is the first file."""
        if self.parent is not None and self.parent.get("umask") is None:
            os.umask(os.umask(_UMASK) | _UMASK)  # a stricter one stays

    def check(self, settings: Settings) -> None:
        """Raise CannotStart for settings that this daemon can't start with."""

    def _name(self) -> str:
        return "mypypi" if self.parent is None else f"twistd {self.parent.subCommand}"


class ServerOptions(SettingsOptions):
    """The options of a daemon that listens."""

    optParameters = [  # noqa: RUF012 - Twisted's way
        ["listen", None, None, "Where to listen, in place of MYPYPI_LISTEN: a Twisted endpoint description."]
    ]

    #: Whether twistd logs elsewhere than to its standard output.
    logs_elsewhere = False

    def postOptions(self) -> None:
        twistd: Mapping[str, Any] = self.parent or {}
        to_stdout = twistd.get("nodaemon") and twistd.get("logfile") in (None, "-")
        self.logs_elsewhere = not to_stdout or bool(twistd.get("syslog") or twistd.get("logger"))
        super().postOptions()
