"""Tells what this process lacks: file descriptors, render processes, or a log that can be written.

Knows the system's limit of descriptors, the render pool and the log. Must never know what they are used for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypypi import descriptors
from mypypi.observability import metrics
from mypypi.observability.logs import ConfiguredLogger

if TYPE_CHECKING:
    from mypypi.rendering.pool import RenderPool
    from mypypi.threads import Threads

#: The share of the descriptors that must be free, and the share from which on they suffice again after they ran low.
#: Clients are refused when an eighth or less is free: see `mypypi.descriptors`.
_FEW, _ENOUGH = 0.15, 0.2


class OwnProcess:
    """What this process lacks. `threads` count its descriptors, since that takes milliseconds if there are many."""

    def __init__(self, threads: Threads, render_pool: RenderPool) -> None:
        self._threads = threads
        self._render_pool = render_pool
        self._few_descriptors = False

    async def look(self) -> str:
        """Say what is wrong; empty if nothing is. The other server processes learn from a metric that something is."""
        trouble = await self._threads.run(self._count_descriptors)
        trouble = trouble or self._render_pool.trouble() or ConfiguredLogger.trouble()
        metrics.PROCESSES_DEGRADED.set(bool(trouble))
        return trouble

    def _count_descriptors(self) -> str:
        used, limit = descriptors.in_use()
        if limit is None:
            return ""
        metrics.OPEN_DESCRIPTORS.set(used)
        metrics.MAX_DESCRIPTORS.set(limit)
        self._few_descriptors = limit - used < limit * (_ENOUGH if self._few_descriptors else _FEW)
        if not self._few_descriptors:
            return ""
        return (
            f"{used} of {limit} file descriptors are in use, and clients are refused when few are left: raise the limit"
            " (LimitNOFILE= in systemd, ulimits.nofile in Compose, else ulimit -n)"
        )
