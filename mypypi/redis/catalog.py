"""The catalog in Redis: pages, stored files, links, leases and back-offs, shared by all processes.

Knows Redis keys and commands. Must never know what a page means, nor requests or upstream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
from attrs import evolve
from twisted.logger import Logger
from zope.interface import implementer

from mypypi.clock import MOST_SKEW, SharedClock
from mypypi.coordination import HeldLease, Pause
from mypypi.digests import Digest
from mypypi.interfaces import ICatalog
from mypypi.model import FileCheck, Page, PageId, StoredFile
from mypypi.redis import catalog_scripts as scripts
from mypypi.redis.records import Lease, PauseRecord, Stamp, Stored, decode_page, decoded, encode_page, page_name
from mypypi.redis_budget import goes_on

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mypypi.redis.client import RedisClient

_DAY = 86_400
#: The longest time in seconds for which a signed link can be valid (AWS, Signature Version 4).
_LONGEST_LINK = 7 * _DAY
#: Seconds for which a back-off is kept after its end, so that the next one can be longer.
_PAUSE_KEPT = 300
#: Indexed links per command. A larger command would block the reactor, and other clients' commands, for too long.
_LINKS_PER_COMMAND = 500
#: Pages that upstream lacks or refuses: how many are kept, the latest ones, and for how many seconds at least. Clients
#: can make up any number of names.
MOST_MISSING = 10_000
_LEAST_KEPT = 60
#: Links of a page that are withheld, and wheels whose metadata is offered: the latest ones, and for how many seconds.
MOST_MARKED = 1_000
_MARKS = {"withheld": _DAY, "offered": 30 * _DAY}
#: Records of checks, and of keys that their links do not tell: how many of each are kept, the latest ones. There is one
#: for a file, and a page may list other files each time.
MOST_RECORDS = 100_000


@implementer(ICatalog)
class RedisCatalog:
    """
    The catalog that all processes share.

    `clock` is that of this process, on which its callers have their times. Redis has times of day, by `wall` (see
    `SharedClock`). A time of day that can't be right counts as 0: a page is unconfirmed then, and a back-off is over.

    The keys in Redis:

    - `{prefix}:page:{ecosystem}:{page}` is a hash: `stamp` and `meta` in JSON, and a field `form:{name}` with the gzip
      bytes of each form. A missing page expires; `{prefix}:missing:{ecosystem}` is the sorted set of their names.
    - `{prefix}:stray:{ecosystem}:{link}` has the name of the page that lists the link, and
      `{prefix}:strays:{ecosystem}:{page}` is the set of such links of a page. With `:new` and `:old` at the end, it is
      that of the version that is being stored, and of links that are being dropped.
    - `{prefix}:withheld:{ecosystem}:{page}` is a sorted set of withheld links, by the time when their withholding ends;
      `{prefix}:offered:{ecosystem}:{page}` one of wheels whose metadata is stored, by the time when its offer ends.
    - `{prefix}:check:{ecosystem}:{key}` is a `FileCheck`, and `{prefix}:key:{ecosystem}:{link}` the key of a link;
      `{prefix}:checks:{ecosystem}` and `{prefix}:keys:{ecosystem}` are the sorted sets of their names.
    - `{prefix}:stored:{ecosystem}:{key}` is a stored file, in JSON; `{prefix}:link:{ecosystem}:{key}` its URL.
    - `{prefix}:ranges:{ecosystem}:{origin}` says whether an origin answers ranges: yes or no.
    - `{prefix}:lease:{ecosystem}:{name}` is a lease, `{prefix}:pause:{ecosystem}:{name}` a back-off, both in JSON.

    A record that can't be parsed counts as missing, no matter which program wrote it: the page is fetched again.
    """

    log = Logger()

    def __init__(
        self,
        client: RedisClient,
        prefix: str,
        ecosystem: str,
        clock: IReactorTime,
        wall: Callable[[], float] | None = None,
        negative_cache_time: int = _LEAST_KEPT,
    ) -> None:
        """A missing page is kept for `negative_cache_time` seconds, in which it is fresh, or a minute."""
        self._missing_kept = max(_LEAST_KEPT, negative_cache_time)
        self._client = client
        self._prefix = prefix
        self._ecosystem = ecosystem
        self._clock = clock
        self._shared = SharedClock(clock, wall)

    async def get_page(self, page: PageId) -> Page | None:
        """See `ICatalog.get_page`."""
        reply = await self._client.call("HGETALL", self._key("page", page_name(page)))
        if not reply:
            return None
        try:
            kept = decode_page(page, dict(zip(reply[::2], reply[1::2], strict=True)))
            return evolve(kept, checked_at=self._shared.to_own(kept.checked_at))
        except (KeyError, msgspec.MsgspecError) as error:
            self.log.warn("page {page} in Redis can't be read, and is fetched again: {error!r}", page=page, error=error)
            return None

    async def page_stamp(self, page: PageId) -> tuple[str, float] | None:
        """See `ICatalog.page_stamp`."""
        stamp = decoded(await self._client.call("HGET", self._key("page", page_name(page)), "stamp"), Stamp)
        return None if stamp is None else (stamp.version, self._shared.to_own(stamp.checked_at))

    @goes_on
    async def put_page(self, page: Page, indexed_links: tuple[str, ...] | None) -> None:
        """See `ICatalog.put_page`. Writes the links first, so that a visible page has all its links indexed."""
        name = page_name(page.id)
        key, links = self._key("page", name), self._key("strays", name)
        new, old = f"{links}:new", f"{links}:old"
        await self._index(indexed_links or (), name, new)
        kept_for = self._missing_kept if page.missing else 0
        shared = evolve(page, checked_at=self._shared.to_shared(page.checked_at))
        left = await self._client.call(
            "EVAL", scripts.PUT, 6, key, f"{key}:new", self._set("missing"), links, new, old,
            kept_for, name, MOST_MISSING, self._key("page", ""), int(indexed_links is not None), *encode_page(shared),
        )  # fmt: skip
        while left:
            left = await self._client.call(
                "EVAL", scripts.DROP_LINKS, 2, old, links, _LINKS_PER_COMMAND, name, self._key("stray", "")
            )

    async def _index(self, indexed_links: tuple[str, ...], name: str, new: str) -> None:
        """Index links of a page, and note them in the set `new` before, so that none is forgotten."""
        for start in range(0, len(indexed_links), _LINKS_PER_COMMAND):
            batch = indexed_links[start : start + _LINKS_PER_COMMAND]
            await self._client.call("SADD", new, *batch)
            await self._client.call("MSET", *(word for link in batch for word in (self._key("stray", link), name)))

    @goes_on
    async def touch_page(self, page: PageId, version: str, checked_at: float) -> None:
        """See `ICatalog.touch_page`."""
        name, stamp = page_name(page), msgspec.json.encode(Stamp(version, self._shared.to_shared(checked_at)))
        await self._client.call(
            "EVAL", scripts.TOUCH, 2, self._key("page", name), self._set("missing"),
            version, stamp, self._missing_kept, name, MOST_MISSING, self._key("page", ""),
        )  # fmt: skip

    async def delete_page(self, page: PageId) -> None:
        """See `ICatalog.delete_page`."""
        await self._client.call("DEL", self._key("page", page_name(page)))

    async def page_listing(self, link: str) -> PageId | None:
        """See `ICatalog.page_listing`."""
        reply = await self._client.call("GET", self._key("stray", link))
        return None if reply is None else PageId(*(unquote(part) for part in reply.decode().split("/")))

    @goes_on
    async def withhold(self, page: PageId, link: str) -> None:
        """See `ICatalog.withhold`."""
        await self._mark("withheld", page, link)

    async def withheld(self, page: PageId) -> frozenset[str]:
        """See `ICatalog.withheld`."""
        return await self._marked("withheld", page)

    @goes_on
    async def offer(self, page: PageId, link: str) -> None:
        """See `ICatalog.offer`."""
        await self._mark("offered", page, link)

    async def offered(self, page: PageId) -> frozenset[str]:
        """See `ICatalog.offered`."""
        return await self._marked("offered", page)

    async def _mark(self, kind: str, page: PageId, link: str) -> None:
        now, key, kept = self._shared.seconds(), self._key(kind, page_name(page)), _MARKS[kind]
        await self._client.call("EVAL", scripts.MARK, 1, key, repr(now), repr(now + kept), link, kept, MOST_MARKED)

    async def _marked(self, kind: str, page: PageId) -> frozenset[str]:
        now, key = self._shared.seconds(), self._key(kind, page_name(page))
        reply = await self._client.call("ZRANGEBYSCORE", key, f"({now!r}", repr(now + _MARKS[kind] + MOST_SKEW))
        return frozenset(link.decode() for link in reply)

    async def stored(self, key: str) -> StoredFile | None:
        """See `ICatalog.stored`."""
        noted = decoded(await self._client.call("GET", self._key("stored", key)), Stored)
        with suppress(ValueError):
            return None if noted is None else StoredFile(key, noted.size, Digest.parse(noted.digest))
        return None

    @goes_on
    async def put_stored(self, stored: StoredFile) -> None:
        """See `ICatalog.put_stored`."""
        noted = msgspec.json.encode(Stored(stored.size, str(stored.digest)))
        await self._client.call("SET", self._key("stored", stored.key), noted)

    @goes_on
    async def forget_stored(self, key: str) -> None:
        """See `ICatalog.forget_stored`."""
        await self._client.call("DEL", self._key("stored", key), self._key("link", key))

    async def stored_keys(self) -> AsyncIterator[str]:
        """See `ICatalog.stored_keys`."""
        prefix = self._key("stored", "")
        async for name in self._client.names(prefix):
            yield name.removeprefix(prefix)

    async def file_check(self, key: str) -> FileCheck | None:
        """See `ICatalog.file_check`."""
        reply = await self._client.call("GET", self._key("check", key))
        check = decoded(reply, FileCheck)
        return None if check is None else evolve(check, at=self._shared.to_own(check.at))

    @goes_on
    async def put_file_check(self, key: str, check: FileCheck) -> None:
        """See `ICatalog.put_file_check`."""
        shared = evolve(check, at=self._shared.to_shared(check.at))
        await self._put_counted("check", key, msgspec.json.encode(shared))

    async def key_of_link(self, link: str) -> str | None:
        """See `ICatalog.key_of_link`."""
        reply = await self._client.call("GET", self._key("key", link))
        return None if reply is None else str(reply.decode(errors="replace"))

    @goes_on
    async def put_key_of_link(self, link: str, key: str) -> None:
        """See `ICatalog.put_key_of_link`."""
        await self._put_counted("key", link, key)

    async def link(self, key: str) -> tuple[str, float] | None:
        """See `ICatalog.link`."""
        reply = await self._client.call("GET", self._key("link", key))
        if reply is None:
            return None
        until, _, url = reply.decode().partition(" ")
        return url, self._shared.to_own(float(until), _LONGEST_LINK)

    @goes_on
    async def put_link(self, key: str, url: str, until: float) -> None:
        """See `ICatalog.put_link`."""
        seconds = max(1, int(until - self._clock.seconds()))
        await self._client.call(
            "SET", self._key("link", key), f"{self._shared.to_shared(until)!r} {url}", "EX", seconds
        )

    async def _put_counted(self, kind: str, name: str, value: str | bytes) -> None:
        """Store a record of a kind of which there may be any number, and delete the oldest if there are too many."""
        await self._client.call(
            "EVAL", scripts.PUT_COUNTED, 2, self._key(kind, name), self._set(f"{kind}s"),
            value, name, MOST_RECORDS, self._key(kind, ""),
        )  # fmt: skip

    async def take_lease(self, name: str, owner: str, seconds: float, about: str = "") -> HeldLease | None:
        """See `ICatalog.take_lease`."""
        milliseconds, key = max(1, int(seconds * 1000)), self._key("lease", name)
        lease = msgspec.json.encode(Lease(owner, about, milliseconds))
        skew = int(MOST_SKEW * 1000)
        reply = await self._client.call("EVAL", scripts.TAKE_LEASE, 1, key, owner, lease, milliseconds, skew)
        if reply is None:
            return None
        held = msgspec.json.decode(reply[0], type=Lease)
        return HeldLease(held.owner, max(0.0, int(reply[1]) / 1000), held.about)

    @goes_on
    async def release_lease(self, name: str, owner: str) -> None:
        """See `ICatalog.release_lease`."""
        await self._client.call("EVAL", scripts.RELEASE_LEASE, 1, self._key("lease", name), owner)

    async def answers_ranges(self, origin: str) -> bool | None:
        """See `ICatalog.answers_ranges`."""
        reply = await self._client.call("GET", self._key("ranges", origin))
        return None if reply is None else bool(reply == b"yes")

    @goes_on
    async def put_answers_ranges(self, origin: str, answers: bool) -> None:  # noqa: FBT001 - it is the value
        """See `ICatalog.put_answers_ranges`."""
        answer, seconds = ("yes", 7 * _DAY) if answers else ("no", 3600)
        await self._client.call("SET", self._key("ranges", origin), answer, "EX", seconds)

    async def pause(self, name: str) -> Pause | None:
        """See `ICatalog.pause`."""
        reply = await self._client.call("GET", self._key("pause", name))
        record = decoded(reply, PauseRecord)
        if record is None:
            return None
        until = self._shared.to_own(record.until, record.seconds)
        return Pause(until, record.why, record.failures, record.status)

    @goes_on
    async def put_pause(self, name: str, pause: Pause) -> None:
        """See `ICatalog.put_pause`."""
        seconds, until = pause.until - self._clock.seconds(), self._shared.to_shared(pause.until)
        record = msgspec.json.encode(PauseRecord(until, pause.why, pause.failures, pause.status, seconds))
        kept_for = max(1, int(seconds) + _PAUSE_KEPT)
        await self._client.call("SET", self._key("pause", name), record, "EX", kept_for)

    @goes_on
    async def end_pause(self, name: str) -> None:
        """See `ICatalog.end_pause`."""
        await self._client.call("DEL", self._key("pause", name))

    async def check(self) -> None:
        """See `ICatalog.check`."""
        await self._client.check()

    def _set(self, kind: str) -> str:
        """Return the key of the set that counts records of a kind."""
        return f"{self._prefix}:{kind}:{self._ecosystem}"

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}:{kind}:{self._ecosystem}:{name}"
