"""What is counted, for Prometheus: the only importer of prometheus_client.

Each module counts what it does with the instruments below. Where several processes serve one socket, their parent sets
PROMETHEUS_MULTIPROC_DIR before they start; each keeps its numbers in files there, and whichever is asked adds them up.
Knows names and units. Must never know what happens, or ask anybody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from attrs import Factory, frozen

from mypypi.observability.multiprocess import DIRECTORY, make_files

make_files()  # before prometheus_client is imported, which decides then where it counts

from prometheus_client import REGISTRY as OWN  # noqa: E402
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # noqa: E402
from prometheus_client.core import GaugeMetricFamily, Metric  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

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
    "mypypi_breaker_open",
    "Whether an upstream is not asked for now, since it fails",
    ["host"],
    multiprocess_mode="livemax",
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


def forget_process(pid: int, directory: str) -> None:
    """A process that counted in this directory has ended: what it had at the time counts no more, what it did does."""
    mark_process_dead(pid, directory)


@frozen(eq=False)  # a registry keeps its collectors by what they are
class CurrentState:
    """
    What is asked for when somebody wants to know, and not counted before: of the process that was asked alone, so that
    no other one's older answer stands beside it. What could not be found out is not there.

    `degraded` says of each part (redis, storage, upstream, queue) whether it is in trouble; `jobs` how many there are
    in each state (waiting, later, dead), `oldest` how many seconds the oldest of those that wait has waited.
    """

    degraded: Mapping[str, bool] = Factory(dict)
    jobs: Mapping[str, int] = Factory(dict)
    oldest: float | None = None

    def collect(self) -> Iterator[Metric]:
        """As a registry of prometheus_client has it from its collectors."""
        degraded = GaugeMetricFamily("mypypi_degraded", "Whether this part is in trouble", labels=["part"])
        for part, value in self.degraded.items():
            degraded.add_metric([part], value)
        yield degraded
        jobs = GaugeMetricFamily("mypypi_queue_jobs", "Jobs, by state (waiting, later, dead)", labels=["state"])
        for state, number in self.jobs.items():
            jobs.add_metric([state], number)
        yield jobs
        if self.oldest is not None:
            yield GaugeMetricFamily("mypypi_queue_oldest_seconds", "Age of the oldest job that waits", self.oldest)


def render_metrics(asked: CurrentState | None = None) -> bytes:
    """
    All numbers in the text format, of all processes that count together, and what was asked. Blocks where those are
    several.
    """
    registry = OWN
    if DIRECTORY in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    answers = CollectorRegistry()
    answers.register(asked or CurrentState())
    return generate_latest(registry) + generate_latest(answers)
