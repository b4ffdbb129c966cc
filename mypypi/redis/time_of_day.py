"""Tells whether the clock of this host differs from that of Redis's host, so that one of them is wrong.

Knows Redis's TIME. Must never know keys, or what times are for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mypypi.clock import MOST_SKEW

if TYPE_CHECKING:
    from mypypi.redis.client import RedisClient

ENDED = "this host's clock agrees with that of Redis again"


async def clock_trouble(client: RedisClient, wall: Callable[[], float]) -> str:
    """
    Say by how much the clock of this host, `wall`, is wrong; return an empty text if it may be right.

    The time that Redis takes for its answer does not count. Raises CatalogDown.
    """
    before = wall()
    seconds, microseconds = map(int, await client.call("TIME"))
    redis, after = seconds + microseconds / 1e6, wall()
    for ahead, words in ((before - redis, "ahead of"), (redis - after, "behind")):
        if ahead > MOST_SKEW:
            return (
                f"this host's clock is {ahead:.0f} s {words} that of Redis: set the wrong one of them with NTP; until"
                " then, pages are asked for more often than needed"
            )
    return ""
