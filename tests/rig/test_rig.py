"""Tests of the rig itself, from outside.

The other tests depend on its behaviour.
"""

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
    """Tests of `make_wheel` and `make_sdist`."""

    def test_a_wheel_lists_its_contents(self) -> None:
        """RECORD lists every file with its digest, and METADATA is the artifact's own."""
        with zipfile.ZipFile(io.BytesIO(WHEEL.content)) as archive:
            assert archive.read("some_package-1.0.dist-info/METADATA") == WHEEL.metadata
            record = archive.read("some_package-1.0.dist-info/RECORD").decode().splitlines()
            assert [line.split(",")[0] for line in record] == archive.namelist()
        metadata = BytesParser().parsebytes(WHEEL.metadata or b"")
        assert (metadata["Requires-Dist"], metadata["Requires-Python"]) == ("other>=2", ">=3.8")
        assert (WHEEL.filename, WHEEL.project) == ("some_package-1.0-py3-none-any.whl", "some-package")

    @pytest.mark.parametrize("make", [make_wheel, make_sdist])
    def test_the_same_package_has_the_same_bytes(self, make: Callable[..., Artifact]) -> None:
        """The same arguments give the same bytes, and padding is incompressible."""
        assert make("a", "1", padding=9000) == make("a", "1", padding=9000)
        assert len(gzip.compress(make("a", "1", padding=9000).content)) > 9000

    def test_an_sdist_contains_its_build_backend(self, tmp_path: Path) -> None:
        """
        The sdist's own backend builds a wheel with its metadata and modules.

        It needs no other package.
        """
        sdist = make_sdist("a.b", "2", requires=["other"], modules={"a.py": "x = 'é'\n"})
        _unpack(sdist, tmp_path)
        subprocess.run(
            [sys.executable, "-c", "import backend; backend.build_wheel('..')"], cwd=tmp_path / "a_b-2", check=True
        )
        with zipfile.ZipFile(tmp_path / "a_b-2-py3-none-any.whl") as wheel:
            assert wheel.read("a_b-2.dist-info/METADATA") == (tmp_path / "a_b-2" / "PKG-INFO").read_bytes()
            assert wheel.read("a.py").decode() == "x = 'é'\n"

    def test_an_old_sdist_has_a_setup_script(self, tmp_path: Path) -> None:
        """A legacy sdist has a setup.py with its modules, and no pyproject.toml."""
        _unpack(make_sdist("a", "2", modules={"a.py": ""}, legacy=True), tmp_path)
        assert sorted(path.name for path in (tmp_path / "a-2").iterdir()) == ["PKG-INFO", "a.py", "setup.py"]
        assert "py_modules=['a']" in (tmp_path / "a-2" / "setup.py").read_text()


def _unpack(sdist: Artifact, place: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(sdist.content)) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # came with 3.11.4 and 3.10.12
        archive.extractall(place, **safely)  # type: ignore[arg-type] # noqa: S202 - the test made the archive


