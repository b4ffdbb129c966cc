"""Redis: the connections to it, and the catalog that is kept in it. The only importer of txredisapi.

Knows commands, keys and how records are written. Must never know what a page means, or a request, or upstream.
Importing txredisapi installs the default reactor: import this module after another one has been installed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, cast
from urllib.parse import quote, unquote

import msgspec
import txredisapi
from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mypypi.errors import CatalogDown
from mypypi.interfaces import ICatalog
from mypypi.model import Digest, Form, Held, Page, PageId, Pause, StoredFile

if TYPE_CHECKING:
    from mypypi.settings.types import RedisUrl

T = TypeVar("T")

#: What a command answers: bytes, int, None, or a list of these.
Reply: TypeAlias = Any

#: Seconds before the first try to connect again, and the most that the pause grows to.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: Seconds between two log lines about commands that fail although Redis can be reached, and between two looks whether
#: that is over.
_COMPLAIN_EVERY = 60.0
_LOOK_EVERY = 2.0
_REASON_LENGTH = 200


class RedisClient:
    """
    Some connections to one Redis, made again for as long as this is started, and one way to send a command.

    A call waits only while the outcome of a first try to connect is open; once a try has failed, calls fail at once
    until another one succeeds. Every command and every try has `timeout` seconds. txredisapi's protocol is used, and
    not its pool: that waits for ever for a Redis that is down, gives up for ever after a refused password, and logs
    every try. One client of several to the same Redis is not `quiet`, and says when that goes away and comes back.

    `probe` is the command by which it is found out whether all is well. It should write where writing matters: a Redis
    whose memory is full, or that is a replica, answers everything else.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: RedisUrl,
        timeout: float = 2.0,
        connections: int = 4,
        *,
        quiet: bool = False,
        probe: tuple[str, ...] = ("PING",),
    ) -> None:
        self._reactor = reactor
        self._quiet = quiet
        self._url = url
        self._timeout = timeout
        self._size = connections
        self._endpoint = _endpoint(reactor, url, timeout)
        self._open: set[_Connection] = set()
        self._usable: list[_Connection] = []
        self._attempt: Deferred[_Connection] | None = None
        self._retry: IDelayedCall | None = None
        self._pause = _FIRST_PAUSE
        self._waiting: list[Deferred[None]] = []
        self._stopping: list[Deferred[None]] = []
        self._started = False
        self._down_because = "not started"
        self._probe = probe
        self._complained_at = float("-inf")
        self._look: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to connect. Nothing is raised when Redis is not there: it is used when it comes."""
        self._started = True
        self._down_because = ""
        self._pause = _FIRST_PAUSE
        self._fill_up(0.0)

    def stop(self) -> Deferred[None]:
        """Close the connections; commands that are under way fail. Fires when all are closed."""
        self._started = False
        self._down_because = "not started"
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._look is not None and self._look.active():
            self._look.cancel()
        self._look = None
        if self._attempt is not None:
            self._attempt.cancel()
        for connection in list(self._open):
            connection.transport.abortConnection()
        stopped: Deferred[None] = Deferred()
        self._stopping.append(stopped)
        self._tell_if_closed()
        self._wake()
        return stopped

    async def check(self) -> None:
        """Raises CatalogDown with a reason when Redis does not do what it is probed with."""
        await self.call(*self._probe)

    async def call(self, *command: str | bytes | int) -> Reply:
        """
        Send one command and return its reply; strings come back as bytes, exactly as they were stored.

        Raises CatalogDown when there is no connection, no answer in time, or an error for an answer. For commands that
        do not block: a blocking one holds up others on its connection.
        """
        connection = await self._connection()
        sent_at = self._reactor.seconds()
        try:
            return await self._in_time(connection.execute_command(*command))
        except CancelledError:
            raise
        except TimeoutError as error:
            if connection.heard_at <= sent_at:
                self._abort_silent(sent_at)
            else:
                self._complain(f"is too slow: {error}")
            raise CatalogDown(f"Redis: {error}") from None
        except txredisapi.ResponseError as error:
            reason = self._short(error)
            self._complain(f"refused a command: {reason}")
            raise CatalogDown(f"Redis refused: {reason}") from None
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller goes on without Redis
            raise CatalogDown(f"Redis: {self._short(error)}") from None

    async def names(self, prefix: str, kind: str = "") -> AsyncIterator[str]:
        """
        The names of keys that begin with this prefix; with `kind`, of those whose value is what TYPE calls so.

        Walks through all of Redis's keys, a thousand at a time; one may come twice. Raises CatalogDown.
        """
        cursor, wanted = b"0", ("TYPE", kind) if kind else ()
        while True:
            cursor, found = await self.call("SCAN", cursor, "MATCH", f"{_literally(prefix)}*", "COUNT", 1000, *wanted)
            for name in found:
                yield name.decode()
            if cursor in (b"0", 0):
                return

    async def _connection(self) -> _Connection:
        """The usable connection with the fewest commands under way."""
        if not self._usable and not self._down_because:
            outcome: Deferred[None] = Deferred()
            self._waiting.append(outcome)
            await outcome
        if not self._usable:
            raise CatalogDown(f"Redis can't be reached: {self._down_because or 'connection lost'}")
        return min(self._usable, key=lambda connection: len(connection.replyQueue.waiting))

    # Connections are made one after the other. Waking those who wait comes last in each step, since it runs their
    # code, which may call anything here, `stop` included.

    def _fill_up(self, pause: float) -> None:
        idle = self._attempt is None and self._retry is None
        if self._started and idle and len(self._usable) < self._size:
            self._retry = self._reactor.callLater(pause, self._try)

    def _try(self) -> None:
        self._retry = None
        self._attempt = self._in_time(Deferred.fromCoroutine(self._connect()))
        self._attempt.addCallbacks(self._succeeded, self._failed)

    async def _connect(self) -> _Connection:
        """A connection that has answered: one that is only accepted may be refused the password, or be a dead end."""
        attempt = _Attempt(self._reactor, self._url)
        connection = cast("_Connection", await self._endpoint.connect(attempt))
        self._open.add(connection)
        connection.whenDisconnected().addCallback(self._lost)
        try:
            await attempt.ready
        except Exception:
            connection.transport.abortConnection()
            raise
        return connection

    def _succeeded(self, connection: _Connection) -> None:
        self._attempt = None
        self._usable.append(connection)
        self._pause = _FIRST_PAUSE
        self._fill_up(0.0)
        self._came_back()

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        self._fill_up(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._started and not self._usable:
            self._went_away(self._short(failure.value))

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._usable:
            self._usable.remove(connection)
            self._fill_up(_FIRST_PAUSE)
        self._tell_if_closed()

    def _tell_if_closed(self) -> None:
        if not self._open:
            stopping, self._stopping = self._stopping, []
            for stopped in stopping:
                stopped.callback(None)

    def _abort_silent(self, since: float) -> None:
        """Drop the connections on which nothing has come since: each would cost another request the same wait."""
        for connection in [each for each in self._usable if each.heard_at <= since]:
            self._usable.remove(connection)
            connection.transport.abortConnection()
        self._fill_up(_FIRST_PAUSE)

    def _went_away(self, reason: str) -> None:
        if not self._down_because and not self._quiet:
            self.log.warn(
                "Redis at {where} can't be reached: {reason}; serving without it", where=str(self._url), reason=reason
            )
        self._down_because = reason
        self._wake()

    def _came_back(self) -> None:
        if self._down_because and not self._quiet:
            self.log.info("Redis at {where} is back", where=str(self._url))
        self._down_because = ""
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outcome in waiting:
            outcome.callback(None)

    def _complain(self, what: str) -> None:
        now = self._reactor.seconds()
        if self._started and self._look is None and now - self._complained_at >= _COMPLAIN_EVERY:
            self._complained_at = now
            self.log.warn("Redis at {where} {what}", where=str(self._url), what=what)
            self._look = self._reactor.callLater(_LOOK_EVERY, self._look_again)

    def _look_again(self) -> None:
        """Is it over? Commands that succeed do not tell: reading may well go on while writing can't."""
        looking = Deferred.fromCoroutine(self.check())
        looking.addCallbacks(self._is_well, self._is_unwell)
        looking.addErrback(lambda failure: self.log.failure("Redis could not be probed", failure))

    def _is_well(self, _: None) -> None:
        if self._started:
            self._look = None
            self.log.info("Redis at {where} does again what it is asked", where=str(self._url))

    def _is_unwell(self, failure: Failure) -> None:
        failure.trap(CatalogDown)
        if self._started:
            self._look = self._reactor.callLater(_LOOK_EVERY, self._look_again)

    def _in_time(self, deferred: Deferred[T]) -> Deferred[T]:
        return deferred.addTimeout(self._timeout, self._reactor, self._too_late)

    @staticmethod
    def _too_late(_result: object, timeout: float) -> NoReturn:
        raise TimeoutError(f"no answer within {timeout:g} s")

    def _short(self, error: BaseException | None) -> str:
        """
        An error in a few words, fit for the log and for clients.

        To a command that it does not know, which AUTH can be, Redis answers with the arguments: they are cut off.
        """
        text = str(error).partition(", with args beginning")[0].strip().rstrip(".") or type(error).__name__
        password = self._url.password.reveal() if self._url.password is not None else ""
        return (text.replace(password, "…") if password else text)[:_REASON_LENGTH]


