"""
Measures whole installs by uv and npm: directly, through the cache, and through other caches beside it.

``python -m benchmarks installs`` records what uv and npm ask for while they install, from the default upstream of each
kind. So the first run needs the network; ``--recording DIR`` keeps it for the next. An upstream on loopback answers the
same, ``--latency`` milliseconds after each request. Then packages are installed ``--rounds`` times: directly, and cold
and warm through each cache, in turn. A cache is empty for the cold install; the client's own cache is empty always. It
prints seconds, processor time and memory of each cache, the bytes that upstream has sent, and how long requests took by
MyPyPi's own log. ``--kind`` is pypi, npm or resolve: that is uv pip compile on an index that offers no metadata.

Other caches are verdaccio (npm) and proxpi (pypi), in the directory ``--peers``: what is missing there is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles

import psutil
from attrs import define, field
from uv import find_uv_bin

from benchmarks.cold import started
from tests.rig.clients import NODE, Npm, Uv
from tests.rig.daemon import Daemon
from tests.rig.http import get

WANTED = {
    "npm": ["next", "webpack", "webpack-cli", "eslint", "jest", "vite", "express", "react", "react-dom", "typescript"],
    "pypi": ["jupyterlab", "pandas", "scikit-learn", "matplotlib", "flask", "sqlalchemy", "requests", "fastapi"],
}
WANTED["npm"].append("@aws-sdk/client-s3")
WANTED["resolve"] = WANTED["pypi"]
#: It names a version of node-fetch by a tag that some mirrors of the npm registry lack.
_VERDACCIO = {"private": True, "dependencies": {"verdaccio": "6"}, "overrides": {"node-fetch": "2.7.0"}}
#: Seconds until a cache answers, and for one install.
_START, _INSTALL = 60, 900
_REQUEST = re.compile(r" (\d{3}) (hit|miss|stale|\S+) (\w+) ([\d.]+) ms ")

#: Starts a cache in this directory, with this upstream. Yields the URL of its index or registry, and its process.
Start = Callable[[Path, str], AbstractContextManager[tuple[str, int]]]


# The clients


def install(kind: str, url: str) -> float:
    """
    Install all packages from this index or registry into an empty directory, with an empty cache.

    Returns the seconds it took.
    """
    with tempfile.TemporaryDirectory(prefix="installs-") as name:
        place = Path(name)
        if kind == "npm":
            npm = Npm(place, patient=True)
            project = npm.project(url)
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            return timed([*npm.command(), "install", "--prefix", project, *options, *WANTED[kind]], npm.environment())
        uv, target = Uv(place), place / "target"
        command = [*uv.command(), "pip", "install", "--only-binary", ":all:", "--target", target]
        if kind == "resolve":
            (place / "requirements.in").write_text("\n".join(WANTED[kind]))
            command = [*uv.command(), "pip", "compile", "-q", "--only-binary", ":all:", place / "requirements.in"]
        wanted = [] if kind == "resolve" else WANTED[kind]
        return timed([*command, "--default-index", url, *wanted], uv.environment())


def timed(command: list[str | Path], environment: dict[str, str]) -> float:
    """Run a client, and return the seconds it took. Ends the benchmark if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, timeout=_INSTALL, check=False, text=True)  # noqa: S603
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stdout}\n{done.stderr}")
    return time.perf_counter() - began


# The caches


@contextmanager
def mypypi(kind: str, place: Path, upstream: str) -> Iterator[tuple[str, int]]:
    """Run MyPyPi as the README does."""
    env = {"MYPYPI_PACKAGE_TYPE": "npm" if kind == "npm" else "pypi"}
    # The cache in front of the default upstream offers no metadata that upstream does not.
    env |= {"MYPYPI_UPSTREAM_URL": upstream} if upstream else {"MYPYPI_CORE_METADATA": "false"}
    with Daemon("mypypi", place / "data", env) as daemon:
        yield index_at(daemon.url, kind), daemon.pid
        Path(place, "log").write_text(daemon.log)