class TestPages:
    """Tests of `FakeIndex`'s pages."""

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
        """Each client gets the form that it prefers, or 406."""
        answer = get(f"{index.url}/simple/some-package/", {"Accept": accept})
        assert (answer.status, answer.headers["Content-Type"]) == (406 if accept == "image/png" else 200, form)

    def test_the_json_page_has_the_fields_of_the_real_one(self, index: FakeIndex, url: str) -> None:
        """The JSON page has PyPI's fields. It is compact, and its serial is a number."""
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

    def test_the_html_page_has_the_same_data(self, index: FakeIndex) -> None:
        """
        The HTML page has the JSON page's data, with escaped attributes.

        That includes the reason for yanking and a digest given in `extra`.
        """
        index.add(WHEEL, yanked="a <bug>", extra={"hashes": {"sha256": "0" * 64}})
        text = get(f"{index.url}/simple/some-package/").text
        assert (
            f'{WHEEL.filename}#sha256={"0" * 64}" data-requires-python="&gt;=3.8" data-dist-info-metadata="sha' in text
        )
        assert 'data-yanked="a &lt;bug&gt;"' in text

    def test_pages_have_validators_for_each_encoding(self, index: FakeIndex, url: str) -> None:
        """
        The gzip form has its own ETag.

        Only that ETag gets a 304 for the gzip form.
        """
        page = f"{index.url}/simple/some-package/"
        plain, packed = get(page), get(page, {"Accept-Encoding": "gzip, deflate"})
        assert (packed.headers["Content-Encoding"], packed.text) == ("gzip", plain.text)
        assert packed.headers["ETag"] != plain.headers["ETag"]
        assert plain.headers["Vary"] == "Accept, Accept-Encoding"
        again = get(page, {"Accept-Encoding": "gzip", "If-None-Match": packed.headers["ETag"]})
        assert (again.status, again.body, again.complete) == (304, b"", True)
        assert get(page, {"If-None-Match": packed.headers["ETag"]}).status == 200

    def test_a_plain_index_sends_only_the_minimum(self) -> None:
        """
        A plain index sends only Content-Type and Content-Length.

        It has no core-metadata and no ranges, and its serial is a string.
        """
        with FakeIndex(plain=True) as index:
            url = index.add(WHEEL)
            page = get(f"{index.url}/simple/some-package/", {"Accept": JSON, "Accept-Encoding": "gzip"})
            assert page.headers.keys() == ["Content-Type", "Content-Length"]
            assert '"_last-serial":"10001"' in page.text
            assert "core-metadata" not in page.text
            assert get(url, {"Range": "bytes=0-9"}).status == 200

    def test_an_index_can_have_one_form_only(self) -> None:
        """With `json_only` or `html_only`, the index ignores Accept."""
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

    def test_the_root_list_and_the_older_json_are_served(self, index: FakeIndex, url: str) -> None:
        """
        The index serves the root list and PyPI's older JSON API.

        Names without a page can be added to the list; an unknown version is a 404.
        """
        index.add_names(["no-page"])
        root = get(f"{index.url}/simple/", {"Accept": JSON}).text
        assert '{"_last-serial":10001,"name":"some-package"},{"_last-serial":10000,"name":"no-page"}' in root
        assert '<a href="/simple/no-page/">no-page</a>' in get(f"{index.url}/simple/").text
        for path in ("some-package/json", "some-package/1.0/json"):
            document = get(f"{index.url}/pypi/{path}").json()
            assert isinstance(document, dict)
            assert [entry["url"] for entry in document["urls"]] == [url]
        assert get(f"{index.url}/pypi/some-package/2.0/json").status == 404

    def test_pages_can_be_changed(self, index: FakeIndex, url: str) -> None:
        """A page changes when a file is added, replaced or removed."""
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

    def test_credentials_are_required(self) -> None:
        """Without credentials a request gets a 401; each request records its Authorization."""
        with FakeIndex(auth=("user", "secret")) as index:
            assert get(index.add(WHEEL)).status == 401
            assert get(f"{index.url}/simple/", {"authorization": "Basic dXNlcjpzZWNyZXQ="}).status == 200
            assert [request.headers["Authorization"] for request in index.requests] == [None, "Basic dXNlcjpzZWNyZXQ="]


