"""Tests of the address in links. Only trusted proxies can change it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any, Literal

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.web.test.requesthelper import DummyRequest

from mypypi.errors import BadRequest
from mypypi.web.public_address import Addresses, is_host

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 1234)
UNTRUSTED = IPv4Address("TCP", "192.0.2.7", 1234)

PLAIN = Addresses()
TRUSTED = (ip_network("127.0.0.0/8"), ip_network("2001:db8::/32"))
BEHIND_A_PROXY = Addresses(trusted=TRUSTED)


def behind(headers: Mapping[str, str]) -> Addresses:
    """Return addresses that believe the family of these headers."""
    family: Literal["x-forwarded", "forwarded"] = "forwarded" if "forwarded" in headers else "x-forwarded"
    return Addresses(trusted=TRUSTED, family=family)


def base(addresses: Addresses, headers: Mapping[str, str], peer: IAddress = LOOPBACK, *, tls: bool = False) -> str:
    """Return the address for a request with these headers."""
    return addresses.base(request_of(headers, peer, tls=tls))


def request_of(headers: Mapping[str, str], peer: IAddress = LOOPBACK, *, tls: bool = False) -> Any:
    """Return a request with these headers."""
    request: Any = DummyRequest([])
    request.client = peer
    request.isSecure = lambda: tls
    for name, value in headers.items():
        request.requestHeaders.setRawHeaders(name, [value])
    return request


class TestWithoutProxies:
    """Addresses without a trusted proxy."""

    @pytest.mark.parametrize(
        "host", ["npm.example", "npm.example:8080", "127.0.0.1:4873", "[2001:db8::1]:80", "[::1]", "my_host.local"]
    )
    def test_address_is_the_host_header(self, host: str) -> None:
        """The address is the Host header with its port, and https on a TLS connection."""
        assert base(PLAIN, {"host": host}) == f"http://{host}"
        assert base(PLAIN, {"host": host}, tls=True) == f"https://{host}"

    @pytest.mark.parametrize(
        "host",
        [
            "",
            "a b",
            "a/b",
            "a@b",
            'a"b',
            "a.example:80:80",
            "a.example:port",
            "a.example:123456",
            "<script>",
            "é",
            "a?b",
            "[....]",
            "[1.2.3.4]",
            "[:::]:80",
            "[::1]:65536",
            "a.example:99999",
        ],
    )
    def test_invalid_host_is_a_bad_request(self, host: str) -> None:
        """An invalid Host is a bad request, since the address is written into pages."""
        assert not is_host(host)
        with pytest.raises(BadRequest, match="not a valid address"):
            base(PLAIN, {"host": host})

    def test_missing_host_is_a_bad_request(self) -> None:
        """A request without Host, as in HTTP/1.0, is a bad request."""
        with pytest.raises(BadRequest):
            base(PLAIN, {})

    def test_public_url_replaces_the_host_header(self) -> None:
        """A configured public URL counts for every client, with any Host or none."""
        addresses = Addresses("https://npm.example/cache", (ip_network("127.0.0.1"),))
        assert base(addresses, {}) == "https://npm.example/cache"
        assert (
            base(addresses, {"host": "other.example", "x-forwarded-host": "another.example"})
            == "https://npm.example/cache"
        )


#: Headers of a proxy, and the resulting address for a request to inner.example.
FORWARDED = [
    ({"x-forwarded-proto": "https"}, "https://inner.example"),
    ({"x-forwarded-proto": "HTTPS"}, "https://inner.example"),
    ({"x-forwarded-host": "npm.example:8443"}, "http://npm.example:8443"),
    ({"x-forwarded-prefix": "/cache/npm"}, "http://inner.example/cache/npm"),
    ({"x-forwarded-prefix": "/cache/"}, "http://inner.example/cache"),
    ({"x-forwarded-prefix": "/"}, "http://inner.example"),
    ({"x-forwarded-proto": "http, https", "x-forwarded-host": "a.example, b.example"}, "https://b.example"),
    ({"forwarded": "for=192.0.2.7;proto=https;host=npm.example"}, "https://npm.example"),
    ({"forwarded": 'For="[2001:db8::7]:80"; Proto=HTTPS; Host="npm.example:8443"'}, "https://npm.example:8443"),
    ({"forwarded": "host=a.example;proto=https, host=b.example;proto=http"}, "http://b.example"),
    ({"forwarded": 'host="[2001:db8::1]:8080"'}, "http://[2001:db8::1]:8080"),
    ({"forwarded": "for=192.0.2.7"}, "http://inner.example"),
    ({}, "http://inner.example"),
]


class TestBehindAProxy:
    """Addresses behind a trusted proxy."""

    @pytest.mark.parametrize(("headers", "expected"), FORWARDED)
    def test_trusted_proxy_sets_the_address(self, headers: dict[str, str], expected: str) -> None:
        """
        The nearest trusted proxy sets the address, with the headers of the believed family.

        Missing parts are taken from the request.
        """
        assert base(behind(headers), {"host": "inner.example", **headers}) == expected

    @pytest.mark.parametrize(("headers", "_"), FORWARDED)
    def test_untrusted_peer_does_not_set_the_address(self, headers: dict[str, str], _: str) -> None:
        """
        Forwarding headers from other addresses are ignored.

        Otherwise a client could poison a shared cache with its address.
        """
        for addresses, peer in ((behind(headers), UNTRUSTED), (PLAIN, LOOPBACK), (PLAIN, UNTRUSTED)):
            assert base(addresses, {"host": "inner.example", **headers}, peer) == "http://inner.example"

    @pytest.mark.parametrize(
        ("peer", "trusted"),
        [
            (IPv4Address("TCP", "127.3.2.1", 1), True),
            (IPv6Address("TCP", "2001:db8::9", 1), True),
            (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
            (IPv6Address("TCP", "2001:db9::9", 1), False),
            (IPv6Address("TCP", "::ffff:192.0.2.7", 1), False),
            (UNIXAddress("/run/mypypi.sock"), True),
        ],
    )
    def test_peer_is_trusted_by_network_or_unix_socket(self, peer: IAddress, trusted: bool) -> None:  # noqa: FBT001 - an example
        """A peer is trusted by its network or its unix socket. IPv4 may arrive over IPv6."""
        found = base(BEHIND_A_PROXY, {"host": "inner.example", "x-forwarded-host": "npm.example"}, peer)
        assert found == ("http://npm.example" if trusted else "http://inner.example")

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-forwarded-proto": "ftp"},
            {"x-forwarded-proto": "javascript"},
            {"x-forwarded-host": "a b"},
            {"x-forwarded-host": "a.example/path"},
            {"x-forwarded-host": "[....]"},
            {"x-forwarded-prefix": "no-slash"},
            {"x-forwarded-prefix": '/a"b'},
            {"x-forwarded-prefix": "/a//b"},
            {"x-forwarded-prefix": "/../x"},
            {"forwarded": 'host="a b"'},
            {"forwarded": "proto=gopher"},
        ],
    )
    def test_invalid_forwarded_address_is_a_bad_request(self, headers: dict[str, str]) -> None:
        """An invalid forwarded address is a bad request. A proxy may pass on headers that clients made up."""
        with pytest.raises(BadRequest, match="Forwarded or X-Forwarded"):
            base(behind(headers), {"host": "inner.example", **headers})


#: What the proxy sends in the believed family, and what a client sends in the other one.
X_FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-host": "npm.example", "x-forwarded-for": "192.0.2.9"}
RFC_7239 = {"forwarded": "for=192.0.2.9;host=npm.example;proto=https"}
FORGED_X = {f"x-forwarded-{name}": "evil.example" for name in ("for", "host")} | {
    "x-forwarded-proto": "http",
    "x-forwarded-prefix": "/evil",
}
FORGED_7239 = {"forwarded": "for=evil.example;host=evil.example;proto=http;prefix=/evil"}


class TestOneFamily:
    """One family of headers is believed. A proxy passes on headers that it does not know."""

    @pytest.mark.parametrize(("proxy", "client"), [(X_FORWARDED, FORGED_7239), (RFC_7239, FORGED_X)])
    def test_a_client_can_not_forge_the_other_family(self, proxy: dict[str, str], client: dict[str, str]) -> None:
        """Headers of the other family change neither the address in links nor the client's own address."""
        headers = {"host": "inner.example", **client, **proxy}
        assert base(behind(client), headers).startswith("http://evil.example")  # the forged ones would count
        assert base(behind(proxy), headers) == "https://npm.example"
        assert behind(proxy).client(request_of(headers)) == "192.0.2.9"
        assert base(behind(proxy), {"host": "inner.example", **client}) == "http://inner.example"

    @pytest.mark.parametrize(
        ("addresses", "peer", "vary"),
        [
            (BEHIND_A_PROXY, LOOPBACK, ["X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Prefix"]),
            (behind(RFC_7239), LOOPBACK, ["Forwarded"]),
            (BEHIND_A_PROXY, UNTRUSTED, None),
            (PLAIN, LOOPBACK, None),
            (Addresses("https://npm.example", TRUSTED), LOOPBACK, None),
        ],
    )
    def test_vary_names_what_the_address_depends_on(
        self, addresses: Addresses, peer: IAddress, vary: list[str] | None
    ) -> None:
        """Vary names the believed headers where they count, once each, also if the proxy sent none."""
        request = request_of({"host": "inner.example"}, peer)
        for _ in range(2):
            addresses.base(request)
        assert request.responseHeaders.getRawHeaders("vary") == vary
