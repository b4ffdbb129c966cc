"""``twistd mypypi-worker``: what happens behind the requests."""

from __future__ import annotations

from twisted.application.service import IService

from mypypi.drafts import Drafts
from mypypi.options import SettingsOptions as Options
from mypypi.server import drafts_directory
from mypypi.worker import Worker


def makeService(options: Options) -> IService:
    """The service of this daemon."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    return Worker(Drafts(drafts_directory(options.settings)), reactor)


__all__ = ["Options", "makeService"]
