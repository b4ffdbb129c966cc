"""A socket that several processes share: what one does to it is no failure of the others."""

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
    """A process that accepts at another one's socket."""

    async def test_socket_that_its_owner_shuts_is_no_failure(self) -> None:
        """It may do so a moment before this process is told to stop."""
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
