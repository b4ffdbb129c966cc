"""
Compares a worker's uploads with boto3's ``upload_file`` in a plain script.

``python -m benchmarks.uploads`` has both upload many small files and one large file, alternately, to a server that
discards them. It prints files per second, processor time per file and per GB, and the ratios. The processor time is
that of the process alone, from the operating system's accounting, without its start.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from mypypi.daemon.backends import disk_id
from mypypi.digests import Digest
from mypypi.model import Job
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import RedisQueue
from mypypi.settings.types import RedisUrl
from mypypi.storage.bucket import UPLOAD
from mypypi.storage.disk import DiskStorage
from tests.rig.daemon import ROOT, Daemon
from tests.rig.redis import Redis, free_port
from tests.support.memory import AtOnce

SMALL = (300, 100_000)
LARGE = (1, 500_000_000)
ROUNDS = 3
KEYS = {"access": "A" * 20, "secret": "B" * 40}

_SCRIPT = """
import json, resource, sys, time
import boto3
from botocore.config import Config
url, access, secret, directory, warm, *names = sys.argv[1:]
client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=access,
                      aws_secret_access_key=secret, config=Config(s3={"addressing_style": "path"}))
client.upload_file(f"{directory}/{warm}", "packages", f"plain/{warm}")
def used():
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return mine.ru_utime + mine.ru_stime
cpu, began = used(), time.perf_counter()
for name in names:
    client.upload_file(f"{directory}/{name}", "packages", f"plain/{name}")
print(time.perf_counter() - began, used() - cpu)
"""


class Sink(BaseHTTPRequestHandler):
    """An S3 server that accepts all uploads and stores only their sizes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    sizes: dict[str, int] = {}  # noqa: RUF012 - one for all connections

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Do not log."""

    def _read_body(self) -> int:
        left = size = int(self.headers.get("Content-Length") or 0)
        buffer = bytearray(1 << 20)
        while left:
            left -= self.rfile.readinto(memoryview(buffer)[: min(left, len(buffer))])
        return int(self.headers.get("X-Amz-Decoded-Content-Length") or size)

    def _respond(self, body: bytes = b"", status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """Accept a file, or a part of one."""
        name = self.path.partition("?")[0]
        size = self._read_body()
        self.sizes[name] = self.sizes[name] + size if "partNumber" in self.path else size
        self._respond()

    def do_POST(self) -> None:
        """Begin or complete a multipart upload."""
        self._read_body()
        if self.path.endswith("?uploads"):
            self.sizes[self.path.removesuffix("?uploads")] = 0
        self._respond(b"<R><UploadId>u</UploadId><ETag>x</ETag></R>")

    def do_HEAD(self) -> None:
        """Return an object's size."""
        size = self.sizes.get(self.path)
        self._respond(status=404) if size is None else self._respond(length=size)

    def do_GET(self) -> None:
        """Return an empty list of unfinished uploads."""
        self._respond(b"<R></R>")


@frozen
class Used:
    """Elapsed seconds (`wall`) and seconds of processor time (`cpu`)."""

    wall: float
    cpu: float


