"""
Measures what other clients feel while one client, or one page of upstream, attacks.

``python -m benchmarks.attacks`` starts a daemon for each attack, in front of an upstream that takes 50 ms for each
answer. A client at 127.0.0.1 asks for a hot page, cold pages, a hot file, cold files and ``/-/metrics``: first without
the attack, then while it comes from 127.0.0.2, then from 10 s after it. For each attack it prints a table of median and
99th percentile, the memory of all processes and the disk space that the attack took, and the limits of the project that
it broke. ``--only NAME`` runs one attack (or several), ``--seconds N`` sets how long each of the three times is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import select
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread

import psutil
from attrs import define, field, frozen
from typing_extensions import Self

from tests.fuzz.raw.content import Package, name_in
from tests.rig.daemon import ROOT, Daemon
from tests.rig.host import FileHost
from tests.rig.http import get
from tests.rig.wire import Reply, Request, Wire

SECONDS = 10.0
#: Seconds after the attack, after which all figures are to be back.
RECOVERY = 10.0
#: The project's limits: times of others, MB of memory, seconds for the metrics.
RATIO, EXTRA, MEMORY, METRICS = 1.5, 0.05, 150, 0.1
#: Seconds that upstream takes for each answer, and for an audit.
LATENCY, AUDIT_LATENCY = 0.05, 10.0
#: Seconds between two requests of the probe, and of one attacking client: the processors are left to the daemon.
PROBE_PACE, PACE = 0.02, 0.1
#: As `PACE`, for attacks by many clients.
SLOW_PACE = 0.5
ATTACKER = "127.0.0.2"
FILE_SIZE = 20_000
DRAFTS_MAX = 100_000_000
KINDS = ("hot page", "cold page", "hot file", "cold file", "metrics")


# Upstream, in a process of its own


@frozen
class Small(Package):
    """A package whose file has 20 kB."""

    @property
    def content(self) -> bytes:
        return random.Random(self.name).randbytes(FILE_SIZE)


class Evil(FileHost):
    """Hosts files: ``/slow/`` arrive at one byte in 5 s, ``/swollen/`` of 1.5 MB inflate to 1.5 GB."""

    def __init__(self) -> None:
        super().__init__(address="127.0.0.3")
        #: Harmful requests so far.
        self.harm = 0
        self.swollen = _swollen(b"", 1_500, b"\0" * 1_000_000, b"")

    def serve(self, request: Request, wire: Wire) -> None:
        """Answer slowly, or with much."""
        self.harm += 1
        _send_at_once(wire)
        if request.path.startswith("/slow/"):
            wire.head(Reply(200, {"Content-Type": "application/octet-stream", "Content-Length": "1000000"}))
            for _ in range(100):
                wire.body(b"x")
                time.sleep(5)
            return
        headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
        wire.reply(Reply(200, headers | {"Content-Length": str(len(self.swollen))}, self.swollen))


class Upstream(FileHost):
    """Has every package; those whose names begin with an attack's are harmful."""

    def __init__(self, evil: Evil) -> None:
        super().__init__()
        self.evil = evil
        self.harm = 0
        self.spaces = _swollen(b'{"meta":{"api-version":"1.0"},"files":[', 500, b" " * 1_000_000, b"]}")
        self.big = _big_packument(self.url)

    def serve(self, request: Request, wire: Wire) -> None:
        """Answer as a registry and an index do, or harmfully."""
        _send_at_once(wire)
        if request.path == "/-/harm":
            wire.reply(Reply.text(200, str(self.harm + self.evil.harm)))
            return
        if "missing" in request.path or "9.9." in request.path or "security" in request.path:
            self.harm += 1
        time.sleep(AUDIT_LATENCY if request.path.startswith("/-/npm/v1/security/") else LATENCY)
        name = name_in(request.path)
        attack = getattr(self, f"_{name.partition('-')[0]}", None)
        if attack is not None:
            self.harm += 1
            attack(request, wire)
            return
        if name.startswith("missing") or "9.9." in request.path:
            wire.reply(Reply.text(404))
            return
        if request.method == "POST":
            wire.reply(Reply(200, {"Content-Type": "application/json", "Content-Length": "2"}, b"{}"))
            return
        found = Small(name, self.url).at(request.path, request.headers["Accept"] or "")
        if found is None:
            wire.reply(Reply.text(404))
            return
        body, content_type = found
        headers = {"Content-Type": content_type, "Content-Length": str(len(body)), "ETag": f'"{name}"'}
        wire.reply(Reply(200, headers, b"" if request.method == "HEAD" else body))

    def _slow(self, request: Request, wire: Wire) -> None:
        self._page(wire, [f"{self.evil.url}/slow/slow-1.{number}.tar.gz" for number in range(64)])

    def _swollen(self, request: Request, wire: Wire) -> None:
        self._page(wire, [f"{self.evil.url}/swollen/swollen-1.{number}-py3-none-any.whl" for number in range(8)])

    def _names(self, request: Request, wire: Wire) -> None:
        self._page(wire, [f"http://slow-{number}.fuzz.example/names-1.{number}.tar.gz" for number in range(30)])

    def _page(self, wire: Wire, urls: list[str]) -> None:
        files = [{"filename": url.rpartition("/")[2], "url": url, "hashes": {}} for url in urls]
        body = json.dumps({"meta": {"api-version": "1.0"}, "name": name_in(wire.path), "files": files}).encode()
        headers = {"Content-Type": "application/vnd.pypi.simple.v1+json", "Content-Length": str(len(body))}
        wire.reply(Reply(200, headers, body))

    def _endless(self, request: Request, wire: Wire) -> None:
        _forever(wire, b"HTTP/1.1 200 OK\r\n", (b"X-n: " + b"a" * 1000 + b"\r\n") * 60)

    def _members(self, request: Request, wire: Wire) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n"
        _forever(wire, head, gzip.compress(b"") * 3000)

    def _chunks(self, request: Request, wire: Wire) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        _forever(wire, head, b"1\r\n \r\n" * 10_000)

    def _sixes(self, request: Request, wire: Wire) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        _forever(wire, head, b"6\r\n      \r\n" * 5_000)

    def _spaces(self, request: Request, wire: Wire) -> None:
        headers = {"Content-Type": "application/vnd.pypi.simple.v1+json", "Content-Encoding": "gzip"}
        wire.reply(Reply(200, headers | {"Content-Length": str(len(self.spaces))}, self.spaces))

    def _big(self, request: Request, wire: Wire) -> None:
        if request.path.count("/") > 1:
            wire.reply(Reply.text(404))
            return
        wire.reply(Reply(200, {"Content-Type": "application/json", "Content-Length": str(len(self.big))}, self.big))