@contextmanager
def served(command: list[str], port: int, environment: dict[str, str], index: str = "") -> Iterator[tuple[str, int]]:
    """Run another cache until the end of the block, from when it answers at this port. `index` is its index's path."""
    url = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=os.environ | environment, **quiet) as process:  # noqa: S603
        try:
            deadline = time.monotonic() + _START
            while time.monotonic() < deadline:
                with suppress(OSError):
                    if get(f"{url}/", timeout=5).status:
                        break
                time.sleep(0.1)
            else:
                sys.exit(f"{command[0]} does not answer")
            yield url + index, process.pid
        finally:
            for each in [process, *psutil.Process(process.pid).children(recursive=True)]:
                each.kill()


def verdaccio(peers: Path) -> Start:
    """Install verdaccio, unless it is there."""
    program = peers / "verdaccio" / "node_modules" / "verdaccio" / "bin" / "verdaccio"
    if not program.exists():
        project = peers / "verdaccio"
        project.mkdir(parents=True, exist_ok=True)
        (project / "package.json").write_text(json.dumps(_VERDACCIO))
        command = [*Npm(peers).command(), "install", "--prefix", project, "--no-audit", "--no-fund"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603

    def start(place: Path, upstream: str) -> AbstractContextManager[tuple[str, int]]:
        port, config = free_port(), place / "config.yaml"
        config.write_text(
            f"storage: {place / 'storage'}\n"
            f"uplinks: {{up: {{url: '{upstream}/', maxage: 60m, timeout: 60s}}}}\n"
            "packages: {'**': {access: $all, proxy: up}}\n"
            "log: {type: stdout, format: pretty, level: error}\n"
        )
        command = [str(NODE), str(program), "--config", str(config), "--listen", f"127.0.0.1:{port}"]
        return served(command, port, {})

    return start


def proxpi(peers: Path) -> Start:
    """Install proxpi and gunicorn, with which its container runs, unless they are there."""
    program = peers / "proxpi" / "bin" / "gunicorn"
    if not program.exists():
        subprocess.run([find_uv_bin(), "venv", "-q", peers / "proxpi"], check=True)  # noqa: S603
        command = [find_uv_bin(), "pip", "install", "-q", "--python", peers / "proxpi", "proxpi", "gunicorn"]
        subprocess.run(command, check=True)  # noqa: S603

    def start(place: Path, upstream: str) -> AbstractContextManager[tuple[str, int]]:
        port = free_port()
        environment = {"PROXPI_INDEX_URL": f"{upstream}/simple/", "PROXPI_CACHE_DIR": str(place / "cache")}
        command = [str(program), "--bind", f"127.0.0.1:{port}", "--threads", "8", "--preload", "proxpi.server:app"]
        return served(command, port, environment, "/index/")

    return start


def index_at(url: str, kind: str) -> str:
    """The URL of the index or registry that upstream and MyPyPi serve at this address."""
    return url if kind == "npm" else f"{url}/simple/"


def free_port() -> int:
    """A port at which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


# Upstream


def sent(upstream: str) -> dict[str, int]:
    """The bytes that upstream has sent so far, by kind."""
    found = get(f"{upstream}/-/sent").json()
    assert isinstance(found, dict)
    return found


# Measuring


@define
class Results:
    """What was measured of one way to install, once in each round."""

    seconds: list[float] = field(factory=list)
    processor: list[float] = field(factory=list)
    memory: list[float] = field(factory=list)
    upstream: dict[str, int] = field(factory=dict)


def processor_of(pid: int) -> float:
    """Seconds of processor time of a process and all that it has started, also of those that have ended."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_of(pid: int) -> float:
    """Resident memory of a process and all that it has started, in MB."""
    every = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in every) / 1e6


