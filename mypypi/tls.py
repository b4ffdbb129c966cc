"""Says why TLS to a server failed: the host, what is wrong with its certificate, and what to do.

Knows the errors of Twisted, OpenSSL and Python's ssl module. Must never know what a connection is for.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from mypypi.error_chain import chain_of

#: The environment variables with a file of trusted certificates: for OpenSSL, and for boto3.
OPENSSL_TRUST, BOTO_TRUST = "SSL_CERT_FILE", "AWS_CA_BUNDLE"
#: OpenSSL's results of a verification (X509_V_ERR_…, openssl-verification-options(1)), in words for an operator.
_UNKNOWN = (
    "is from an authority that is not trusted here: add that authority's certificate to a file that {trust} names, or"
    " let the server send the certificates between"
)
_FAULTS = {
    2: _UNKNOWN,
    9: "is not valid yet: check the clocks of both machines",
    10: "has expired: renew it, or check this machine's clock",
    18: "is self-signed: add it to a file that {trust} names, or give the server one of a trusted authority",
    19: _UNKNOWN,
    20: _UNKNOWN,
    21: _UNKNOWN,
    23: "was revoked: renew it",
    62: "is for other hosts: use a name that the certificate has, or renew it with this one",
    64: "is for other hosts: use a name that the certificate has, or renew it with this address",
}
_OTHER_HOST = 62
#: Reasons of OpenSSL for a handshake that failed, beside those of certificates.
_HANDSHAKES = {
    "wrong version number": "does not speak TLS at this port: use http:// or another port",
    "packet length too long": "does not speak TLS at this port: use http:// or another port",
    "certificate required": "wants a certificate from its clients, which this program has none of",
    "handshake failure": "refuses every version and cipher of TLS that is secure, or wants a client certificate",
    "protocol version": "supports only versions of TLS that are insecure: let it support TLS 1.2 or later",
    "unsupported protocol": "supports only versions of TLS that are insecure: let it support TLS 1.2 or later",
}


@implementer(IOpenSSLClientConnectionCreator)
class ExplainedTLS:
    """Creates connections as `creator` does, and finds out why the verification of the last one failed."""

    def __init__(self, host: str, creator: Any) -> None:
        self._host = host
        self._creator = creator
        self._last: Any = None

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N803 - the interface's name
        """See `IOpenSSLClientConnectionCreator`."""
        self._last = self._creator.clientConnectionForTLS(tlsProtocol)
        return self._last  # type: ignore[no-any-return]

    def explain(self, error: BaseException) -> str | None:
        """Say why TLS failed; None if the error has nothing to do with TLS."""
        return explain(error, self._host, _result_of(self._last))


def explain(error: BaseException, host: str, result: int | None = None) -> str | None:
    """
    Say why TLS to this host failed; None if the error has nothing to do with TLS.

    `result` is OpenSSL's of the verification, if it is known.
    """
    if isinstance(error, (VerificationError, CertificateError)):
        return _certificate_fault(host, _OTHER_HOST, OPENSSL_TRUST)
    if not isinstance(error, SSL.Error):
        return None
    reasons = [str(each[-1]) for each in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    if any("certificate verify failed" in each for each in reasons):
        return _certificate_fault(host, result, OPENSSL_TRUST)
    return _handshake_fault(host, ", ".join(reasons) or type(error).__name__)


def explain_chain(error: BaseException, host: str) -> str | None:
    """Say why TLS failed in one of the errors that led to this one of boto3; None if none of them is of TLS."""
    for found in chain_of(error):
        if isinstance(found, ssl.SSLCertVerificationError):
            return _certificate_fault(host, found.verify_code, BOTO_TRUST)
        if type(found).__name__ == "CertificateError":  # urllib3's own, for another host's name
            return _certificate_fault(host, _OTHER_HOST, BOTO_TRUST)
        if isinstance(found, ssl.SSLError):
            return _handshake_fault(host, (found.reason or "without a reason").replace("_", " ").lower())
    return None


def _certificate_fault(host: str, result: int | None, trust: str) -> str:
    fault = _FAULTS.get(result or 0, f"can't be verified (OpenSSL's result {result or 'is not known'})")
    return f"the certificate of {host} {fault.format(trust=trust)}"


def _handshake_fault(host: str, reason: str) -> str:
    for part, words in _HANDSHAKES.items():
        if part in reason:
            return f"TLS failed: {host} {words}"
    return f"TLS with {host} failed: {reason}"


def _result_of(connection: Any) -> int | None:
    """Return the result of a connection's verification. pyOpenSSL has no public way to it."""
    with suppress(ImportError, AttributeError):
        from OpenSSL._util import lib  # noqa: PLC0415

        return int(lib.SSL_get_verify_result(connection._ssl))  # noqa: SLF001
    return None