def _send_at_once(wire: Wire) -> None:
    """Do not wait for more bytes, which would add 40 ms to answers on some connections."""
    wire._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # noqa: SLF001


def _swollen(start: bytes, times: int, piece: bytes, end: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(start), *(packer.compress(piece) for _ in range(times)), packer.compress(end)]
    return b"".join([*parts, packer.flush()])


def _big_packument(url: str) -> bytes:
    versions = {
        f"1.0.{number}": {
            "name": "big",
            "version": f"1.0.{number}",
            "description": "d" * 1500,
            "dist": {"tarball": f"{url}/big/-/big-1.0.{number}.tgz", "shasum": "a" * 40},
        }
        for number in range(9000)
    }
    return json.dumps({"name": "big", "dist-tags": {"latest": "1.0.0"}, "versions": versions}).encode()


def _forever(wire: Wire, head: bytes, piece: bytes) -> None:
    wire._connection.sendall(head)  # noqa: SLF001 - a Wire sends only correct heads
    with suppress(OSError):
        while True:
            wire._connection.sendall(piece)  # noqa: SLF001
    wire.cut()


def serve_upstream() -> None:
    """Print the address of upstream, and serve until standard input ends."""
    with Evil() as evil, Upstream(evil) as upstream:
        print(upstream.url, evil.url, flush=True)
        sys.stdin.read()
        os._exit(0)  # without waiting for the slow answers


