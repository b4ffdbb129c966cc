"""Tests of which addresses are connected to, in memory, with Twisted's own agent and a resolver of the test's."""

from __future__ import annotations

import socket
from typing import Any
from unittest import mock

from twisted.internet.interfaces import IReactorTCP
from twisted.internet.task import Clock
from zope.interface import implementer

from mypypi.errors import BadUpstreamResponse, MyPyPiError, UpstreamDown, UpstreamUnreachable
from mypypi.model import PageRequest
from mypypi.settings.types import trusted_hosts
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.breaker import Breaker
from mypypi.upstream.client import Upstream
from mypypi.upstream.guard import AddressGuard
from mypypi.upstream.requester import Credentials
from mypypi.upstream.resolver import Resolver
from tests.support.fakes import MemoryCatalog
from tests.support.memory import NOW, AtOnce, Exchange, MemoryTestCase, Wire

PUBLIC, ANOTHER = "192.88.99.1", "192.88.99.2"
PAGE = PageRequest("/simple/a/", "text/html")


@implementer(IReactorTCP)
class Net(Clock):
    """A reactor whose connections all succeed, to the wire's upstream. `connected` has their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = NOW
        self.wire = Wire(self)
        self.connected: list[tuple[str, int]] = []

    def connectTCP(self, host: str, port: int, factory: Any, *_: Any, **__: Any) -> Any:
        self.connected.append((host, port))
        protocol = factory.buildProtocol(None)
        exchange = Exchange(f"{host}:{port}", protocol, self.wire)
        self.wire.exchanges.append(exchange)
        protocol.makeConnection(exchange)
        return mock.Mock()

    def listenTCP(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Names:
    """The addresses of names, in place of the system's resolver. It counts the questions."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = {name.replace("_", "."): texts.split() for name, texts in addresses.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, *_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        try:  # numbers in any form are addresses: no name server is asked
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (socket.inet_ntoa(socket.inet_aton(host)), 0))]
        except OSError:
            found = self.addresses.get(host, [])
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(None, socket.SOCK_STREAM, 6, "", (each, 0)) for each in found]


class GuardTestCase(MemoryTestCase):
    """An upstream on the public internet, unless the test says otherwise."""

    def setUp(self) -> None:
        super().setUp()
        self.net = Net()
        self.names = Names(index_example=PUBLIC, files_example=ANOTHER)
        self.make_upstream()

    def make_upstream(self, url: str = "http://index.example", trusted: str = "") -> None:
        threads = AtOnce()
        threads.running = 1
        self.guard = AddressGuard(
            Resolver(self.net, url.partition("://")[2], 15, self.names, threads),
            url,
            trusted_hosts(trusted) if trusted else (),
        )
        self.catalog = MemoryCatalog(self.net)
        self.breaker = Breaker(Backoff(self.catalog, self.net), self.catalog, "one", self.net, 20)
        credentials = Credentials("user", "password")
        self.upstream = Upstream(
            self.net, url, credentials=credentials, breaker=self.breaker, guard=self.guard, concurrency=2
        )

    def refused(self, url: str) -> str:
        """Ask for a file, and return the reason why nothing is connected to."""
        before = list(self.net.connected)
        error = self.failing(self.upstream.file(url, {}), BadUpstreamResponse)
        self.assertEqual((before, 502), (self.net.connected, error.status))
        return str(error)

    def connected(self, url: str) -> tuple[str, int]:
        """Ask for a file, let upstream answer, and return the address that was connected to."""
        count = len(self.net.connected)
        pending = self.start(self.upstream.file(url, {}))
        self.assertEqual(count + 1, len(self.net.connected))
        self.net.wire.last.answer(body=b"content", connection="close")
        self.successResultOf(pending).close()
        return self.net.connected[-1]


