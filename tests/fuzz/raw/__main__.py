"""Sends random raw bytes to real daemons, as their upstream or as their client, and checks that nothing breaks.

Run ``python -m tests.fuzz.raw upstream --seconds 600 --seed 1``, or ``clients`` in place of ``upstream``. It prints a
few lines every ten seconds. It exits with 1 if anything happened that must not: a traceback in the log, a malformed or
wrong answer, a connection that stays open, a connection to a forbidden address, credentials for another host, a slow
probe, or memory, descriptors or processes that do not come back. ``--case N`` runs the case with this number alone.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.raw.campaign import Campaign
from tests.fuzz.raw.clients import ClientFuzzer
from tests.fuzz.raw.upstream import UpstreamFuzzer

FUZZERS = {"upstream": UpstreamFuzzer, "clients": ClientFuzzer}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


def main() -> int:
    """Run one fuzzer. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.raw", description=__doc__)
    parser.add_argument("fuzzer", choices=FUZZERS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int)
    options = parser.parse_args()
    with FUZZERS[options.fuzzer]() as fuzzer:
        campaign = Campaign(fuzzer, options.seed, say)
        findings = campaign.run(options.seconds, only=options.case)
    say(f"{campaign.cases} cases: " + ", ".join(f"{number} {name}" for name, number in sorted(fuzzer.counts.items())))
    say(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
