"""Sends commands to one Redis: connects, connects again, fails fast while it is down, and says so once.

Knows connections and time limits. Must never know keys, or what a command is for.
Importing txredisapi installs the default reactor: import this module after another one has been installed.
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

from mypypi.errors import CatalogDown
from mypypi.redis.connection import Connection, ConnectionAttempt, endpoint_of

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
        self._endpoint = endpoint_of(reactor, url, timeout)
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

    async def _connection(self) -> Connection:
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

    async def _connect(self) -> Connection:
        """A connection that has answered: one that is only accepted may be refused the password, or be a dead end."""
        attempt = ConnectionAttempt(self._reactor, self._url)
        connection = cast("Connection", await self._endpoint.connect(attempt))
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
        self._came_back()

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        self._fill_up(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._started and not self._usable:
            self._went_away(self._short(failure.value))

    def _lost(self, connection: Connection) -> None:
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


def _literally(text: str) -> str:
    """A text as a pattern that matches it alone."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)
