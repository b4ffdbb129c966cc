"""What the daemons have in common on their command lines: the settings, read and checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from twisted.python import usage

from mypypi.observability.logs import PROCESS, CannotLog, ConfiguredLogger
from mypypi.settings.loading import SettingsError, load_settings
from mypypi.settings.reference import describe
from mypypi.settings.settings import Settings


class SettingsOptions(usage.Options):
    """All settings come from the environment; after parsing they are in `settings`."""

    embedded = False
    settings: Settings

    longdesc = "Settings are environment variables:"

    def getUsage(self, width: int | None = None) -> str:
        """Twistd's own text and then every setting, laid out as it is."""
        return f"{super().getUsage(width)}\n{describe()}\n"

    def postOptions(self) -> None:
        environ = dict(os.environ)
        if self.get("listen") is not None:
            environ["MYPYPI_LISTEN"] = self["listen"]
        try:
            self.settings = load_settings(environ, embedded=self.embedded)
        except SettingsError as error:
            raise usage.UsageError(str(error)) from None
        self._set_log_format(environ.get(PROCESS))
        self.check(self.settings)

    def _set_log_format(self, process: str | None) -> None:
        """Twistd reads its option ``--logger`` after this; where nobody gave it, it is ours to give."""
        if self.parent is None:
            return
        try:
            logger = ConfiguredLogger.name(self.parent, self.settings.log_format, process)
        except CannotLog as error:
            raise usage.UsageError(str(error)) from None
        if logger is not None:
            self.parent["logger"] = logger

    def check(self, settings: Settings) -> None:
        """Raises UsageError for what this daemon can't start with."""


class ServerOptions(SettingsOptions):
    """A daemon that listens."""

    optParameters = [  # noqa: RUF012 - Twisted's way
        ["listen", None, None, "Where to listen, in place of MYPYPI_LISTEN: a Twisted endpoint description."]
    ]

    #: Whether twistd was told to log anywhere but to its standard output.
    logs_elsewhere = False

    def postOptions(self) -> None:
        twistd: Mapping[str, Any] = self.parent or {}
        to_stdout = twistd.get("nodaemon") and twistd.get("logfile") in (None, "-")
        self.logs_elsewhere = not to_stdout or bool(twistd.get("syslog") or twistd.get("logger"))
        super().postOptions()
