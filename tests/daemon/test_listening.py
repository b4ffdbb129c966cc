"""Tests of a listening socket that several processes share."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from mypypi.daemon.listening import adopt

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
