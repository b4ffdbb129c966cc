"""
Measures the daemon's processor time for cached pages and files.

``python -m benchmarks.serving`` requests a small page many times and a large file several times. It prints microseconds
per page and milliseconds per gigabyte. They come from the operating system's accounting of the daemon's process, so
that a slow client or a busy machine does not matter.
"""

from __future__ import annotations

import http.client
import tempfile
from pathlib import Path

import psutil

from tests.rig.daemon import Daemon
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.support.kinds import PyPIKind

REQUESTS = 3000
MEGABYTES = 200
TIMES = 5


def processor_seconds(daemon: Daemon) -> float:
    """Return the processor time that the daemon has used, in user mode and in the kernel."""
    times = psutil.Process(daemon.pid).cpu_times()
    return float(times.user + times.system)


def read_all(connection: http.client.HTTPConnection, path: str, accept: str) -> int:
    """Read one response to its end. Return its size in bytes."""
    connection.request("GET", path, headers={"Accept": accept, "Accept-Encoding": "gzip"})
    response = connection.getresponse()
    size = 0
    while block := response.read(1 << 20):
        size += len(block)
    assert response.status == 200, response.status
    return size


def main() -> None:
    """Run the benchmark."""
    kind = PyPIKind()
    with tempfile.TemporaryDirectory() as directory, FakeIndex() as index:
        for number in range(300):
            index.add(make_wheel("small", f"1.{number}"))
        large = kind.publish(index, "large", padding=MEGABYTES << 20)
        env = {"MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_CACHE_TIME": "3600"}
        with Daemon("mypypi", Path(directory, "data"), env) as daemon:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
            for name, path, times in (
                ("page", kind.page_path("small"), REQUESTS),
                ("file", large.path, TIMES),
            ):
                size = read_all(connection, path, kind.accept)
                before = processor_seconds(daemon)
                for _ in range(times):
                    read_all(connection, path, kind.accept)
                used = processor_seconds(daemon) - before
                if name == "page":
                    print(f"page of {size} bytes: {used / times * 1e6:.0f} us of processor time per response")
                else:
                    print(f"file of {size >> 20} MiB: {used / (size * times) * 1e12:.0f} ms of processor time per GB")


if __name__ == "__main__":
    main()
