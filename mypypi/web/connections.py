"""Decides which connections of clients may stay: so many in all, and a share of them for one address.

Knows addresses, and what each connection waits for. Must never know HTTP, or what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol

from attrs import Factory, define
from cachetools import TTLCache
from twisted.logger import Logger

from mypypi.descriptors import for_connections
from mypypi.observability import metrics

#: The part of all connections that one address may have: many clients may share it, and none keeps all others out.
SHARE = 0.75
#: The part of all connections, as 1 / LEAVING, that may besides be on their way out: refused ones that linger until
#: their client has read the answer, and idle ones that are being closed. Of more, the oldest is aborted.
LEAVING = 8
#: Bits of an IPv6 address that belong to one client: a network of this size is assigned to one site (RFC 6177).
_IPV6_SITE = 64
#: Seconds between two warnings about one address, and how many addresses are remembered.
_WARN_EVERY = 60.0
_MOST_WARNED = 1000
#: How many addresses are remembered with the name of their client. Parsing one took a third of the time of `admit`.
_MOST_DESCRIBED = 1000
FULL = "this server has too many connections: try again"

_log = Logger("mypypi.connections")


class Verdict(Enum):
    """What happens to a new connection."""

    STAYS = "stays"
    REFUSED = "refused"  # with an answer
    CLOSED = "closed"  # without one


class Connection(Protocol):
    """What this module needs of a connection."""

    def getPeer(self) -> Any:
        """Return the client's address."""

    def close_idle(self) -> None:
        """Close the connection, which waits for no response."""

    def turn_away(self, why: str) -> None:
        """Refuse the client, whose request is not complete."""

    def abort(self) -> None:
        """Close the connection at once."""


@define(eq=False)
class _Owner:
    """The connections of one address, each in one group; in each group, the oldest comes first."""

    name: str
    #: Whether a limit for one address applies: not to proxies that speak for many clients.
    is_limited: bool
    #: Without a complete request.
    waiting: dict[Connection, None] = Factory(dict)
    #: With a request that is being answered.
    busy: dict[Connection, None] = Factory(dict)
    #: Kept alive after a response.
    idle: dict[Connection, None] = Factory(dict)

    @property
    def count(self) -> int:
        return len(self.waiting) + len(self.busy) + len(self.idle)

    def drop(self, connection: Connection) -> None:
        for group in (self.waiting, self.busy, self.idle):
            group.pop(connection, None)