def measure(kind: str, upstream: str, pid: int | None, url: str, results: Results) -> None:
    """Install once, and add what was measured."""
    before, bytes_before = processor_of(pid) if pid else 0.0, sent(upstream)
    results.seconds.append(install(kind, url))
    if pid:
        results.processor.append(processor_of(pid) - before)
        results.memory.append(memory_of(pid))
    results.upstream = {name: count - bytes_before.get(name, 0) for name, count in sent(upstream).items()}


def latencies(log: str) -> str:
    """Return how many requests of each kind there were by MyPyPi's log, and how long they took, in a line."""
    found = defaultdict(list)
    for _, how, what, took in _REQUEST.findall(log):
        found[how, what].append(float(took))
    return "; ".join(
        f"{len(took)} {how} {what} {median(took):.1f} and {quantiles(took, n=10)[-1]:.1f}"
        for (how, what), took in sorted(found.items())
        if len(took) > 10
    )


def compare(kind: str, upstream: str, caches: dict[str, Start], rounds: int) -> None:
    """Install through all caches in turn, and print what was measured."""
    found: dict[str, Results] = defaultdict(Results)
    logs = ""
    for number in range(rounds + 1):
        names = ["direct", *caches]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name == "direct":
                measure(kind, upstream, None, index_at(upstream, kind), found[name])
                continue
            with tempfile.TemporaryDirectory(prefix="installs-") as place, ExitStack() as running:
                url, pid = running.enter_context(caches[name](Path(place), upstream))
                for what in ("cold", "warm"):
                    measure(kind, upstream, pid, url, found[f"{name} {what}"])
                running.close()
                logs += Path(place, "log").read_text() if name == "mypypi" and number else ""
        if number == 0:  # what upstream had not been asked for before is recorded in this round
            found.clear()
        else:
            print(f"  round {number}: " + ", ".join(f"{name} {each.seconds[-1]:.1f}" for name, each in found.items()))
    print(f"  {'':16} {'s':>6} {'/ direct':>8} {'CPU s':>6} {'MB':>5}   from upstream, MB")
    direct = median(found["direct"].seconds)
    for name, each in found.items():
        seconds = median(each.seconds)
        cost = f"{median(each.processor):6.2f} {median(each.memory):5.0f}" if each.processor else " " * 12
        moved = ", ".join(f"{what} {count / 1e6:.1f}" for what, count in sorted(each.upstream.items()) if count)
        print(f"  {name:16} {seconds:6.2f} {seconds / direct:8.2f} {cost}   {moved}")
    print(f"  mypypi, all rounds, in ms, median and 90 %: {latencies(logs)}", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=sorted(WANTED))
    parser.add_argument("--latency", type=float, default=20, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recording", type=Path, help="directory for what the default upstream has answered")
    parser.add_argument("--peers", type=Path, help="directory for verdaccio and proxpi; without it, they are left out")
    options = parser.parse_args()
    with ExitStack() as places:
        recording = options.recording or Path(places.enter_context(tempfile.TemporaryDirectory()))
        for kind in options.kind or sorted(WANTED):
            ecosystem = "npm" if kind == "npm" else "pypi"
            caches: dict[str, Start] = {"mypypi": lambda place, upstream, kind=kind: mypypi(kind, place, upstream)}  # type: ignore[misc]
            if options.peers:
                peer = verdaccio if ecosystem == "npm" else proxpi
                caches[peer.__name__] = peer(options.peers)
            with mypypi(kind, recording / ecosystem, "") as (origin, _):
                print(f"{kind}: {' '.join(WANTED[kind])}; upstream takes {options.latency:g} ms", flush=True)
                plain = ["plain"] if kind == "resolve" else []
                with started("replay", origin.removesuffix("/simple/"), str(options.latency / 1e3), *plain) as upstream:
                    compare(kind, upstream, caches, options.rounds)


if __name__ == "__main__":
    main()
