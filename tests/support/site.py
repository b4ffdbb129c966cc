"""An upstream and the daemon before it, which the tests of a class share, each with packages of its own.

Knows where the daemon keeps what it keeps, and what it logs. Must never know an ecosystem: that is the `Kind`.
"""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from attrs import define, field

from mypypi.daemon.embedded_redis import EmbeddedRedis
from tests.rig.daemon import Daemon
from tests.rig.faults import Gate
from tests.rig.host import FaultT, FileHost
from tests.rig.http import Answer, SlowReader, get
from tests.rig.wire import BOUND, Request
from tests.support.kinds import Kind, Published

_MARKS = count()
_NAMES = (f"thing{number}" for number in count())


@define(eq=False)
class Site:
    """
    What stands between a client and an upstream. `launch` starts a daemon over the same data as the one before it.

    `auth` is the user and password that upstream asks for, and that the daemon knows.
    """

    kind: Kind
    upstream: FileHost
    data: Path
    launch: Callable[[], Daemon]
    daemon: Daemon = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.daemon = self.launch()

    # What there is to ask for

    def publish(self, padding: int = 0, *, seen: bool = True) -> Published:
        """A package that nobody asked for yet, of `padding` bytes and some. Where `seen`, its page was read here."""
        thing = self.kind.publish(self.upstream, next(_NAMES), padding=padding)
        if seen:
            assert [unquote(link) for link in self.links(thing)] == [unquote(self.url(thing))]
        return thing

    def publish_stored(self, padding: int = 0) -> Published:
        """A package that is stored here already."""
        thing = self.publish(padding)
        assert self.get(thing).body == thing.content
        self.wait_stored(thing)
        return thing

    def url(self, thing: Published) -> str:
        """The file's address here."""
        return self.daemon.url + thing.path

    def links(self, thing: Published) -> list[str]:
        """The addresses that the package's page here gives now."""
        page_url = self.daemon.url + self.kind.page_path(thing.name)
        answer = get(page_url, {"Accept": self.kind.accept})
        page: Any = answer.json()
        assert answer.status == 200
        return self.kind.file_links(page_url, page)

    # Asking

    def get(self, thing: Published, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask for the file here."""
        return get(self.url(thing), headers, method=method)

    def reader(self, thing: Published) -> SlowReader:
        """A client that has the head of the file's answer."""
        return SlowReader(self.url(thing))

    def settle(self) -> None:
        """Wait until the daemon has seen whatever clients did before, such as leaving, and its log been read so far."""
        mark = f"settled-{next(_MARKS)}"
        assert get(f"{self.daemon.url}/-/health/live", {"X-Request-ID": mark}).status == 200
        self.daemon.wait_for_log(rf"{mark}\b")

    def health(self) -> Any:
        """What it says of itself."""
        return get(f"{self.daemon.url}/-/health/ready").json()

    # Upstream

    def misbehave(self, thing: Published, fault: FaultT, times: int | None = 1) -> FaultT:
        """Let upstream misbehave with this file for so many requests; None: for all."""
        return self.upstream.fault(thing.upstream_path, fault, times)

    def hold(self, thing: Published, allowed: int = 0) -> Gate:
        """Let upstream send only so many bytes of the file's next transfer until it is allowed more."""
        gate = self.misbehave(thing, Gate())
        gate.allow(allowed)
        return gate

    def asked(self, thing: Published) -> list[Request]:
        """The requests for the file that upstream got."""
        return self.upstream.seen(thing.upstream_path)

    def upstream_url(self, thing: Published) -> str:
        """The file's address there."""
        return self.upstream.url + thing.upstream_path

    def upstream_etag(self, thing: Published) -> str:
        """What upstream calls the bytes it serves now; counts as a request there."""
        auth = base64.b64encode(":".join(self.upstream.auth or ("", "")).encode()).decode()
        etag = get(self.upstream_url(thing), {"Authorization": f"Basic {auth}"}, method="HEAD").headers["ETag"]
        assert etag
        return str(etag)

    # What it keeps

    @property
    def drafts(self) -> list[Path]:
        """The drafts on disk."""
        return sorted((self.data / "drafts").glob("*.draft"))

    def stored(self, thing: Published) -> list[Path]:
        """The files on disk that hold what is stored of this one."""
        return [path for path in (self.data / "files").rglob("*") if path.is_file() and _filename(thing) in path.parts]

    def wait_stored(self, thing: Published, times: int = 1) -> None:
        """Wait until this daemon has kept the file so often."""
        self.daemon.wait_for_log(rf"(?s)(stored \S*{re.escape(_filename(thing))},.*){{{times}}}")
        self.settle()

    def wait_dropped(self, thing: Published) -> None:
        """Wait until the file's fetch has failed."""
        self.daemon.wait_for_log(rf"{re.escape(_filename(thing))} was not stored")
        self.settle()

    def logged(self, *words: object) -> list[str]:
        """The lines of the log that have all these in them."""
        return [line for line in self.daemon.log.splitlines() if all(str(word) in line for word in words)]

    def logged_failures(self, thing: Published) -> list[str]:
        """The lines of the log which say that the file could not be had."""
        return self.logged(_filename(thing), "was not stored")

    # What happens to it

    def restart(self) -> None:
        """Stop the daemon and start it again."""
        self.daemon.stop()
        self.daemon = self.launch()

    def crash(self) -> None:
        """End the daemon as a power cut would, and start none."""
        self.daemon.kill()

    def recover(self) -> None:
        """Start it after it was ended."""
        self.daemon = self.launch()

    def empty_redis(self) -> None:
        """Let the daemon's Redis forget everything."""
        path = str(EmbeddedRedis(None, self.data).socket)
        with socket.socket(socket.AF_UNIX) as redis:
            redis.settimeout(BOUND)
            redis.connect(path)
            redis.sendall(b"FLUSHALL\r\n")
            assert redis.recv(64) == b"+OK\r\n"

    @contextmanager
    def without_drafts(self) -> Iterator[None]:
        """Put something in the place of the drafts, so that none can be made."""
        place = self.data / "drafts"
        place.mkdir(exist_ok=True)
        assert self.drafts == []
        place.rmdir()
        place.write_bytes(b"")
        try:
            yield
        finally:
            place.unlink()


def _filename(thing: Published) -> str:
    return thing.upstream_path.rpartition("/")[2]
