"""The metrics for Prometheus. No other module imports prometheus_client.

Other modules update the metrics defined here. If several processes serve one socket, their supervisor sets
PROMETHEUS_MULTIPROC_DIR before it starts them. Each process then writes its numbers to files in that directory, and the
process that answers a scrape adds them up. Knows names and units. Must never know why a number changes, nor query other
parts of the program.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import Factory, frozen
from twisted.logger import Logger

from mypypi.observability.multiprocess import DIRECTORY, make_files, shrink_files

_why_alone = make_files()  # before prometheus_client is imported: on import it decides where it counts

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
    "mypypi_upstream_requests",
    "Requests to upstream by kind (page, file, metadata, range, …) and outcome",
    ["kind", "outcome"],
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
GAVE_WAY = Counter(
    "mypypi_fetches_gave_way",
    "Times that a fetch without clients was interrupted, since other requests needed its place",
)
TAKE_OVERS = Counter("mypypi_fetch_take_overs", "Fetches taken over from a process that has died")
LEASE_WAITS = Counter("mypypi_lease_waits", "Times that a process waited for a lease of another one", ["kind"])

OPEN_DESCRIPTORS = Gauge(
    "mypypi_open_descriptors",
    "Open file descriptors, of the server process that has the most",
    multiprocess_mode="livemax",
)
MAX_DESCRIPTORS = Gauge(
    "mypypi_max_descriptors", "File descriptors that a server process may have open", multiprocess_mode="livemax"
)
PROCESSES = Gauge("mypypi_processes", "Server processes that run", multiprocess_mode="livesum")
PROCESSES_DEGRADED = Gauge(
    "mypypi_processes_degraded",
    "Server processes that lack file descriptors, render processes or a log",
    multiprocess_mode="livesum",
)
REJECTED_CONNECTIONS = Counter(
    "mypypi_rejected_connections",
    "Connections refused: the server or their address has too many, or descriptors are short",
)
CLOSED_IDLE_CONNECTIONS = Counter(
    "mypypi_closed_idle_connections", "Idle connections of clients that were closed in favour of new ones"
)

HOT_PAGES_BYTES = Gauge("mypypi_hot_pages_bytes", "Bytes of memory in use for hot pages", multiprocess_mode="livesum")


if DIRECTORY in os.environ:
    REQUEST_SECONDS.labels("page")  # opens the last file, which can't be opened once the directory was removed


def forget_process(pid: int, directory: Path) -> None:
    """
    Remove the gauges of a process that has ended.

    Its counters and histograms remain, so totals do not decrease. `directory` is that of a `MetricsDirectory`.
    """
    mark_process_dead(pid, str(directory))
    shrink_files(pid, directory)


@frozen(eq=False)  # a registry compares its collectors by identity
class CurrentState:
    """
    Metrics that are determined for each scrape, not counted before.

    Only the process that answers the scrape reports them, so that no older value of another process appears beside
    them. A value that could not be determined is absent. `degraded` says for each part (redis, storage, upstream,
    queue, process) whether its check fails. `jobs` is the number of jobs by state (waiting, later, dead; unattended
    ones are waiting or later, too), `oldest` the age in seconds of the oldest waiting job.
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
        jobs = GaugeMetricFamily(
            "mypypi_queue_jobs",
            "Jobs, by state (waiting, later, dead); unattended ones wait, and no worker runs that can do them",
            labels=["state"],
        )
        for state, number in self.jobs.items():
            jobs.add_metric([state], number)
        yield jobs
        if self.oldest is not None:
            yield GaugeMetricFamily(
                "mypypi_queue_oldest_seconds", "Age in seconds of the oldest waiting job", self.oldest
            )


def count_processes() -> tuple[int, int]:
    """
    Return how many processes of this server run, and how many of them are degraded.

    Only if several processes write their numbers to files. Blocks on file access; raises OSError.
    """
    metrics = _read_files("gauge_livesum_")
    found = {sample.name: sample.value for metric in metrics for sample in metric.samples}
    return int(found.get("mypypi_processes", 0)), int(found.get("mypypi_processes_degraded", 0))


def are_in_files() -> bool:
    """Whether several processes write their numbers to files, which a scrape reads."""
    return DIRECTORY in os.environ


def render_metrics(asked: CurrentState | None = None) -> bytes:
    """
    Return all metrics in the Prometheus text format.

    They cover all processes of this server, and the state in `asked`. If the files of the processes can't be read, they
    cover this process only, and the log says so. Blocks on file access if there are several processes.
    """
    current = CollectorRegistry()
    current.register(asked or CurrentState())
    return _numbers() + generate_latest(current)


def _numbers() -> bytes:
    if are_in_files():
        registry = CollectorRegistry()
        try:
            registry.register(_AllProcesses())
            numbers = generate_latest(registry)
        except OSError as error:
            _report.alone(str(error))
        else:
            _report.together()
            return numbers
    elif _why_alone:
        _report.alone(_why_alone)
    return generate_latest(REGISTRY)


class _AllProcesses:
    """The metrics in the files of all processes."""

    def collect(self) -> Iterable[Metric]:
        """Return them. A registry of prometheus_client calls this."""
        return _read_files()


def _read_files(prefix: str = "") -> Iterable[Metric]:
    """Return the metrics in the files with this prefix. Raises OSError if they can't be read."""
    files = [path for path in Path(os.environ[DIRECTORY]).iterdir() if path.name.startswith(prefix)]
    try:
        merged: Iterable[Metric] = MultiProcessCollector.merge([str(path) for path in files])
    except OSError:
        raise
    except Exception as error:  # what prometheus_client raises depends on what is wrong in a file
        raise OSError(errno.EIO, f"a file is damaged ({error})") from error
    return merged


class _Report:
    """Logs once that scrapes cover this process only, and once when they cover all again."""

    log = Logger()

    def __init__(self) -> None:
        self._is_alone = False

    def alone(self, why: str) -> None:
        if not self._is_alone:
            self._is_alone = True
            self.log.error("metrics are those of one server process, not of all: their files fail: {why}", why=why)

    def together(self) -> None:
        if self._is_alone:
            self._is_alone = False
            self.log.info("metrics are those of all server processes again")


_report = _Report()
