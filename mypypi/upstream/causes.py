"""Finds out why a request to upstream got no answer, or no complete one.

Knows the errors of Twisted and of TLS. Must never know what was requested, or what follows from a failure.
"""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimedOut
from twisted.python.failure import Failure
from twisted.web._newclient import RequestNotSent
from twisted.web.client import RequestTransmissionFailed, ResponseNeverReceived

from mypypi.descriptors import are_used_up, is_shortage
from mypypi.errors import BadUpstreamResponse, UpstreamUnreachable

#: Errors of a request whose connection ended before a byte of the answer came, for example because TLS failed.
_UNANSWERED = (RequestNotSent, RequestTransmissionFailed, ResponseNeverReceived)
#: Errors that say that the origin can't be reached, besides a connection that is closed within the head of an answer.
NOT_CONNECTED = (ConnectError, ConnectingCancelledError, DNSLookupError, *_UNANSWERED)


def cause_of(error: BaseException) -> BaseException:
    """Return the error behind a failed request. Twisted wraps it once sending has begun."""
    if isinstance(error, UpstreamUnreachable):
        return cause_of(error.__cause__) if error.__cause__ is not None else error
    reasons: list[Failure] = getattr(error, "reasons", [])
    return cause_of(reasons[0].value) if reasons and reasons[0].value is not None else error


def excess_of(reason: Failure) -> BadUpstreamResponse | None:
    """Return the error of a body that was given up since it exceeded a bound; None if it ended otherwise."""
    cause = None if reason.value is None else cause_of(reason.value)
    return cause if isinstance(cause, BadUpstreamResponse) else None


def is_closed_unanswered(error: UpstreamUnreachable) -> bool:
    """Whether the connection was closed before a byte of the answer came."""
    return isinstance(error.__cause__, _UNANSWERED) and isinstance(cause_of(error), (RequestNotSent, ConnectionClosed))


def lacks_descriptors(error: BaseException) -> bool:
    """
    Whether the error is that this process has no file descriptor left, which says nothing about upstream.

    The resolver of names and TLS, which opens certificates, do not tell that: they only fail.
    """
    return is_shortage(error) or (isinstance(error, (DNSLookupError, SSL.Error)) and are_used_up())


def reason_of(error: BaseException) -> str:
    """Describe a failed request, apart from TLS, without an address or a secret."""
    if isinstance(error, ConnectionClosed):
        return "it closed the connection"
    if isinstance(error, (ConnectingCancelledError, ConnectTimedOut)):
        return "connecting timed out"
    if isinstance(error, ValueError):  # a length in the answer, a host or a port in the URL
        return "its answer or its address is malformed"
    words = (type(error).__doc__ or type(error).__name__).strip().splitlines()[0]
    return words.rstrip(".").lower()
