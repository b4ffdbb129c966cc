"""The rig keeps its word: what the other tests lean on is seen from outside, by its own client, as it is described."""

from __future__ import annotations

import gzip
import hashlib
import io
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from pathlib import Path
from threading import Thread

import pytest

from tests.rig.daemon import ROOT, Daemon
from tests.rig.faults import (
    CloseEarly,
    Fault,
    Gate,
    Gzipped,
    Hang,
    Instead,
    Redirect,
    Stall,
    Status,
    Trickle,
    Unsized,
    WrongBytes,
    WrongLength,
)
from tests.rig.host import FileHost
from tests.rig.http import Answer, SlowReader, eventually, get, head, parallel, raw
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_sdist, make_wheel
from tests.rig.pages import HTML, JSON

WHEEL = make_wheel("some.Package", "1.0", requires=["other>=2"], requires_python=">=3.8", padding=5000)


@pytest.fixture
def url(index: FakeIndex) -> str:
    return index.add(WHEEL)


class TestPackages:
    def test_a_wheel_says_what_it_holds(self) -> None:
        """RECORD lists every file with its true digest; METADATA is the artifact's own."""
        with zipfile.ZipFile(io.BytesIO(WHEEL.content)) as archive:
            assert archive.read("some_package-1.0.dist-info/METADATA") == WHEEL.metadata
            record = archive.read("some_package-1.0.dist-info/RECORD").decode().splitlines()
            assert [line.split(",")[0] for line in record] == archive.namelist()
        metadata = BytesParser().parsebytes(WHEEL.metadata or b"")
        assert (metadata["Requires-Dist"], metadata["Requires-Python"]) == ("other>=2", ">=3.8")
        assert (WHEEL.filename, WHEEL.project) == ("some_package-1.0-py3-none-any.whl", "some-package")

    @pytest.mark.parametrize("make", [make_wheel, make_sdist])
    def test_the_same_package_has_the_same_bytes(self, make: Callable[..., Artifact]) -> None:
        """Two makings agree, and padding does not compress away."""
        assert make("a", "1", padding=9000) == make("a", "1", padding=9000)
        assert len(gzip.compress(make("a", "1", padding=9000).content)) > 9000

    def test_an_sdist_carries_what_builds_it(self, tmp_path: Path) -> None:
        """The backend inside makes a wheel with the sdist's own metadata and modules, and needs nothing."""
        sdist = make_sdist("a.b", "2", requires=["other"], modules={"a.py": "x = 'é'\n"})
        _unpack(sdist, tmp_path)
        subprocess.run(
            [sys.executable, "-c", "import backend; backend.build_wheel('..')"], cwd=tmp_path / "a_b-2", check=True
        )
        with zipfile.ZipFile(tmp_path / "a_b-2-py3-none-any.whl") as wheel:
            assert wheel.read("a_b-2.dist-info/METADATA") == (tmp_path / "a_b-2" / "PKG-INFO").read_bytes()
            assert wheel.read("a.py").decode() == "x = 'é'\n"

    def test_an_old_sdist_has_a_setup_script(self, tmp_path: Path) -> None:
        """Which compiles, and has no pyproject.toml beside it."""
        _unpack(make_sdist("a", "2", modules={"a.py": ""}, legacy=True), tmp_path)
        assert sorted(path.name for path in (tmp_path / "a-2").iterdir()) == ["PKG-INFO", "a.py", "setup.py"]
        assert "py_modules=['a']" in (tmp_path / "a-2" / "setup.py").read_text()


def _unpack(sdist: Artifact, place: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(sdist.content)) as archive:
        archive.extractall(place, filter="data")


