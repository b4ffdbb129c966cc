"""Resolves host names in threads of its own, within a time limit.

The system's resolver has no time limit that a caller can set, and a name server that does not answer holds its thread.
Knows names, threads and how long lookups take. Must never know which addresses may be connected to.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from attrs import define, field
from cachetools import LRUCache, TTLCache
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import DNSLookupError
from twisted.python.failure import Failure

from mypypi.errors import UpstreamBusy
from mypypi.threads import Threads
from mypypi.upstream.addresses import Address

#: Seconds for which a lookup is awaited: this share of the time-out of upstream, so that the request fails with the
#: reason before it is late, and at most so many. The system's resolver repeats a question after five seconds.
LOOKUP_SHARE, LONGEST_LOOKUP = 2 / 3, 10.0
#: Lookups at once, besides those of upstream's own host.
MOST_LOOKUPS = 64
#: Lookups at once of names that were not resolved quickly before. The others are for names that were.
MOST_NEW = 48
#: Those of them in one domain: anyone can make up any number of names in a domain of theirs.
MOST_OF_DOMAIN = 12
#: Names that wait for a lookup.
MOST_WAITING = 256
#: Seconds for which a result is used again, and the number of such results.
_KEPT_SECONDS, _MOST_KEPT = 5.0, 1024
#: Seconds within which a lookup is quick, and the number of names that are known to be resolved quickly.
_QUICK, _MOST_QUICK = 1.0, 256
#: Addresses of one name that are used.
_MOST_ADDRESSES = 8

#: `socket.getaddrinfo`, or a function with its arguments and result.
GetAddressInfo = Callable[..., Sequence[tuple[Any, ...]]]


class NameServerTooSlow(DNSLookupError):
    """Its name was not resolved in time."""


@define(eq=False)
class _Lookup:
    """The lookup of one name, for all who wait for it. `began` is None until it has a thread."""

    host: str
    domain: str
    is_quick: bool
    began: float | None = None
    waiting: list[Deferred[tuple[Address, ...]]] = field(factory=list)


class Resolver:
    """
    Resolves names for connections to upstream, and to the hosts that upstream names.

    `own_host` is upstream's: its lookups have a thread of their own. The other threads are shared fairly between names
    that were resolved quickly before, names that were not, and domains. So any number of slow names delays neither
    upstream nor other hosts. All who ask for a name at once share one lookup, and one thread.
    """

    def __init__(
        self,
        reactor: Any,
        own_host: str,
        timeout: float,
        getaddrinfo: GetAddressInfo = socket.getaddrinfo,
        threads: Threads | None = None,
    ) -> None:
        """`timeout`: the time-out of upstream, in seconds. `threads` replaces the threads for other hosts."""
        self._reactor = reactor
        self._own_host = own_host.removesuffix(".")
        self._seconds = min(LOOKUP_SHARE * timeout, LONGEST_LOOKUP)
        self._getaddrinfo = getaddrinfo
        self._threads = threads or Threads(reactor, "names", MOST_LOOKUPS, 0.0)
        self._own_thread = threads or Threads(reactor, "own-name", 1, 0.0)
        self._kept: TTLCache[str, tuple[Address, ...]] = TTLCache(_MOST_KEPT, _KEPT_SECONDS, reactor.seconds)
        self._quick: LRUCache[str, bool] = LRUCache(_MOST_QUICK)
        self._lookups: dict[str, _Lookup] = {}
        self._queue: list[_Lookup] = []
        self._running = 0
        #: The running lookups of names that were not resolved quickly before, by domain.
        self._running_new: Counter[str] = Counter()
        self._stopped = False

    async def resolve(self, host: str) -> tuple[Address, ...]:
        """
        Return the addresses of a host, by its name or by any form of its address.

        Raises DNSLookupError if there are none, NameServerTooSlow, and UpstreamBusy if too many names wait.
        """
        try:
            return (ip_address(host),)
        except ValueError:
            pass
        kept = self._kept.get(host)
        if kept is not None:
            return kept
        if self._stopped:
            raise DNSLookupError("this process is stopping")
        lookup = self._lookups.get(host) or self._begin(host)
        if lookup.began is not None and self._reactor.seconds() - lookup.began >= self._seconds:
            raise NameServerTooSlow(host)
        waiting: Deferred[tuple[Address, ...]] = Deferred()
        lookup.waiting.append(waiting)
        self._start_lookups()
        try:
            return await waiting.addTimeout(self._seconds, self._reactor)
        except DeferredTimeout:
            raise NameServerTooSlow(host) from None
        finally:
            self._leave(lookup, waiting)

    def stop(self) -> None:
        """Stop the threads. Those that wait for a name server end with the process."""
        self._stopped = True
        for threads in (self._threads, self._own_thread):
            if threads.running:
                threads.stopService()

    def _begin(self, host: str) -> _Lookup:
        """Queue a lookup. Raises UpstreamBusy if too many names wait."""
        if len(self._queue) >= MOST_WAITING and host != self._own_host:
            raise UpstreamBusy("too many host names wait for their name servers: try again")
        lookup = _Lookup(host, ".".join(host.split(".")[-2:]), host in self._quick)
        self._lookups[host] = lookup
        self._queue.append(lookup)
        return lookup

    def _leave(self, lookup: _Lookup, waiting: Deferred[tuple[Address, ...]]) -> None:
        """Forget one who waited, and the lookup if it has not begun and nobody else waits."""
        if waiting in lookup.waiting:
            lookup.waiting.remove(waiting)
        if lookup.began is None and not lookup.waiting and lookup in self._queue:
            self._queue.remove(lookup)
            del self._lookups[lookup.host]

    def _start_lookups(self) -> None:
        for lookup in tuple(self._queue):
            if lookup.host == self._own_host:
                self._start(lookup, self._own_thread)
            elif self._has_thread_for(lookup):
                self._running += 1
                self._running_new[lookup.domain] += not lookup.is_quick
                self._start(lookup, self._threads).addBoth(self._give_back, lookup)

    def _has_thread_for(self, lookup: _Lookup) -> bool:
        if self._running >= MOST_LOOKUPS:
            return False
        has_share = self._running_new.total() < MOST_NEW and self._running_new[lookup.domain] < MOST_OF_DOMAIN
        return lookup.is_quick or has_share

    def _start(self, lookup: _Lookup, threads: Threads) -> Deferred[None]:
        self._queue.remove(lookup)
        lookup.began = self._reactor.seconds()
        if not threads.running:
            threads.startService()
        looked_up = threads.run(self._look_up, lookup.host)
        return looked_up.addBoth(self._end, lookup)

    def _look_up(self, host: str) -> tuple[Address, ...]:
        """Resolve a name, in a thread."""
        found = self._getaddrinfo(host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
        addresses = dict.fromkeys(ip_address(each[4][0]) for each in found)
        return tuple(addresses)[:_MOST_ADDRESSES]

    def _end(self, result: tuple[Address, ...] | Failure, lookup: _Lookup) -> None:
        del self._lookups[lookup.host]
        is_quick = lookup.began is not None and self._reactor.seconds() - lookup.began < _QUICK
        if isinstance(result, tuple) and result:
            self._kept[lookup.host] = result
            if is_quick:
                self._quick[lookup.host] = True
        if not is_quick:
            self._quick.pop(lookup.host, None)
        waiting, lookup.waiting = lookup.waiting, []
        for each in waiting:
            if isinstance(result, tuple) and result:
                each.callback(result)
            else:
                each.errback(_error_of(lookup.host, result))

    def _give_back(self, _: object, lookup: _Lookup) -> None:
        """Give the thread to others that wait."""
        self._running -= 1
        self._running_new[lookup.domain] -= not lookup.is_quick
        self._running_new = +self._running_new  # without the domains that have none
        self._start_lookups()


def _error_of(host: str, result: tuple[Address, ...] | Failure) -> DNSLookupError:
    """Return the error for a name without addresses; it keeps the number of the system's error."""
    error = DNSLookupError(host)
    if isinstance(result, Failure):
        error.__cause__ = result.value
    return error
