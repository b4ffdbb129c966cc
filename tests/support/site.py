"""An upstream and its daemon, which a test class shares.

Each test publishes its own packages. Knows where the daemon keeps its data, and its log messages. Must never know an
ecosystem: that is the `Kind`.
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
    A daemon and its upstream. `launch` starts a daemon over the same data directory.

    If upstream requires credentials, the daemon has them.
    """

    kind: Kind
    upstream: FileHost
    data: Path
    launch: Callable[[], Daemon]
    daemon: Daemon = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.daemon = self.launch()

    # Packages

    def publish(self, padding: int = 0, *, seen: bool = True) -> Published:
        """
        Publish a new package upstream, with at least `padding` bytes.

        If `seen`, its page is requested from the daemon as well.
        """
        thing = self.kind.publish(self.upstream, next(_NAMES), padding=padding)
        if seen:
            assert [unquote(link) for link in self.links(thing)] == [unquote(self.url(thing))]
        return thing

    def publish_stored(self, padding: int = 0) -> Published:
        """Publish a package, and wait until the daemon has stored its file."""
        thing = self.publish(padding)
        assert self.get(thing).body == thing.content
        self.wait_stored(thing)
        return thing

    def url(self, thing: Published) -> str:
        """The file's URL on the daemon."""
        return self.daemon.url + thing.path

    def links(self, thing: Published) -> list[str]:
        """The file URLs on the package's page on the daemon."""
        page_url = self.daemon.url + self.kind.page_path(thing.name)
        answer = get(page_url, {"Accept": self.kind.accept})
        page: Any = answer.json()
        assert answer.status == 200
        return self.kind.file_links(page_url, page)

    # Requests

    def get(self, thing: Published, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Request the file from the daemon."""
        return get(self.url(thing), headers, method=method)

    def reader(self, thing: Published) -> SlowReader:
        """A client that has read the head of the file's response."""
        return SlowReader(self.url(thing))

    def settle(self) -> None:
        """
        Wait until the daemon has handled all earlier events of its clients.

        Its log has been read up to then as well.
        """
        mark = f"settled-{next(_MARKS)}"
        assert get(f"{self.daemon.url}/-/health/live", {"X-Request-ID": mark}).status == 200
        self.daemon.wait_for_log(rf"{mark}\b")

    def health(self) -> Any:
        """The daemon's health report."""
        return get(f"{self.daemon.url}/-/health/ready").json()

    # Upstream

    def misbehave(self, thing: Published, fault: FaultT, times: int | None = 1) -> FaultT:
        """Set a fault on upstream's file for `times` requests (None: for all)."""
        return self.upstream.fault(thing.upstream_path, fault, times)

    def hold(self, thing: Published, allowed: int = 0) -> Gate:
        """Make upstream pause the file's next transfer after `allowed` bytes."""
        gate = self.misbehave(thing, Gate())
        gate.allow(allowed)
        return gate

    def asked(self, thing: Published) -> list[Request]:
        """The requests for the file that upstream received."""
        return self.upstream.seen(thing.upstream_path)

    def upstream_url(self, thing: Published) -> str:
        """The file's URL on upstream."""
        return self.upstream.url + thing.upstream_path

    def upstream_etag(self, thing: Published) -> str:
        """Upstream's current ETag of the file. Upstream counts this as a request."""
        auth = base64.b64encode(":".join(self.upstream.auth or ("", "")).encode()).decode()
        etag = get(self.upstream_url(thing), {"Authorization": f"Basic {auth}"}, method="HEAD").headers["ETag"]
        assert etag
        return str(etag)

    # Files and log

    @property
    def drafts(self) -> list[Path]:
        """The drafts on disk."""
        return sorted((self.data / "drafts").glob("*.draft"))

    def stored(self, thing: Published) -> list[Path]:
        """The stored files of this package on disk."""
        return [path for path in self.daemon.paths if path.is_file() and {"files", _filename(thing)} <= {*path.parts}]

    def wait_stored(self, thing: Published, times: int = 1) -> None:
        """Wait until this daemon has stored the file `times` times."""
        self.daemon.wait_for_log(rf"(?s)(stored \S*{re.escape(_filename(thing))},.*){{{times}}}")
        self.settle()

    def wait_dropped(self, thing: Published) -> None:
        """Wait until the file's fetch has failed."""
        self.daemon.wait_for_log(rf"{re.escape(_filename(thing))} was not stored")
        self.settle()

    def logged(self, *words: object) -> list[str]:
        """The lines of the log that contain all these words."""
        return [line for line in self.daemon.log.splitlines() if all(str(word) in line for word in words)]

    def logged_failures(self, thing: Published) -> list[str]:
        """The lines of the log that report a failed fetch of the file."""
        return self.logged(_filename(thing), "was not stored")

    # Restarts and failures

    def restart(self) -> None:
        """Stop the daemon and start it again."""
        self.daemon.stop()
        self.daemon = self.launch()

    def crash(self) -> None:
        """Kill the daemon, as in a power cut, without a restart."""
        self.daemon.kill()

    def recover(self) -> None:
        """Start the daemon again."""
        self.daemon = self.launch()

    def empty_redis(self) -> None:
        """Delete all data in the daemon's Redis."""
        path = str(EmbeddedRedis(None, self.data).socket)
        with socket.socket(socket.AF_UNIX) as redis:
            redis.settimeout(BOUND)
            redis.connect(path)
            redis.sendall(b"FLUSHALL\r\n")
            assert redis.recv(64) == b"+OK\r\n"

    @contextmanager
    def without_drafts(self) -> Iterator[None]:
        """Make drafts impossible: replace their directory with a file."""
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
