"""Clients that install packages like pip during the chaos, and report wrong answers.

Knows which answers a client may receive (the specification's promises). Must never know which fault is active.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import Counter
from threading import Event, Lock, Thread
from typing import cast
from urllib.parse import urljoin

from attrs import define, field

from tests.rig.http import Answer, get
from tests.rig.packages import Artifact

_SIMPLE = "application/vnd.pypi.simple.v1+json"
#: Tries per file, and the timeout in seconds for each byte, as in pip.
_TRIES = 6
_TIMEOUT = 15.0
#: Seconds after a process was killed during which a connection may break, or the catalog may lack a page.
_GRACE_SECONDS = 6.0
#: Seconds for which clients may be redirected to a bucket that fails: as long as its last answer counts, and some time
#: for a busy machine.
_BUCKET_SECONDS = 7.0


@define(eq=False)
class SharedState:
    """
    The state that clients and the chaos run share.

    `server` and `upstream` are URLs, and `packages` are the wheels that upstream has. `seen_projects` are the projects
    whose page a client has received, and `violations` are the wrong answers. On the monotonic clock, `killed_at` is the
    time at which a server process was last killed, `redis_back_at` the time at which Redis was last restarted, and
    `descriptors_back_at` the time at which file descriptors were last given back. `bucket_failed_at` is the time at
    which the bucket began to fail, infinity while it works.
    """

    server: str
    upstream: str
    packages: list[Artifact] = field(factory=list)
    seen_projects: set[str] = field(factory=set)
    counts: Counter[str] = field(factory=Counter)
    violations: list[str] = field(factory=list)
    killed_at: float = float("-inf")
    redis_back_at: float = float("-inf")
    descriptors_back_at: float = float("-inf")
    bucket_failed_at: float = float("inf")
    stopped: Event = field(factory=Event)
    lock: Lock = field(factory=Lock)

    def count(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1

    def lacks_descriptors(self) -> bool:
        """Whether the servers lack file descriptors, or did so a moment ago."""
        return time.monotonic() - self.descriptors_back_at < _GRACE_SECONDS

    def names_descriptors(self, answer: Answer) -> bool:
        """Whether this is an error that says that file descriptors are used up. Such errors are counted."""
        named = answer.status == 503 and re.search(rb"file descriptors|Too many open files", answer.body) is not None
        if named:
            self.count("answers that name file descriptors")
        return named

    def add_violation(self, violation: str) -> None:
        with self.lock:
            self.violations.append(violation)


@define(eq=False)
class Client:
    """A client that repeatedly installs random packages until the run is stopped."""

    shared: SharedState
    rng: random.Random

    def start(self) -> Thread:
        thread = Thread(target=self.run)
        thread.start()
        return thread

    def run(self) -> None:
        shared = self.shared
        while not shared.stopped.is_set():
            packages = shared.packages
            # Half of the time a recent package, which is probably not stored yet.
            package = packages[-1 - min(int(self.rng.expovariate(0.5)), len(packages) - 1)]
            if self.rng.random() < 0.5:
                package = self.rng.choice(packages)
            try:
                self.install(package)
            except TimeoutError:
                shared.add_violation(f"{package.filename}: no byte for {_TIMEOUT:g} s")
            except ConnectionError as error:
                self.connection_broken(package, str(error))

    def install(self, package: Artifact) -> None:
        """Install a package as pip does: fetch the page, then the listed file."""
        shared = self.shared
        url = f"{shared.server}/simple/{package.project}/"
        page = get(url, {"Accept": _SIMPLE}, timeout=_TIMEOUT)
        shared.count("pages")
        if page.status != 200:
            self.check_failed_page(package, page)
            return
        if not page.complete:
            self.connection_broken(package, "a page")
            return
        files = {each["filename"]: each for each in cast("dict[str, list[dict[str, object]]]", page.json())["files"]}
        listed = files.get(package.filename)
        if listed is None or listed["hashes"] != {"sha256": package.sha256}:
            shared.add_violation(f"{package.filename}: its page lists {listed}")
            return
        if time.monotonic() - shared.redis_back_at > _GRACE_SECONDS:
            shared.seen_projects.add(package.project)
        self.download(package, urljoin(url, str(listed["url"])))

    def check_failed_page(self, package: Artifact, page: Answer) -> None:
        shared = self.shared
        redis_was_down = time.monotonic() - shared.redis_back_at < _GRACE_SECONDS
        names_descriptors = shared.lacks_descriptors() and shared.names_descriptors(page)
        if page.status == 0:
            self.connection_broken(package, "the head of a page")
        elif page.status not in (502, 503):
            shared.add_violation(f"{package.project}: page answered {page.status} {page.body[:200]!r}")
        elif package.project in shared.seen_projects and not (redis_was_down or names_descriptors):
            shared.add_violation(
                f"{package.project}: a page that was served before answered {page.status} {page.body[:200]!r}"
            )
        else:
            shared.count(f"pages answered {page.status}")

    def download(self, package: Artifact, url: str) -> None:
        """
        Download a file and check it.

        After a broken transfer it resumes, as pip does.
        """
        shared, received, etag = self.shared, b"", ""
        from_upstream = False
        for _ in range(_TRIES):
            headers = {"Range": f"bytes={len(received)}-", "If-Range": etag} if received and etag else {}
            answer = get(url, headers, timeout=_TIMEOUT)
            shared.count("files")
            shared.names_descriptors(answer)
            from_upstream = from_upstream or self.goes_to_upstream(answer)
            answer = self.follow(answer, headers)
            if answer.status in (0, 416, 429, 500, 502, 503, 504):
                if answer.status not in (0, 502, 503) and not from_upstream:
                    shared.add_violation(f"{package.filename}: {answer.status} {answer.body[:200]!r}")
                shared.count(f"files answered {answer.status}")
                if shared.stopped.wait(0.2):
                    return
                continue
            if answer.status not in (200, 206):
                shared.add_violation(f"{package.filename}: {answer.status} {answer.body[:200]!r}")
                return
            received = answer.body if answer.status == 200 else received + answer.body
            etag = answer.headers["ETag"] or ""
            if answer.complete:
                self.check(package, received, from_upstream=from_upstream)
                return
            shared.count("files broken")
            if not package.content.startswith(received) and not from_upstream:
                shared.add_violation(f"{package.filename}: wrong bytes in a transfer that broke")
                return
        shared.count("files not completed")

    def goes_to_upstream(self, answer: Answer) -> bool:
        return answer.status == 302 and (answer.headers["Location"] or "").startswith(self.shared.upstream)

    def follow(self, answer: Answer, headers: dict[str, str]) -> Answer:
        if answer.status not in (301, 302):
            return answer
        shared, failed_at = self.shared, self.shared.bucket_failed_at
        shared.count("files redirected")
        failed_for = time.monotonic() - failed_at
        try:
            found = get(answer.headers["Location"], headers, timeout=_TIMEOUT)
        except (ConnectionError, TimeoutError):  # the connection to upstream or to the bucket
            found = Answer(0, answer.headers, b"", complete=False)
        failed = min(failed_at, shared.bucket_failed_at) < float("inf") and found.status in (0, 403, 500, 503)
        if self.goes_to_upstream(answer) or not failed:
            return found
        shared.count("files redirected into a failing bucket")
        if failed_for > _BUCKET_SECONDS:
            shared.add_violation(f"a client was redirected to a bucket that had failed for {failed_for:.1f} s")
        return Answer(0, answer.headers, b"", complete=False)

    def check(self, package: Artifact, received: bytes, *, from_upstream: bool) -> None:
        if hashlib.sha256(received).hexdigest() == package.sha256:
            self.shared.count("files right")
        elif from_upstream:
            self.shared.count("files wrong at upstream")
        else:
            self.shared.add_violation(f"{package.filename}: {len(received)} wrong bytes in a complete answer")

    def connection_broken(self, package: Artifact, name: str) -> None:
        """
        Handle a connection that broke before the answer.

        This is right only shortly after a server process was killed, or while it can't accept another connection.
        """
        was_killed = time.monotonic() - self.shared.killed_at <= _GRACE_SECONDS
        if not was_killed and not self.shared.lacks_descriptors():
            self.shared.add_violation(f"{package.project}: the connection broke ({name}), but no process was killed")
        self.shared.count("connections broken")


def count_lines(log: str, pattern: str) -> int:
    """The number of lines of a log that match."""
    return sum(re.search(pattern, line) is not None for line in log.splitlines())
