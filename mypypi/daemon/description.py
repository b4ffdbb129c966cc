"""Reads a Twisted endpoint description, such as ``ssl:443:privateKey=key.pem``, without opening anything.

Knows the kinds of endpoints that come with Twisted, and their arguments. Must never know what listens there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

#: The arguments of the kinds that have some of interest, in order.
_ARGUMENTS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "ssl": (
        "port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters",
    ),
    "tls": ("path", "port", "backlog", "interface"),
}  # fmt: skip
_PROXIED = "haproxy:"


@frozen
class Description:
    """
    The kind of an endpoint (``tcp``, ``unix``, ``ssl``, ``tls``, …) and its arguments by name.

    `proxied`: connections begin with the PROXY protocol's line, so only a proxy can connect.
    """

    kind: str
    arguments: Mapping[str, str]
    proxied: bool = False

    @classmethod
    def parse(cls, text: str) -> Description:
        """Split a description as Twisted does: at colons and equals signs without a backslash."""
        proxied = text.startswith(_PROXIED)
        kind, *parts = re.split(r"(?<!\\):", text.removeprefix(_PROXIED))
        names = iter(_ARGUMENTS.get(kind, ()))
        arguments = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if equals and not name.endswith("\\"):
                arguments[name] = _unescaped(value)
            else:
                arguments[next(names, "")] = _unescaped(part)
        return cls(kind, arguments, proxied)

    @property
    def has_tls(self) -> bool:
        """Whether clients connect with TLS."""
        return self.kind in ("ssl", "tls")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