class Connections:
    """
    The open connections of one server process.

    There are at most `most` (0: as many as the descriptors allow), and a `SHARE` of them of one address. One more
    takes the place of an idle one, of the address that has the most. If there is none, it takes the place of one that
    has sent no complete request. No connection gives way to an address that has more. If none can, the new one is
    refused. With `per_address`, further ones of one address are closed at once. No limit for one address applies to the
    `trusted` networks of proxies.
    """

    def __init__(
        self, clock: Any, most: int = 0, per_address: int = 0, trusted: Sequence[IPv4Network | IPv6Network] = ()
    ) -> None:
        self.most = most or for_connections()
        self.share = max(1, int(self.most * SHARE))
        self._per_address = per_address
        self._describe = lru_cache(_MOST_DESCRIBED)(partial(_describe, trusted))
        self._owners: dict[str, _Owner] = {}
        self._owner_of: dict[Connection, _Owner] = {}
        self._leaving: dict[Connection, None] = {}
        self._warned: TTLCache[str, None] = TTLCache(_MOST_WARNED, _WARN_EVERY, clock.seconds)

    def admit(self, connection: Connection) -> Verdict:
        """Decide on a new connection. A refused one counts as leaving until it has ended."""
        host = getattr(connection.getPeer(), "host", None)
        owner = self._find_owner(host)
        if self._per_address and owner.is_limited and owner.count >= self._per_address:
            self._warn(owner, "the limit for one address; further ones are closed")
            return Verdict.CLOSED
        if owner.is_limited and owner.count >= self.share:
            has_place = self._close_idle(owner)
            if not has_place:
                self._warn(owner, "the most for one address; further ones get a 503")
        else:
            has_place = len(self._owner_of) < self.most or self._make_room(owner)
            if not has_place and "" not in self._warned:
                self._warned[""] = None
                _log.warn("all {most} connections of clients are in use; new ones get a 503", most=self.most)
        if not has_place:
            self._leave(connection)
            return Verdict.REFUSED
        self._owners[owner.name] = self._owner_of[connection] = owner
        owner.waiting[connection] = None
        return Verdict.STAYS

    def warn_of_scarcity(self) -> None:
        """Log that new connections are refused since few file descriptors are left."""
        if "descriptors" not in self._warned:
            self._warned["descriptors"] = None
            _log.warn("few file descriptors are left; new connections get a 503 or are closed")

    def set_waiting(self, connection: Connection) -> None:
        """Note that the first bytes of a request have come."""
        self._move(connection, "waiting")

    def set_busy(self, connection: Connection) -> None:
        """Note that a request is complete, and is being answered."""
        self._move(connection, "busy")

    def set_idle(self, connection: Connection) -> None:
        """Note that the response is sent, and the connection is kept."""
        self._move(connection, "idle")

    def forget(self, connection: Connection) -> None:
        """Note that a connection has ended."""
        self._leaving.pop(connection, None)
        owner = self._owner_of.pop(connection, None)
        if owner is not None:
            owner.drop(connection)
            if not owner.count:
                del self._owners[owner.name]

    def _move(self, connection: Connection, group: str) -> None:
        owner = self._owner_of.get(connection)
        if owner is not None:
            owner.drop(connection)
            getattr(owner, group)[connection] = None

    def _find_owner(self, host: str | None) -> _Owner:
        name, is_limited = "", False
        if host is not None:  # else a unix socket
            name, is_limited = self._describe(host)
        return self._owners.get(name) or _Owner(name, is_limited)

    def _make_room(self, newcomer: _Owner) -> bool:
        """Close a connection in favour of one of this address, and return whether there was one to close."""
        has = newcomer.count if newcomer.is_limited else 0
        owners = [each for each in self._owners.values() if each.count >= has]
        if self._close_idle(max((each for each in owners if each.idle), key=_count, default=newcomer)):
            return True
        greedy = (each for each in owners if each.is_limited and each.waiting and each.count > has + 1)
        owner = max(greedy, key=_count, default=None)
        if owner is None:
            return False
        victim = next(iter(owner.waiting))
        self._leave(victim)
        self._warn(owner, "and sends no request on some; others need their places, so these get a 503")
        victim.turn_away(FULL)
        return True

    def _close_idle(self, owner: _Owner) -> bool:
        """Close the connection of this address that has been idle for longest, if there is one."""
        victim = next(iter(owner.idle), None)
        if victim is None:
            return False
        metrics.CLOSED_IDLE_CONNECTIONS.inc()
        self._leave(victim)
        victim.close_idle()
        return True

    def _leave(self, connection: Connection) -> None:
        """Stop counting a connection that is about to end. Abort the one that has been ending for longest."""
        self.forget(connection)
        self._leaving[connection] = None
        if len(self._leaving) > max(1, self.most // LEAVING):
            oldest = next(iter(self._leaving))
            del self._leaving[oldest]
            oldest.abort()

    def _warn(self, owner: _Owner, what: str) -> None:
        if owner.name not in self._warned:
            self._warned[owner.name] = None
            _log.warn("{client} has {most} connections, {what}", client=owner.name, most=owner.count, what=what)


def _count(owner: _Owner) -> int:
    return owner.count


def _describe(trusted: Sequence[IPv4Network | IPv6Network], host: str) -> tuple[str, bool]:
    """Return the name for all addresses of a client, and whether they have a limit."""
    try:
        address = ip_address(host)
    except ValueError:
        return host, True
    address = getattr(address, "ipv4_mapped", None) or address  # how a dual-stack socket reports IPv4
    if any(address in network for network in trusted):
        return str(address), False
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), _IPV6_SITE), strict=False)), True
    return str(address), True