def _endpoint(reactor: Any, url: RedisUrl, timeout: float) -> IStreamClientEndpoint:
    if url.kind == "unix":
        return UNIXClientEndpoint(reactor, url.path, timeout=timeout)
    endpoint = HostnameEndpoint(reactor, url.host, url.port, timeout=timeout)
    return wrapClientTLS(optionsForClientTLS(url.host), endpoint) if url.kind == "tls" else endpoint


class _Connection(txredisapi.RedisProtocol):  # type: ignore[misc] # txredisapi has no types
    """Remembers when bytes last came, and why the connection ended."""

    def __init__(self, reactor: IReactorTime, url: RedisUrl) -> None:
        # Left alone, txredisapi turns "1.10" into 1.1. A database is always selected: a connection that asks for
        # nothing at the start counts as ready before TLS has checked the certificate.
        password = None if url.password is None else url.password.reveal()
        super().__init__(
            charset=None, password=password, dbid=url.db, convertNumbers=False, username=url.username or None
        )
        self._seconds = reactor.seconds
        self.heard_at = reactor.seconds()
        self.ended_because: BaseException | None = None

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:  # noqa: FBT001, FBT002 - txredisapi's signature
        self.heard_at = self._seconds()
        super().dataReceived(data, unpause)

    def connectionLost(self, why: Failure) -> None:
        self.ended_because = why.value
        super().connectionLost(why)


