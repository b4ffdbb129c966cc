"""Tells whether Redis may evict what the queue and the catalog keep there.

Only leases, back-offs, links and markers of jobs have an expiry, and can be lost without harm. The jobs themselves, the
pages and the records of stored files have none. A policy ``volatile-*`` evicts only keys with an expiry, and
``noeviction`` none. Knows Redis's INFO. Must never know keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypypi.redis.client import RedisClient

#: The prefix of policies that evict any key.
_ANY_KEY = "allkeys-"

ENDED = "Redis evicts neither jobs nor pages any more"


async def eviction_trouble(client: RedisClient) -> str:
    """
    Say what is wrong if Redis evicts jobs and pages when its memory is full; return an empty text otherwise.

    INFO is allowed where CONFIG is not, as on a managed Redis. Raises CatalogDown.
    """
    reply = await client.call("INFO", "memory")
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    fields = {name: value.strip() for name, _, value in lines}
    policy = fields.get("maxmemory_policy", "")
    if fields.get("maxmemory", "0") == "0" or not policy.startswith(_ANY_KEY):
        return ""
    return (
        f"Redis loses jobs and pages when its memory is full, since its maxmemory-policy is {policy}: set it to"
        " noeviction or volatile-lru"
    )