def used_by(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def make_files(directory: Path, name: str, number: int, size: int) -> list[str]:
    """Create files with different content. Return their names."""
    for each in range(number):
        (directory / f"{name}-{each}").write_bytes(os.urandom(min(size, 1 << 20)) * (size // min(size, 1 << 20)))
    return [f"{name}-{each}" for each in range(number)]


def run_script(url: str, directory: Path, names: list[str]) -> Used:
    """Upload the files with the plain script."""
    command = [sys.executable, "-c", _SCRIPT, url, KEYS["access"], KEYS["secret"], str(directory), "warm-0", *names]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our arguments
    wall, cpu = map(float, printed.split())
    return Used(wall, cpu)


async def waiting_jobs(data: Path, directory: Path, names: list[str]) -> list[Job]:
    """Put these files on the worker's disk. Return their upload jobs."""
    waiting = DiskStorage(data / "waiting", AtOnce())
    jobs = []
    for name in names:
        content = directory / name
        with content.open("rb") as file:
            hasher = hashlib.sha256()
            while block := file.read(1 << 20):
                hasher.update(block)
        draft = directory / "draft"
        os.link(content, draft)
        await waiting.commit(f"https/files.example/{name}", draft, Digest("sha256", hasher.hexdigest()))
        jobs.append(Job(UPLOAD, f"https/files.example/{name}", disk=disk_id(data)))
    return jobs


async def run_worker(reactor: Any, queue: RedisQueue, worker: Daemon, jobs: list[Job]) -> Used:
    """Upload the files with the worker."""
    cpu, began = used_by(worker.pid), time.perf_counter()
    for job in jobs:
        await queue.put(job)
    while (state := await queue.state()).waiting:
        await deferLater(reactor, 0.01)
    assert not state.later, worker.log[-2000:]
    return Used(time.perf_counter() - began, used_by(worker.pid) - cpu)


def print_medians(what: str, number: int, size: int, ours: list[Used], theirs: list[Used]) -> None:
    """Print the medians of both, and their ratios."""
    figures = []
    for name, rounds in (("worker", ours), ("upload_file", theirs)):
        wall, cpu = median(each.wall for each in rounds), median(each.cpu for each in rounds)
        figures.append((wall, cpu))
        print(
            f"{what}, {name}: {number / wall:.1f} uploads/s, {number * size / wall / 1e6:.0f} MB/s, "
            f"{cpu / number * 1e3:.2f} ms CPU each, {cpu / (number * size) * 1e9:.2f} s CPU per GB"
        )
    (our_wall, our_cpu), (their_wall, their_cpu) = figures
    print(f"{what}: {their_wall / our_wall:.2f} times as fast, {our_cpu / their_cpu:.2f} times the processor time")


async def measure(reactor: Any, redis_url: str, worker: Daemon, url: str, files: Path) -> None:
    """Run the rounds of both, and print the results."""
    client = RedisClient(reactor, RedisUrl.parse(redis_url))
    client.start()
    queue = RedisQueue(client, "mypypi", "pypi", disk_id(worker.data), reactor)
    make_files(files, "warm", 1, 1000)
    for what, (number, size) in (("small", SMALL), ("large", LARGE)):
        names = make_files(files, what, number, size)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            await run_worker(reactor, queue, worker, await waiting_jobs(worker.data, files, ["warm-0"]))
            jobs = await waiting_jobs(worker.data, files, names)
            ours.append(await run_worker(reactor, queue, worker, jobs))
            theirs.append(run_script(url, files, names))
        print_medians(f"{number} x {size / 1e6:g} MB", number, size, ours, theirs)
    await client.stop()


@contextmanager
def sink() -> Iterator[str]:
    """Run `Sink` in its own process. Yields its URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.uploads", "--sink", str(port)], cwd=ROOT)  # noqa: S603
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as place, Redis() as redis, sink() as url:
        redis.call("CONFIG", "SET", "appendfsync", "everysec")
        files = Path(place, "files")
        files.mkdir()
        env = {
            "MYPYPI_REDIS_URL": redis.url,
            "MYPYPI_FILE_STORAGE_DRIVER": "s3",
            "MYPYPI_S3_BUCKET": "packages",
            "MYPYPI_S3_ENDPOINT_URL": url,
            "MYPYPI_S3_REGION": "us-east-1",
            "MYPYPI_S3_ACCESS_KEY": KEYS["access"],
            "MYPYPI_S3_SECRET_KEY": KEYS["secret"],
        }
        worker = Daemon("mypypi-worker", Path(place, "data"), env)
        worker.launch()
        try:
            worker.wait_for_log("ready: ")
            react(lambda reactor: Deferred.fromCoroutine(measure(reactor, redis.url, worker, url, files)))
        finally:
            worker.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sink"]:
        ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Sink).serve_forever()
    else:
        main()
