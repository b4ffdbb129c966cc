"""Short runs of the fuzzers of raw bytes, and tests of their checks. ``python -m tests.fuzz.raw`` runs them longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.raw.campaign import Campaign, Fuzzer
from tests.fuzz.raw.clients import ClientFuzzer
from tests.fuzz.raw.upstream import UpstreamFuzzer
from tests.fuzz.raw.vitals import forbidden
from tests.fuzz.world import Violation, read_answers

#: Seconds of a run, and seconds for which its upstream is silent at most.
_SECONDS, _PATIENCE = 2.0, 0.5


@pytest.mark.parametrize("fuzzer", [UpstreamFuzzer, ClientFuzzer])
def test_raw_bytes_break_nothing(fuzzer: Callable[[float], Fuzzer]) -> None:
    """Random answers of upstream and random requests cause no error, no wrong answer and no forbidden connection."""
    said: list[str] = []
    with fuzzer(_PATIENCE) as running:
        campaign = Campaign(running, 1, said.append)
        assert campaign.run(_SECONDS) == []
    assert campaign.cases > 10
    assert running.counts.total() > campaign.cases / 2, running.counts


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "10.0.0.1", "192.168.0.1", "172.16.0.1", "224.0.0.1", "255.255.255.255"),
        "0.0.0.0",  # noqa: S104 - nothing is bound to it
        *("fe80::1", "fe80::1%lo", "fd00::1", "::", "ff02::1", "fec0::1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe"),
    ],
)
def test_connections_to_the_inside_are_reported(host: str) -> None:
    """A connection to an address of the inner network is reported."""
    assert forbidden(f"{host} 80", "") is not None


@pytest.mark.parametrize("line", ["127.0.0.1 8000", "::1 8000", "?anything.example 0"])
def test_connections_to_loopback_are_allowed(line: str) -> None:
    """A connection to loopback is not reported; with `only`, each other than that one is."""
    assert forbidden(line, "") is None
    assert forbidden(line, "127.0.0.9 8000") is not None


def test_all_answers_of_a_connection_are_parsed() -> None:
    """Answers are told apart by their framing, and interim ones are skipped."""
    interim, empty = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"
    sized = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    found = read_answers(interim + head + empty + chunked + sized, [True])
    assert [(answer.status, answer.body, answer.whole) for answer in found] == [
        (200, b"", True),
        (304, b"", True),
        (200, b"c", True),
        (200, b"ab", True),
    ]
    with pytest.raises(Violation):
        read_answers(sized + b"junk", [])
