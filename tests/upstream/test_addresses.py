"""Tests of the classes of IP addresses."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from mypypi.upstream.addresses import class_of

CLASSES = {
    "public": "192.88.99.1 8.8.8.8 223.255.255.255 2600::1 2a00:1::1 3ffe::1",
    "loopback": "127.0.0.1 127.0.0.9 127.255.255.255 ::1",
    "unspecified": "0.0.0.0 0.1.2.3 ::",
    "link-local": "169.254.0.1 169.254.169.254 fe80::1 febf::1 fe80::1%1",
    "cloud metadata": "100.100.100.200 168.63.129.16 fd00:ec2::254 fd20:ce::254 fd00:c1::a9fe:a9fe",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1",
    "private": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255 fc00::1 fdff::1 fec0::1 "
    "64:ff9b:1::a00:1",
    "reserved": "192.0.0.9 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 240.0.0.1 255.255.255.255 2001::1 2001:1::1 "
    "2001:db8::1 3fff::1 ::7f00:1 ::ffff:0:7f00:1 100::1 4000::1 5f00::1",
}


@pytest.mark.parametrize(
    ("expected", "text"), [(name, text) for name, texts in CLASSES.items() for text in texts.split()]
)
def test_every_special_address_has_its_class(expected: str, text: str) -> None:
    """Each address has the same class on all versions of Python."""
    assert class_of(ip_address(text)) == expected


@pytest.mark.parametrize("form", ["::ffff:{0}", "64:ff9b::{0}", "2002:{1:02x}{2:02x}:{3:02x}{4:02x}::1"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.8.8.8", "public"),
        ("127.0.0.1", "loopback"),
        ("10.0.0.1", "private"),
        ("169.254.169.254", "link-local"),
        ("0.0.0.0", "unspecified"),  # noqa: S104 - nothing binds to it
    ],
)
def test_ipv6_forms_have_the_class_of_their_ipv4_address(form: str, text: str, expected: str) -> None:
    """IPv4-mapped, NAT64 and 6to4 addresses have the class of the address that they contain."""
    assert class_of(ip_address(form.format(text, *map(int, text.split("."))))) == expected
