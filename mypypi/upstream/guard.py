"""Decides which addresses may be connected to, and connects to no other.

A page of upstream, or a redirect, can name any host, and a name can lead to any address: to services of this host or of
its network, which trust all who can connect to them. So the decision is made on the resolved address, and no other one
is connected to. Knows hosts, ports and addresses. Must never know what is requested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.web.client import URI
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

from mypypi.errors import BadUpstreamResponse, UpstreamBusy
from mypypi.upstream.addresses import ONLY_NAMED, PUBLIC, Address, Network, class_of, plain

if TYPE_CHECKING:
    from mypypi.upstream.resolver import Resolver

#: A host, or a network of addresses, that is connected to whatever its addresses are, and its port; None for any port.
TrustedHost = tuple[str | Network, int | None]


class AddressGuard:
    """
    Resolves hosts to the addresses that may be connected to.

    These are public addresses, those of upstream's own host (that of `url`), addresses of the same class as one of
    these, and `trusted` hosts. Link-local addresses and those of a cloud's metadata must be named: as a trusted host,
    or in `url`.
    """

    def __init__(self, resolver: Resolver, url: str, trusted: Sequence[TrustedHost] = ()) -> None:
        self._resolver = resolver
        self._own_host = _host(urlsplit(url).hostname or "")
        self._trusted = trusted
        #: The classes of upstream's addresses, when they were last resolved.
        self._own_classes: frozenset[str] = frozenset()

    async def addresses(self, host: str, port: int) -> list[Address]:
        """
        Return the addresses of a host that may be connected to at this port.

        Raises BadUpstreamResponse if the host has only others, and as `Resolver.resolve` does.
        """
        host = _host(host)
        found = {address: class_of(address) for address in await self._resolver.resolve(host)}
        if host == self._own_host:
            self._own_classes = frozenset(found.values())
        else:
            await self._learn_own_classes(found.values())
        allowed = [
            address
            for address, kind in found.items()
            if kind == PUBLIC or self._is_own(host, address, kind) or self._is_trusted(host, address, port)
        ]
        if not allowed:
            kind = next(iter(found.values()))
            raise BadUpstreamResponse(
                f"upstream leads to {host}, {'an' if kind[0] in 'aeiou' else 'a'} {kind} address, which is not "
                "connected to: if that is meant, name the host in MYPYPI_UPSTREAM_TRUST"
            )
        return allowed

    async def check(self, url: str) -> None:
        """
        Raise BadUpstreamResponse if this URL's host has only addresses that may not be connected to.

        For URLs that clients are redirected to. Clients resolve names themselves, so a name that can't be resolved here
        is not refused.
        """
        parts = urlsplit(url)
        host = _host(parts.hostname or "")
        if host and host != self._own_host:
            with suppress(DNSLookupError, UpstreamBusy):
                await self.addresses(host, parts.port or (443 if parts.scheme == "https" else 80))

    def stop(self) -> None:
        """Stop resolving."""
        self._resolver.stop()

    async def _learn_own_classes(self, kinds: Iterable[str]) -> None:
        """Resolve upstream's own host, if these classes need it. What was found before counts if that fails."""
        if any(kind != PUBLIC and kind not in ONLY_NAMED for kind in kinds):
            with suppress(DNSLookupError, UpstreamBusy):
                self._own_classes = frozenset(map(class_of, await self._resolver.resolve(self._own_host)))

    def _is_own(self, host: str, address: Address, kind: str) -> bool:
        """Whether upstream's own host allows this address: `url` names it, or the host has one of its class."""
        if kind in ONLY_NAMED:
            return host == self._own_host and host == str(address)
        return kind in self._own_classes

    def _is_trusted(self, host: str, address: Address, port: int) -> bool:
        return any(
            at in (None, port) and (named == host if isinstance(named, str) else _is_in(address, named))
            for named, at in self._trusted
        )


@implementer(IAgentEndpointFactory)
@frozen
class GuardedEndpoints:
    """The endpoints of a Twisted agent, which connect only to addresses that the `guard` allows."""

    reactor: Any
    policy: IPolicyForHTTPS
    timeout: float
    guard: AddressGuard

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See `IAgentEndpointFactory`."""
        host = uri.host.decode("ascii")
        endpoint: IStreamClientEndpoint = _GuardedEndpoint(self.reactor, host, uri.port, self.timeout, self.guard)
        if uri.scheme == b"https":
            return wrapClientTLS(self.policy.creatorForNetloc(uri.host, uri.port), endpoint)
        if uri.scheme == b"http":
            return endpoint
        raise SchemeNotSupported(f"unsupported scheme: {uri.scheme!r}")


@implementer(IStreamClientEndpoint)
@frozen
class _GuardedEndpoint:
    reactor: Any
    host: str
    port: int
    timeout: float
    guard: AddressGuard

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - the interface's name
        """See `IStreamClientEndpoint.connect`. It also fails as `AddressGuard.addresses` raises."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        addresses = await self.guard.addresses(self.host, self.port)
        reactor = _ResolvedReactor(self.reactor, addresses)
        return await HostnameEndpoint(reactor, self.host, self.port, self.timeout).connect(factory)


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _ResolvedReactor:
    """A reactor that resolves every name to the same addresses, at once."""

    def __init__(self, reactor: Any, addresses: Sequence[Address]) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `IReactorPluggableNameResolver`. Nothing installs one here."""
        raise NotImplementedError

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803 - the interface's names
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: object = None,  # noqa: N803
        transportSemantics: str = "TCP",  # noqa: N803
    ) -> Any:
        """See `IHostnameResolver`."""
        for address in self._addresses:
            kind = IPv4Address if address.version == 4 else IPv6Address  # noqa: PLR2004
            resolutionReceiver.addressResolved(kind("TCP", str(address), portNumber))
        resolutionReceiver.resolutionComplete()


def _host(host: str) -> str:
    """Return a host in the form in which hosts are compared."""
    return host.lower().removesuffix(".")


def _is_in(address: Address, network: Network) -> bool:
    return address in network or plain(address) in network