class _Attempt(Factory):
    """What txredisapi's protocol expects of its factory, for one connection. `ready` fires once with the outcome."""

    noisy = False
    isLazy = False

    def __init__(self, reactor: IReactorTime, url: RedisUrl) -> None:
        self.ready: Deferred[None] = Deferred()
        self._reactor = reactor
        self._url = url

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        connection = _Connection(self._reactor, self._url)
        connection.factory = self
        connection.whenConnected().addCallback(lambda _: self._settle(None))
        connection.whenDisconnected().addCallback(
            lambda _: self._settle(connection.ended_because or ConnectionError("connection lost"))
        )
        return connection

    def stopTrying(self) -> None:
        """Called after a refused password or database. The pool tries again: the server's settings may be mended."""

    def connectionError(self, why: str) -> None:
        self._settle(ConnectionError(why.removeprefix("Redis error: ")))

    def _settle(self, error: BaseException | None) -> None:
        if self.ready.called:
            return
        if error is None:
            self.ready.callback(None)
        else:
            self.ready.errback(error)


#: Replace a page whole, so that nobody reads a mix of two: KEYS page, a name beside it; ARGV seconds to keep it (0: for
#: ever), then fields and values. The new one is written first: a full Redis refuses that, and the old one stays.
_PUT = """
redis.call('HSET', KEYS[2], unpack(ARGV, 2))
redis.call('RENAME', KEYS[2], KEYS[1])
if tonumber(ARGV[1]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
"""

#: KEYS page; ARGV the version that must be there, the new stamp, seconds to keep the page where it was to expire.
_TOUCH = """
local stamp = redis.call('HGET', KEYS[1], 'stamp')
if stamp and cjson.decode(stamp).version == ARGV[1] then
  redis.call('HSET', KEYS[1], 'stamp', ARGV[2])
  if redis.call('TTL', KEYS[1]) >= 0 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
end
"""

#: KEYS withheld links; ARGV now, the second until which to withhold, the link, seconds to keep the set.
_WITHHOLD = """
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""

#: KEYS lease; ARGV owner, the lease, milliseconds. Nothing, or the lease as another owner holds it and for how long.
_TAKE_LEASE = """
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).owner ~= ARGV[1] then return {held, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
"""

#: KEYS lease; ARGV owner.
_RELEASE_LEASE = """
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).owner == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

_DAY = 86_400
#: Seconds for which a pause is known after its end.
_PAUSE_KNOWN = 300
#: Strays in one command: more would hold the reactor, and everybody else's commands, for too long.
_STRAYS_AT_ONCE = 500


@frozen
class _Stamp:
    version: str
    checked_at: float


@frozen
class _FormMeta:
    name: str
    media_type: str
    etag: str
    size: int
    based: bool


