"""Tests of name resolution: its time limit, its threads, and who gets one."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.trial.unittest import TestCase

from mypypi.errors import UpstreamBusy
from mypypi.upstream.addresses import Address
from mypypi.upstream.resolver import (
    LONGEST_LOOKUP,
    MOST_LOOKUPS,
    MOST_NEW,
    MOST_OF_DOMAIN,
    MOST_WAITING,
    NameServerTooSlow,
    Resolver,
)
from tests.support.memory import MemoryTestCase

ADDRESS = "192.88.99.1"
FOUND = (ip_address(ADDRESS),)


def found(address: str) -> tuple[Any, ...]:
    """Return an entry of getaddrinfo's result."""
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))


class Lookups:
    """Threads for the resolver, in which each lookup lasts until the test ends it."""

    running = 1

    def __init__(self) -> None:
        self.hosts: dict[str, tuple[Deferred[Any], Any]] = {}
        self.count = 0

    def run(self, function: Any, host: str) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.hosts[host] = done, function
        self.count += 1
        return done

    def end(self, *hosts: str) -> None:
        """End the lookups of these hosts."""
        for host in hosts:
            done, function = self.hosts.pop(host)
            try:
                result = function(host)
            except Exception as error:  # noqa: BLE001 - as in a thread
                done.errback(error)
            else:
                done.callback(result)

    def stopService(self) -> None:
        self.running = 0