class RefusedAddressTest(GuardTestCase):
    """Hosts that a page names are not connected to, unless their addresses are public."""

    def test_literal_addresses_in_every_form(self) -> None:
        """No form of an address of this host, its link or its network is connected to."""
        for host, kind in {
            "127.0.0.9:8000": "a loopback",
            "2130706441:8000": "a loopback",
            "127.1": "a loopback",
            "0x7f.1:80": "a loopback",
            "0177.0.0.1": "a loopback",
            "127.0.0.1.": "a loopback",
            "0.0.0.0:8000": "an unspecified",
            "0": "an unspecified",
            "10.0.0.1": "a private",
            "100.64.0.1": "a private",
            "169.254.169.254": "a link-local",
            "100.100.100.200": "a cloud metadata",
            "224.0.0.1": "a multicast",
            "255.255.255.255": "a reserved",
        }.items():
            reason = self.refused(f"http://{host}/a-1.whl")
            self.assertIn(f", {kind} address, which is not connected to", reason)
            self.assertIn("MYPYPI_UPSTREAM_TRUST", reason)

    def test_ipv6_addresses(self) -> None:
        """Neither a name that leads to such an IPv6 address nor the address itself is connected to."""
        for address, kind in {
            "::1": "loopback",
            "::ffff:127.0.0.1": "loopback",
            "64:ff9b::7f00:1": "loopback",
            "2002:7f00:1::": "loopback",
            "::": "unspecified",
            "fd00::1": "private",
            "fe80::1": "link-local",
        }.items():
            self.names.addresses["six.example"] = [address]
            self.assertIn(kind, self.refused("http://six.example/a"))
            self.net.advance(10)
            self.failing(self.upstream.file(f"http://[{address}]:81/a", {}), MyPyPiError)
            self.assertIn(kind, str(self.failing(self.guard.check(f"http://[{address}]/a"), BadUpstreamResponse)))
        self.assertEqual([], self.net.connected)

    def test_names(self) -> None:
        """A name is judged by the address that it leads to, over TLS as well; the reason names the host."""
        self.names.addresses["inner.example"] = ["10.1.2.3"]
        for url in ("http://inner.example/a", "https://INNER.example./a"):
            self.assertIn("upstream leads to inner.example, a private address", self.refused(url))
            self.assertNotIn("10.1.2.3", self.refused(url))

    def test_redirects(self) -> None:
        """A redirect to an inner address is not followed, from upstream as from a foreign host."""
        for url in ("http://index.example/a", "http://files.example/a"):
            pending = self.start(self.upstream.file(url, {}))
            self.net.wire.last.answer(302, location="http://2130706441:9/admin")
            self.net.advance(0)
            self.failureResultOf(pending, BadUpstreamResponse)
        self.assertEqual([(PUBLIC, 80), (ANOTHER, 80)], self.net.connected)

    def test_redirects_of_pages_and_audits(self) -> None:
        """A page and an audit are not read from an inner address either."""
        for asked in (self.upstream.page(PAGE), self.upstream.pass_on("audit", "POST", "/audit", {}, b"{}")):
            pending = self.start(asked)
            self.net.wire.last.answer(307, location="http://127.1/")
            self.net.advance(0)
            self.failureResultOf(pending, BadUpstreamResponse)

    def test_name_that_changes_its_address(self) -> None:
        """The address that was checked is the one that is connected to: the name is not resolved again for that."""
        self.assertEqual((ANOTHER, 80), self.connected("http://files.example/a"))
        self.assertEqual(1, self.names.asked.count("files.example"))
        self.names.addresses["files.example"] = ["127.0.0.1"]
        self.net.advance(10)
        self.refused("http://files.example/a")
        self.assertEqual(2, self.names.asked.count("files.example"))

    def test_name_with_several_addresses(self) -> None:
        """Of a name with public and other addresses, only the public ones are connected to."""
        self.names.addresses["both.example"] = ["127.0.0.1", ANOTHER, "::1"]
        self.assertEqual((ANOTHER, 80), self.connected("http://both.example/a"))

    def test_kept_connections_are_as_good_as_new_ones(self) -> None:
        """A request that is sent again on a new connection is checked again."""
        first = self.start(self.upstream.file("http://files.example/a", {}))
        self.net.wire.last.answer(body=b"")
        self.successResultOf(first).close()
        pending = self.start(self.upstream.file("http://files.example/b", {}))
        self.assertEqual(1, len(self.net.connected))
        self.names.addresses["files.example"] = ["127.0.0.1"]
        self.net.advance(10)
        self.net.wire.last.end()
        self.failureResultOf(pending, BadUpstreamResponse)
        self.assertEqual(1, len(self.net.connected))

    def test_breaker_sees_nothing(self) -> None:
        """A refused address says nothing about its origin, which no request has reached."""
        for _ in range(10):
            self.refused("http://10.0.0.1/a")
        self.assertEqual(0, self.breaker.remaining("http://10.0.0.1/a", "file"))
        self.connected("http://index.example/a")


