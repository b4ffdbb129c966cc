"""The metrics for Prometheus. No other module imports prometheus_client.

Other modules update the metrics defined here. If several processes serve one socket, their supervisor sets
PROMETHEUS_MULTIPROC_DIR before it starts them. Each process then writes its numbers to files in that directory, and the
process that answers a scrape adds them up. Knows names and units. Must never know why a number changes, nor query other
parts of the program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from attrs import Factory, frozen

from mypypi.observability.multiprocess import DIRECTORY, make_files

make_files()  # before prometheus_client is imported: on import it decides where it counts

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from prometheus_client.core import GaugeMetricFamily, Metric  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

#: The content type of the Prometheus text format.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

REQUESTS = Counter(
    "mypypi_requests",
    "Requests by kind (page, file, other), how the cache served them (hit, stale, miss, bypass, none), and status",
    ["kind", "cache", "status"],
)
REQUEST_SECONDS = Histogram(
    "mypypi_request_seconds",
    "Seconds from a request to the last byte of its response",
    ["kind"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
)
SENT_BYTES = Counter("mypypi_sent_bytes", "Bytes of bodies sent to clients, by how the cache served them", ["cache"])
CONNECTIONS = Gauge("mypypi_connections", "Open connections of clients", multiprocess_mode="livesum")

UPSTREAM_REQUESTS = Counter(
    "mypypi_upstream_requests", "Requests to upstream by kind (page, file, other) and outcome", ["kind", "outcome"]
)
UPSTREAM_BYTES = Counter("mypypi_upstream_received_bytes", "Bytes of bodies received from upstream", ["kind"])
UPSTREAM_RUNNING = Gauge("mypypi_upstream_running", "Requests to upstream in flight", multiprocess_mode="livesum")
UPSTREAM_WAITING = Gauge(
    "mypypi_upstream_waiting", "Requests to upstream that wait in the queue", multiprocess_mode="livesum"
)
UPSTREAM_REFUSED = Counter("mypypi_upstream_refused", "Requests to upstream refused because the queue is full")
BREAKER_OPEN = Gauge(
    "mypypi_breaker_open",
    "Whether requests to an upstream are paused because it fails",
    ["host", "kind"],
    multiprocess_mode="livemax",
)

FETCHES = Counter("mypypi_fetches", "Fetches of package files that ended, by outcome (stored, failed)", ["outcome"])
FETCHES_RUNNING = Gauge("mypypi_fetches_running", "Running fetches of package files", multiprocess_mode="livesum")
JOINS = Counter(
    "mypypi_fetch_joins",
    "Requests that joined a running fetch of the same process or of another one on this host (process, host)",
    ["where"],
)
TAKE_OVERS = Counter("mypypi_fetch_take_overs", "Fetches taken over from a process that has died")
LEASE_WAITS = Counter("mypypi_lease_waits", "Times that a process waited for a lease of another one", ["kind"])

HOT_PAGES_BYTES = Gauge("mypypi_hot_pages_bytes", "Bytes of memory in use for hot pages", multiprocess_mode="livesum")


def forget_process(pid: int, directory: str) -> None:
    """
    Remove the gauges of a process that has ended.

    Its counters and histograms remain, so totals do not decrease. `directory` is that of `make_directory`.
    """
    mark_process_dead(pid, directory)


@frozen(eq=False)  # a registry compares its collectors by identity
class CurrentState:
    """
    Metrics that are determined for each scrape, not counted before.

    Only the process that answers the scrape reports them, so that no older value of another process appears beside
    them. A value that could not be determined is absent. `degraded` says for each part (redis, storage, upstream,
    queue) whether its check fails. `jobs` is the number of jobs by state (waiting, later, dead), `oldest` the age in
    seconds of the oldest waiting job.
    """

    degraded: Mapping[str, bool] = Factory(dict)
    jobs: Mapping[str, int] = Factory(dict)
    oldest: float | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. A registry of prometheus_client calls this."""
        degraded = GaugeMetricFamily("mypypi_degraded", "Whether the check of this part fails", labels=["part"])
        for part, value in self.degraded.items():
            degraded.add_metric([part], value)
        yield degraded
        jobs = GaugeMetricFamily("mypypi_queue_jobs", "Jobs, by state (waiting, later, dead)", labels=["state"])
        for state, number in self.jobs.items():
            jobs.add_metric([state], number)
        yield jobs
        if self.oldest is not None:
            yield GaugeMetricFamily(
                "mypypi_queue_oldest_seconds", "Age in seconds of the oldest waiting job", self.oldest
            )


def are_in_files() -> bool:
    """Whether several processes write their numbers to files, which a scrape reads."""
    return DIRECTORY in os.environ


def render_metrics(asked: CurrentState | None = None) -> bytes:
    """
    Return all metrics in the Prometheus text format.

    They cover all processes of this server, and the state in `asked`. Blocks on file access if there are several
    processes.
    """
    registry = REGISTRY
    if are_in_files():
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    current = CollectorRegistry()
    current.register(asked or CurrentState())
    return generate_latest(registry) + generate_latest(current)
