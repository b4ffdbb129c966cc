"""Runs random cases against two daemons, one for each ecosystem, and reports what must never happen.

A fuzzer makes a case from a number. Knows daemons, threads and time. Must never know what a case sends.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from threading import Lock, Thread

from attrs import define, field
from typing_extensions import Self

from tests.fuzz.raw.content import SIMPLE, Package
from tests.fuzz.raw.vitals import Probe, Vitals
from tests.fuzz.world import PASSWORD, USER, Violation
from tests.rig.daemon import ROOT, Daemon

TYPES = ("pypi", "npm")
#: Seconds for upstream's answer. It is short, so that many cases of silence fit into a run.
UPSTREAM_TIMEOUT = 2
_OBSERVED = Path(__file__).parent / "observed"
_SETTINGS = {
    "MYPYPI_UPSTREAM_USERNAME": USER,
    "MYPYPI_UPSTREAM_PASSWORD": PASSWORD,
    "MYPYPI_UPSTREAM_TIMEOUT": str(UPSTREAM_TIMEOUT),
    "MYPYPI_NEGATIVE_CACHE_TIME": "1",
    "MYPYPI_DRAFTS_MAX_BYTES": "50000000",
    "MYPYPI_HOT_PAGES_BYTES": "4000000",
}
#: Cases that run at once, and findings after which a run ends.
_WORKERS, _MOST_FINDINGS = 6, 40
#: Seconds between two lines of progress.
PROGRESS_INTERVAL = 10.0


class Fuzzer(ABC):
    """
    Makes cases, over an upstream at `url`. `counts` tells which kinds of cases ran and how they ended.

    `only` is the one address, with its port, that a daemon may connect to; "" allows all of loopback.
    """

    url: str
    only: str = ""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @abstractmethod
    def run(self, number: int, rng: Random, package_type: str, port: int) -> None:
        """
        Run one case against the daemon on this port.

        Raises Violation, with a description of the case, if something happened that must not.
        """

    @abstractmethod
    def __enter__(self) -> Self:
        """Start upstream."""

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Stop upstream."""

    def problems(self) -> list[str]:
        """Return what upstream itself saw that must never happen, once."""
        return []


def probe_package(url: str) -> Package:
    """The package that the probe asks for."""
    return Package("probe", url)


def probes(package_type: str, url: str) -> list[Probe]:
    """The probe's requests: a page, and a file."""
    package = probe_package(url)
    if package_type == "pypi":
        target = package.wheel_target
        return [Probe("/simple/probe/", SIMPLE, package.wheel.encode()), Probe(target, "*/*", package.content)]
    page = Probe("/probe", "application/json", b'"1.0.0"')
    return [page, Probe(package.tarball_path, "*/*", package.content)]


@define
class Campaign:
    """One run of a fuzzer. `say` prints a line."""

    fuzzer: Fuzzer
    seed: int
    say: Callable[[str], None]
    findings: list[str] = field(factory=list)
    cases: int = 0
    _numbers: Iterator[int] = field(factory=itertools.count)
    _lock: Lock = field(factory=Lock)
    _vitals: dict[str, Vitals] = field(factory=dict)
    _until: float = 0.0

    def run(self, seconds: float, *, only: int | None = None) -> list[str]:
        """Run cases for so many seconds, or the one case with this number. Returns the findings."""
        with ExitStack() as ending:
            place = Path(ending.enter_context(tempfile.TemporaryDirectory()))
            for package_type in TYPES:
                self._launch(package_type, place, ending)
            for vitals in self._vitals.values():
                vitals.daemon.wait_ready()
                vitals.start()
                ending.callback(vitals.stop)
            if only is None:
                self._run_all(seconds)
            else:
                self._case(only)
            self._check()
            for vitals in self._vitals.values():
                vitals.stop()
                vitals.check_quiet()
                vitals.check_ended()
            self._check()
        return self.findings

    def _launch(self, package_type: str, place: Path, ending: ExitStack) -> None:
        connections = place / f"{package_type}-connections"
        env = _SETTINGS | {
            "MYPYPI_PACKAGE_TYPE": package_type,
            "MYPYPI_UPSTREAM_URL": self.fuzzer.url,
            "FUZZ_CONNECTIONS": str(connections),
        }
        daemon = Daemon("mypypi", place / package_type, env, python_path=(_OBSERVED, ROOT))
        daemon.launch()
        ending.callback(daemon.sweep)
        ending.callback(daemon.kill)
        probed = probes(package_type, self.fuzzer.url)
        self._vitals[package_type] = Vitals(daemon, probed, connections, only=self.fuzzer.only)

    def _run_all(self, seconds: float) -> None:
        began = time.monotonic()
        self._until = began + seconds
        warm_at, next_line, is_warm = began + seconds / 5, began + PROGRESS_INTERVAL, False
        workers = [Thread(target=self._work, daemon=True) for _ in range(_WORKERS)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            workers[0].join(0.5)
            for worker in workers[1:]:
                worker.join(0)
            now = time.monotonic()
            if not is_warm and now > warm_at:
                is_warm = True
                for vitals in self._vitals.values():
                    vitals.mark_warm()
            if now > next_line:
                next_line = now + PROGRESS_INTERVAL
                self._check()
                self._report_progress(now - began)

    def _work(self) -> None:
        while time.monotonic() < self._until and len(self.findings) < _MOST_FINDINGS:
            with self._lock:
                number = next(self._numbers)
            self._case(number)

    def _case(self, number: int) -> None:
        package_type = TYPES[number % len(TYPES)]
        rng = Random(f"{self.seed}:{number}")  # noqa: S311
        try:
            self.fuzzer.run(number, rng, package_type, self._vitals[package_type].daemon.port)
        except (Violation, OSError) as error:
            self._report(f"{package_type}: {error}", number)
        except Exception:  # noqa: BLE001 - a fault of the fuzzer is a finding, too
            self._report(traceback.format_exc(), number)
        with self._lock:
            self.cases += 1

    def _report(self, text: str, number: int) -> None:
        line = f"case {number} of seed {self.seed}: {text}"
        self._found(line)

    def _check(self) -> None:
        """Collect what upstream and the watchers have found."""
        found = self.fuzzer.problems()
        for package_type, vitals in self._vitals.items():
            vitals.check_log()
            found += [f"{package_type}: {text}" for text in vitals.findings]
            vitals.findings.clear()
        for text in found:
            self._found(text)

    def _found(self, text: str) -> None:
        with self._lock:
            self.findings.append(text)
        self.say(f"FOUND: {text}")

    def _report_progress(self, seconds: float) -> None:
        self.say(f"{seconds:4.0f} s, {self.cases} cases, {len(self.findings)} findings")
        for package_type, vitals in self._vitals.items():
            self.say(f"       {package_type:4}: {vitals.summary()}")