class AllowedAddressTest(GuardTestCase):
    """What upstream's own address, or the operator, allows."""

    def test_class_of_upstream(self) -> None:
        """An upstream on loopback or in a private network allows hosts of the same class, and no others."""
        for own, same, other in (
            ("127.0.0.1", "127.0.0.9", "10.0.0.1"),
            ("192.168.1.1", "10.0.0.1", "127.0.0.1"),
            ("fd00::1", "100.64.0.1", "::1"),
        ):
            self.names.addresses.update({"index.example": [own], "same.example": [same], "other.example": [other]})
            self.make_upstream()
            self.assertEqual((same, 81), self.connected("http://same.example:81/a"))  # before upstream is connected to
            self.assertEqual((own, 80), self.connected("http://index.example/a"))
            self.refused("http://other.example/a")

    def test_upstream_that_is_not_resolved(self) -> None:
        """While upstream is never resolved, only public addresses are allowed; after that, what it had counts."""
        self.names.addresses.update({"index.example": [], "same.example": ["127.0.0.9"]})
        self.refused("http://same.example/a")
        self.connected("http://files.example/a")
        self.names.addresses["index.example"] = ["127.0.0.1"]
        self.connected("http://same.example/a")
        self.names.addresses["index.example"] = []
        self.net.advance(10)
        self.failing(self.upstream.file("http://index.example/a", {}), UpstreamUnreachable)
        self.connected("http://same.example/a")

    def test_upstream_that_moves(self) -> None:
        """When upstream's name gets a public address, its old class is not allowed any more."""
        self.names.addresses.update({"index.example": ["10.0.0.1"], "same.example": ["10.0.0.2"]})
        self.connected("http://same.example/a")
        self.names.addresses["index.example"] = [PUBLIC]
        self.net.advance(10)
        self.refused("http://same.example/a")

    def test_link_local_addresses_must_be_named(self) -> None:
        """An upstream with a link-local or private address does not allow the metadata of its cloud."""
        for own in ("169.254.1.1", "10.0.0.1"):
            self.names.addresses.update({"index.example": [own], "meta.example": ["169.254.169.254"]})
            self.make_upstream()
            self.refused("http://meta.example/a")
            self.refused("http://169.254.169.254/a")
            self.refused("http://100.100.100.200/a")
        self.make_upstream("http://169.254.1.1")
        self.assertEqual(("169.254.1.1", 80), self.connected("http://169.254.1.1/a"))
        self.refused("http://169.254.169.254/a")

    def test_trusted_hosts(self) -> None:
        """A trusted host, host with a port, address or network is connected to, and no other."""
        self.names.addresses |= {"inner.example": ["10.0.0.1"], "meta.example": ["169.254.169.254"]}
        self.names.addresses |= {"mapped.example": ["::ffff:10.0.0.1"], "six.example": ["::1"]}
        for trusted, allowed, refused in (
            ("Inner.example.", "http://inner.example:81/", "http://10.0.0.1/"),
            ("inner.example:81", "http://inner.example:81/", "http://inner.example/"),
            ("meta.example", "http://meta.example/", "http://169.254.169.254/"),
            ("10.0.0.0/8, x.example", "http://inner.example/", "http://192.168.0.1/"),
            ("10.0.0.0/8", "http://mapped.example/", "http://six.example/"),
            ("::1", "http://six.example/", "http://mapped.example/"),
            ("[::1]:81", "http://six.example:81/", "http://six.example/"),
            ("10.0.0.1:443", "https://inner.example/", "http://inner.example/"),
        ):
            self.make_upstream(trusted=trusted)
            self.refused(refused + "a")
            pending = self.start(self.upstream.file(allowed + "a", {}))
            self.assertNoResult(pending)
            self.net.wire.last.cut()

    def test_redirects_of_clients(self) -> None:
        """Clients are not redirected to such addresses either, but to names that are only unknown here."""
        self.names.addresses["inner.example"] = ["127.0.0.1"]
        self.failing(self.guard.check("http://inner.example/a"), BadUpstreamResponse)
        self.failing(self.guard.check("https://2130706441:9/a"), BadUpstreamResponse)
        for allowed in ("http://files.example/a", "http://unknown.example/a", "http://index.example/a"):
            self.now(self.guard.check(allowed))
        self.assertNotIn("index.example", self.names.asked[-1:])
        self.names.addresses["index.example"] = ["127.0.0.1"]
        self.net.advance(10)
        self.now(self.guard.check("http://inner.example/a"))  # it is of upstream's class now

    def test_unknown_name_is_a_failure_to_connect(self) -> None:
        """A name without an address fails as before, and with its reason."""
        error = self.failing(self.upstream.file("http://unknown.example/a", {}), UpstreamDown)
        self.assertEqual("upstream can't be reached: dns lookup failed", str(error))