# The probe, in a process of its own


def probe(url: str, package_type: str, phase: str) -> None:
    """Print the kind, seconds and status of each answer until standard input ends."""
    stopped, lock = Event(), Lock()
    accept = {"Accept": "application/vnd.pypi.simple.v1+json" if package_type == "pypi" else "application/json"}

    def ask(kind: str, path: str) -> None:
        began = time.perf_counter()
        status = 0
        with suppress(OSError):
            answer = get(url + path, accept, timeout=20)
            status = answer.status if answer.complete else 0
        line = json.dumps([kind, time.perf_counter() - began, status])
        with lock:
            print(line, flush=True)
        stopped.wait(PROBE_PACE)

    def hot() -> None:
        while not stopped.is_set():
            ask("hot page", page_path(package_type, "hot"))
            ask("hot file", file_path(package_type, "hot"))
            ask("metrics", "/-/metrics")

    def cold() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            ask("cold page", page_path(package_type, f"{phase}-{number}"))
            ask("cold file", file_path(package_type, f"{phase}-{number}"))

    threads = [Thread(target=work) for work in (hot, cold)]
    for thread in threads:
        thread.start()
    select.select([sys.stdin], [], [])
    stopped.set()


def page_path(package_type: str, name: str) -> str:
    """The path of a package's page."""
    return f"/simple/{name}/" if package_type == "pypi" else f"/{name}"


def file_path(package_type: str, name: str) -> str:
    """The path of a package's file."""
    package = Small(name, os.environ["UPSTREAM"])
    return package.wheel_target if package_type == "pypi" else package.tarball_path


#: Seconds and status of all answers of each kind.
Answers = dict[str, list[tuple[float, int]]]


@contextmanager
def probed(
    daemon: Daemon, upstream: str, package_type: str, phase: str
) -> Iterator[dict[str, list[tuple[float, int]]]]:
    """Measure in another process. The result is filled at the end."""
    command = [sys.executable, "-m", "benchmarks.attacks", "probe", daemon.url, package_type, phase]
    found: Answers = defaultdict(list)
    pipe = subprocess.PIPE
    env = dict(os.environ, UPSTREAM=upstream)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as process:  # noqa: S603 - this module
        try:
            yield found
        finally:
            output, _ = process.communicate("end\n")
            for line in output.splitlines():
                kind, seconds, status = json.loads(line)
                found[kind].append((seconds, status))


# The attacks, in a process of their own


@define
class Attacker:
    """Clients at another address. Each repeats its work until the process is killed. `evil` is the harmful host."""

    url: str
    evil: str

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def evil_path(self, directory: str) -> str:
        """The path of the evil host's files at the daemon."""
        return f"/file/{self.evil.replace('://', '/')}/{directory}/"

    def connect(self) -> socket.socket:
        return socket.create_connection(self.place, 60, (ATTACKER, 0))

    def ask(
        self, path: str, *, method: str = "GET", host: str = "here.example", body: bytes = b"", wait: float = 60
    ) -> None:
        """Send a request, and read its answer for at most `wait` seconds."""
        extra = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n{extra}\r\n"
        with suppress(OSError), self.connect() as connection:
            connection.settimeout(wait)
            connection.sendall(head.encode() + body)
            while connection.recv(1 << 20):
                pass

    def many(self, count: int, work: Callable[[int], None], *, once: bool = False, pace: float = PACE) -> None:
        """Do this work in so many threads, again and again."""

        def repeat(number: int) -> None:
            while True:
                work(number)
                if once:
                    return
                time.sleep(pace)

        for number in range(count):
            Thread(target=repeat, args=(number,)).start()


def _slow_files(attacker: Attacker) -> None:
    attacker.ask("/simple/slow/")
    path = attacker.evil_path("slow")
    attacker.many(64, lambda number: attacker.ask(f"{path}slow-1.{number}.tar.gz", wait=0.3), pace=1.0)