@frozen
class _Meta:
    """What is kept of a page beside its stamp and its forms' bytes."""

    upstream_etag: str
    upstream_modified: str
    modified: str
    source: str
    missing: bool
    forms: tuple[_FormMeta, ...]


@frozen
class _Stored:
    """What is kept of a file that is stored elsewhere."""

    size: int
    digest: str


@frozen
class _Lease:
    """What is kept of a lease; Redis itself lets it run out."""

    owner: str
    about: str


@implementer(ICatalog)
class RedisCatalog:
    """
    The catalog that all processes share. `clock` tells the seconds since the epoch.

    `{prefix}:page:{ecosystem}:{page}` is a hash: `stamp` and `meta` in JSON, and a field `form:{name}` with the gzip
    bytes of each form. A missing page expires after a day. `{prefix}:stray:{ecosystem}:{link}` holds a page's name.
    `{prefix}:withheld:{ecosystem}:{page}` is a sorted set of links by the second until which they are withheld.
    `{prefix}:lease:{ecosystem}:{name}` is a lease, with its owner in JSON; `{prefix}:pause:{ecosystem}:{name}` a pause.
    A record that can't be read, by whomever it was written, counts as not there: the page is fetched again.
    """

    log = Logger()

    def __init__(self, client: RedisClient, prefix: str, ecosystem: str, clock: IReactorTime) -> None:
        self._client = client
        self._prefix = prefix
        self._ecosystem = ecosystem
        self._clock = clock

    async def get_page(self, page: PageId) -> Page | None:
        """See `ICatalog.get_page`."""
        reply = await self._client.call("HGETALL", self._key("page", _name(page)))
        if not reply:
            return None
        try:
            return _decode(page, dict(zip(reply[::2], reply[1::2], strict=True)))
        except (KeyError, msgspec.MsgspecError) as error:
            self.log.warn("page {page} in Redis can't be read: {error!r}", page=page, error=error)
            return None

    async def page_stamp(self, page: PageId) -> tuple[str, float] | None:
        """See `ICatalog.page_stamp`."""
        reply = await self._client.call("HGET", self._key("page", _name(page)), "stamp")
        try:
            stamp = None if reply is None else msgspec.json.decode(reply, type=_Stamp)
        except msgspec.MsgspecError:
            return None
        return None if stamp is None else (stamp.version, stamp.checked_at)

    async def put_page(self, page: Page, strays: tuple[str, ...]) -> None:
        """See `ICatalog.put_page`. The strays come first: whoever sees the page can find them."""
        name = _name(page.id)
        for start in range(0, len(strays), _STRAYS_AT_ONCE):
            batch = strays[start : start + _STRAYS_AT_ONCE]
            await self._client.call("MSET", *(word for link in batch for word in (self._key("stray", link), name)))
        key, kept_for = self._key("page", name), _DAY if page.missing else 0
        await self._client.call("EVAL", _PUT, 2, key, f"{key}:new", kept_for, *_encode(page))

    async def touch_page(self, page: PageId, version: str, checked_at: float) -> None:
        """See `ICatalog.touch_page`."""
        stamp = msgspec.json.encode(_Stamp(version, checked_at))
        await self._client.call("EVAL", _TOUCH, 1, self._key("page", _name(page)), version, stamp, _DAY)

    async def delete_page(self, page: PageId) -> None:
        """See `ICatalog.delete_page`."""
        await self._client.call("DEL", self._key("page", _name(page)))

    async def stray(self, link: str) -> PageId | None:
        """See `ICatalog.stray`."""
        reply = await self._client.call("GET", self._key("stray", link))
        return None if reply is None else PageId(*(unquote(part) for part in reply.decode().split("/")))

    async def withhold(self, page: PageId, link: str) -> None:
        """See `ICatalog.withhold`."""
        now = self._clock.seconds()
        key = self._key("withheld", _name(page))
        await self._client.call("EVAL", _WITHHOLD, 1, key, repr(now), repr(now + _DAY), link, _DAY)

    async def withheld(self, page: PageId) -> frozenset[str]:
        """See `ICatalog.withheld`."""
        after = f"({self._clock.seconds()!r}"
        reply = await self._client.call("ZRANGEBYSCORE", self._key("withheld", _name(page)), after, "+inf")
        return frozenset(link.decode() for link in reply)

    async def stored(self, key: str) -> StoredFile | None:
        """See `ICatalog.stored`."""
        reply = await self._client.call("GET", self._key("stored", key))
        try:
            noted = None if reply is None else msgspec.json.decode(reply, type=_Stored)
            return None if noted is None else StoredFile(key, noted.size, Digest.parse(noted.digest))
        except (msgspec.MsgspecError, ValueError):
            return None

    async def put_stored(self, stored: StoredFile) -> None:
        """See `ICatalog.put_stored`."""
        noted = msgspec.json.encode(_Stored(stored.size, str(stored.digest)))
        await self._client.call("SET", self._key("stored", stored.key), noted)

    async def forget_stored(self, key: str) -> None:
        """See `ICatalog.forget_stored`."""
        await self._client.call("DEL", self._key("stored", key), self._key("link", key))

    async def stored_keys(self) -> AsyncIterator[str]:
        """See `ICatalog.stored_keys`."""
        prefix = self._key("stored", "")
        async for name in self._client.names(prefix):
            yield name.removeprefix(prefix)

    async def link(self, key: str) -> tuple[str, float] | None:
        """See `ICatalog.link`."""
        reply = await self._client.call("GET", self._key("link", key))
        if reply is None:
            return None
        until, _, url = reply.decode().partition(" ")
        return url, float(until)

    async def put_link(self, key: str, url: str, until: float) -> None:
        """See `ICatalog.put_link`."""
        seconds = max(1, int(until - self._clock.seconds()))
        await self._client.call("SET", self._key("link", key), f"{until!r} {url}", "EX", seconds)

    async def take_lease(self, name: str, owner: str, seconds: float, about: str = "") -> Held | None:
        """See `ICatalog.take_lease`."""
        lease, key = msgspec.json.encode(_Lease(owner, about)), self._key("lease", name)
        reply = await self._client.call("EVAL", _TAKE_LEASE, 1, key, owner, lease, max(1, int(seconds * 1000)))
        if reply is None:
            return None
        held = msgspec.json.decode(reply[0], type=_Lease)
        return Held(held.owner, max(0.0, int(reply[1]) / 1000), held.about)

    async def release_lease(self, name: str, owner: str) -> None:
        """See `ICatalog.release_lease`."""
        await self._client.call("EVAL", _RELEASE_LEASE, 1, self._key("lease", name), owner)

    async def pause(self, name: str) -> Pause | None:
        """See `ICatalog.pause`."""
        reply = await self._client.call("GET", self._key("pause", name))
        try:
            return None if reply is None else msgspec.json.decode(reply, type=Pause)
        except msgspec.MsgspecError:
            return None

    async def put_pause(self, name: str, pause: Pause) -> None:
        """See `ICatalog.put_pause`."""
        seconds = max(1, int(pause.until - self._clock.seconds()) + _PAUSE_KNOWN)
        await self._client.call("SET", self._key("pause", name), msgspec.json.encode(pause), "EX", seconds)

    async def end_pause(self, name: str) -> None:
        """See `ICatalog.end_pause`."""
        await self._client.call("DEL", self._key("pause", name))

    async def check(self) -> None:
        """See `ICatalog.check`."""
        await self._client.check()

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}:{kind}:{self._ecosystem}:{name}"