class TestPages:
    @pytest.mark.parametrize(
        ("accept", "form"),
        [
            (f"{JSON}, {HTML};q=0.1, text/html;q=0.01", JSON),
            (f"{JSON}, */*;q=0.1", JSON),
            (HTML, HTML),
            ("*/*", "text/html; charset=utf-8"),
            ("image/png", "text/plain; charset=utf-8"),
        ],
    )
    def test_pages_are_negotiated(self, index: FakeIndex, url: str, accept: str, form: str) -> None:
        """Each client gets the form it likes best, or 406."""
        answer = get(f"{index.url}/simple/some-package/", {"Accept": accept})
        assert (answer.status, answer.headers["Content-Type"]) == (406 if accept == "image/png" else 200, form)

    def test_the_json_page_has_the_fields_of_the_real_one(self, index: FakeIndex, url: str) -> None:
        """And it is compact, with a serial that is a number."""
        answer = get(f"{index.url}/simple/some-package/", {"Accept": JSON})
        page = answer.json()
        assert isinstance(page, dict)
        metadata = {"sha256": hashlib.sha256(WHEEL.metadata or b"").hexdigest()}
        (entry,) = page["files"]
        assert entry.pop("upload-time").startswith("2026-")
        assert entry == {
            "core-metadata": metadata,
            "data-dist-info-metadata": metadata,
            "filename": WHEEL.filename,
            "hashes": {"sha256": WHEEL.sha256},
            "provenance": None,
            "requires-python": ">=3.8",
            "size": WHEEL.size,
            "url": url,
            "yanked": False,
        }
        assert page["meta"] == {"_last-serial": 10001, "api-version": "1.4"}
        assert b" " not in answer.body.replace(b"made by a test", b"")

    def test_the_html_page_says_the_same(self, index: FakeIndex) -> None:
        """Attributes are escaped; a reason for yanking and an invented digest come through."""
        index.add(WHEEL, yanked="a <bug>", extra={"hashes": {"sha256": "0" * 64}})
        text = get(f"{index.url}/simple/some-package/").text
        assert (
            f'{WHEEL.filename}#sha256={"0" * 64}" data-requires-python="&gt;=3.8" data-dist-info-metadata="sha' in text
        )
        assert 'data-yanked="a &lt;bug&gt;"' in text

    def test_pages_have_validators_for_each_encoding(self, index: FakeIndex, url: str) -> None:
        """The ETag of the gzip form differs, and 304 is given for the one that was sent."""
        page = f"{index.url}/simple/some-package/"
        plain, packed = get(page), get(page, {"Accept-Encoding": "gzip, deflate"})
        assert (packed.headers["Content-Encoding"], packed.text) == ("gzip", plain.text)
        assert packed.headers["ETag"] != plain.headers["ETag"]
        assert plain.headers["Vary"] == "Accept, Accept-Encoding"
        again = get(page, {"Accept-Encoding": "gzip", "If-None-Match": packed.headers["ETag"]})
        assert (again.status, again.body, again.complete) == (304, b"", True)
        assert get(page, {"If-None-Match": packed.headers["ETag"]}).status == 200

    def test_an_intermediary_leaves_only_the_bare_minimum(self) -> None:
        """Content-Type and Content-Length; no core-metadata; the serial a string; no ranges."""
        with FakeIndex(plain=True) as index:
            url = index.add(WHEEL)
            page = get(f"{index.url}/simple/some-package/", {"Accept": JSON, "Accept-Encoding": "gzip"})
            assert page.headers.keys() == ["Content-Type", "Content-Length"]
            assert '"_last-serial":"10001"' in page.text
            assert "core-metadata" not in page.text
            assert get(url, {"Range": "bytes=0-9"}).status == 200

    def test_an_index_may_speak_one_language_only(self) -> None:
        """Whatever is asked for."""
        with FakeIndex(json_only=True) as only_json, FakeIndex(html_only=True) as only_html:
            for index, accept, form in [(only_json, "text/html", JSON), (only_html, JSON, "text/html; charset=utf-8")]:
                index.add(WHEEL)
                assert get(f"{index.url}/simple/some-package/", {"Accept": accept}).headers["Content-Type"] == form

    def test_names_are_redirected_to_their_normal_form(self, index: FakeIndex, url: str) -> None:
        """Other spellings and the missing slash get a 301; unknown names a 404."""
        for path in ("/simple/Some.Package/", "/simple/some-package"):
            answer = get(index.url + path)
            assert (answer.status, answer.headers["Location"]) == (301, "/simple/some-package/")
        assert get(f"{index.url}/simple/unknown/").status == 404

    def test_the_root_list_and_the_older_json_are_there(self, index: FakeIndex, url: str) -> None:
        """Names without a page can be added to the list; a version that is not there is a 404."""
        index.add_names(["no-page"])
        root = get(f"{index.url}/simple/", {"Accept": JSON}).text
        assert '{"_last-serial":10001,"name":"some-package"},{"_last-serial":10000,"name":"no-page"}' in root
        assert '<a href="/simple/no-page/">no-page</a>' in get(f"{index.url}/simple/").text
        for path in ("some-package/json", "some-package/1.0/json"):
            document = get(f"{index.url}/pypi/{path}").json()
            assert isinstance(document, dict)
            assert [entry["url"] for entry in document["urls"]] == [url]
        assert get(f"{index.url}/pypi/some-package/2.0/json").status == 404

    def test_pages_change_when_told(self, index: FakeIndex, url: str) -> None:
        """A file is added, gets other bytes behind its URL, and goes."""
        page = f"{index.url}/simple/some-package/"
        sdist = make_sdist("some.Package", "1.1")
        index.add(sdist)
        assert sdist.filename in get(page).text
        other = make_wheel("some.Package", "1.0", padding=7)
        assert index.replace(other) == url
        assert other.sha256 in get(page).text
        assert get(url).body == other.content
        index.remove(WHEEL.filename)
        assert WHEEL.filename not in get(page).text
        assert [get(url).status, get(f"{url}.metadata").status] == [404, 404]

    def test_credentials_are_asked_for(self) -> None:
        """Nothing is told without them, and each request shows what was sent."""
        with FakeIndex(auth=("user", "secret")) as index:
            assert get(index.add(WHEEL)).status == 401
            assert get(f"{index.url}/simple/", {"authorization": "Basic dXNlcjpzZWNyZXQ="}).status == 200
            assert [request.headers["Authorization"] for request in index.requests] == [None, "Basic dXNlcjpzZWNyZXQ="]