def _slow_names(attacker: Attacker) -> None:
    attacker.ask("/simple/names/")
    attacker.many(
        30,
        lambda number: attacker.ask(f"/file/http/slow-{number}.fuzz.example/names-1.{number}.tar.gz"),
        pace=SLOW_PACE,
    )


def _missing_names(attacker: Attacker) -> None:
    attacker.many(150, lambda _: attacker.ask(f"/simple/missing-{random.randrange(10**9)}/"), pace=SLOW_PACE)


def _slow_audits(attacker: Attacker) -> None:
    path = "/-/npm/v1/security/advisories/bulk"
    attacker.many(64, lambda _: attacker.ask(path, method="POST", body=b'{"x%d":["1"]}' % random.randrange(10**9)))


def _harmful_pages(name: str, count: int) -> Callable[[Attacker], None]:
    def attack(attacker: Attacker) -> None:
        attacker.many(count, lambda _: attacker.ask(f"/simple/{name}-{random.randrange(10**9)}/"))

    return attack


def _swollen_files(attacker: Attacker) -> None:
    attacker.ask("/simple/swollen/")
    path = attacker.evil_path("swollen")
    attacker.many(8, lambda number: attacker.ask(f"{path}swollen-1.{number}-py3-none-any.whl"))


def _many_hosts(attacker: Attacker) -> None:
    attacker.ask("/big")
    attacker.many(
        120, lambda number: attacker.ask("/big", method="HEAD", host=f"{random.randrange(10**9)}-{number}.example")
    )


def _invented_versions(attacker: Attacker) -> None:
    attacker.ask("/big")
    attacker.many(20, lambda _: attacker.ask(f"/big/9.9.{random.randrange(10**9)}"))


def _invented_releases(attacker: Attacker) -> None:
    attacker.many(20, lambda _: attacker.ask(f"/pypi/hot/9.9.{random.randrange(10**9)}/json"))


def _full_directory(attacker: Attacker) -> None:
    attacker.many(8, lambda _: attacker.ask("/file/http/host/directory"), pace=0.0)


def _idle_connections(attacker: Attacker) -> None:
    held: list[socket.socket] = []
    while True:
        with suppress(OSError):
            while len(held) < 400:
                held.append(attacker.connect())
        time.sleep(0.5)
        closed = [each for each in held if select.select([each], [], [], 0)[0]]
        for each in closed:
            each.close()
            held.remove(each)


def _make_full_directory(data: Path) -> None:
    place = data / "files/http/host/directory"
    place.mkdir(parents=True)
    for number in range(100_000):
        (place / str(number)).touch()


@frozen
class Attack:
    """
    One attack. `run` never returns.

    `settings` are the daemon's, `prepare` changes its data directory before it starts, and `descriptors` is its limit
    of them.
    """

    run: Callable[[Attacker], None]
    package_type: str = "pypi"
    settings: dict[str, str] = field(factory=dict)
    prepare: Callable[[Path], None] = lambda _: None
    descriptors: int = 0


ATTACKS = {
    "slow files": Attack(_slow_files),
    "slow names": Attack(_slow_names),
    "missing names": Attack(_missing_names, settings={"MYPYPI_UPSTREAM_CONCURRENCY": "8"}),
    "slow audits": Attack(_slow_audits, "npm"),
    "endless heads": Attack(_harmful_pages("endless", 4)),
    "swollen files": Attack(_swollen_files, settings={"MYPYPI_DRAFTS_MAX_BYTES": str(DRAFTS_MAX)}),
    "swollen pages": Attack(_harmful_pages("spaces", 3)),
    "empty members": Attack(_harmful_pages("members", 4)),
    "one-byte chunks": Attack(_harmful_pages("chunks", 4)),
    "six-byte chunks": Attack(_harmful_pages("sixes", 4)),
    "many hosts": Attack(_many_hosts, "npm"),
    "invented versions": Attack(_invented_versions, "npm"),
    "invented releases": Attack(_invented_releases),
    "full directory": Attack(_full_directory, prepare=_make_full_directory),
    "idle connections": Attack(_idle_connections, descriptors=256),
}


