"""Watches a running daemon: memory, descriptors, render processes, log, connections, and a probe client.

Knows processes and what a well daemon looks like. Must never know what is sent to it.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil
from attrs import define, field, frozen

from tests.fuzz.raw.talk import ask
from tests.fuzz.world import Violation
from tests.rig.daemon import Daemon

#: Seconds between two samples of the processes, and between two requests of the probe.
_SAMPLE_INTERVAL, _PROBE_INTERVAL = 1.0, 0.2
#: Bytes by which the memory of all processes may have grown at the end, and in between.
MOST_GROWTH, MOST_PEAK = 100_000_000, 400_000_000
#: Descriptors that may be open more than before, once all is quiet: idle connections to upstream.
MOST_DESCRIPTORS = 40
#: Seconds within which the probe has its answer, on a machine that does much else.
PROBE_LIMIT = 5.0
#: Parts of log lines that differ for the same cause.
_VARIABLE = re.compile(r"0x[0-9a-f]+|\d+")
#: Seconds within which a daemon is as it was.
_QUIET_TIME = 30.0


@frozen
class Sample:
    """One look at all processes of a daemon: bytes of memory, open descriptors, processes that render."""

    rss: int
    descriptors: int
    renderers: int


def sample(pid: int) -> Sample:
    """Look at a process and its children."""
    rss = descriptors = renderers = 0
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has ended
            rss += int(each.memory_info().rss)
            descriptors += each.num_fds()
            renderers += "mypypi.rendering.process" in each.cmdline()
    return Sample(rss, descriptors, renderers)


@frozen
class Probe:
    """A request whose answer is known. `accept` is its Accept header."""

    target: str
    accept: str
    expected: bytes


@define
class Vitals:
    """
    Watches one daemon, in threads, until `stop`.

    `connections` is the file with the addresses that it connected to, and the names that it resolved. `only` is the one
    address, with its port, that is allowed; "" allows all of loopback, and all names.
    """

    daemon: Daemon
    probes: list[Probe]
    connections: Path
    only: str = ""
    findings: list[str] = field(factory=list)
    samples: list[Sample] = field(factory=list)
    times: list[float] = field(factory=list)
    warm: Sample | None = None
    _stopped: Event = field(factory=Event)
    _threads: list[Thread] = field(factory=list)
    _complaints: int = 0
    _seen_bytes: int = 0
    _known: set[str] = field(factory=set)
    _seen_lines: set[str] = field(factory=set)

    def start(self) -> None:
        for probe in self.probes:
            self._ask(probe, math.inf)
        self.times.clear()
        self.samples.append(sample(self.daemon.pid))
        for work in (self._sample, self._probe):
            self._threads.append(Thread(target=work, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def mark_warm(self) -> None:
        """From now on, the memory may not grow much."""
        last = self.samples[-5:]
        self.warm = Sample(int(median(each.rss for each in last)), last[-1].descriptors, last[-1].renderers)

    def check_log(self) -> None:
        """Report new kinds of tracebacks in the log, and new connections to forbidden addresses."""
        complaints = self.daemon.complaints
        for line in complaints[self._complaints :]:
            log = self.daemon.log
            kind = _VARIABLE.sub("", line)[:200]
            if kind in self._known:
                continue
            self._known.add(kind)
            at = log.rfind(line)
            self.findings.append(f"the log has {line!r}:\n{log[max(0, at - 300) : at + 2500]}")
        self._complaints = len(complaints)
        text = self.connections.read_text() if self.connections.exists() else ""
        for line in sorted(set(text[self._seen_bytes :].splitlines()) - self._seen_lines):
            self._seen_lines.add(line)
            why = forbidden(line, self.only)
            if why is not None:
                self.findings.append(f"a connection to {line}, which is {why}")
        self._seen_bytes = len(text)

    def check_quiet(self) -> None:
        """Wait until the daemon is as it was. Report what is not so after a while."""
        first, until = self.samples[0], time.monotonic() + _QUIET_TIME
        while time.monotonic() < until:
            now = sample(self.daemon.pid)
            if now.descriptors <= first.descriptors + MOST_DESCRIPTORS:
                break
            time.sleep(_SAMPLE_INTERVAL)
        now = sample(self.daemon.pid)
        if now.descriptors > first.descriptors + MOST_DESCRIPTORS:
            self.findings.append(f"{now.descriptors} descriptors are open, and were {first.descriptors}")
        warm = self.warm or first
        if now.rss - warm.rss > MOST_GROWTH:
            self.findings.append(f"memory grew from {warm.rss >> 20} to {now.rss >> 20} MB")
        peak = max(each.rss for each in self.samples)
        if peak - warm.rss > MOST_PEAK:
            self.findings.append(f"memory rose from {warm.rss >> 20} to {peak >> 20} MB")

    def check_ended(self) -> None:
        """Stop the daemon. Report what is left over."""
        self.daemon.stop()
        if not self.daemon.ended_in_order:
            self.findings.append("the daemon did not end in order")
        self.findings += [f"left over: {each}" for each in self.daemon.leftovers()]

    def summary(self) -> str:
        """One line about the latest state."""
        last, times = self.samples[-1], sorted(self.times[-300:]) or [0.0]
        peak = max(each.rss for each in self.samples)
        return (
            f"{last.rss >> 20} MB (peak {peak >> 20}), {last.descriptors} descriptors, "
            f"{last.renderers} renderers, probe {median(times) * 1000:.0f} ms (slowest {times[-1] * 1000:.0f})"
        )

    def _sample(self) -> None:
        while not self._stopped.wait(_SAMPLE_INTERVAL):
            if not psutil.pid_exists(self.daemon.pid):
                self.findings.append("the daemon has ended")
                return
            self.samples.append(sample(self.daemon.pid))

    def _probe(self) -> None:
        while not self._stopped.wait(_PROBE_INTERVAL):
            for probe in self.probes:
                self._ask_noting(probe)

    def _ask_noting(self, probe: Probe) -> None:
        try:
            self._ask(probe, PROBE_LIMIT)
        except (Violation, OSError) as error:
            self.findings.append(f"the probe {probe.target} failed: {error}")

    def _ask(self, probe: Probe, limit: float) -> None:
        began = time.perf_counter()
        answer = ask(self.daemon.port, probe.target, accept=probe.accept, timeout=4 * PROBE_LIMIT)
        seconds = time.perf_counter() - began
        if answer.status != 200 or not answer.whole or probe.expected not in answer.body:
            raise Violation(f"status {answer.status}, {answer.body[:200]!r}")
        self.times.append(seconds)
        if seconds > limit:
            raise Violation(f"it took {seconds:.1f} s")


def forbidden(line: str, only: str) -> str | None:
    """
    Why a connection to this address, or the look-up of a name, is not allowed while upstream is on loopback.

    Returns None if it is allowed.
    """
    host = line.rpartition(" ")[0]
    if only:
        return None if line in (only, f"?{only.partition(' ')[0]} 0") else "not upstream"
    if host.startswith("?"):
        return None
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    kinds = ("unspecified", "link_local", "multicast", "private", "reserved", "site_local")
    return None if mapped.is_loopback else next((kind for kind in kinds if getattr(mapped, f"is_{kind}", False)), None)