class TestFiles:
    @pytest.mark.parametrize(
        ("wanted", "part"),
        [("bytes=0-9", slice(0, 10)), ("bytes=100-", slice(100, None)), ("bytes=-7", slice(-7, None))],
    )
    def test_a_range_is_given(self, url: str, wanted: str, part: slice) -> None:
        """From the start, to the end, and the last bytes."""
        answer = get(url, {"Range": wanted})
        assert (answer.status, answer.body) == (206, WHEEL.content[part])
        assert answer.headers["Content-Range"].endswith(f"/{WHEEL.size}")

    def test_ranges_need_the_validator_they_name(self, url: str) -> None:
        """If-Range with another ETag gets the whole; past the end is a 416."""
        etag = get(url).headers["ETag"]
        assert get(url, {"Range": "bytes=9-", "If-Range": etag}).status == 206
        assert get(url, {"Range": "bytes=9-", "If-Range": '"other"'}).body == WHEEL.content
        beyond = get(url, {"Range": f"bytes={WHEEL.size}-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{WHEEL.size}")

    def test_metadata_lies_beside_its_wheel(self, url: str) -> None:
        """Byte for byte, and encoded when that is accepted; HEAD tells the length and sends nothing."""
        assert get(f"{url}.metadata").body == WHEEL.metadata
        assert get(f"{url}.metadata", {"Accept-Encoding": "gzip"}).content == WHEEL.metadata
        answer = head(url)
        assert (answer.headers["Content-Length"], answer.body, answer.complete) == (str(WHEEL.size), b"", True)

    def test_files_may_lie_with_another_host(self, index: FakeIndex) -> None:
        """Another address, another port; the index has no such file."""
        with FileHost(address="127.0.0.2") as files:
            url = index.add(WHEEL, at=files)
            assert url.startswith(f"http://127.0.0.2:{files.port}/packages/")
            assert url in get(f"{index.url}/simple/some-package/").text
            assert get(url).body == WHEEL.content
            assert get(index.url + index.path_of(WHEEL.filename)).status == 404

    def test_requests_are_remembered_in_order(self, index: FakeIndex, url: str) -> None:
        """Path and query as sent, whatever they are; and how many came at once."""
        gate = index.fault("/packages/", Gate())
        clients = Thread(target=parallel, args=(5, lambda _: get(url)))
        clients.start()
        index.wait_for(lambda: index.count("/packages/") == 5)
        gate.allow_all()
        clients.join()
        get(f"{index.url}//a/%2e%2e/b?c=d")
        index.wait_for(lambda: all(request.done for request in index.requests))
        assert (index.requests[-1].path, index.requests[-1].query) == ("//a/%2e%2e/b", "c=d")
        assert [request.number for request in index.requests] == list(range(6))
        assert (index.connections, index.most_in_flight) == (6, 5)
        assert [request.sent for request in index.seen("/packages/")] == [WHEEL.size] * 5

    def test_waiting_in_vain_fails(self, index: FakeIndex) -> None:
        """With what was seen, so that the reader knows what came instead."""
        get(f"{index.url}/instead")
        with pytest.raises(AssertionError, match="/instead"):
            index.wait_for(lambda: index.count("/expected") == 1, timeout=0.01)


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "seen"),
        [
            (CloseEarly(100), (200, WHEEL.content[:100], False)),
            (CloseEarly(0), (200, b"", False)),
            (WrongLength(by=10), (200, WHEEL.content, False)),
            (WrongLength(by=-10), (200, WHEEL.content[:-10], True)),
            (WrongBytes(), (200, WHEEL.content[:-1] + bytes([WHEEL.content[-1] ^ 0xFF]), True)),
            (Unsized(), (200, WHEEL.content, True)),
            (Unsized(chunked=False), (200, WHEEL.content, True)),
            (Status(503), (503, b"Service Unavailable", True)),
            (Status(304), (304, b"", True)),
            (Instead(b"other"), (200, b"other", True)),
            (Trickle(rate=1e6, piece=1000), (200, WHEEL.content, True)),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Fault) else "",
    )
    def test_a_fault_is_met_once_and_counted(
        self, index: FakeIndex, url: str, fault: Fault, seen: tuple[int, bytes, bool]
    ) -> None:
        """The client sees what the fault says; the next client sees nothing of it."""
        index.fault("/packages/", fault, times=1)
        answer = get(url)
        assert (answer.status, answer.body, answer.complete) == seen
        fault.wait_served()
        assert get(url).body == WHEEL.content
        assert index.faults_served[type(fault).__name__] == fault.served == 1

    def test_a_fault_that_could_not_happen_does_not_count(self, index: FakeIndex, url: str) -> None:
        """A close after more bytes than there are is no fault."""
        fault = index.fault("/packages/", CloseEarly(WHEEL.size))
        assert get(url).complete
        assert fault.served == 0

    def test_a_fault_keeps_to_its_path(self, index: FakeIndex, url: str) -> None:
        """A file's own path leaves its metadata alone; mending ends it."""
        index.fault(index.path_of(WHEEL.filename), Status(404))
        assert [get(url).status, get(f"{url}.metadata").status] == [404, 200]
        index.mend()
        assert get(url).status == 200

    def test_statuses_and_redirects_have_their_headers(self, index: FakeIndex, url: str) -> None:
        """Retry-After and Location, the latter with the path that was asked for."""
        index.fault("/simple/", Status(429, retry_after=7))
        index.fault("/packages/", Redirect("http://files.example{path}"))
        answer = get(f"{index.url}/simple/")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        assert get(url).headers["Location"] == f"http://files.example{index.path_of(WHEEL.filename)}"

    def test_gzip_comes_unasked(self, index: FakeIndex, url: str) -> None:
        """Where identity was asked for."""
        index.fault("/packages/", Gzipped())
        answer = get(url, {"Accept-Encoding": "identity"})
        assert (answer.headers["Content-Encoding"], answer.content) == ("gzip", WHEEL.content)

    @pytest.mark.parametrize(("fault", "before"), [(Hang(), 0), (Stall(100), 100)], ids=["hang", "stall"])
    def test_what_is_held_back_comes_when_released(self, index: FakeIndex, url: str, fault: Fault, before: int) -> None:
        """Until then a client gets so far and no further."""
        index.fault("/packages/", fault)
        with socket.create_connection((index.host, index.port), timeout=10) as client:
            client.sendall(f"GET {index.path_of(WHEEL.filename)} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            fault.wait_served()
            client.settimeout(0)
            received = client.recv(65536) if before else b""
            assert len(received.partition(b"\r\n\r\n")[2]) == before
            with pytest.raises(BlockingIOError):
                client.recv(1)
            client.settimeout(10)
            fault.release()
            while piece := client.recv(65536):
                received += piece
        assert received.partition(b"\r\n\r\n")[2] == WHEEL.content

    def test_a_gate_lets_through_what_is_allowed(self, index: FakeIndex, url: str) -> None:
        """Byte by byte, as the test says."""
        gate = index.fault("/packages/", Gate())
        with SlowReader(url) as client:
            gate.allow(10)
            assert client.read(10) == WHEEL.content[:10]
            gate.allow(5)
            gate.wait_sent(15)
            assert client.read(5) == WHEEL.content[10:15]
            gate.allow_all()
            rest = client.rest()
        assert (rest.body, rest.complete) == (WHEEL.content[15:], True)

    def test_a_closed_port_refuses_and_opens_again(self, index: FakeIndex, url: str) -> None:
        """The port stays the same, and connections that were open are closed."""
        with socket.create_connection((index.host, index.port), timeout=10) as kept:
            kept.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
            assert kept.recv(65536).startswith(b"HTTP/1.1 404")
            with index.refusing():
                assert kept.recv(1) == b""
                with pytest.raises(ConnectionRefusedError):
                    get(url)
            assert get(url).body == WHEEL.content
        assert index.faults_served["Refusing"] == 1

    def test_a_client_that_leaves_is_seen(self, index: FakeIndex) -> None:
        """Its request ends broken, with less sent than there was."""
        big = make_wheel("big", padding=20_000_000)
        with SlowReader(index.add(big)) as client:
            client.read(1000)
        index.wait_for(lambda: index.requests[0].done)
        assert index.requests[0].broken
        assert index.requests[0].sent < big.size


class TestWaiting:
    def test_what_comes_eventually_is_waited_for(self) -> None:
        """And returned, however often it takes."""
        numbers = iter(range(10))
        assert eventually(lambda: next(numbers), lambda number: number == 3) == 3

    def test_what_never_comes_ends_the_test(self) -> None:
        """Saying what came instead."""
        with pytest.raises(AssertionError, match="the last answer was 1"):
            eventually(lambda: 1, lambda number: number == 2, timeout=0.05)


class TestClient:
    def test_a_slow_reader_leaves_the_bytes_with_the_server(self, index: FakeIndex) -> None:
        """What it does not read is not sent, beyond what the kernel takes; later it gets all of it."""
        big = make_wheel("big", padding=20_000_000)
        with SlowReader(index.add(big)) as client:
            first = client.read(1000)
            assert not index.requests[0].done
            rest = client.rest()
        assert first + rest.body == big.content
        assert rest.complete

    def test_raw_bytes_get_raw_bytes(self, index: FakeIndex) -> None:
        """What no HTTP library would send."""
        answer = raw(index.host, index.port, b"GET / HTTP/9.9\r\n\r\n")
        assert b" 505 " in answer

    def test_no_answer_at_all_is_a_broken_one(self) -> None:
        """A server that closes before the head."""
        with socket.create_server(("127.0.0.1", 0)) as server:

            def close_at_once() -> None:
                server.accept()[0].close()

            Thread(target=close_at_once).start()
            answer = get(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert (answer.status, answer.complete) == (0, False)

    def test_parallel_returns_in_order_and_raises(self, index: FakeIndex, url: str) -> None:
        """Fifty clients at once; and a failure is not swallowed."""
        answers: list[Answer] = parallel(50, lambda _: get(url))
        assert {answer.body for answer in answers} == {WHEEL.content}
        assert parallel(3, str) == ["0", "1", "2"]
        with pytest.raises(ZeroDivisionError):
            parallel(2, lambda number: 1 // number)


STAND_IN = """
import os, subprocess
from twisted.application.service import IServiceMaker, Service
from twisted.internet import endpoints, reactor
from twisted.logger import Logger
from twisted.plugin import IPlugin
from twisted.python import usage
from twisted.web import server, static
from zope.interface import implementer

log = Logger("standin")


class StandIn(Service):
    def startService(self):
        self.child = subprocess.Popen(["sleep", "60"])
        root = static.Data(b"here", "text/plain")
        root.isLeaf = True
        site = server.Site(root)
        listening = endpoints.serverFromString(reactor, os.environ["MYPYPI_LISTEN"]).listen(site)
        # Not before the reactor runs: until then SIGTERM ends the process on the spot.
        reactor.callLater(0, listening.addCallback, self.ready)

    def ready(self, port):
        log.info("ready: http://127.0.0.1:{port}/ over {data}", port=port.getHost().port, data=os.getcwd())
        if "COMPLAIN" in os.environ:
            reactor.callLater(0, int, "nobody handles this")

    def stopService(self):
        self.child.kill()
        self.child.wait()
        log.info("stopped")


@implementer(IServiceMaker, IPlugin)
class Maker:
    tapname, description, options = "standin", "stands in for the daemon", usage.Options

    def makeService(self, options):
        if "FAIL" in os.environ:
            raise SystemExit("would not start")
        return StandIn()


maker = Maker()
"""


class TestDaemon:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """Where twistd finds the stand-in."""
        plugins = tmp_path / "code" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "standin.py").write_text(STAND_IN)
        return tmp_path

    @pytest.fixture
    def daemon(self, place: Path) -> Iterator[Daemon]:
        with Daemon("standin", place / "data", python_path=[place / "code"]) as daemon:
            yield daemon

    def test_it_is_ready_where_its_log_says(self, daemon: Daemon) -> None:
        """It answers, its log is there to search, its memory to measure."""
        assert get(daemon.url).body == b"here"
        assert daemon.wait_for_log(r"over (.*)\n").group(1) == str(daemon.data.parent)
        assert 5_000_000 < daemon.rss_bytes() < daemon.rss_bytes(children=True)

    def test_it_stops_when_asked(self, daemon: Daemon) -> None:
        """In good order, with nothing left behind; and its port is closed. twistd ends by the signal that it got."""
        assert daemon.stop() == -signal.SIGTERM
        assert daemon.ended_in_order
        assert "stopped" in daemon.log
        assert daemon.leftovers() == []
        with pytest.raises(ConnectionRefusedError):
            get(daemon.url)

    def test_it_can_be_killed(self, daemon: Daemon) -> None:
        """At once: nothing is said, and what it started is found, and swept."""
        daemon.kill()
        assert "stopped" not in daemon.log
        assert daemon.stop() == -signal.SIGKILL
        assert not daemon.ended_in_order
        assert daemon.leftovers(0) == ["sleep 60"]
        daemon.sweep()
        assert daemon.leftovers(0) == []

    def test_one_that_does_not_start_shows_why(self, place: Path) -> None:
        """Its log is in the failure, and nobody waits for what can't come."""
        daemon = Daemon("standin", place / "data", {"FAIL": "1"}, python_path=[place / "code"])
        with pytest.raises(AssertionError, match="would not start"):
            daemon.start()

    def test_what_nobody_handled_is_told(self, place: Path, daemon: Daemon) -> None:
        """A failure in the log is a complaint; a daemon without one has none."""
        env = {"COMPLAIN": "1"}
        with Daemon("standin", place / "other", env, python_path=[place / "code"]) as failing:
            failing.wait_for_log("nobody handles this")
        assert failing.complaints
        assert daemon.complaints == []

    def test_the_environment_is_clean(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Settings of whoever runs the tests do not reach the daemon; the checkout does."""
        monkeypatch.setenv("MYPYPI_UPSTREAM_URL", "http://index.example")
        monkeypatch.setenv("FAIL", "1")
        assert (ROOT / "mypypi").is_dir()
        with Daemon("standin", place / "data", python_path=[place / "code"]) as daemon:
            assert daemon.port
