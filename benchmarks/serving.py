"""
What the daemon's processor time goes to when everything is warm: a small page, many times, and a large file.

``python -m benchmarks.serving`` prints microseconds for an answer of a page and milliseconds for a gigabyte of a file,
from the operating system's own accounting of the daemon, so that a slow client or a busy machine does not matter.
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
    """What the daemon has used by now, its own and the system's on its behalf."""
    times = psutil.Process(daemon.pid).cpu_times()
    return float(times.user + times.system)


def read_all(connection: http.client.HTTPConnection, path: str, accept: str) -> int:
    """The bytes of one answer."""
    connection.request("GET", path, headers={"Accept": accept, "Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    size = 0
    while block := answer.read(1 << 20):
        size += len(block)
    assert answer.status == 200, answer.status
    return size


def main() -> None:
    """Measure, print."""
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
                    print(f"page of {size} bytes: {used / times * 1e6:.0f} us of processor time for an answer")
                else:
                    print(f"file of {size >> 20} MiB: {used / (size * times) * 1e12:.0f} ms of processor time for a GB")


if __name__ == "__main__":
    main()