@contextmanager
def attacked(name: str, daemon: Daemon, evil: str) -> Iterator[None]:
    """Run an attack in another process, until the end of the context."""
    command = [sys.executable, "-m", "benchmarks.attacks", "attack", name, daemon.url, evil]
    with subprocess.Popen(command) as process:  # noqa: S603 - this module
        try:
            yield
        finally:
            process.kill()


# Measuring


@define
class Usage:
    """Samples the memory of all processes of the daemon, and its disk space, in MB."""

    daemon: Daemon
    memory: list[float] = field(factory=list)
    disk: list[float] = field(factory=list)
    _stopped: Event = field(factory=Event)
    _thread: Thread | None = None

    def __enter__(self) -> Self:
        self._sample()
        self._thread = Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.3):
            self._sample()

    def _sample(self) -> None:
        process, rss, disk = psutil.Process(self.daemon.pid), 0, _disk_bytes(self.daemon.data)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error, OSError):
                rss += each.memory_info().rss
                disk += _nameless_bytes(each.pid)
        self.memory.append(rss / 1e6)
        self.disk.append(disk / 1e6)


def _disk_bytes(place: Path) -> int:
    """Bytes of the files below a directory, without the many empty ones that an attack asks for."""
    total = 0
    for root, directories, names in os.walk(place):
        if root.endswith("http/host"):
            directories.clear()
        for name in names:
            with suppress(OSError):
                total += Path(root, name).stat().st_blocks * 512
    return total


def _nameless_bytes(pid: int) -> int:
    """Bytes of the open files of a process that have no name."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found = entry.stat()
            if stat.S_ISREG(found.st_mode) and not found.st_nlink and "/memfd:" not in str(entry.readlink()):
                total += found.st_blocks * 512
    return total


@frozen
class Times:
    """The times of one kind of request, in seconds. `failed` counts answers other than 200."""

    median: float
    p99: float
    count: int
    failed: int

    @classmethod
    def of(cls, answers: list[tuple[float, int]]) -> Times:
        times = sorted(seconds for seconds, _ in answers) or [float("inf")]
        failed = sum(status != 200 for _, status in answers)
        return cls(median(times), times[min(len(times) - 1, len(times) * 99 // 100)], len(answers), failed)

    def breaks(self, before: Times) -> bool:
        """Whether these are longer than the project's limit, in the median."""
        return self.median > before.median * RATIO + EXTRA

    def __str__(self) -> str:
        failures = f" {self.failed:3} failed" if self.failed else ""
        return f"{self.median * 1000:7.1f} {self.p99 * 1000:8.1f} ({self.count:4}){failures}"


Phases = dict[str, dict[str, Times]]


def measure(name: str, seconds: float) -> list[str]:
    """Run one attack, print its table, and return the limits that it broke."""
    attack = ATTACKS[name]
    with tempfile.TemporaryDirectory() as place, _upstream() as (upstream, evil):
        data = Path(place) / "data"
        data.mkdir()
        attack.prepare(data)
        daemon = _daemon(attack, data, upstream)
        try:
            phases: Phases = {}

            def probe_for(phase: str, duration: float) -> None:
                with probed(daemon, upstream, attack.package_type, phase) as found:
                    time.sleep(duration)
                phases[phase] = {kind: Times.of(found[kind]) for kind in KINDS}

            probe_for("warm", 2)
            with Usage(daemon) as before:
                probe_for("before", seconds)
            harm = -int(get(f"{upstream}/-/harm").text)
            with Usage(daemon) as during, attacked(name, daemon, evil):
                time.sleep(1)
                probe_for("during", seconds)
            harm += int(get(f"{upstream}/-/harm").text)
            with Usage(daemon) as later:
                time.sleep(RECOVERY)
            with Usage(daemon) as after:
                probe_for("after", seconds)
            complaints = daemon.complaints
            harm += (data.parent / "connections").read_text().count("?slow-")  # names that took long to resolve
        finally:
            daemon.kill()
            daemon.sweep()
    broken = _broken(phases, before, during, later, after) + [f"log: {line}" for line in complaints[:3]]
    _print(f"{name} ({harm} harmful requests of the daemon)", phases, before, during, later, after, broken)
    return broken


