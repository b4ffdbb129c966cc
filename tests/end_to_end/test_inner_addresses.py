"""Tests of pages that lead to services of the inside, and to names that are not resolved, with real processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

from tests.conftest import DaemonFactory, daemons
from tests.rig.daemon import ROOT, Daemon
from tests.rig.faults import Redirect
from tests.rig.host import FileHost
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address alone")

INNER = "127.0.0.9"
#: Upstream's address, which also leads to loopback, but is of another class than the inner host's.
OWN = "0.0.0.0"  # noqa: S104 - nothing is bound to it
SLOW_NAMES = 30
#: The time-out of upstream, and that of a name, in seconds.
TIMEOUT, LOOKUP = 6, 4
#: Stands for name servers: of the inner host, of a host of files, and of names whose servers never answer.
#: When one of the last is looked up, it makes a file ``asked-`` and the name beside itself.
_RESOLVER = f"""
import pathlib, socket, time
_getaddrinfo = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if ".slow" in str(host):
        pathlib.Path(__file__).with_name(f"asked-{{host}}").touch()
        time.sleep(600)
    known = {{"inner.example": "{INNER}", "files.example": "{OWN}"}}
    return _getaddrinfo(known.get(host, host), *arguments, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def inner() -> Iterator[FileHost]:
    """A service that trusts whoever can connect to it."""
    with FileHost(address=INNER) as host:
        yield host


@pytest.fixture
def start(index: FakeIndex, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons in front of an upstream at `OWN`, with settings without prefix."""
    names = tmp_path / "names"
    names.mkdir()
    (names / "sitecustomize.py").write_text(_RESOLVER)
    with daemons(f"http://{OWN}:{index.port}", tmp_path / "data") as factory:

        def run(**settings: str) -> Daemon:
            return _run(factory, names, settings)

        yield run


def _run(factory: DaemonFactory, names: Path, settings: dict[str, str]) -> Daemon:
    env = {f"MYPYPI_{name}": text for name, text in settings.items()}
    return factory(env=env, python_path=(names, ROOT))


def _list(index: FakeIndex, name: str, origin: str = "", on: FileHost | None = None) -> str:
    """List a file of this project at an origin, and serve it on a host. Returns its path on the daemon."""
    wheel = make_wheel(name, "1.0", padding=20_000)
    index.add(wheel, at=on)
    url = (origin or f"http://{OWN}:{index.port}") + index.path_of(wheel.filename)
    index.add(wheel, at=on, extra={"url": url, "core-metadata": False})
    return f"/file/{url.replace('://', '/')}"


class TestInnerServices:
    """A page of upstream that lists, or redirects to, a service on another class of addresses than its own."""

    FORMS = (INNER, "2130706441", "0x7f.9", "0177.0.0.011", "127.9", "inner.example", "INNER.example.")

    def test_no_connection_is_made(self, index: FakeIndex, inner: FileHost, start: Callable[..., Daemon]) -> None:
        """The client gets a 502 with the reason, and the service no connection; the log has a line for each file."""
        paths = [
            _list(index, f"inner-{number}", f"http://{form}:{inner.port}", inner)
            for number, form in enumerate(self.FORMS)
        ]
        for number, form in enumerate(("2130706441", "inner.example")):
            paths.append(_list(index, f"moved-{number}"))
            index.fault(index.path_of(f"moved_{number}-1.0-py3-none-any.whl"), Redirect(f"http://{form}:{inner.port}/"))
        daemon = start()
        for path in paths:
            answer = get(daemon.url + path)
            assert (answer.status, answer.complete) == (502, True)
            assert "a loopback address, which is not connected to" in answer.text
            assert "MYPYPI_UPSTREAM_TRUST" in answer.text
        assert index.faults_served["Redirect"] == 3  # for the files, and to find out whether the index answers ranges
        assert inner.connections == 0
        assert daemon.log.count("was not stored: upstream leads to") == len(paths)
        assert get(daemon.url + _list(index, "good")).status == 200

    def test_with_trust_the_service_is_connected_to(
        self, index: FakeIndex, inner: FileHost, start: Callable[..., Daemon]
    ) -> None:
        """The operator can allow the host by name or by network: so the attack would have worked."""
        by_name = _list(index, "name", f"http://inner.example:{inner.port}", inner)
        by_network = _list(index, "network", f"http://2130706441:{inner.port}", inner)
        daemon = start(UPSTREAM_TRUST=f"inner.example:{inner.port}")
        assert [get(daemon.url + path).status for path in (by_name, by_network)] == [200, 502]
        assert inner.connections == 1
        daemon.stop()
        daemon = start(UPSTREAM_TRUST="127.0.0.0/28")
        assert get(daemon.url + by_network).status == 200
        assert inner.connections == 2


class TestSlowNames:
    """A page lists files on many hosts whose names are not resolved."""

    def test_others_are_not_delayed(self, index: FakeIndex, start: Callable[..., Daemon], tmp_path: Path) -> None:
        """
        New connections to upstream and to other hosts take as long as without the slow names.

        The clients of the slow names get a 503 after the time-out, and the daemon stops in time.
        """
        slow = [_list(index, f"slow-{number}", f"http://a.slow{number}.example:81") for number in range(SLOW_NAMES)]
        daemon = start(UPSTREAM_TIMEOUT=str(TIMEOUT), CACHE_TIME="0")
        files = iter([_list(index, f"good-{number}") for number in range(10)])
        others = iter([_list(index, f"other-{number}", f"http://files.example:{index.port}") for number in range(10)])

        def seconds() -> float:
            """Return how long a page and two files of other projects take in the median, on new connections."""
            taken = []
            for _ in range(5):
                index._cut_connections()
                began = time.monotonic()
                assert [get(daemon.url + path).status for path in (next(files), next(others))] == [200, 200]
                taken.append(time.monotonic() - began)
            return median(taken)

        alone = seconds()
        began = time.monotonic()
        with ThreadPoolExecutor(SLOW_NAMES) as clients:
            asked = [
                clients.submit(_timed_get, daemon.url + path, f"127.0.1.{number + 1}")
                for number, path in enumerate(slow)
            ]
            # `seconds` cuts connections: the pages of the slow names must have come by then.
            eventually(lambda: len(list((tmp_path / "names").glob("asked-*"))), lambda asked: asked == SLOW_NAMES)
            time_beside = seconds()
            assert time.monotonic() - began < LOOKUP, "the slow names were not slow any more"
            answers = [each.result() for each in asked]
        assert time_beside <= 1.5 * alone + 0.5
        for answer, taken in answers:
            assert (answer.status, answer.complete) == (503, True)
            assert "its name was not resolved in time" in answer.text
            assert LOOKUP <= taken < LOOKUP + 5
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < 5


def _timed_get(url: str, source: str) -> tuple[Answer, float]:
    began = time.monotonic()
    return get(url, source=source), time.monotonic() - began