class ResolverTest(MemoryTestCase):
    """A resolver whose name servers answer when the test says so."""

    def setUp(self) -> None:
        super().setUp()
        self.lookups = Lookups()
        self.results: dict[str, list[str]] = {}
        self.resolver = self.make_resolver()

    def make_resolver(self, timeout: float = 15) -> Resolver:
        def getaddrinfo(host: str, *_: object) -> list[tuple[Any, ...]]:
            host.encode("idna")
            return [found(each) for each in self.results.get(host, [ADDRESS])]

        threads: Any = self.lookups
        return Resolver(self.clock, "index.example", timeout, getaddrinfo, threads)

    def ask(self, host: str) -> Deferred[tuple[Address, ...]]:
        return self.start(self.resolver.resolve(host))

    def be_quick(self, host: str) -> None:
        """Resolve a name quickly, once."""
        self.ask(host)
        self.lookups.end(host)
        self.clock.advance(6)

    def test_slow_names_delay_no_other(self) -> None:
        """While 30 names of a page are not resolved, upstream, a host of before and a new host are, at once."""
        self.be_quick("files.example")
        slow = [self.ask(f"a.slow{number}.example") for number in range(30)]
        self.assertEqual(30, len(self.lookups.hosts))
        for host in ("index.example", "files.example", "new.example"):
            asked = self.ask(host)
            self.lookups.end(host)
            self.assertEqual(FOUND, self.successResultOf(asked))
        for each in slow:
            self.assertNoResult(each)

    def test_any_number_of_slow_names_leaves_room_for_known_ones(self) -> None:
        """With more slow names than threads, upstream and the hosts of before are resolved at once, all others wait."""
        self.be_quick("files.example")
        for number in range(200):
            self.ask(f"a.slow{number}.example")
        self.assertEqual(MOST_NEW, len(self.lookups.hosts))
        for host in ("index.example", "files.example"):
            asked = self.ask(host)
            self.lookups.end(host)
            self.assertEqual(FOUND, self.successResultOf(asked))
        new = self.ask("new.example")
        self.assertNotIn("new.example", self.lookups.hosts)
        self.clock.advance(LONGEST_LOOKUP)
        self.failureResultOf(new, NameServerTooSlow)
        self.assertEqual(MOST_NEW, len(self.lookups.hosts))  # whoever waited has left

    def test_names_in_one_domain_have_few_threads(self) -> None:
        """Whoever has a domain can make up names in it, and delays only these."""
        for number in range(100):
            self.ask(f"x{number}.evil.example")
        self.assertEqual(MOST_OF_DOMAIN, len(self.lookups.hosts))
        new = self.ask("files.new.example")
        self.lookups.end("files.new.example")
        self.assertEqual(FOUND, self.successResultOf(new))
        self.lookups.end("x0.evil.example")
        self.assertIn("x12.evil.example", self.lookups.hosts)
        self.assertEqual(MOST_OF_DOMAIN, len(self.lookups.hosts))

    def test_known_name_that_becomes_slow_counts_as_a_new_one(self) -> None:
        """The threads for known names are not lost for ever to names that were quick once."""
        hosts = [f"a.h{number}.example" for number in range(MOST_LOOKUPS)]
        for host in hosts:
            self.be_quick(host)
        for host in hosts:
            self.ask(host)
        self.assertEqual(set(hosts), self.lookups.hosts.keys())
        self.clock.advance(LONGEST_LOOKUP)
        self.lookups.end(*hosts)
        self.clock.advance(6)
        for host in hosts:
            self.ask(host)
        self.assertEqual(MOST_NEW, len(self.lookups.hosts))

    def test_time_limit(self) -> None:
        """A name is awaited for less than upstream, and ten seconds at most; after that, its askers fail at once."""
        for timeout, limit in ((3, 2), (60, LONGEST_LOOKUP)):
            self.resolver = self.make_resolver(timeout)
            asked = self.ask("slow.example")
            self.clock.advance(limit - 0.1)
            self.assertNoResult(asked)
            self.clock.advance(0.2)
            self.failureResultOf(asked, NameServerTooSlow)
            self.failureResultOf(self.ask("slow.example"), NameServerTooSlow)
            self.lookups.end("slow.example")
            self.assertEqual(FOUND, self.successResultOf(self.ask("slow.example")))  # it has come after all

    def test_burst_asks_once(self) -> None:
        """All who ask at once, or within a few seconds, share one lookup; leaving does not disturb the others."""
        asked = [self.ask("files.example") for _ in range(20)]
        asked[0].cancel()
        self.lookups.end("files.example")
        for each in asked[1:]:
            self.assertEqual(FOUND, self.successResultOf(each))
        self.assertEqual(FOUND, self.successResultOf(self.ask("files.example")))
        self.assertEqual(1, self.lookups.count)
        self.clock.advance(6)
        self.ask("files.example")
        self.assertEqual(2, self.lookups.count)

    def test_queue_has_a_length(self) -> None:
        """One name too many is busy at once, which is nobody's fault; upstream's own name never is."""
        waiting = [self.ask(f"a.slow{number}.example") for number in range(MOST_NEW + MOST_WAITING)]
        self.failureResultOf(self.ask("one.more.example"), UpstreamBusy)
        own = self.ask("index.example")
        self.lookups.end("index.example")
        self.assertEqual(FOUND, self.successResultOf(own))
        waiting[-1].cancel()
        self.assertNoResult(self.ask("one.more.example"))

    def test_addresses_need_no_thread(self) -> None:
        """An address is its own result."""
        for address in (ADDRESS, "::1"):
            self.assertEqual((ip_address(address),), self.successResultOf(self.ask(address)))
        self.assertEqual(0, self.lookups.count)

    def test_names_without_addresses(self) -> None:
        """Names that do not exist, or can't, fail; the next asker asks again."""
        self.results["none.example"] = []
        for host in ("none.example", "a..b", "x" * 64 + ".example"):
            for _ in range(2):
                asked = self.ask(host)
                self.lookups.end(host)
                self.failureResultOf(asked, DNSLookupError)

    def test_few_addresses_of_a_name_are_used(self) -> None:
        """A name with a hundred addresses is not a hundred connections."""
        self.results["many.example"] = [f"192.88.99.{number}" for number in range(100)]
        asked = self.ask("many.example")
        self.lookups.end("many.example")
        self.assertEqual(8, len(self.successResultOf(asked)))

    def test_stopped_resolver(self) -> None:
        """After the stop no lookup begins."""
        self.resolver.stop()
        self.failureResultOf(self.ask("files.example"), DNSLookupError)
        self.assertEqual(0, self.lookups.running)


class ThreadsTest(TestCase):
    """The resolver with real threads, and the system's resolver."""

    timeout = 30

    async def test_system_resolver(self) -> None:
        """Every form of an address, and the name of this host, is resolved in a thread of the resolver's own."""
        resolver = Resolver(the_reactor, "localhost", 15)
        self.addCleanup(resolver.stop)
        for host, address in (("2130706441", "127.0.0.9"), ("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1")):
            self.assertEqual((ip_address(address),), await resolver.resolve(host))
        self.assertLessEqual(set(await resolver.resolve("localhost")), {ip_address("127.0.0.1"), ip_address("::1")})
