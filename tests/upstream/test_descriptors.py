"""Tests of requests for which this process can't open a connection: it has no file descriptor left."""

from __future__ import annotations

import errno
import os
from unittest import mock

from twisted.internet.defer import fail
from twisted.internet.error import ConnectBindError, DNSLookupError

from mypypi.errors import OutOfDescriptors, UpstreamUnreachable
from tests.rig.descriptors import few_descriptors
from tests.support import memory
from tests.upstream.cases import BreakerTestCase

NO_DESCRIPTOR = ConnectBindError(errno.EMFILE, os.strerror(errno.EMFILE))
UNKNOWN_NAME = DNSLookupError("no results for hostname lookup: index.example")


class DescriptorTest(BreakerTestCase):
    """Upstream is not to blame, and is not held back."""

    def refuse(self, error: Exception) -> None:
        """Let every connection fail with this error."""
        patched = mock.patch.object(memory._Endpoint, "connect", side_effect=lambda *_: fail(error))
        patched.start()
        self.addCleanup(patched.stop)

    def test_upstream_is_not_held_back(self) -> None:
        """The error says what is used up, however often it happens. The next request is sent."""
        for work in (self.page, self.file, self.audit):
            with mock.patch.object(memory._Endpoint, "connect", side_effect=lambda *_: fail(NO_DESCRIPTOR)):
                for _ in range(6):
                    error = self.failing(work(), OutOfDescriptors)
                    self.assertEqual(503, error.status)
                    self.assertIn("upstream can't be asked: this server has run out of file descriptors", str(error))
            self.send()
        self.assertEqual([], self.events)

    def test_a_trial_does_not_prolong_the_pause(self) -> None:
        """A trial that can't be sent says nothing about upstream, and another request is the trial at once."""
        self.refuse_connections()
        self.clock.advance(2)
        with mock.patch.object(memory._Endpoint, "connect", side_effect=lambda *_: fail(NO_DESCRIPTOR)):
            self.failing(self.page(), OutOfDescriptors)
        self.send(upstream=self.other)

    def test_a_name_that_can_not_be_resolved(self) -> None:
        """The resolver does not tell that it can't open a socket, so a descriptor is opened to find out."""
        self.refuse(UNKNOWN_NAME)
        self.failing(self.page(), UpstreamUnreachable)
        with few_descriptors([os.getpid()], 0):
            pending = self.page()
        self.failing(pending, OutOfDescriptors)
