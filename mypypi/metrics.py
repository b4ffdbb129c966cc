"""What is counted, for Prometheus: the only importer of prometheus_client.

Each module counts what it does with the instruments below. Where several processes serve one socket, their parent sets
PROMETHEUS_MULTIPROC_DIR before they start; each keeps its numbers in files there, and whichever is asked adds them up.
Knows names and units. Must never know what happens, or ask anybody.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY as OWN
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

#: As the Prometheus text format is called.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

REQUESTS = Counter(
    "mypypi_requests",
    "Requests by kind (page, file, other), how the cache served them (hit, stale, miss, bypass, none), and status",
    ["kind", "cache", "status"],
)
REQUEST_SECONDS = Histogram(
    "mypypi_request_seconds",
    "From a request to the last byte of its answer",
    ["kind"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
)
SENT_BYTES = Counter("mypypi_sent_bytes", "Bytes of bodies sent to clients, by how the cache served them", ["cache"])
CONNECTIONS = Gauge("mypypi_connections", "Clients connected", multiprocess_mode="livesum")

UPSTREAM_REQUESTS = Counter(
    "mypypi_upstream_requests", "Requests to upstream by kind (page, file, other) and outcome", ["kind", "outcome"]
)
UPSTREAM_BYTES = Counter("mypypi_upstream_received_bytes", "Bytes of bodies received from upstream", ["kind"])
UPSTREAM_RUNNING = Gauge("mypypi_upstream_running", "Requests to upstream in flight", multiprocess_mode="livesum")
UPSTREAM_WAITING = Gauge(
    "mypypi_upstream_waiting", "Requests to upstream that wait for their turn", multiprocess_mode="livesum"
)
UPSTREAM_REFUSED = Counter("mypypi_upstream_refused", "Requests to upstream that were refused here, too many waiting")
BREAKER_OPEN = Gauge(
    "mypypi_breaker_open", "Whether an upstream is not asked for now, since it fails", ["host"], multiprocess_mode="max"
)

FETCHES = Counter("mypypi_fetches", "Fetches of package files that ended, by outcome (stored, failed)", ["outcome"])
FETCHES_RUNNING = Gauge("mypypi_fetches_running", "Fetches that run", multiprocess_mode="livesum")
JOINS = Counter(
    "mypypi_fetch_joins",
    "Requests that joined a fetch that was running: in this process, or in another one on this host",
    ["where"],
)
TAKE_OVERS = Counter("mypypi_fetch_take_overs", "Fetches taken over from a process that is gone")
LEASE_WAITS = Counter("mypypi_lease_waits", "Times that a lease of somebody else was waited for", ["kind"])

HOT_PAGES_BYTES = Gauge("mypypi_hot_pages_bytes", "Memory that hot pages take", multiprocess_mode="livesum")
DEGRADED = Gauge(
    "mypypi_degraded",
    "Whether this part is in trouble (redis, storage, upstream, queue)",
    ["part"],
    multiprocess_mode="livemax",
)
QUEUE_JOBS = Gauge(
    "mypypi_queue_jobs", "Jobs, by state (waiting, later, dead)", ["state"], multiprocess_mode="mostrecent"
)
QUEUE_OLDEST = Gauge("mypypi_queue_oldest_seconds", "Age of the oldest job that waits", multiprocess_mode="mostrecent")


def forget_process(pid: int, directory: str) -> None:
    """A process that counted in this directory has ended: what it had at the time counts no more, what it did does."""
    mark_process_dead(pid, directory)


def latest() -> bytes:
    """All numbers in the text format, of all processes that count together. Blocks where those are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(OWN)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)