class TestFiles:
    """Tests of `FileHost`'s files and its records of requests."""

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [("bytes=0-9", slice(0, 10)), ("bytes=100-", slice(100, None)), ("bytes=-7", slice(-7, None))],
    )
    def test_a_range_is_served(self, url: str, wanted: str, part: slice) -> None:
        """A range gets a 206: from the start, to the end, or the last bytes."""
        answer = get(url, {"Range": wanted})
        assert (answer.status, answer.body) == (206, WHEEL.content[part])
        assert answer.headers["Content-Range"].endswith(f"/{WHEEL.size}")

    def test_ranges_honour_if_range(self, url: str) -> None:
        """
        If-Range with another ETag gets the whole file.

        A range past the end gets a 416.
        """
        etag = get(url).headers["ETag"]
        assert get(url, {"Range": "bytes=9-", "If-Range": etag}).status == 206
        assert get(url, {"Range": "bytes=9-", "If-Range": '"other"'}).body == WHEEL.content
        beyond = get(url, {"Range": f"bytes={WHEEL.size}-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{WHEEL.size}")

    def test_metadata_is_served_beside_its_wheel(self, url: str) -> None:
        """
        The metadata file is served beside its wheel, encoded on request.

        HEAD returns the length without a body.
        """
        assert get(f"{url}.metadata").body == WHEEL.metadata
        assert get(f"{url}.metadata", {"Accept-Encoding": "gzip"}).content == WHEEL.metadata
        answer = head(url)
        assert (answer.headers["Content-Length"], answer.body, answer.complete) == (str(WHEEL.size), b"", True)

    def test_files_can_be_on_another_host(self, index: FakeIndex) -> None:
        """A file can be served by another host instead of the index."""
        with FileHost(address="127.0.0.2") as files:
            url = index.add(WHEEL, at=files)
            assert url.startswith(f"http://127.0.0.2:{files.port}/packages/")
            assert url in get(f"{index.url}/simple/some-package/").text
            assert get(url).body == WHEEL.content
            assert get(index.url + index.path_of(WHEEL.filename)).status == 404

    def test_requests_are_recorded_in_order(self, index: FakeIndex, url: str) -> None:
        """
        Requests are recorded in order, with path and query as sent.

        The highest number of simultaneous requests is recorded as well.
        """
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

    def test_waiting_fails_after_its_timeout(self, index: FakeIndex) -> None:
        """`wait_for` fails after its timeout and names the requests that came instead."""
        get(f"{index.url}/instead")
        with pytest.raises(AssertionError, match="/instead"):
            index.wait_for(lambda: index.count("/expected") == 1, timeout=0.01)


class TestFaults:
    """Tests of the faults of an upstream."""

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
        """The client meets the fault; the next client does not."""
        index.fault("/packages/", fault, times=1)
        answer = get(url)
        assert (answer.status, answer.body, answer.complete) == seen
        fault.wait_served()
        assert get(url).body == WHEEL.content
        assert index.faults_served[type(fault).__name__] == fault.served == 1

    def test_a_fault_that_could_not_happen_does_not_count(self, index: FakeIndex, url: str) -> None:
        """A close after more bytes than the body has is not counted."""
        fault = index.fault("/packages/", CloseEarly(WHEEL.size))
        assert get(url).complete
        assert fault.served == 0

    def test_a_fault_affects_only_its_path(self, index: FakeIndex, url: str) -> None:
        """
        A fault on a file does not affect its metadata.

        `mend` removes it.
        """
        index.fault(index.path_of(WHEEL.filename), Status(404))
        assert [get(url).status, get(f"{url}.metadata").status] == [404, 200]
        index.mend()
        assert get(url).status == 200

    def test_statuses_and_redirects_have_their_headers(self, index: FakeIndex, url: str) -> None:
        """`Status` sends Retry-After, and `Redirect` a Location with the requested path."""
        index.fault("/simple/", Status(429, retry_after=7))
        index.fault("/packages/", Redirect("http://files.example{path}"))
        answer = get(f"{index.url}/simple/")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        assert get(url).headers["Location"] == f"http://files.example{index.path_of(WHEEL.filename)}"

    def test_gzip_is_sent_unasked(self, index: FakeIndex, url: str) -> None:
        """`Gzipped` encodes the body even if the client asked for identity."""
        index.fault("/packages/", Gzipped())
        answer = get(url, {"Accept-Encoding": "identity"})
        assert (answer.headers["Content-Encoding"], answer.content) == ("gzip", WHEEL.content)

    @pytest.mark.parametrize(("fault", "before"), [(Hang(), 0), (Stall(100), 100)], ids=["hang", "stall"])
    def test_a_held_response_continues_on_release(self, index: FakeIndex, url: str, fault: Fault, before: int) -> None:
        """A held response ends where the fault says, and continues on release."""
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

    def test_a_gate_sends_the_allowed_bytes(self, index: FakeIndex, url: str) -> None:
        """A gate sends exactly the bytes that the test allows."""
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
        """`refusing` closes open connections and refuses new ones; the port stays the same."""
        with socket.create_connection((index.host, index.port), timeout=10) as kept:
            kept.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
            assert kept.recv(65536).startswith(b"HTTP/1.1 404")
            with index.refusing():
                assert kept.recv(1) == b""
                with pytest.raises(ConnectionRefusedError):
                    get(url)
            assert get(url).body == WHEEL.content
        assert index.faults_served["Refusing"] == 1

    def test_a_client_that_disconnects_is_recorded(self, index: FakeIndex) -> None:
        """A disconnected client's request is recorded as broken, with fewer bytes sent."""
        big = make_wheel("big", padding=20_000_000)
        with SlowReader(index.add(big)) as client:
            client.read(1000)
        index.wait_for(lambda: index.requests[0].done)
        assert index.requests[0].broken
        assert index.requests[0].sent < big.size


class TestWaiting:
    """Tests of `eventually`."""

    def test_eventually_waits_for_an_accepted_result(self) -> None:
        """`eventually` repeats its call until the result is accepted."""
        numbers = iter(range(10))
        assert eventually(lambda: next(numbers), lambda number: number == 3) == 3

    def test_eventually_fails_after_its_timeout(self) -> None:
        """`eventually` fails after its timeout and names the last result."""
        with pytest.raises(AssertionError, match="the last answer was 1"):
            eventually(lambda: 1, lambda number: number == 2, timeout=0.05)


class TestClient:
    """Tests of the rig's HTTP client."""

    def test_a_slow_reader_leaves_the_bytes_with_the_server(self, index: FakeIndex) -> None:
        """
        The server can't finish a response that the client does not read.

        When the client reads on, it gets all of it.
        """
        big = make_wheel("big", padding=20_000_000)
        with SlowReader(index.add(big)) as client:
            first = client.read(1000)
            assert not index.requests[0].done
            rest = client.rest()
        assert first + rest.body == big.content
        assert rest.complete

    def test_raw_sends_any_bytes(self, index: FakeIndex) -> None:
        """`raw` sends a request that no HTTP library would send."""
        answer = raw(index.host, index.port, b"GET / HTTP/9.9\r\n\r\n")
        assert b" 505 " in answer

    def test_no_answer_has_status_0(self) -> None:
        """If the server closes before the head, the answer has status 0."""
        with socket.create_server(("127.0.0.1", 0)) as server:

            def close_at_once() -> None:
                server.accept()[0].close()

            Thread(target=close_at_once).start()
            answer = get(f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert (answer.status, answer.complete) == (0, False)

    def test_parallel_returns_in_order_and_raises(self, index: FakeIndex, url: str) -> None:
        """`parallel` returns the results in order and raises the error of a call."""
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
        # Ready only once the reactor runs: until then SIGTERM ends the process immediately.
        reactor.callLater(0, listening.addCallback, self.ready)

    def ready(self, port):
        log.info("ready: http://127.0.0.1:{port}/ over {data}", port=port.getHost().port, data=os.getcwd())
        if "COMPLAIN" in os.environ:
            reactor.callLater(0, int, "this is not handled")

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
    """Tests of `Daemon`, with a small twistd plugin in place of the real one."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """A directory with the stand-in's twistd plugin."""
        plugins = tmp_path / "code" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "standin.py").write_text(STAND_IN)
        return tmp_path

    @pytest.fixture
    def daemon(self, place: Path) -> Iterator[Daemon]:
        with Daemon("standin", place / "data", python_path=[place / "code"]) as daemon:
            yield daemon

    def test_it_answers_at_the_address_in_its_log(self, daemon: Daemon) -> None:
        """A started daemon answers; its log and memory can be read."""
        assert get(daemon.url).body == b"here"
        assert daemon.wait_for_log(r"over (.*)\n").group(1) == str(daemon.data.parent)
        assert 5_000_000 < daemon.rss_bytes() < daemon.rss_bytes(children=True)

    def test_it_stops_in_order(self, daemon: Daemon) -> None:
        """
        `stop` leaves no child process, and the port is closed.

        twistd ends by the signal that it received.
        """
        assert daemon.stop() == -signal.SIGTERM
        assert daemon.ended_in_order
        assert "stopped" in daemon.log
        assert daemon.leftovers() == []
        with pytest.raises(ConnectionRefusedError):
            get(daemon.url)

    def test_it_can_be_killed(self, daemon: Daemon) -> None:
        """`kill` ends it without a shutdown; `sweep` kills its child processes."""
        daemon.kill()
        assert "stopped" not in daemon.log
        assert daemon.stop() == -signal.SIGKILL
        assert not daemon.ended_in_order
        assert daemon.leftovers(0) == ["sleep 60"]
        daemon.sweep()
        assert daemon.leftovers(0) == []

    def test_a_failed_start_shows_the_log(self, place: Path) -> None:
        """`start` fails at once if the daemon ends early, and shows the log."""
        daemon = Daemon("standin", place / "data", {"FAIL": "1"}, python_path=[place / "code"])
        with pytest.raises(AssertionError, match="would not start"):
            daemon.start()

    def test_unhandled_errors_are_complaints(self, place: Path, daemon: Daemon) -> None:
        """
        An unhandled error in the log is a complaint.

        A daemon without one has none.
        """
        env = {"COMPLAIN": "1"}
        with Daemon("standin", place / "other", env, python_path=[place / "code"]) as failing:
            failing.wait_for_log("this is not handled")
        assert failing.complaints
        assert daemon.complaints == []

    def test_the_environment_is_clean(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        The daemon does not inherit settings from the tests' environment.

        It finds the checkout, however.
        """
        monkeypatch.setenv("MYPYPI_UPSTREAM_URL", "http://index.example")
        monkeypatch.setenv("FAIL", "1")
        assert (ROOT / "mypypi").is_dir()
        with Daemon("standin", place / "data", python_path=[place / "code"]) as daemon:
            assert daemon.port
