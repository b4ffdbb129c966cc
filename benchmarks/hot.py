"""
Measures pages that are in the cache, beside nginx, which serves the same bytes, and beside other caches.

``python -m benchmarks hot`` starts an upstream (see `benchmarks.recorded`), MyPyPi with an empty cache, nginx with the
bodies that MyPyPi answers, and, with ``--peers DIR``, proxpi and verdaccio. One connection asks each of them for the
same, in turn, ``--rounds`` times. It prints the processor time that one request costs, from the operating system's
accounting of each one's processes, and how long clients waited. It needs nginx on the PATH (Debian: nginx-light).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urljoin

from attrs import define, evolve, field, frozen

from benchmarks import results
from benchmarks.cold import ACCEPT, started
from benchmarks.installs import free_port, processor_of, proxpi, verdaccio
from benchmarks.recorded import names, path_of
from benchmarks.results import Row
from tests.rig.daemon import Daemon
from tests.rig.http import get

#: Bytes of a small and of a large page, compressed.
SMALL, LARGE = 5_000, 500_000
#: Clients of the mix, each with its own headers, and the pages that they ask for.
CLIENTS, PAGES = 1_000, 200
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_ETAG = re.compile(rb"(?i)\r\netag: (\S+)")
_CONFIGURATION = """
worker_processes 1; daemon off; pid {place}/pid; error_log stderr crit; user root;
events {{}}
http {{
    access_log {place}/access.log; sendfile on; tcp_nopush on; keepalive_requests 100000000;
    client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c; uwsgi_temp_path {place}/d;
    scgi_temp_path {place}/e;
    server {{
        listen 127.0.0.1:{port}; root {place}/pages; default_type application/json; add_header Content-Encoding gzip;
        location /file/ {{ root {place}/pages; }}
        location / {{ try_files ${{uri}}.body =404; }}
    }}
}}
"""


@frozen
class Case:
    """What is asked for: pages of a kind, each with one of these blocks of headers, so many times in all."""

    name: str
    kind: str
    paths: Sequence[str]
    headers: Sequence[bytes]
    times: int
    #: Whether each request has the etag that the first answer had.
    is_known: bool = False
    #: Connections that ask at once.
    clients: int = 1

    def requests(self, prefix: str = "") -> list[bytes]:
        """Return all requests, in an order that is the same in each run."""
        chosen = random.Random(self.name)
        return [
            b"GET %b HTTP/1.1\r\n%b\r\n" % ((prefix + chosen.choice(self.paths)).encode(), chosen.choice(self.headers))
            for _ in range(self.times)
        ]


@define
class Figures:
    """What one server needed for a case: microseconds of processor time for each request, and each one's seconds."""

    cost: list[float] = field(factory=list)
    waits: list[float] = field(factory=list)
    bytes: int = 0


