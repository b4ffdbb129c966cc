"""
Checks that answers cost no more processor time than they did.

``python -m benchmarks budget`` asks a daemon for cached pages, files and new pages, some thousand times in less than a
minute. The cost of each kind of request is compared with that of a loop in Python which runs in between, so that the
machine does not matter much. It prints all ratios, and fails if one is more than 1.5 times the one in ``budget.json``.
``--record`` writes that file: for a change that is meant to cost more, or less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from attrs import define, field

from benchmarks.cold import ACCEPT, started
from benchmarks.hot import Client, fields
from benchmarks.installs import processor_of
from benchmarks.recorded import names, path_of
from tests.rig.daemon import Daemon
from tests.rig.http import get

FILE = Path(__file__).with_name("budget.json")
#: Turns of the reference loop at a time.
_TURNS = 5000
#: How much more a request may cost than in the file.
MOST = 1.5
ROUNDS, TIMES = 5, 5000


@define
class Costs:
    """Microseconds of one request in each round, and of one turn of the reference loop beside it."""

    request: list[float] = field(factory=list)
    reference: list[float] = field(factory=list)

    @property
    def ratio(self) -> float:
        """What a request costs in turns of the loop: the least of each, since other programs only add to them."""
        return min(self.request) / min(self.reference)


def too_much(costs: dict[str, Costs], committed: dict[str, float]) -> list[str]:
    """Return the kinds of requests that cost more than they may."""
    return [name for name, each in costs.items() if name in committed and each.ratio > committed[name] * MOST]


def reference() -> float:
    """Microseconds of processor time for a turn of a loop that does what interpreters do: calls, texts and tables."""
    document = {"name": "package", "files": [{"url": f"https://host.example/{number}"} for number in range(20)]}
    began = time.process_time()
    for _ in range(_TURNS):
        text = json.dumps(document)
        sorted(json.loads(text)["files"], key=lambda file: str(file["url"]).rpartition("/")[2])
    return (time.process_time() - began) / _TURNS * 1e6


def main() -> None:
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write budget.json")
    options = parser.parse_args()
    costs = {name: Costs() for name in ("repeated page", "page", "304", "new page")}
    with started("recorded", "pypi", "0") as upstream, tempfile.TemporaryDirectory() as place:
        env = {"MYPYPI_UPSTREAM_URL": upstream, "MYPYPI_CACHE_TIME": "36000"}
        with Daemon("mypypi", Path(place, "data"), env) as daemon:
            client, own = Client(daemon.port), fields(ACCEPT["pypi"])
            paths = [path_of("pypi", name) for name in names("pypi")]
            small, new = paths[:1], iter(paths[1:])
            etag = get(daemon.url + small[0], {"Accept": ACCEPT["pypi"], "Accept-Encoding": "gzip"}).headers["ETag"]
            kinds = {
                "repeated page": (own, TIMES),
                "page": (own + b"X-Request-ID: mine\r\n", TIMES // 5),  # it is unlike any other
                "304": (own + b"If-None-Match: %b\r\n" % etag.encode(), TIMES),
                "new page": (own, 11),
            }
            committed = {} if options.record else json.loads(FILE.read_text())
            for number in range(2 * ROUNDS):
                if number >= ROUNDS and not too_much(costs, committed):
                    break  # the other half is for a machine that was busy with something else
                for name, (block, times) in kinds.items():
                    asked = [next(new) if name == "new page" else small[0] for _ in range(times)]
                    requests = [b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), block) for path in asked]
                    before = processor_of(daemon.pid)
                    for request in requests:
                        client.ask(request)
                    costs[name].request.append((processor_of(daemon.pid) - before) / times * 1e6)
                    costs[name].reference.append(reference())
    if options.record:
        committed = {name: round(each.ratio, 2) for name, each in costs.items()}
        FILE.write_text(json.dumps(committed, indent=2) + "\n")
    for name, each in costs.items():
        told = f"{min(each.request):8.1f} us of processor time, {each.ratio:7.2f} turns of the loop"
        print(f"{name:14} {told}, at most {committed[name] * MOST:7.2f}")
    if found := too_much(costs, committed):
        sys.exit(f"more than that: {', '.join(found)}. Find out why, or run python -m benchmarks budget --record")


if __name__ == "__main__":
    main()
