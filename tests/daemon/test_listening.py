"""Tests of listening sockets: shared by several processes, and with certificates that change."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from mypypi.daemon.lifecycle import CannotStart
from mypypi.daemon.listening import adopt, listen, listen_anew
from tests.rig.certificates import Certificate, name_at

reactor: Any = the_reactor


class AdoptingTest(TestCase):
    """A process adopts a socket that another process has bound."""

    async def test_a_socket_shut_down_by_its_owner_is_no_error(self) -> None:
        """
        The port of a socket that its owner shuts down stops reading.

        The owner may do so a moment before this process is told to stop.
        """
        owned = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(owned.close)
        ports: list[Any] = []
        factory = Factory()
        factory.noisy = False
        adopt(reactor, os.dup(owned.fileno()), "tcp:0:interface=127.0.0.1", factory, ports.append)
        owned.shutdown(socket.SHUT_RDWR)
        (port,) = ports
        port.doRead()
        assert port not in reactor.getReaders()
        await port.stopListening()


class AcceptingTest(TestCase):
    """A port accepts connections."""

    async def test_many_connections_are_accepted_in_several_turns(self) -> None:
        """A port accepts a few connections in each turn of the reactor, however many wait, and in the end all."""
        ports: list[Any] = []
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        accepted: list[object] = []
        factory.buildProtocol = accepted.append  # type: ignore[assignment] # returns None, which closes the connection
        listen(reactor, "tcp:0:interface=127.0.0.1", factory, ports.append)
        (port,) = ports
        for _ in range(50):
            client = socket.create_connection(("127.0.0.1", port.getHost().port))
            self.addCleanup(client.close)
        seen = []
        while len(accepted) < 50:
            before = len(accepted)
            port.doRead()
            seen.append(len(accepted) - before)
        assert max(seen) == 4
        await port.stopListening()


class ReloadTest(TestCase):
    """A port reads its certificate again, whichever kind of endpoint names it."""

    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.factory = Factory.forProtocol(Protocol)
        self.factory.noisy = False

    async def test_every_kind_of_endpoint_with_tls(self) -> None:
        """New connections get the new certificate, also with a directory of certificates or behind a wrapper."""
        files = f"privateKey={self.directory}/key.pem:certKey={self.directory}/cert.pem"
        for description in (f"ssl:0:{files}", f"tls:{self.directory}:port=0", f"haproxy:ssl:0:{files}"):
            Certificate.make("first.example").write(self.directory)
            ports: list[Any] = []
            listen(reactor, description, self.factory, ports.append)
            (port,) = ports
            assert await deferToThread(name_at, port.getHost().port) == "first.example"
            Certificate.make("second.example").write(self.directory)
            assert [each.names for each in listen_anew(reactor, port, description, self.factory)] == [
                ("second.example",)
            ]
            assert await deferToThread(name_at, port.getHost().port) == "second.example"
            (self.directory / "cert.pem").write_bytes(b"broken")
            with self.assertRaisesRegex(CannotStart, "cert.pem|no file"):
                listen_anew(reactor, port, description, self.factory)
            assert await deferToThread(name_at, port.getHost().port) == "second.example"
            await port.stopListening()
            assert self.factory.numPorts == 0
        self.flushWarnings()  # Twisted passes pyOpenSSL objects of a kind that is deprecated

    async def test_an_endpoint_without_tls_has_nothing_to_read(self) -> None:
        """A port without TLS stays as it is."""
        ports: list[Any] = []
        listen(reactor, "tcp:0:interface=127.0.0.1", self.factory, ports.append)
        assert listen_anew(reactor, ports[0], "tcp:0:interface=127.0.0.1", self.factory) == []
        assert ports[0].factory is self.factory
        await ports[0].stopListening()
