"""
Checks that answers cost no more processor time than they did.

``python -m benchmarks budget`` asks a daemon for cached pages and new pages, some ten thousand times in a quarter of a
minute. What a request costs is compared with what one costs a small server beside it, which does the same work for each
request and is asked by the same client in turn, so that the machine does not matter much. It prints all ratios, and
fails if one is more than 1.5 times the one in ``budget.json``. ``--record`` writes that file: for a change that is
meant to cost more, or less.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from attrs import define, field

from benchmarks.cold import ACCEPT, started
from benchmarks.hot import Client, fields
from benchmarks.installs import processor_of
from benchmarks.recorded import names, path_of
from tests.rig.daemon import Daemon
from tests.rig.http import get

FILE = Path(__file__).with_name("budget.json")
#: How much more a request may cost than in the file.
MOST = 1.5
ROUNDS, TIMES = 5, 5000
#: New pages in a round.
_NEW = 22
_REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + bytes(5000)


@define
class Costs:
    """Microseconds of one request in each round, and of one of the small server beside it."""

    request: list[float] = field(factory=list)
    reference: list[float] = field(factory=list)

    @property
    def ratio(self) -> float:
        """What a request costs in requests of that server: the least of each, since other programs only add to them."""
        return min(self.request) / min(self.reference)


def too_much(costs: dict[str, Costs], committed: dict[str, float]) -> list[str]:
    """Return the kinds of requests that cost more than they may."""
    return [name for name, each in costs.items() if name in committed and each.ratio > committed[name] * MOST]


def serve() -> None:
    """Be the small server: for each request, it does what interpreters do (calls, texts and tables), and answers."""
    document = {"name": "package", "files": [{"url": f"https://host.example/{number}"} for number in range(20)]}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        client, _ = listening.accept()
        with client:
            while client.recv(1 << 16):
                for _ in range(3):
                    text = json.dumps(document)
                    sorted(json.loads(text)["files"], key=lambda file: str(file["url"]).rpartition("/")[2])
                client.sendall(_REPLY)


def cost(client: Client, pid: int, requests: list[bytes]) -> float:
    """Return the microseconds of processor time of one of these requests."""
    before = processor_of(pid)
    for request in requests:
        client.ask(request)
    return (processor_of(pid) - before) / len(requests) * 1e6


def main() -> None:
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write budget.json")
    options = parser.parse_args()
    costs = {name: Costs() for name in ("repeated page", "page", "304", "new page")}
    committed = {} if options.record else json.loads(FILE.read_text())
    with ExitStack() as running:
        upstream = running.enter_context(started("recorded", "pypi", "0"))
        place = running.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, "-m", "benchmarks.budget", "serve"]
        beside = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603 - this module
        assert beside.stdout is not None
        reference = Client(int(beside.stdout.readline()))
        running.callback(reference.close)
        env = {"MYPYPI_UPSTREAM_URL": upstream, "MYPYPI_CACHE_TIME": "36000"}
        daemon = running.enter_context(Daemon("mypypi", Path(place, "data"), env))
        client, own = Client(daemon.port), fields(ACCEPT["pypi"])
        small, *new = (path_of("pypi", name) for name in names("pypi"))
        etag = get(daemon.url + small, {"Accept": ACCEPT["pypi"], "Accept-Encoding": "gzip"}).headers["ETag"]
        kinds = {
            "repeated page": (own, TIMES),
            "page": (own + b"X-Request-ID: mine\r\n", TIMES // 5),  # it is unlike any other
            "304": (own + b"If-None-Match: %b\r\n" % etag.encode(), TIMES),
            "new page": (own, _NEW),
        }
        for number in range(2 * ROUNDS):
            if number >= ROUNDS and not too_much(costs, committed):
                break  # the other half is for a machine that was busy with something else
            for name, (block, times) in kinds.items():
                asked = [new.pop() for _ in range(min(times, len(new)))] if name == "new page" else [small] * times
                if asked:
                    requests = [b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), block) for path in asked]
                    costs[name].request.append(cost(client, daemon.pid, requests))
                    costs[name].reference.append(cost(reference, beside.pid, requests[:1] * (TIMES // 2)))
    if options.record:
        committed = {name: round(each.ratio, 2) for name, each in costs.items()}
        FILE.write_text(json.dumps(committed, indent=2) + "\n")
    for name, each in costs.items():
        told = f"{min(each.request):8.1f} us of processor time, {each.ratio:7.2f} times the small server's"
        print(f"{name:14} {told}, at most {committed[name] * MOST:7.2f}")
    if found := too_much(costs, committed):
        sys.exit(f"more than that: {', '.join(found)}. Find out why, or run python -m benchmarks budget --record")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        main()
