"""
How long small hot pages wait while a 20 MB packument is taken in.

``python -m benchmarks.packument`` asks a daemon in npm mode for a small packument over and over, one request at a time,
first with nothing else going on, then while a large one arrives, is rendered and is answered; it prints the latencies.
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
    """A packument in full, with as much beside each version as real ones have."""
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
    """Milliseconds for each request of the small packument, one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    measured = []
    while not until.is_set() or len(measured) < at_least:
        began = perf_counter()
        connection.request("GET", "/small", headers={"Accept-Encoding": "gzip"})
        connection.getresponse().read()
        measured.append((perf_counter() - began) * 1e3)
    return measured


def tell(what: str, measured: list[float]) -> None:
    """Print the middle, the 99th of a hundred, and the worst."""
    ordered = sorted(measured)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    print(f"{what}: {len(ordered)} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {ordered[-1]:.1f} ms")


def main() -> None:
    """Measure, print."""
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
            tell("nothing else going on", latencies(daemon.port, done, at_least=2000))
            during: list[float] = []
            seconds = 0.0
            for number in range(ROUNDS):
                done = Event()
                watcher = Thread(target=lambda done=done: during.extend(latencies(daemon.port, done)))
                watcher.start()
                began = perf_counter()
                answer = get(f"{daemon.url}/large{number}", {"Accept-Encoding": "gzip"}, timeout=120)
                seconds += perf_counter() - began
                done.set()
                watcher.join()
                assert answer.status == 200
                assert answer.complete
            tell(f"while {ROUNDS} packuments of {MEGABYTES} MB are taken in ({seconds / ROUNDS:.1f} s each)", during)


if __name__ == "__main__":
    main()