@contextmanager
def _upstream() -> Iterator[tuple[str, str]]:
    command = [sys.executable, "-m", "benchmarks.attacks", "upstream"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603 - this module
        assert process.stdout is not None
        try:
            upstream, evil = process.stdout.readline().split()
            yield upstream, evil
        finally:
            process.kill()


def _daemon(attack: Attack, data: Path, upstream: str) -> Daemon:
    env = {
        "MYPYPI_PACKAGE_TYPE": attack.package_type,
        "MYPYPI_UPSTREAM_URL": upstream,
        "FUZZ_CONNECTIONS": str(data.parent / "connections"),
        **attack.settings,
    }
    daemon = Daemon("mypypi", data, env, python_path=(ROOT / "tests/fuzz/raw/observed", ROOT))
    if attack.descriptors:
        limited = f'ulimit -n {attack.descriptors}; exec "$@"'
        daemon._command = ["sh", "-c", limited, "sh", *daemon._command]  # noqa: SLF001 - for this benchmark alone
    return daemon.start()


def _broken(phases: Phases, before: Usage, during: Usage, later: Usage, after: Usage) -> list[str]:
    broken = []
    for phase in ("during", "after"):
        for kind in KINDS:
            times, usual = phases[phase][kind], phases["before"][kind]
            if times.breaks(usual):
                broken.append(f"{kind} {phase}: {times.median * 1000:.0f} ms, before {usual.median * 1000:.0f} ms")
            if times.failed > usual.failed:
                broken.append(f"{kind} {phase}: {times.failed} of {times.count} failed")
        if phases[phase]["metrics"].p99 > METRICS:
            slowest = [phases[each]["metrics"].p99 * 1000 for each in (phase, "before")]
            broken.append(f"metrics {phase}: up to {slowest[0]:.0f} ms, before up to {slowest[1]:.0f} ms")
    grown = max(during.memory + later.memory) - median(before.memory)
    if grown > MEMORY:
        broken.append(f"memory grew by {grown:.0f} MB")
    if median(after.memory) - median(before.memory) > MEMORY:
        broken.append(f"memory after it is {median(after.memory) - median(before.memory):.0f} MB more")
    disk = max(during.disk + later.disk) - before.disk[0]
    if disk > 1.5 * DRAFTS_MAX / 1e6:
        broken.append(f"disk grew by {disk:.0f} MB")
    return broken


def _print(
    name: str, phases: Phases, before: Usage, during: Usage, later: Usage, after: Usage, broken: list[str]
) -> None:
    grown = max(during.memory + later.memory) - median(before.memory)
    left = median(after.memory) - median(before.memory)
    disk = max(during.disk + later.disk) - before.disk[0]
    load = os.getloadavg()[0]
    print(f"\n{name}: memory +{grown:.0f} MB (after it +{left:.0f}), disk +{disk:.0f} MB, load {load:.1f}")
    print(f"  {'':10} {'before':33} {'during':33} {'after':33} ratio (ms: median, 99 %)")
    for kind in KINDS:
        row = [f"{phases[phase][kind]!s:33}" for phase in ("before", "during", "after")]
        ratio = phases["during"][kind].median / phases["before"][kind].median
        print(f"  {kind:10} {' '.join(row)} {ratio:6.1f}")
    for text in broken:
        print(f"  BROKEN: {text}")
    sys.stdout.flush()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--only", action="append", choices=ATTACKS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    results = {name: measure(name, options.seconds) for name in options.only or ATTACKS}
    print("\nsummary:")
    for name, broken in results.items():
        print(f"  {name:18} {'; '.join(broken) if broken else 'within the limits'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["upstream"]:
        serve_upstream()
    elif sys.argv[1:2] == ["probe"]:
        probe(*sys.argv[2:])
    elif sys.argv[1:2] == ["attack"]:
        ATTACKS[sys.argv[2]].run(Attacker(*sys.argv[3:]))
    else:
        main()
