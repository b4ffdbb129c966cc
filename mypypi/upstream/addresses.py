"""Tells what an IP address is for: the public internet, this host, a private network, or none of these.

Knows the special-purpose addresses (RFC 6890, and IANA's registries that it began). Must never know host names, or who
may connect to what.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

#: The class of an address on the public internet.
PUBLIC = "public"
#: The classes that are only connected to by name: they tell secrets of the host, and belong to nobody's index.
ONLY_NAMED = ("link-local", "cloud metadata")
#: By class; the first that has the address counts. `ipaddress` has such tables, which differ between Python's versions.
_CLASSES: dict[str, tuple[Network, ...]] = {
    name: tuple(map(ip_network, networks.split()))
    for name, networks in {
        "loopback": "127.0.0.0/8 ::1/128",
        "unspecified": "0.0.0.0/8 ::/128",
        "link-local": "169.254.0.0/16 fe80::/10",
        # Alibaba Cloud, Azure, AWS, Google Cloud and Oracle Cloud, as far as these addresses are not link-local.
        "cloud metadata": "100.100.100.200/32 168.63.129.16/32 fd00:ec2::/32 fd20:ce::/32 fd00:c1::/32",
        "multicast": "224.0.0.0/4 ff00::/8",
        # RFC 1918, RFC 6598, RFC 4193, RFC 3879 (site-local), RFC 8215 (local NAT64).
        "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7 fec0::/10 64:ff9b:1::/48",
        # Protocol assignments, documentation, benchmarks, and what is for future use.
        "reserved": "192.0.0.0/24 192.0.2.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 "
        "2001::/23 2001:db8::/32 3fff::/20",
        PUBLIC: "0.0.0.0/0 2000::/3",
    }.items()
}
#: The networks whose addresses contain one of IPv4, and the number of bits behind it: IPv4-mapped (RFC 4291), NAT64
#: (RFC 6052) and 6to4 (RFC 3056).
_CONTAIN_IPV4 = ((IPv6Network("::ffff:0:0/96"), 0), (IPv6Network("64:ff9b::/96"), 0), (IPv6Network("2002::/16"), 80))


def plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address contains, or else the address itself."""
    for network, bits in _CONTAIN_IPV4:
        if address in network:
            return IPv4Address(int(address) >> bits & 0xFFFFFFFF)
    return address


def class_of(address: Address) -> str:
    """
    Return the class of an address.

    It is public, loopback, unspecified, link-local, cloud metadata, multicast, private or reserved.
    """
    address = plain(address)
    classes = (name for name, networks in _CLASSES.items() if any(address in network for network in networks))
    return next(classes, "reserved")
