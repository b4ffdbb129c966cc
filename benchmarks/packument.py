"""
Measures the latency of small hot pages while a 20 MB packument is processed.

``python -m benchmarks.packument`` requests a small packument from a daemon in npm mode, repeatedly and one request at a
time: first on an idle daemon, then while it fetches, renders and sends a large packument. It prints the latencies.
"""

from __future__ import annotations

import http.client
import json
import random
import tempfile
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

from tests.rig.daemon import Daemon
from tests.rig.host import FileHost
from tests.rig.http import get

MEGABYTES = 20
ROUNDS = 5


def packument(name: str, versions: int, url: str, readme: str = "") -> bytes:
    """Make a full packument, whose versions have about as much data as real ones."""
    digits = random.Random(name)
    listed = {
        f"1.0.{number}": {
            "name": name,
            "version": f"1.0.{number}",
            "dependencies": {f"dependency-{digits.randrange(500)}": f"^{digits.randrange(9)}.0.0" for _ in range(12)},
            "scripts": {"test": "node test.js", "build": "node build.js --minify"},
            "dist": {
                "tarball": f"{url}/{name}/-/{name}-1.0.{number}.tgz",
                "shasum": f"{digits.getrandbits(160):040x}",
                "signatures": [{"keyid": "SHA256:key", "sig": f"{digits.getrandbits(560):0140x}"}],
            },
            "readme": readme,
        }
        for number in range(versions)
    }
    return json.dumps({"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": listed}).encode()


def latencies(port: int, until: Event, at_least: int = 0) -> list[float]:
    """Request the small packument repeatedly. Return the milliseconds of each request."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    measured = []
    while not until.is_set() or len(measured) < at_least:
        began = perf_counter()
        connection.request("GET", "/small", headers={"Accept-Encoding": "gzip"})
        connection.getresponse().read()
        measured.append((perf_counter() - began) * 1e3)
    return measured


def print_latencies(what: str, measured: list[float]) -> None:
    """Print the median, the 99th percentile and the maximum."""
    ordered = sorted(measured)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    print(f"{what}: {len(ordered)} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {ordered[-1]:.1f} ms")


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as directory, FileHost() as registry:
        registry.put("/small", packument("small", 20, registry.url))
        one = len(packument("x", 1, registry.url, "x" * 3000))
        for number in range(ROUNDS):
            name = f"large{number}"
            registry.put(f"/{name}", packument(name, MEGABYTES * 1_000_000 // one, registry.url, "x" * 3000))
        env = {"MYPYPI_UPSTREAM_URL": registry.url, "MYPYPI_PACKAGE_TYPE": "npm", "MYPYPI_CACHE_TIME": "3600"}
        with Daemon("mypypi", Path(directory, "data"), env) as daemon:
            done = Event()
            done.set()
            print_latencies("idle", latencies(daemon.port, done, at_least=2000))
            during: list[float] = []
            seconds = 0.0
            for number in range(ROUNDS):
                done = Event()
                watcher = Thread(target=lambda done=done: during.extend(latencies(daemon.port, done)))
                watcher.start()
                began = perf_counter()
                response = get(f"{daemon.url}/large{number}", {"Accept-Encoding": "gzip"}, timeout=120)
                seconds += perf_counter() - began
                done.set()
                watcher.join()
                assert response.status == 200
                assert response.complete
            print_latencies(f"during {ROUNDS} packuments of {MEGABYTES} MB ({seconds / ROUNDS:.1f} s each)", during)


if __name__ == "__main__":
    main()
