"""
Promise 8, with real processes: Redis, disk or storage fail, and clients get their pages and files all the same.

Each trouble is told once in the log with its reason, in ``/-/health/ready`` and in ``/-/metrics``, and is over by
itself, with a line that says so. What happens when a bucket fails is in test_bucket.py.
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
class Place:
    """A daemon between clients and an upstream, and what it stands on. Each package is asked for by one test only."""

    index: FakeIndex
    daemon: Daemon
    data: Path
    published: int = 0

    def publish(self, padding: int = 0) -> Artifact:
        self.published += 1
        wheel = make_wheel(f"thing{self.published}", padding=padding)
        self.index.add(wheel)
        return wheel

    def page(self, wheel: Artifact) -> Answer:
        return get(f"{self.daemon.url}/simple/{wheel.project}/")

    def file(self, wheel: Artifact) -> Answer:
        """The file, from wherever the server sends its client."""
        answer = get(f"{self.daemon.url}/file/{self.index.url_of(wheel.filename).replace('://', '/')}")
        return get(answer.headers["Location"]) if answer.status == 302 else answer

    def serves(self, *wheels: Artifact) -> bool:
        """Page and file of each, whole."""
        for wheel in wheels:
            page, file = self.page(wheel), self.file(wheel)
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

    def is_degraded(self, part: str, why: str) -> None:
        """Told as such, of this part, for this reason."""
        health = self.health()
        assert health["status"] == "degraded"
        assert why in health["checks"][part]
        assert value(scrape(self.daemon), "degraded", part=part) == 1

    def is_well(self) -> None:
        """Again, and by itself."""
        health = eventually(self.health, lambda found: found["status"] == "ok")
        assert set(health["checks"].values()) == {"ok"}
        told = scrape(self.daemon)
        assert {value(told, "degraded", part=part) for part in health["checks"]} == {0}

    def logged(self, words: str) -> int:
        return sum(words in line for line in self.daemon.log.splitlines())


@contextmanager
def place_of(tmp_path: Path, plugin: str = "mypypi-server", **settings: str) -> Iterator[Place]:
    env = {f"MYPYPI_{name}": text for name, text in settings.items()} | {"WORKERS": "1"}
    with FakeIndex() as index, daemons(index.url, tmp_path / "data") as start:
        yield Place(index, start(plugin, env=env), tmp_path / "data")


class TestRedis:
    """What is in Redis are pages and the queue: files are found without it."""

    @pytest.fixture
    def redis(self) -> Iterator[Redis]:
        with Redis() as redis:
            yield redis

    def test_gone_at_the_start(self, redis: Redis, tmp_path: Path) -> None:
        """It serves, and uses Redis as soon as there is one."""
        redis.kill()
        with place_of(tmp_path, REDIS_URL=redis.url) as place:
            one, two = place.publish(), place.publish()
            assert place.serves(one, two, one)
            place.is_degraded("redis", "can't be reached")
            assert value(scrape(place.daemon), "queue_jobs", state="waiting") is None
            redis.start()
            place.is_well()
            assert place.serves(one, two, place.publish())
            assert value(scrape(place.daemon), "queue_jobs", state="waiting") == 0
            assert (place.logged("serving without it"), place.logged("is back")) == (1, 1)

    def test_gone_later(self, redis: Redis, tmp_path: Path) -> None:
        """What was there before, and what is new."""
        with place_of(tmp_path, REDIS_URL=redis.url, CACHE_TIME="1") as place:
            one, two = place.publish(), place.publish()
            assert place.serves(one)
            redis.kill()
            assert place.serves(one, two, one)
            place.is_degraded("redis", "can't be reached")
            redis.start()
            place.is_well()
            assert place.serves(one, two, place.publish())
            assert (place.logged("serving without it"), place.logged("is back")) == (1, 1)

    def test_slow(self, redis: Redis, tmp_path: Path) -> None:
        """A Redis whose answers come after seconds costs a moment, and then nothing until it is quick again."""
        with SlowLink(redis.port) as link, place_of(tmp_path, REDIS_URL=f"redis://127.0.0.1:{link.port}") as place:
            one, two, three = (place.publish() for _ in range(3))
            assert place.serves(one)
            link.delay = 4.0
            asked_at = time.monotonic()
            assert place.serves(two)
            assert time.monotonic() - asked_at < 10  # pip waits for 15 seconds for each of the two
            asked_at = time.monotonic()
            assert place.serves(one, two, three)
            assert time.monotonic() - asked_at < 4
            place.is_degraded("redis", "")
            eventually(lambda: link.delayed, bool)
            link.delay = 0.0
            place.is_well()
            assert place.serves(one, two, three, place.publish())
            assert (place.logged("serving without it"), place.logged("is back")) == (1, 1)

    @pytest.mark.parametrize("when", ["at the start", "later"])
    def test_out_of_memory(self, redis: Redis, tmp_path: Path, when: str) -> None:
        """It refuses to keep anything, and answers all else: the log and the health say what is to be done."""

        def fill() -> None:
            redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
            redis.call("CONFIG", "SET", "maxmemory", "100kb")

        if when == "at the start":
            fill()
        with place_of(tmp_path, REDIS_URL=redis.url) as place:
            one, two = place.publish(), place.publish()
            if when == "later":
                assert place.serves(one)
                fill()
            assert place.serves(one, two, one, two)
            place.is_degraded("redis", "OOM")
            redis.call("CONFIG", "SET", "maxmemory", "0")
            place.daemon.wait_for_log("executes commands again")
            place.is_well()
            assert place.serves(one, two, place.publish())
            assert (place.logged("refused a command"), place.logged("executes commands again")) == (1, 1)
            assert place.logged("OOM") >= 1


class TestDisk:
    """The one on which drafts and files lie: clients get from upstream what can't be kept."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with Redis() as redis, place_of(tmp_path, REDIS_URL=redis.url) as place:
            yield place

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Place]:
        """With a disk of four megabytes for drafts and files."""
        (tmp_path / "data").mkdir()
        with ExitStack() as ending:
            ending.enter_context(mounted(tmp_path / "data"))
            redis = ending.enter_context(Redis())
            yield ending.enter_context(place_of(tmp_path, REDIS_URL=redis.url))

    def test_full(self, small: Place) -> None:
        """What is stored is served, and all else from upstream, until there is room."""
        one = small.publish(100_000)
        assert small.serves(one)
        small.wait_stored(1)
        filling = small.data / "filling"
        fill(filling)
        two, three = small.publish(100_000), small.publish(100_000)
        assert small.serves(one, two, three, two)
        small.is_degraded("storage", "No space left")
        filling.unlink()
        assert small.serves(two, three)
        small.wait_stored(3)
        small.is_well()
        assert (small.logged("files can't be stored"), small.logged("files can be stored again")) == (1, 1)
        assert list((small.data / "drafts").iterdir()) == []

    def test_full_while_a_file_arrives(self, small: Place) -> None:
        """No client gets a short file for a whole one; what asks again is served, and nothing is left of it."""
        one = small.publish(LARGE)
        fill(small.data / "filling", leave=1_000_000)
        answer = small.file(one)
        assert answer.body == one.content or not answer.complete
        assert small.file(one).body == one.content
        (small.data / "filling").unlink()
        assert small.serves(one)
        small.wait_stored(1)
        small.is_well()

    def test_read_only(self, small: Place) -> None:
        """As after an error of the disk: what is stored is read."""
        one = small.publish()
        assert small.serves(one)
        small.wait_stored(1)
        two = small.publish()
        eventually(lambda: remounted(small.data, "ro"), bool)  # nothing may be open for writing
        assert small.serves(one, two, one, two)
        small.is_degraded("storage", "Read-only file system")
        assert remounted(small.data, "rw")
        assert small.serves(one, two)
        small.wait_stored(2)
        small.is_well()
        assert (small.logged("files can't be stored"), small.logged("files can be stored again")) == (1, 1)

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process is Linux's")
    def test_nothing_can_be_written(self, place: Place) -> None:
        """Without a disk of its own, for whoever may not mount one: no file may have a byte in it."""
        one, two = place.publish(), place.publish()
        assert place.serves(one)
        place.wait_stored(1)
        with unwritable(place.daemon):
            for _ in range(3):
                answer = place.file(two)
                assert answer.body == two.content or not answer.complete
                assert place.serves(one)
            place.is_degraded("storage", os.strerror(errno.EFBIG))
        assert place.serves(one, two)
        place.wait_stored(2)
        place.is_well()

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process is Linux's")
    def test_a_disk_that_fails_is_told_by_the_first_file(self, place: Place) -> None:
        """It says that there is room, and takes nothing, as broken ones do: clients get files all the same."""
        one, two = place.publish(), place.publish()
        with unwritable(place.daemon):
            assert place.serves(one, two, one)
        assert place.serves(one, two)
        place.wait_stored(2)

    def test_a_storage_that_fails(self, place: Place) -> None:
        """Drafts can be written, and not be stored: something else lies where files should."""
        one, two, three = (place.publish() for _ in range(3))
        assert place.serves(one)
        place.wait_stored(1)
        files = place.data / "files"
        files.rename(place.data / "elsewhere")
        files.write_bytes(b"")
        assert place.serves(one, two, three, two)
        place.is_degraded("storage", "the file storage can't be written")
        files.unlink()
        (place.data / "elsewhere").rename(files)
        assert place.serves(one, two, three)
        place.wait_stored(3)
        place.is_well()


@contextmanager
def unwritable(daemon: Daemon) -> Iterator[None]:
    """No file of this daemon's may grow."""
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def mounted(directory: Path) -> Iterator[None]:
    """A small disk in memory at this directory. Skips the test where there can be none."""
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)],  # noqa: S607 - as root
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)  # noqa: S607 - as above


def remounted(directory: Path, how: str) -> bool:
    """Whether the disk at this directory could be made ``ro`` or ``rw``."""
    command = ["mount", "-o", f"remount,{how}", str(directory)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def fill(path: Path, leave: int = 0) -> None:
    """Take all the room there is on this disk, but for some bytes. Fails where it could not be filled."""
    with path.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            file.writelines(repeat(b"a" * 4096))
        if leave:
            file.truncate(max(0, path.stat().st_size - leave))