class Client:
    """One connection that reads whole answers."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = bytearray(1 << 20)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def ask(self, request: bytes) -> tuple[bytes, int]:
        """Send a request; return the head of its answer, and the bytes of its body."""
        self._socket.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._socket.recv(1 << 20)
        head, _, body = received.partition(b"\r\n\r\n")
        if b"\r\ntransfer-encoding: chunked" in head.lower():
            while not body.endswith(b"\r\n0\r\n\r\n"):
                body += self._socket.recv(1 << 20)
            return head, len(body)
        found = _LENGTH.search(head)
        length, count = int(found[1]) if found and b" 304 " not in head[:20] else 0, len(body)
        while count < length:
            count += self._socket.recv_into(self._room)
        return head, length


def fields(accept: str, *more: bytes) -> bytes:
    """Return a block of headers as a client sends it."""
    usual = [b"Host: 127.0.0.1", b"Accept: " + accept.encode(), b"Accept-Encoding: gzip, deflate"]
    return b"".join(line + b"\r\n" for line in (*usual, *more))


def clients_of(accept: str) -> list[bytes]:
    """Return as many blocks of headers as there are clients: each has its own name and its own order."""
    made = random.Random(1)
    found = []
    for number in range(CLIENTS):
        lines = fields(accept, b"User-Agent: client/%d" % number, b"Connection: keep-alive").splitlines(keepends=True)
        made.shuffle(lines)
        found.append(b"".join(lines))
    return found


def cases_of_files(url: str, times: int) -> tuple[list[Case], dict[str, bytes]]:
    """Return the cases for package files, and the files by their paths on MyPyPi."""
    page = get(f"{url}/simple/files/", {"Accept": ACCEPT["pypi"]}).json()
    assert isinstance(page, dict)
    bodies = {}
    for listed in page["files"]:
        path = urljoin("/simple/files/", listed["url"])
        bodies[path] = get(url + path).body
        assert get(url + path).status == 200  # stored by now, or soon
    small, large = bodies
    own, part = fields("*/*"), fields("*/*", b"Range: bytes=1000-65999")
    return [
        Case("warm file of 1 MB", "pypi", [small], [own], times // 10),
        Case("warm file of 1 MB, 32 clients", "pypi", [small], [own], times // 10, clients=32),
        Case("warm file of 200 MB", "pypi", [large], [own], 8),
        Case("range of 65 kB", "pypi", [large], [part], times // 2),
    ], bodies


def cases_of(kind: str, url: str, times: int) -> tuple[list[Case], dict[str, bytes]]:
    """Choose the pages to ask for by their sizes. Returns the cases, and the compressed body of each page."""
    accept = ACCEPT[kind]
    bodies = {}
    for name in names(kind):
        path = path_of(kind, name)
        for _ in range(2):  # the second answer is for the address that is usual by then
            bodies[path] = get(url + path, {"Accept": accept, "Accept-Encoding": "gzip"}).body
    nearest: Callable[[int], str] = lambda size: min(bodies, key=lambda path: abs(len(bodies[path]) - size))  # noqa: E731
    small, large, own = nearest(SMALL), nearest(LARGE), fields(accept, b"User-Agent: client")
    several = sorted(bodies, key=lambda path: abs(len(bodies[path]) - SMALL))[:PAGES]
    return [
        Case(f"{kind}: small page", kind, [small], [own], times),
        Case(f"{kind}: 304", kind, [small], [own], times, is_known=True),
        Case(f"{kind}: {CLIENTS} clients, {len(several)} pages", kind, several, clients_of(accept), times),
        Case(f"{kind}: large page", kind, [large], [own], times // 10),
    ], bodies


@contextmanager
def nginx(bodies: dict[str, bytes]) -> Iterator[tuple[int, int]]:
    """Run nginx with these bodies. Yields its port and its process."""
    program = shutil.which("nginx") or sys.exit("nginx is not installed: apt install nginx-light")
    with tempfile.TemporaryDirectory() as name:
        place, port = Path(name), free_port()
        for path, body in bodies.items():
            file = place / "pages" / (path[1:] if path.startswith("/file/") else f"{path[1:]}.body")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
        (place / "nginx.conf").write_text(_CONFIGURATION.format(place=place, port=port))
        with subprocess.Popen([program, "-c", place / "nginx.conf"]) as process:  # noqa: S603 - an installed nginx
            try:
                while process.poll() is None:
                    try:
                        socket.create_connection(("127.0.0.1", port)).close()
                        break
                    except OSError:
                        time.sleep(0.05)
                yield port, process.pid
            finally:
                process.terminate()


def measure(case: Case, port: int, pid: int, figures: Figures, prefix: str = "") -> None:
    """Ask for all of a case over one connection, and add what was measured."""
    clients, requests = [Client(port) for _ in range(case.clients)], case.requests(prefix)
    client = clients[0]
    if case.is_known:
        head, _ = client.ask(requests[0])
        found = _ETAG.search(head)
        assert found, head
        requests = [request[:-2] + b"If-None-Match: %b\r\n\r\n" % found[1] for request in requests]
    for request in requests[: len(requests) // 4]:  # what came once comes again
        client.ask(request)
    for other in clients[1:]:
        other.ask(requests[0])
    before = processor_of(pid)

    def work(number: int) -> None:
        for request in requests[number :: case.clients]:
            began = time.perf_counter()
            head, length = clients[number].ask(request)
            figures.waits.append(time.perf_counter() - began)
            assert head[9:12] == (b"304" if case.is_known else b"206" if b"\r\nRange" in request else b"200"), head
            figures.bytes += length

    with ThreadPoolExecutor(case.clients) as pool:
        list(pool.map(work, range(case.clients)))
    figures.cost.append((processor_of(pid) - before) / len(requests) * 1e6)


def rows_of(cases: Sequence[Case], found: dict[tuple[str, str], Figures]) -> list[Row]:
    """Return a row for each case and server."""
    rows = []
    for case in cases:
        limit = median(found[case.name, "nginx"].cost)
        for (name, server), each in found.items():
            if name == case.name:
                cost, waits = median(each.cost), [seconds * 1e6 for seconds in each.waits]
                p99, size = quantiles(waits, n=100)[-1], each.bytes // len(waits)
                rows.append(Row(name, server, cost, cost / limit, median(waits), p99, size))
    return rows


def for_peer(case: Case) -> Case:
    """Return the case for another cache: fewer requests, since each takes long, and below its own address."""
    return evolve(case, paths=[path.removeprefix("/simple") for path in case.paths], times=max(20, case.times // 20))


def compare(kind: str, rounds: int, times: int, peers: Path | None, workers: Sequence[int]) -> list[Row]:
    """Measure pages of one kind."""
    with ExitStack() as running:
        upstream = running.enter_context(started("recorded", kind, "0"))
        place = Path(running.enter_context(tempfile.TemporaryDirectory()))
        env = {"MYPYPI_PACKAGE_TYPE": kind, "MYPYPI_UPSTREAM_URL": upstream, "MYPYPI_CACHE_TIME": "36000"}
        daemon = running.enter_context(Daemon("mypypi", place / "data", env))
        cases, bodies = cases_of(kind, daemon.url, times)
        if kind == "pypi":
            more, files = cases_of_files(daemon.url, times)
            cases, bodies = cases + more, bodies | files
        servers = {"mypypi": (daemon.port, daemon.pid, "")}
        servers["nginx"] = (*running.enter_context(nginx(bodies)), "")
        for count in workers:
            several = running.enter_context(Daemon("mypypi", place / f"data-{count}", env | {"WORKERS": str(count)}))
            cases_of(kind, several.url, times)
            if kind == "pypi":
                cases_of_files(several.url, times)
            servers[f"{count} workers"] = (several.port, several.pid, "")
        if peers is not None:
            start, name = (proxpi, "proxpi") if kind == "pypi" else (verdaccio, "verdaccio")
            (place / name).mkdir()
            url, pid = running.enter_context(start(peers)(place / name, upstream))
            servers[name] = (int(url.split(":")[2].partition("/")[0]), pid, "/index" if kind == "pypi" else "")
        found: dict[tuple[str, str], Figures] = {}
        for _ in range(rounds):
            for case in cases:
                for server, (port, pid, prefix) in servers.items():
                    if server in ("proxpi", "verdaccio"):
                        if case.is_known or "page" not in case.name:  # they have no etags and addresses of ours
                            continue
                        asked = for_peer(case)
                    else:
                        asked = case
                    measure(asked, port, pid, found.setdefault((case.name, server), Figures()), prefix)
        return rows_of(cases, found)


def versions_of(peers: Path) -> list[str]:
    """Return the names and versions of the other caches."""
    proxpi = (
        next((peers / "proxpi").glob("lib/*/site-packages/proxpi-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    )
    package = peers / "verdaccio" / "node_modules" / "verdaccio" / "package.json"
    return [f"proxpi {proxpi}", f"verdaccio {json.loads(package.read_text())['version']}"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=sorted(ACCEPT))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=4000, help="requests in a round; a tenth of that for large pages")
    parser.add_argument("--peers", type=Path, help="directory for verdaccio and proxpi; without it, they are left out")
    parser.add_argument("--workers", type=int, action="append", default=[], help="also with so many server processes")
    parser.add_argument("--results", type=Path, help="directory for RESULTS.rst and ratios.svg (needs matplotlib)")
    options = parser.parse_args()
    print(
        f"{'':34} {'server':10} {'us of CPU':>9} {'/ nginx':>8} {'p50, us':>8} {'p99, us':>8} {'bytes':>8}", flush=True
    )
    rows = []
    for kind in options.kind or ("pypi", "npm"):
        found = compare(kind, options.rounds, options.times, options.peers, options.workers)
        print("\n".join(map(str, found)), flush=True)
        rows += found
    if options.results:
        results.write(rows, options.results, versions_of(options.peers) if options.peers else [])


if __name__ == "__main__":
    main()
