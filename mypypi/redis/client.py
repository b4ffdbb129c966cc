"""Sends commands to one Redis.

The client reconnects, fails fast while Redis is down, and logs each outage once. Importing txredisapi installs the
default reactor: import this module after the intended reactor has been installed. Knows connections and time limits.
Must never know keys, nor the purpose of a command.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, cast

import txredisapi
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import CatalogDown, RedisTooSlow
from mypypi.redis.connection import Connection, ConnectionAttempt
from mypypi.redis.trouble import Trouble
from mypypi.redis_budget import REQUEST_BUDGET, within_budget

if TYPE_CHECKING:
    from mypypi.settings.types import RedisUrl

T = TypeVar("T")

#: The reply to a command: bytes, int, None, or a list of these.
Reply: TypeAlias = Any

#: Seconds before the first try to reconnect; the pause doubles with each failure, up to the second value.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: Seconds after which an answer to the probe is slow: a page that is not cached takes seven round trips, and would use
#: up the budget of its request.
_SLOW = REQUEST_BUDGET / 7
#: The longest reason in a log line or an error message, in characters.
_REASON_LENGTH = 200


class RedisClient:
    """
    A pool of connections to one Redis that sends commands.

    While the client is started, it replaces connections that end. A call waits only for the outcome of the first try to
    connect. Once a try has failed, calls fail at once until a later try succeeds. Every command and every try may take
    `timeout` seconds.

    This uses txredisapi's protocol, but not its pool. That pool waits for ever for a Redis that is down, never retries
    after a refused password, and logs every try.

    If a process has several clients for the same Redis, all but one should be `quiet`. That one logs when Redis can't
    be reached, and when it is back.

    `probe` is the command that shows whether Redis works. It should write if the client writes: a replica, or a Redis
    that is out of memory, rejects only writes.
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
        self._open: set[Connection] = set()
        self._usable: list[Connection] = []
        self._attempt: Deferred[Connection] | None = None
        self._retry: IDelayedCall | None = None
        self._pause = _FIRST_PAUSE
        self._waiting: list[Deferred[None]] = []
        self._stopping: list[Deferred[None]] = []
        self._started = False
        self._down_because = "not started"
        self._probe = probe
        self._trouble = Trouble(self.check, str(url), reactor)

    def start(self) -> None:
        """Begin to connect. If Redis is down, this raises nothing: the client retries until it can connect."""
        self._started = True
        self._down_because = ""
        self._pause = _FIRST_PAUSE
        self._trouble.start()
        self._fill_up(0.0)

    def stop(self) -> Deferred[None]:
        """Close the connections. Commands in progress fail. Fires when all connections are closed."""
        self._started = False
        self._down_because = "not started"
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._trouble.stop()
        if self._attempt is not None:
            self._attempt.cancel()
        for connection in list(self._open):
            connection.transport.abortConnection()
        stopped: Deferred[None] = Deferred()
        self._stopping.append(stopped)
        self._fire_if_all_closed()
        self._wake_callers()
        return stopped

    async def check(self) -> None:
        """Send the probe. Raises CatalogDown with the reason if it fails, and RedisTooSlow if it takes long."""
        await self._connection()  # a connection that is being made says nothing about commands
        sent_at = self._reactor.seconds()
        await self._send(*self._probe)
        took = self._reactor.seconds() - sent_at
        if took > _SLOW:
            raise RedisTooSlow(f"Redis takes {took:.1f} s to answer")

    async def call(self, *command: str | bytes | int) -> Reply:
        """
        Send one command and return its reply.

        Strings are returned as bytes, exactly as they were stored. Do not send blocking commands: they delay the other
        commands on the same connection.

        Raises CatalogDown if there is no connection, the command times out, or Redis answers with an error. Raises
        RedisTooSlow if the budget of the request is used up; the command may be executed later.
        """
        try:
            return await within_budget(self._send(*command), self._reactor)
        except RedisTooSlow:
            if not self._down_because:
                self._trouble.suspect()
            raise

    async def _send(self, *command: str | bytes | int) -> Reply:
        connection = await self._connection()
        sent_at = self._reactor.seconds()
        try:
            return await self._with_timeout(connection.execute_command(*command))
        except CancelledError:
            raise
        except TimeoutError as error:
            if connection.heard_at <= sent_at:
                self._abort_silent(sent_at)
            else:
                self._trouble.report(f"is too slow: {error}")
            raise CatalogDown(f"Redis: {error}") from None
        except txredisapi.ResponseError as error:
            reason = self._reason(error)
            self._trouble.report(f"refused a command: {reason}")
            raise CatalogDown(f"Redis answered with an error: {reason}") from None
        except Exception as error:  # noqa: BLE001 - after any error, the caller continues without Redis
            raise CatalogDown(f"Redis: {self._reason(error)}") from None

    async def names(self, prefix: str, kind: str = "") -> AsyncIterator[str]:
        """
        Iterate over the keys that begin with this prefix.

        With `kind`, only over keys whose value is of that type, as Redis's TYPE names it. Scans all keys of the
        database, about a thousand per command, and may yield a key more than once. Raises CatalogDown.
        """
        cursor, wanted = b"0", ("TYPE", kind) if kind else ()
        while True:
            cursor, found = await self.call("SCAN", cursor, "MATCH", f"{_escaped(prefix)}*", "COUNT", 1000, *wanted)
            for name in found:
                yield name.decode()
            if cursor in (b"0", 0):
                return

    async def _connection(self) -> Connection:
        """Return the usable connection with the fewest commands in progress."""
        if not self._usable and not self._down_because:
            outcome: Deferred[None] = Deferred()
            self._waiting.append(outcome)
            await outcome
        if not self._usable:
            raise CatalogDown(f"Redis can't be reached: {self._down_because or 'connection lost'}")
        return min(self._usable, key=lambda connection: len(connection.replyQueue.waiting))

    # Only one try to connect runs at a time. Each step below wakes the waiting callers last: their code runs at once,
    # and may call any method of this client, even `stop`.

    def _fill_up(self, pause: float) -> None:
        idle = self._attempt is None and self._retry is None
        if self._started and idle and len(self._usable) < self._size:
            self._retry = self._reactor.callLater(pause, self._try)

    def _try(self) -> None:
        self._retry = None
        self._attempt = self._with_timeout(Deferred.fromCoroutine(self._connect()))
        self._attempt.addCallbacks(self._succeeded, self._failed)

    async def _connect(self) -> Connection:
        """
        Open a connection, and wait until Redis has answered on it.

        A connection that was only accepted may still fail: Redis may refuse the password, or never answer.
        """
        attempt = ConnectionAttempt(self._reactor, self._url)
        connection = cast("Connection", await attempt.connect(self._timeout))
        self._open.add(connection)
        connection.whenDisconnected().addCallback(self._lost)
        try:
            await attempt.ready
        except Exception:
            connection.transport.abortConnection()
            raise
        return connection

    def _succeeded(self, connection: Connection) -> None:
        self._attempt = None
        self._usable.append(connection)
        self._pause = _FIRST_PAUSE
        self._fill_up(0.0)
        self._mark_up()

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        self._fill_up(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._started and not self._usable:
            self._mark_down(self._reason(failure.value))

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._usable:
            self._usable.remove(connection)
            self._fill_up(_FIRST_PAUSE)
        self._fire_if_all_closed()

    def _fire_if_all_closed(self) -> None:
        if not self._open:
            stopping, self._stopping = self._stopping, []
            for stopped in stopping:
                stopped.callback(None)

    def _abort_silent(self, since: float) -> None:
        """
        Abort the connections that have received nothing since then.

        Otherwise each of them would make another command wait until it times out.
        """
        for connection in [each for each in self._usable if each.heard_at <= since]:
            self._usable.remove(connection)
            connection.transport.abortConnection()
        self._fill_up(_FIRST_PAUSE)

    def _mark_down(self, reason: str) -> None:
        if not self._down_because and not self._quiet:
            self.log.warn(
                "Redis at {where} can't be reached: {reason}; serving without it", where=str(self._url), reason=reason
            )
        self._down_because = reason
        self._wake_callers()

    def _mark_up(self) -> None:
        if self._down_because and not self._quiet:
            self.log.info("Redis at {where} is back", where=str(self._url))
        self._down_because = ""
        self._wake_callers()

    def _wake_callers(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outcome in waiting:
            outcome.callback(None)

    def _with_timeout(self, deferred: Deferred[T]) -> Deferred[T]:
        return deferred.addTimeout(self._timeout, self._reactor, self._raise_timeout)

    @staticmethod
    def _raise_timeout(_result: object, timeout: float) -> NoReturn:
        raise TimeoutError(f"no answer within {timeout:g} s")

    def _reason(self, error: BaseException | None) -> str:
        """
        Describe an error in a few words, for the log and for clients.

        Redis answers an unknown command (AUTH can be one) with its arguments. They are cut off, since they may contain
        the password.
        """
        text = str(error).partition(", with args beginning")[0].strip().rstrip(".") or type(error).__name__
        password = self._url.password.reveal() if self._url.password is not None else ""
        return (text.replace(password, "…") if password else text)[:_REASON_LENGTH]


def _escaped(text: str) -> str:
    """Escape a text for MATCH, so that it only matches itself."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)
