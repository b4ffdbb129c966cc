"""Kills child processes of ``twistd mypypi`` (SIGKILL) while clients install packages and check every byte.

Run ``python -m tests.chaos.kills --rounds 30 --seed 1``. Each round kills one, some or all of the server processes, the
processes that render pages, and the private Redis. The pause between rounds is often too short for all of them to have
started again, so that processes are killed while they start.

It prints what was killed and which answers clients received. It exits with 1 if a client received a wrong answer, or if
the daemon has ended or does not serve every package within seconds of the last round.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import urljoin

import psutil

from tests.chaos.__main__ import end
from tests.chaos.clients import Client, SharedState
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.pages import JSON

CLIENTS = 6
PROCESSES = 3
#: Packages that are new to the cache in each round.
_NEW = 5
#: Seconds after the last kill within which all packages are served.
_WELL_AGAIN = 10.0


def run(place: Path, rounds: int, seed: int) -> tuple[str, list[str]]:
    """Run so many rounds, and return the report and the violations."""
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    killed: Counter[str] = Counter()
    env = {"WORKERS": str(PROCESSES), "MYPYPI_CACHE_TIME": "1", "MYPYPI_DRAIN_TIME": "3"}
    with FakeIndex() as index, Daemon("mypypi", place / "data", {**env, "MYPYPI_UPSTREAM_URL": index.url}) as daemon:
        shared = SharedState(daemon.url, index.url)
        publish(index, shared, rng)
        clients = [Client(shared, random.Random(rng.random())).start() for _ in range(CLIENTS)]  # noqa: S311
        try:
            for _ in range(rounds):
                publish(index, shared, rng)
                shared.stopped.wait(rng.uniform(0.2, 3.0))
                kill_some(daemon, shared, rng, killed)
            last = time.monotonic()
            with suppress(AssertionError):
                eventually(lambda: all_served(shared), bool, 3 * _WELL_AGAIN)
            needed = time.monotonic() - last
        finally:
            shared.stopped.set()
            for client in clients:
                client.join()
        if needed > _WELL_AGAIN:
            shared.add_violation(f"not every package was served {_WELL_AGAIN:g} s after the last kill")
            daemon.show()
        shared.violations += [f"an unhandled error in the log: {line}" for line in daemon.complaints]
    lines = [f"{count:6} x {name} killed" for name, count in sorted(killed.items())]
    lines += [f"{count:6} {name}" for name, count in sorted(shared.counts.items())]
    total = shared.counts["pages"] + shared.counts["files"]
    lines.append(f"{rounds} rounds, {total} requests checked, all served {needed:.1f} s after the last kill")
    return "\n".join(lines), shared.violations


def publish(index: FakeIndex, shared: SharedState, rng: random.Random) -> None:
    """Add packages that the cache does not have yet."""
    for _ in range(_NEW):
        wheel = make_wheel(f"kills{len(shared.packages)}", padding=rng.choice((2_000, 60_000, 400_000)))
        index.add(wheel)
        shared.packages.append(wheel)


def kill_some(daemon: Daemon, shared: SharedState, rng: random.Random, killed: Counter[str]) -> None:
    """Kill one, some or all child processes of the daemon, those that have just been started as well."""
    children = psutil.Process(daemon.pid).children(recursive=True)
    for child in rng.sample(children, rng.choice((1, rng.randint(1, len(children)), len(children)))):
        with suppress(psutil.NoSuchProcess):
            name = name_of(child)
            if name == "Redis":
                shared.redis_back_at = time.monotonic()
            shared.killed_at = time.monotonic()
            child.kill()
            killed[name] += 1


def name_of(process: psutil.Process) -> str:
    """Return what this child process is."""
    command = process.cmdline()
    if "mypypi-server" in command:
        return "server process"
    return "render process" if "mypypi.rendering.process" in command else "Redis"


def all_served(shared: SharedState) -> bool:
    """Whether each package is served right, whichever process answers."""
    for package in shared.packages:
        page = get(f"{shared.server}/simple/{package.project}/", {"Accept": JSON})
        if page.status != 200:
            return False
        (listed,) = cast("dict[str, list[dict[str, str]]]", page.json())["files"]
        if get(urljoin(f"{shared.server}/simple/{package.project}/", listed["url"])).body != package.content:
            return False
    return True


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        report, violations = run(Path(place), options.rounds, options.seed)
    end(report, violations)


if __name__ == "__main__":
    main()
