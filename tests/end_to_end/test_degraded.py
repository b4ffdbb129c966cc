"""Tests promise 8: clients are served while Redis, the disk or the storage fails.

Each failure is reported once in the log with its reason, in ``/-/health/ready`` and in ``/-/metrics``. The daemon
recovers without intervention and logs that. Failures of a bucket are in test_bucket.py.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from tests.conftest import daemons
from tests.observability.test_metrics import scrape, value
from tests.rig.daemon import Daemon
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.link import SlowLink
from tests.rig.packages import Artifact, make_wheel
from tests.rig.redis import Redis

LARGE = 3_000_000


@define(eq=False)
class Deployment:
    """A daemon in front of an upstream, with its data directory. Each package is requested by one test only."""

    index: FakeIndex
    daemon: Daemon
    data: Path
    published: int = 0

    def publish(self, padding: int = 0) -> Artifact:
        self.published += 1
        wheel = make_wheel(f"thing{self.published}", padding=padding)
        self.index.add(wheel)
        return wheel

    def get_page(self, wheel: Artifact) -> Answer:
        return get(f"{self.daemon.url}/simple/{wheel.project}/")

    def get_file(self, wheel: Artifact) -> Answer:
        """Request the file, following the redirect if there is one."""
        answer = get(f"{self.daemon.url}/file/{self.index.url_of(wheel.filename).replace('://', '/')}")
        return get(answer.headers["Location"]) if answer.status == 302 else answer

    def serves(self, *wheels: Artifact) -> bool:
        """Check the page and the file of each wheel."""
        for wheel in wheels:
            page, file = self.get_page(wheel), self.get_file(wheel)
            assert page.status == 200, page
            assert wheel.filename in page.body.decode()
            assert (file.status, file.body, file.complete) == (200, wheel.content, True)
        return True

    def stored(self) -> int:
        return self.daemon.log.count("] stored ")

    def wait_stored(self, count: int) -> None:
        self.daemon.wait_for_log(rf"(?s)(\] stored .*){{{count}}}")

    def health(self) -> Any:
        return get(f"{self.daemon.url}/-/health/ready").json()

    def assert_degraded(self, part: str, why: str) -> None:
        """Check that health and metrics report this part as degraded. The health gives this reason."""
        health = self.health()
        assert health["status"] == "degraded"
        assert why in health["checks"][part]
        assert value(scrape(self.daemon), "degraded", part=part) == 1

    def assert_recovered(self) -> None:
        """Check that all parts recover without intervention."""
        health = eventually(self.health, lambda found: found["status"] == "ok")
        assert set(health["checks"].values()) == {"ok"}
        parts = health["checks"]
        # Each process that answers scrapes learns it for itself.
        eventually(lambda: {value(scrape(self.daemon), "degraded", part=part) for part in parts}, lambda it: it == {0})

    def count_logged(self, words: str) -> int:
        return sum(words in line for line in self.daemon.log.splitlines())


@contextmanager
def deploy(tmp_path: Path, plugin: str = "mypypi-server", workers: int = 1, **settings: str) -> Iterator[Deployment]:
    env = {f"MYPYPI_{name}": text for name, text in settings.items()} | {"WORKERS": str(workers)}
    with FakeIndex() as index, daemons(index.url, tmp_path / "data") as start:
        yield Deployment(index, start(plugin, env=env), tmp_path / "data")


class TestRedis:
    """Tests failures of Redis, which has the pages and the queue. Files are found without it."""

    @pytest.fixture
    def redis(self) -> Iterator[Redis]:
        with Redis() as redis:
            yield redis

    def test_down_at_the_start(self, redis: Redis, tmp_path: Path) -> None:
        """A daemon that starts without Redis uses it once Redis runs."""
        redis.kill()
        with deploy(tmp_path, REDIS_URL=redis.url) as deployment:
            one, two = deployment.publish(), deployment.publish()
            assert deployment.serves(one, two, one)
            deployment.assert_degraded("redis", "can't be reached")
            assert value(scrape(deployment.daemon), "queue_jobs", state="waiting") is None
            redis.start()
            deployment.assert_recovered()
            assert deployment.serves(one, two, deployment.publish())
            assert value(scrape(deployment.daemon), "queue_jobs", state="waiting") == 0
            assert (deployment.count_logged("serving without it"), deployment.count_logged("is back")) == (1, 1)

    def test_down_later(self, redis: Redis, tmp_path: Path) -> None:
        """Known and new packages are served without Redis."""
        with deploy(tmp_path, REDIS_URL=redis.url, CACHE_TIME="1") as deployment:
            one, two = deployment.publish(), deployment.publish()
            assert deployment.serves(one)
            redis.kill()
            assert deployment.serves(one, two, one)
            deployment.assert_degraded("redis", "can't be reached")
            redis.start()
            deployment.assert_recovered()
            assert deployment.serves(one, two, deployment.publish())
            assert (deployment.count_logged("serving without it"), deployment.count_logged("is back")) == (1, 1)

    def test_slow(self, redis: Redis, tmp_path: Path) -> None:
        """
        A slow Redis delays only the first requests.

        Its answers take seconds. The daemon then serves without it until it is fast again.
        """
        with SlowLink(redis.port) as link, deploy(tmp_path, REDIS_URL=f"redis://127.0.0.1:{link.port}") as deployment:
            one, two, three = (deployment.publish() for _ in range(3))
            assert deployment.serves(one)
            link.delay = 4.0
            asked_at = time.monotonic()
            assert deployment.serves(two)
            assert time.monotonic() - asked_at < 10  # pip's timeout is 15 seconds for each of the two
            asked_at = time.monotonic()
            assert deployment.serves(one, two, three)
            assert time.monotonic() - asked_at < 4
            deployment.assert_degraded("redis", "")
            eventually(lambda: link.delayed, bool)
            link.delay = 0.0
            deployment.assert_recovered()
            assert deployment.serves(one, two, three, deployment.publish())
            assert (deployment.count_logged("serving without it"), deployment.count_logged("is back")) == (1, 1)

    @pytest.mark.parametrize("when", ["at the start", "later"])
    def test_out_of_memory(self, redis: Redis, tmp_path: Path, when: str) -> None:
        """
        A full Redis refuses writes and is reported as degraded.

        It still executes all other commands. The log and the health say what to do.
        """

        def fill() -> None:
            redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
            redis.call("CONFIG", "SET", "maxmemory", "100kb")

        if when == "at the start":
            fill()
        with deploy(tmp_path, REDIS_URL=redis.url) as deployment:
            one, two = deployment.publish(), deployment.publish()
            if when == "later":
                assert deployment.serves(one)
                fill()
            assert deployment.serves(one, two, one, two)
            deployment.assert_degraded("redis", "OOM")
            redis.call("CONFIG", "SET", "maxmemory", "0")
            deployment.daemon.wait_for_log("executes commands again")
            deployment.assert_recovered()
            assert deployment.serves(one, two, deployment.publish())
            assert (
                deployment.count_logged("refused a command"),
                deployment.count_logged("executes commands again"),
            ) == (1, 1)
            assert deployment.count_logged("OOM") >= 1


class TestDisk:
    """Tests failures of the disk that has the drafts and files. Clients get from upstream what can't be stored."""

    @pytest.fixture
    def deployment(self, tmp_path: Path) -> Iterator[Deployment]:
        with Redis() as redis, deploy(tmp_path, REDIS_URL=redis.url) as deployment:
            yield deployment

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Deployment]:
        """A deployment whose data directory is a disk of four megabytes."""
        (tmp_path / "data").mkdir()
        with ExitStack() as ending:
            ending.enter_context(mounted(tmp_path / "data"))
            redis = ending.enter_context(Redis())
            yield ending.enter_context(deploy(tmp_path, REDIS_URL=redis.url))

    def test_full(self, small_disk: Deployment) -> None:
        """A full disk serves its files; others come from upstream. Files are stored again when there is space."""
        one = small_disk.publish(100_000)
        assert small_disk.serves(one)
        small_disk.wait_stored(1)
        filling = small_disk.data / "filling"
        fill(filling)
        two, three = small_disk.publish(100_000), small_disk.publish(100_000)
        assert small_disk.serves(one, two, three, two)
        small_disk.assert_degraded("storage", "No space left")
        filling.unlink()
        assert small_disk.serves(two, three)
        small_disk.wait_stored(3)
        small_disk.assert_recovered()
        assert (
            small_disk.count_logged("files can't be stored"),
            small_disk.count_logged("files can be stored again"),
        ) == (1, 1)
        assert list((small_disk.data / "drafts").iterdir()) == []

    def test_full_while_a_file_arrives(self, small_disk: Deployment) -> None:
        """
        No client gets a short file as a complete one.

        A repeated request is served, and nothing of the failed fetch is left.
        """
        one = small_disk.publish(LARGE)
        fill(small_disk.data / "filling", leave=1_000_000)
        answer = small_disk.get_file(one)
        assert answer.body == one.content or not answer.complete
        assert small_disk.get_file(one).body == one.content
        (small_disk.data / "filling").unlink()
        assert small_disk.serves(one)
        small_disk.wait_stored(1)
        small_disk.assert_recovered()

    def test_read_only(self, small_disk: Deployment) -> None:
        """A read-only disk serves the files that it has. A disk error may cause that state."""
        one = small_disk.publish()
        assert small_disk.serves(one)
        small_disk.wait_stored(1)
        two = small_disk.publish()
        eventually(lambda: remount(small_disk.data, "ro"), bool)  # fails while a file is open for writing
        assert small_disk.serves(one, two, one, two)
        small_disk.assert_degraded("storage", "Read-only file system")
        assert remount(small_disk.data, "rw")
        assert small_disk.serves(one, two)
        small_disk.wait_stored(2)
        small_disk.assert_recovered()
        assert (
            small_disk.count_logged("files can't be stored"),
            small_disk.count_logged("files can be stored again"),
        ) == (1, 1)

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
    def test_nothing_can_be_written(self, deployment: Deployment) -> None:
        """
        Stored files are served while no byte can be written.

        The test limits the size of files, so it needs no right to mount a disk.
        """
        one, two = deployment.publish(), deployment.publish()
        assert deployment.serves(one)
        deployment.wait_stored(1)
        with unwritable(deployment.daemon):
            for _ in range(3):
                answer = deployment.get_file(two)
                assert answer.body == two.content or not answer.complete
                assert deployment.serves(one)
            deployment.assert_degraded("storage", os.strerror(errno.EFBIG))
        assert deployment.serves(one, two)
        deployment.wait_stored(2)
        deployment.assert_recovered()

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
    def test_a_disk_that_fails_at_the_first_file(self, deployment: Deployment) -> None:
        """
        Clients get files although the first write fails.

        A broken disk may report free space and still refuse writes.
        """
        one, two = deployment.publish(), deployment.publish()
        with unwritable(deployment.daemon):
            assert deployment.serves(one, two, one)
        assert deployment.serves(one, two)
        deployment.wait_stored(2)

    def test_a_storage_that_fails(self, deployment: Deployment) -> None:
        """
        Clients get files while drafts can be written but not stored.

        A file replaces the directory of the storage.
        """
        one, two, three = (deployment.publish() for _ in range(3))
        assert deployment.serves(one)
        deployment.wait_stored(1)
        files = deployment.data / "files"
        files.rename(deployment.data / "elsewhere")
        files.write_bytes(b"")
        assert deployment.serves(one, two, three, two)
        deployment.assert_degraded("storage", "the file storage can't be written")
        files.unlink()
        (deployment.data / "elsewhere").rename(files)
        assert deployment.serves(one, two, three)
        deployment.wait_stored(3)
        deployment.assert_recovered()


@contextmanager
def unwritable(daemon: Daemon) -> Iterator[None]:
    """Keep the daemon's files from growing inside the block."""
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def mounted(directory: Path, size: str = "4m") -> Iterator[None]:
    """Mount a small disk in memory at this directory. Skips the test where mounting is not possible."""
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)],  # noqa: S607 - as root
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)  # noqa: S607 - as above


def remount(directory: Path, how: str) -> bool:
    """Remount the disk ``ro`` or ``rw``. Return whether that succeeded."""
    command = ["mount", "-o", f"remount,{how}", str(directory)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def fill(path: Path, leave: int = 0) -> None:
    """Fill this disk except for `leave` bytes. Fails if the disk could not be filled."""
    with path.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            file.writelines(repeat(b"a" * 4096))
        if leave:
            file.truncate(max(0, path.stat().st_size - leave))