def _name(page: PageId) -> str:
    """A page's name in keys and values: its parts percent-encoded, so that ``PageId`` can be had back from it."""
    return "/".join(quote(part, safe="@+!~") for part in (page.kind, page.project, page.version)).rstrip("/")


def _literally(text: str) -> str:
    """A text as a pattern that matches it alone."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def _encode(page: Page) -> list[str | bytes]:
    forms = tuple(_FormMeta(name, f.media_type, f.etag, f.size, f.based) for name, f in page.forms.items())
    meta = _Meta(page.upstream_etag, page.upstream_modified, page.modified, page.source, page.missing, forms)
    stamp = _Stamp(page.version, page.checked_at)
    fields: list[str | bytes] = ["stamp", msgspec.json.encode(stamp), "meta", msgspec.json.encode(meta)]
    for name, form in page.forms.items():
        fields += [f"form:{name}", form.body]
    return fields


def _decode(page: PageId, fields: dict[bytes, bytes]) -> Page:
    """Raises KeyError or MsgspecError for a record that is not as `_encode` writes it."""
    stamp = msgspec.json.decode(fields[b"stamp"], type=_Stamp)
    meta = msgspec.json.decode(fields[b"meta"], type=_Meta)
    return Page(
        id=page,
        checked_at=stamp.checked_at,
        forms={
            form.name: Form(form.media_type, form.etag, form.size, fields[f"form:{form.name}".encode()], form.based)
            for form in meta.forms
        },
        upstream_etag=meta.upstream_etag,
        upstream_modified=meta.upstream_modified,
        modified=meta.modified,
        source=meta.source,
        version=stamp.version,
        missing=meta.missing,
    )
