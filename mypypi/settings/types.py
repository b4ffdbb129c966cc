"""The types of settings: choices, numbers, addresses, secrets, the URL of a Redis.

Knows texts and the values that they become. Must never know which setting has which type, open what a text names, or
show a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import frozen
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

NOT_SHOWN = "(not shown)"
_HOST = re.compile(r"[0-9A-Za-z._-]+|[0-9A-Fa-f:.]+")
_REDIS_KINDS: dict[str, Literal["tcp", "tls", "unix"]] = {"redis": "tcp", "rediss": "tls", "unix": "unix"}
REDIS_URL = (
    "redis://, rediss:// or unix://, as in redis://user:password@redis.example:6379/0 or "
    "unix://user:password@/path/to/socket?db=0: a user needs a password, both are percent-encoded, and db is the only "
    "option"
)


#: A host's name or a network, and a port; None for any port.
TrustedHost = tuple[str | IPv4Network | IPv6Network, int | None]


@frozen
class Secret:
    """A text that never appears in a repr, message or log. Only `reveal` returns it."""

    _value: str

    def __repr__(self) -> str:
        return NOT_SHOWN

    def reveal(self) -> str:
        """Return the secret itself, to be sent to its service."""
        return self._value


@frozen
class RedisUrl:
    """
    The address of a Redis, parsed from a URL as redis-py's ``from_url`` accepts it.

    `path` is the socket's path for kind ``unix``, else empty. `host` and `port` are unused for ``unix``.
    """

    kind: Literal["tcp", "tls", "unix"]
    host: str = "localhost"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = None
    password: Secret | None = None

    @classmethod
    def parse(cls, text: str) -> RedisUrl:
        """
        Parse a URL.

        Raises ValueError with the expected form. Its message never contains `text`, which may contain a password.
        """
        url = None
        with suppress(ValueError):  # not re-raised from here: the original, which quotes the text, would stay attached
            url = cls._parse(text)
        if url is None:
            raise ValueError(f"expected {REDIS_URL}")
        return url

    @classmethod
    def _parse(cls, text: str) -> RedisUrl | None:
        parts = urlsplit(text)
        kind = _REDIS_KINDS.get(parts.scheme)
        options = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        place = unquote(parts.path)
        db = options.pop("db", ["0" if kind == "unix" else place.strip("/") or "0"])[0]
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        host, port = parts.hostname or "localhost", 6379 if parts.port is None else parts.port
        if "[" in parts.netloc.rpartition("@")[2]:
            ip_address(host)  # Python before 3.11 accepts any text in brackets
        if not kind or options or parts.fragment or not re.fullmatch("[!-~]+", text) or not re.fullmatch("[0-9]+", db):
            return None
        if (username and not password) or not _HOST.fullmatch(host) or port == 0:
            return None
        if kind == "unix" and (parts.hostname or parts.port or place in ("", "/")):
            return None
        secret = Secret(password) if password else None
        return cls(kind, host, port, place if kind == "unix" else "", int(db), username or None, secret)

    def __str__(self) -> str:
        """Return the address without user and password."""
        if self.kind == "unix":
            return f"unix://{self.path}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.kind == 'tls' else 'redis'}://{host}:{self.port}/{self.db}"


@frozen
class SettingType:
    """
    The type of a setting: it checks a text and converts it.

    `convert` raises ValueError for an invalid text; its message is never shown, since it may contain a secret.
    `expected` describes the valid texts, for error messages. `unset` is the value without a text.
    """

    convert: Callable[[str], object]
    expected: str
    secret: bool = False
    unset: object = None

    def __call__(self, value: object) -> object:
        if value is None or value == "":
            return self.unset
        return self.convert(value) if isinstance(value, str) else value  # a computed default is a value already

    def takes(self, text: str) -> bool:
        with suppress(ValueError):
            self.convert(text)
            return True
        return False


def matching(
    pattern: str, expected: str, convert: Callable[[str], object] = str, *, secret: bool = False
) -> SettingType:
    """Accept texts that match this pattern, and convert them."""

    def matched(text: str) -> object:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return convert(text)

    return SettingType(matched, expected, secret)


def choice(*words: str) -> SettingType:
    """Accept one of these words."""
    return matching("|".join(words), " or ".join(words))


def number(what: str, lowest: int = 1, highest: int = 999_999_999) -> SettingType:
    """Accept a whole number within these bounds."""

    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,15}", text) or not lowest <= int(text) <= highest:
            raise ValueError(text)
        return int(text)

    return SettingType(number, f"{what} from {lowest} to {highest}")


def boolean(text: str) -> bool:
    """Parse true or false in the common spellings. Raises ValueError."""
    if text.lower() not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes", "on")


def url(text: str) -> str:
    """Check an HTTP address, and return it without trailing slashes. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.hostname or "") or parts.port == 0:
        raise ValueError(text)
    if not re.fullmatch("[!-~]+", text) or re.search("[?#]", text) or "@" in parts.netloc:
        raise ValueError(text)
    return parts._replace(path=parts.path.rstrip("/")).geturl()


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Parse addresses and networks, separated by commas. Raises ValueError."""
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(","))


def trusted_hosts(text: str) -> tuple[TrustedHost, ...]:
    """
    Parse hosts, addresses and networks, separated by commas, each but a network with a port if one is meant.

    Returns each as a host's name or a network, with the port or None. Raises ValueError.
    """
    return tuple(_trusted_host(part.strip()) for part in text.split(","))


def _trusted_host(text: str) -> TrustedHost:
    with suppress(ValueError):
        return ip_network(text, strict=False), None
    parts = urlsplit(f"//{text}")
    host = parts.hostname or ""
    if parts.netloc != text or "@" in text or parts.port == 0 or not _HOST.fullmatch(host):
        raise ValueError(text)
    with suppress(ValueError):
        return ip_network(host), parts.port
    return host.removesuffix("."), parts.port


def endpoint(text: str) -> str:
    """
    Check a Twisted server endpoint description without opening anything.

    ``tcp``, ``tcp6`` and ``unix`` are parsed, which only creates an object. Other kinds are checked by name only: the
    parser of ``ssl`` reads the certificate and that of ``systemd`` looks for its sockets, but not every process that
    reads the settings has them. Raises ValueError.
    """
    kind, colon, _ = text.partition(":")
    if kind in ("tcp", "tcp6", "unix"):
        try:
            serverFromString(None, text)
        except (TypeError, RuntimeError):  # missing or unknown arguments; a backslash at the end
            raise ValueError(text) from None
    elif not colon or (kind != "ssl" and kind not in {p.prefix for p in getPlugins(IStreamServerEndpointStringParser)}):
        raise ValueError(text)
    return text


SECONDS = number("a whole number of seconds")
BOOLEAN = SettingType(boolean, "true or false (or 1, yes, on, 0, no, off)")
DIRECTORY = SettingType(lambda text: Path(text).absolute(), "a path")
CREDENTIAL = matching(r"[^\x00-\x1f\x7f]+", "text without a line break or other control character", Secret, secret=True)
URL = "an http:// or https:// address with a host, and without a query, a fragment or credentials"
