"""Composes an index from the settings: ecosystem, upstream, pages, files and routes.

Knows every part of an index by its class. Must never know what a part does, or where the daemon listens.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from mypypi.daemon.backends import Backends
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.files.fetch_tools import FetchTools
from mypypi.files.fetches import Fetches
from mypypi.files.wheel_metadata import WheelMetadata
from mypypi.pages.fleet import PAGE_LEASE
from mypypi.pages.memory_cache import MemoryCache
from mypypi.pages.page_cache import PageCache
from mypypi.proxy.bucket_reader import BucketReader
from mypypi.proxy.cached_listings import CachedListings
from mypypi.proxy.cold_files import ColdFilePolicy, ColdFiles
from mypypi.proxy.cold_ranges import ColdRanges
from mypypi.proxy.file_checks import FileChecks
from mypypi.proxy.offers import Offers
from mypypi.proxy.proxy import Proxy
from mypypi.proxy.stored_files import StoredFiles
from mypypi.proxy.wheel_checks import WheelChecks
from mypypi.redis.leases import Leases
from mypypi.rendering.renderer import Renderer
from mypypi.settings.settings import Settings, default_upstream
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.breaker import Breaker
from mypypi.upstream.client import Upstream
from mypypi.upstream.guard import AddressGuard
from mypypi.upstream.range_support import RangeSupport
from mypypi.upstream.requester import RETRIES, Credentials
from mypypi.upstream.resolver import Resolver
from mypypi.web.files import Files
from mypypi.web.npm import NPMRoutes
from mypypi.web.pages import PageResponses
from mypypi.web.public_address import Addresses
from mypypi.web.pypi import PyPIRoutes

#: Seconds for the fast retries of a request, before a last attempt with the full timeout.
_RETRIES_TIME = 5.0
#: Seconds until the bucket's first byte when files are streamed from it; after that, they are fetched from upstream.
_BUCKET_TIMEOUT = 3
#: Requests to the bucket at once. All are for files, and one kind has at most half of the places.
_BUCKET_CONCURRENCY = 128
#: Concurrent fetches for each concurrent request to upstream.
_FETCHES_PER_REQUEST = 4
_ROUTES: dict[str, type[PyPIRoutes | NPMRoutes]] = {"pypi": PyPIRoutes, "npm": NPMRoutes}


class Index(Service):
    """
    The parts of one index, over the backends of its process.

    It starts after the backends, and stops before them.
    """

    def __init__(self, backends: Backends) -> None:
        settings, reactor = backends.settings, backends.reactor
        self._backends = backends
        self.ecosystem = ECOSYSTEMS[settings.package_type](settings.upstream_url)
        backoff = Backoff(backends.catalog, reactor)
        breaker_lease = settings.upstream_timeout + _RETRIES_TIME
        breaker = Breaker(backoff, backends.catalog, backends.process, reactor, breaker_lease, settings.upstream_url)
        host = urlsplit(settings.upstream_url).hostname or ""
        resolver = Resolver(reactor, host, settings.upstream_timeout)
        #: Says which hosts that upstream names may be connected to. What the operator names (S3, Redis) is not asked.
        self._guard = AddressGuard(resolver, settings.upstream_url, settings.upstream_trust)
        self.upstream = _upstream(settings, reactor, breaker, self._guard)
        links = Upstream(
            reactor,
            settings.s3_endpoint_url or "",
            concurrency=_BUCKET_CONCURRENCY,
            timeout=_BUCKET_TIMEOUT,
            min_rate=settings.upstream_min_rate,
            metered=False,
        )
        #: Streams files from the bucket, for clients that can't be redirected there.
        self._bucket_reader = BucketReader(links, backends.storage, reactor)
        renderer = Renderer(
            settings.package_type, settings.upstream_url, backends.render_pool.run, settings.upstream_strict
        )
        #: Which hosts of files answer ranges.
        self._ranges = RangeSupport(self.upstream, backends.catalog, reactor)
        self._wheels = WheelMetadata(
            self._ranges,
            backends.storage,
            backends.disk_threads,
            renderer.wheel_metadata,
            self._bucket_reader.range,
            strict=settings.upstream_strict,
        )
        self.pages = self._make_pages(backoff, renderer)
        tools = FetchTools(
            self.upstream,
            backends.storage,
            backends.disk_threads,
            reactor,
            Leases(backends.catalog, backends.disk, reactor),
            backoff,
            backends.catalog,
            settings.negative_cache_time,
            backends.decoding_threads,
            self._wheels,
        )
        self.fetches = Fetches(tools, backends.drafts)
        #: The addresses of this server and of its clients, as proxies tell them.
        self.addresses = Addresses(settings.public_url, settings.trusted_proxies, settings.trusted_headers)
        self._proxy = self._make_proxy()

    def routes(self) -> PyPIRoutes | NPMRoutes:
        """Return the Klein routes of this index."""
        settings, backends = self._backends.settings, self._backends
        addresses = self.addresses
        if self._offers is not None:  # a worker has no processes that read wheels
            self.fetches.on_stored = self._offers.note
        return _ROUTES[settings.package_type](
            PageResponses(self._proxy, addresses, backends.derive_threads),
            Files(self._proxy, self.upstream, self._bucket_reader, addresses, backends.disk_threads, backends.reactor),
            self.upstream,
        )

    def stopService(self) -> Deferred[None]:
        """Hand running fetches over to other processes, and close the connections to upstream."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.fetches.stop()
        await self.upstream.stop()
        self._guard.stop()
        await self._bucket_reader.stop()

    def _make_pages(self, backoff: Backoff, renderer: Renderer) -> PageCache:
        settings, backends = self._backends.settings, self._backends
        derived_bytes = settings.hot_pages_bytes // 4
        return PageCache(
            self.ecosystem,
            backends.catalog,
            self.upstream,
            renderer,
            backends.reactor,
            Leases(backends.catalog, backends.process, backends.reactor, PAGE_LEASE),
            backoff,
            cache_time=settings.cache_time,
            negative_cache_time=settings.negative_cache_time,
            stale_after=settings.stale_after,
            memory=MemoryCache(settings.hot_pages_bytes - derived_bytes, derived_bytes),
            threads=backends.derive_threads,
            ranges=self._ranges if self._offers_metadata else None,
        )

    @property
    def _offers_metadata(self) -> bool:
        """Whether pages offer metadata that is read out of wheels."""
        return self._backends.settings.package_type == "pypi" and self._backends.settings.core_metadata

    def _make_proxy(self) -> Proxy:
        settings, backends = self._backends.settings, self._backends
        policy = ColdFilePolicy(
            redirect=settings.cold_files == "redirect",
            strict=settings.upstream_strict,
            strict_wait=settings.strict_wait,
            most_fetches=_FETCHES_PER_REQUEST * settings.upstream_concurrency,
            disk=backends.disk if settings.file_storage_driver == "local" else "",
        )
        ranges = ColdRanges(self.upstream, self._ranges)
        cold = ColdFiles(policy, self.fetches, backends.queue, self.upstream, backends.reactor, ranges, self._guard)
        proxied = settings.s3_serve == "proxy"
        checks = FileChecks(backends.catalog, self.upstream, backends.reactor)
        wheel_checks = WheelChecks(self._wheels, backends.catalog)
        listings = CachedListings(self.ecosystem, self.pages, backends.catalog)
        stored = StoredFiles(
            self.ecosystem, backends.catalog, backends.storage, checks, wheel_checks, listings, proxied=proxied
        )
        self._offers = Offers(self.fetches, self.pages, listings) if self._offers_metadata else None
        return Proxy(self.ecosystem, self.pages, listings, stored, cold, self._offers)


def _upstream(settings: Settings, reactor: Any, breaker: Breaker, guard: AddressGuard) -> Upstream:
    credentials = None
    if settings.upstream_username is not None and settings.upstream_password is not None:
        credentials = Credentials(settings.upstream_username, settings.upstream_password.reveal())
    return Upstream(
        reactor,
        settings.upstream_url,
        credentials=credentials,
        concurrency=settings.upstream_concurrency,
        timeout=settings.upstream_timeout,
        min_rate=settings.upstream_min_rate,
        breaker=breaker,
        guard=guard,
        retries=RETRIES,
        public_host=_public_host(settings.package_type),
    )


def _public_host(package_type: str) -> str:
    """Return the host that npm replaces by the registry in use. Clients of Python indexes replace none."""
    return urlsplit(default_upstream(package_type)).hostname or "" if package_type == "npm" else ""
