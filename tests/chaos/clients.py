"""Clients in rough weather: they ask as pip does, check what they get, and tell what no client should ever see.

Knows what a client may be told (the specification's promises). Must never know which fault is on.
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
#: How often a client goes on with a file, and how long it waits for a byte (seconds), as pip does.
_TRIES = 6
_PATIENCE = 15.0
#: Seconds within which a connection may break, or the catalog be missing a page, because of a process that was killed.
_AFTERMATH = 6.0


@define(eq=False)
class Weather:
    """
    What is shared: the address, what upstream has, what was seen of it, what was counted, and what no client should
    have seen. `killed_at`: when (monotonic) a server process was last killed; `redis_at`: when Redis was back.
    """

    server: str
    upstream: str
    things: list[Artifact] = field(factory=list)
    seen: set[str] = field(factory=set)
    counts: Counter[str] = field(factory=Counter)
    wrongs: list[str] = field(factory=list)
    killed_at: float = float("-inf")
    redis_at: float = float("-inf")
    over: Event = field(factory=Event)
    lock: Lock = field(factory=Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def wrong(self, what: str) -> None:
        with self.lock:
            self.wrongs.append(what)


@define(eq=False)
class Client:
    """Installs something at random, again and again, until the weather is over."""

    weather: Weather
    chance: random.Random

    def start(self) -> Thread:
        thread = Thread(target=self.run)
        thread.start()
        return thread

    def run(self) -> None:
        weather = self.weather
        while not weather.over.is_set():
            things = weather.things
            # Half of the time something new, which nobody has fetched yet.
            thing = things[-1 - min(int(self.chance.expovariate(0.5)), len(things) - 1)]
            if self.chance.random() < 0.5:
                thing = self.chance.choice(things)
            try:
                self.install(thing)
            except TimeoutError:
                weather.wrong(f"{thing.filename}: not a byte for {_PATIENCE:g} s")
            except ConnectionError as error:
                self.broke(thing, str(error))

    def install(self, thing: Artifact) -> None:
        """As pip would: the page, then the file that it lists."""
        weather = self.weather
        url = f"{weather.server}/simple/{thing.project}/"
        page = get(url, {"Accept": _SIMPLE}, timeout=_PATIENCE)
        weather.count("pages")
        if page.status != 200:
            self.page_refused(thing, page)
            return
        if not page.complete:
            self.broke(thing, "a page")
            return
        files = {each["filename"]: each for each in cast("dict[str, list[dict[str, object]]]", page.json())["files"]}
        listed = files.get(thing.filename)
        if listed is None or listed["hashes"] != {"sha256": thing.sha256}:
            weather.wrong(f"{thing.filename}: its page lists {listed}")
            return
        if time.monotonic() - weather.redis_at > _AFTERMATH:
            weather.seen.add(thing.project)
        self.download(thing, urljoin(url, str(listed["url"])))

    def page_refused(self, thing: Artifact, page: Answer) -> None:
        weather = self.weather
        recent = time.monotonic() - weather.redis_at < _AFTERMATH
        if page.status == 0:
            self.broke(thing, "the head of a page")
        elif page.status not in (502, 503):
            weather.wrong(f"{thing.project}: page answered {page.status} {page.body[:200]!r}")
        elif thing.project in weather.seen and not recent:
            weather.wrong(f"{thing.project}: a page that was seen answered {page.status} {page.body[:200]!r}")
        else:
            weather.count(f"pages told {page.status}")

    def download(self, thing: Artifact, url: str) -> None:
        """Go on after a broken transfer with what has come, as pip does; check all of it in the end."""
        weather, got, etag = self.weather, b"", ""
        direct = False
        for _ in range(_TRIES):
            headers = {"Range": f"bytes={len(got)}-", "If-Range": etag} if got and etag else {}
            answer = get(url, headers, timeout=_PATIENCE)
            weather.count("files")
            direct = direct or self.goes_to_upstream(answer)
            answer = self.followed(answer, headers)
            if answer.status in (0, 416, 429, 500, 502, 503, 504):
                if answer.status not in (0, 502, 503) and not direct:
                    weather.wrong(f"{thing.filename}: {answer.status} {answer.body[:200]!r}")
                weather.count(f"files told {answer.status}")
                if weather.over.wait(0.2):
                    return
                continue
            if answer.status not in (200, 206):
                weather.wrong(f"{thing.filename}: {answer.status} {answer.body[:200]!r}")
                return
            got = answer.body if answer.status == 200 else got + answer.body
            etag = answer.headers["ETag"] or ""
            if answer.complete:
                self.check(thing, got, direct=direct)
                return
            weather.count("files broken")
            if not thing.content.startswith(got) and not direct:
                weather.wrong(f"{thing.filename}: wrong bytes in a transfer that broke")
                return
        weather.count("files given up")

    def goes_to_upstream(self, answer: Answer) -> bool:
        return answer.status == 302 and (answer.headers["Location"] or "").startswith(self.weather.upstream)

    def followed(self, answer: Answer, headers: dict[str, str]) -> Answer:
        if answer.status not in (301, 302):
            return answer
        self.weather.count("files redirected")
        try:
            return get(answer.headers["Location"], headers, timeout=_PATIENCE)
        except (ConnectionError, TimeoutError):  # upstream itself, or the bucket
            return Answer(0, answer.headers, b"", complete=False)

    def check(self, thing: Artifact, got: bytes, *, direct: bool) -> None:
        if hashlib.sha256(got).hexdigest() == thing.sha256:
            self.weather.count("files right")
        elif direct:
            self.weather.count("files wrong at upstream")
        else:
            self.weather.wrong(f"{thing.filename}: {len(got)} wrong bytes, as if they were whole")

    def broke(self, thing: Artifact, what: str) -> None:
        """A connection broke before there was an answer: right only where somebody has just killed the process."""
        if time.monotonic() - self.weather.killed_at > _AFTERMATH:
            self.weather.wrong(f"{thing.project}: {what} broke, and nobody was killed")
        self.weather.count("connections broken")


def told_in(log: str, pattern: str) -> int:
    """How many lines of a log match."""
    return sum(re.search(pattern, line) is not None for line in log.splitlines())
