"""Tests pip and uv at an index without core-metadata: the daemon reads the metadata out of the wheels, once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import DaemonFactory
from tests.rig.clients import Client, Pip, Uv
from tests.rig.daemon import Daemon
from tests.rig.faults import Hang, Status
from tests.rig.http import Answer, eventually, get, head, parallel
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, incompressible, make_sdist, make_wheel
from tests.support.cluster import Cluster

#: Its metadata is at its end, as is usual. It is too large to come with the end.
APP = make_wheel("app", requires=["lib>=1"], modules={"app.py": "import lib\n"}, padding=200_000)
LIB = make_wheel("lib", "1.1", requires=["Some.Tool"], padding=200_000)
TOOL = make_wheel("Some.Tool", padding=200_000)
OLD_LIB = make_wheel("lib", "1.0", padding=200_000)
WANTED = [APP, LIB, TOOL]
ALL = {"app": "1.0", "lib": "1.1", "some-tool": "1.0"}
#: What the index's pages say of a wheel without metadata.
NONE: dict[str, object] = {"core-metadata": False, "data-dist-info-metadata": False}

CLIENTS = 20
JSON = {"Accept": "application/vnd.pypi.simple.v1+json"}


def publish(index: FakeIndex, *artifacts: Artifact, extra: dict[str, object] = NONE) -> None:
    """Publish wheels without metadata. Upstream answers 404 to requests for it."""
    for artifact in artifacts or (*WANTED, OLD_LIB):
        index.add(artifact, extra=extra)
        index.drop(f"{index.path_of(artifact.filename)}.metadata")


def ranges(index: FakeIndex, artifact: Artifact) -> list[str | None]:
    """The Range headers of the requests for a wheel that upstream received."""
    return [request.headers["Range"] for request in index.seen(index.path_of(artifact.filename))]


def link(daemon: Daemon, index: FakeIndex, artifact: Artifact, suffix: str = ".metadata") -> str:
    """Return the address of what is beside a wheel on the daemon."""
    return f"{daemon.url}/file/{index.url_of(artifact.filename).replace('://', '/')}{suffix}"


def advertised(daemon: Daemon, project: str) -> list[object]:
    """Return the ``core-metadata`` of the files on a page of the daemon."""
    page = get(f"{daemon.url}/simple/{project}/", JSON).json()
    assert isinstance(page, dict)
    return [file.get("core-metadata") for file in page["files"]]


def resolve(client: Client, server: str, *requirements: str) -> dict[str, str]:
    """Resolve requirements without an install. Return the versions by normalised name."""
    if isinstance(client, Uv):
        wanted = client.new_directory() / "requirements.in"
        wanted.write_text("\n".join(requirements))
        output = client.run(
            "pip", "compile", "--no-header", "--no-annotate", "-q", wanted, "--default-index", f"{server}/simple/"
        )
        pairs = [line.strip().split("==") for line in output.splitlines() if "==" in line]
    else:
        output = client.run(
            *("install", "--dry-run", "--ignore-installed", "--index-url", f"{server}/simple/", *requirements)
        )
        (line,) = [line for line in output.splitlines() if line.startswith("Would install ")]
        pairs = [word.rsplit("-", 1) for word in line.removeprefix("Would install ").split()]
    return {name.lower().replace(".", "-").replace("_", "-"): version for name, version in pairs}


def normalised(found: dict[str, str]) -> dict[str, str]:
    return {name.lower().replace(".", "-").replace("_", "-"): version for name, version in found.items()}


def assert_metadata_was_never_requested(index: FakeIndex) -> None:
    """Assert that upstream was asked for wheels alone, and for no file beside them."""
    assert [request.path for request in index.seen("/packages/") if not request.path.endswith(".whl")] == []


@pytest.fixture(params=[Pip, Uv])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    make: Callable[[Path], Client] = request.param
    return make(tmp_path)


@pytest.fixture
def uv(tmp_path: Path) -> Uv:
    return Uv(tmp_path)


class TestResolving:
    """Clients that resolve dependencies read a wheel's metadata alone."""

    def test_resolving_fetches_no_wheel(self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """Upstream is asked for one range of each wheel, its end. The second client causes no request for files."""
        publish(index)
        daemon = daemon_factory()
        assert resolve(client, daemon.url, "app") == ALL
        files = index.count("/packages/")
        asked = [ranges(index, artifact) for artifact in WANTED]
        assert sum(headers.count("bytes=-1") for headers in asked) == 1
        assert {len([each for each in headers if each != "bytes=-1"]) for headers in asked} == {1}
        assert ranges(index, OLD_LIB) == []
        assert all(None not in headers for headers in asked)
        assert_metadata_was_never_requested(index)
        for _ in range(2):
            assert resolve(client, daemon.url, "app") == ALL
        assert index.count("/packages/") == files

    def test_upstream_that_is_gone(self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """What one client has resolved, another one resolves without upstream, also after a restart (promise 6)."""
        publish(index)
        daemon = daemon_factory()
        assert resolve(client, daemon.url, "app") == ALL
        daemon.stop()
        with index.refusing():
            daemon = daemon_factory()
            assert resolve(client, daemon.url, "app") == ALL

    def test_metadata_is_that_of_the_wheel(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """The bytes are those that are in the wheel, wherever it has them, with their length, and with an ETag."""
        publish(index)
        daemon = daemon_factory()
        for artifact in WANTED:
            assert True in advertised(daemon, artifact.project)
            described = head(link(daemon, index, artifact))
            answer = get(link(daemon, index, artifact))
            assert (described.status, answer.status, answer.body) == (200, 200, artifact.metadata)
            assert described.headers["Content-Length"] == answer.headers["Content-Length"] == str(len(answer.body))
            assert answer.headers["Cache-Control"] == "no-cache"
            daemon.wait_for_log(rf"stored \S*{artifact.filename}\.metadata,")
            answer = get(link(daemon, index, artifact))
            assert (answer.body, answer.headers["Cache-Status"]) == (artifact.metadata, "MyPyPi; hit")
            again = get(link(daemon, index, artifact), {"If-None-Match": answer.headers["ETag"]})
            assert (again.status, again.body) == (304, b"")
        assert_metadata_was_never_requested(index)

    def test_html_index(self, client: Client, daemon_factory: DaemonFactory) -> None:
        """An index that has only HTML pages is read in the same way."""
        with FakeIndex(html_only=True) as index:
            publish(index)
            daemon = daemon_factory(env={"MYPYPI_UPSTREAM_URL": index.url})
            assert resolve(client, daemon.url, "app") == ALL
            assert advertised(daemon, "app") == [True]
            assert [each for each in ranges(index, OLD_LIB) if each is None] == []
            assert_metadata_was_never_requested(index)

    def test_sdists_are_left_as_they_are(self, uv: Uv, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """An sdist beside wheels is fetched when it is needed, and none of it is read before."""
        publish(index, APP, make_wheel("lib", "0.9"))
        index.add(make_sdist("lib", "1.2", modules={"lib.py": ""}))
        daemon = daemon_factory()
        assert normalised(uv.install(daemon.url, "app")) == {"app": "1.0", "lib": "1.2"}
        assert advertised(daemon, "lib") == [True, False]
        assert ranges(index, make_sdist("lib", "1.2", modules={"lib.py": ""})) == [None]


class TestInstalling:
    """Clients that install read the metadata first, and fetch the wheels then."""

    def test_each_wheel_is_fetched_once(self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """Each installed wheel is fetched as a whole once, however many clients install it. Others are not fetched."""
        publish(index)
        daemon = daemon_factory()
        for _ in range(2):
            assert normalised(client.install(daemon.url, "app")) == ALL
        for artifact in WANTED:
            assert ranges(index, artifact).count(None) == 1
        assert None not in ranges(index, OLD_LIB)
        assert_metadata_was_never_requested(index)

    def test_metadata_is_immutable_after_the_install(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """Once the wheel is stored, its metadata was compared with it, and clients may keep it for ever."""
        publish(index)
        daemon = daemon_factory()
        assert get(link(daemon, index, LIB)).headers["Cache-Control"] == "no-cache"
        daemon.wait_for_log(rf"stored \S*{LIB.filename}\.metadata,")
        assert normalised(client.install(daemon.url, "app")) == ALL
        for artifact in WANTED:
            for suffix in ("", ".metadata"):
                daemon.wait_for_log(rf"stored \S*{artifact.filename}{suffix},")
            answer = get(link(daemon, index, artifact))
            assert answer.body == artifact.metadata
            assert "immutable" in answer.headers["Cache-Control"]
            assert get(link(daemon, index, artifact, "")).headers["Cache-Control"] == answer.headers["Cache-Control"]

    def test_metadata_of_a_stored_wheel_needs_no_request(
        self, uv: Uv, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """A wheel that is stored already is read from the disk."""
        publish(index)
        daemon = daemon_factory()
        assert get(link(daemon, index, LIB, "")).body == LIB.content
        daemon.wait_for_log(rf"stored \S*{LIB.filename},")
        assert get(link(daemon, index, LIB)).body == LIB.metadata
        assert [each for each in ranges(index, LIB) if each != "bytes=-1"] == [None]
        daemon.wait_for_log(rf"stored \S*{LIB.filename}\.metadata,")
        assert "immutable" in get(link(daemon, index, LIB)).headers["Cache-Control"]
        assert resolve(uv, daemon.url, "lib") == {"lib": "1.1", "some-tool": "1.0"}


class TestManyClients:
    """Clients of several processes that ask at once."""

    def test_ranges_are_requested_once(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """With ``WORKERS=2``, many clients that ask for one metadata at once cause the requests of one (promise 3)."""
        publish(index)
        daemon = daemon_factory(env={"WORKERS": "2"})
        assert advertised(daemon, "app") == [True]
        assert ranges(index, APP) == ["bytes=-1"]
        hang = index.fault(index.path_of(APP.filename), Hang())
        with ThreadPoolExecutor(1) as thread:
            clients = thread.submit(parallel, CLIENTS, lambda _: get(link(daemon, index, APP)))
            try:
                hang.wait_served()
                served = eventually(lambda: clients_of(daemon), lambda served: sum(served) == CLIENTS)
                assert len(served) == 2
            finally:
                hang.release()
            answers: list[Answer] = clients.result()
        assert {(answer.status, answer.body) for answer in answers} == {(200, APP.metadata)}
        asked = ranges(index, APP)[1:]
        assert asked[0] == "bytes=-32768"
        assert len(asked) == len(set(asked)) <= 2
        assert hang.served == 1


def clients_of(daemon: Daemon) -> list[int]:
    """Return how many clients each process of the daemon has that has any."""
    process = psutil.Process(daemon.pid)
    counts = [
        sum(
            each.status == psutil.CONN_ESTABLISHED and each.laddr.port == daemon.port
            for each in one.net_connections("tcp")
        )
        for one in (process, *process.children(recursive=True))
    ]
    return [count for count in counts if count]


class TestUnchanged:
    """Where metadata can't be read, or is not wanted, everything is as it was."""

    @pytest.fixture
    def without_ranges(self) -> Iterator[FakeIndex]:
        """An index that answers every Range with the whole file."""
        with FakeIndex(ranges=False) as index:
            publish(index)
            yield index

    def test_index_without_ranges(
        self, client: Client, without_ranges: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """Nothing is advertised while pages are fresh. Each wheel is fetched once, and one range is requested."""
        index = without_ranges
        daemon = daemon_factory(env={"MYPYPI_UPSTREAM_URL": index.url})
        assert normalised(client.install(daemon.url, "app")) == ALL
        assert normalised(client.install(daemon.url, "app")) == ALL
        assert [each for artifact in WANTED for each in advertised(daemon, artifact.project) if each] == []
        asked = [request for artifact in WANTED for request in index.seen(index.path_of(artifact.filename))]
        assert [request.headers["Range"] for request in asked if request.headers["Range"]] == ["bytes=-1"]
        whole = [request for request in asked if request.method == "GET" and request.headers["Range"] is None]
        assert len(whole) == len(WANTED)
        assert_metadata_was_never_requested(index)

    @pytest.mark.parametrize(
        "settings", [{"MYPYPI_UPSTREAM_STRICT": "true"}, {"MYPYPI_CORE_METADATA": "false"}], ids=["strict", "off"]
    )
    def test_nothing_is_advertised(
        self, client: Client, settings: dict[str, str], index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """In strict mode, and if the setting says so, pages are upstream's, and upstream is not tried."""
        publish(index)
        daemon = daemon_factory(env=settings)
        assert advertised(daemon, "app") == [False]
        assert ranges(index, APP) == []
        assert get(link(daemon, index, APP)).status == 404
        assert normalised(client.install(daemon.url, "app")) == ALL
        assert "bytes=-1" not in [each for artifact in WANTED for each in ranges(index, artifact)]
        assert_metadata_was_never_requested(index)

    def test_metadata_of_upstreams_is_fetched(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """An index that has metadata is asked for it, and not for ranges of wheels."""
        for artifact in (*WANTED, OLD_LIB):
            index.add(artifact)
        daemon = daemon_factory()
        assert resolve(client, daemon.url, "app") == ALL
        assert index.count(f"{index.path_of(APP.filename)}.metadata") == 1
        assert [each for artifact in WANTED for each in ranges(index, artifact) if each] == []

    def test_setting_can_be_turned_on_and_off(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """After a restart with the other setting, pages change at their next revalidation. Upstream's have not."""
        publish(index)
        for setting, expected in (("false", False), ("true", True), ("false", False), ("true", True)):
            daemon = daemon_factory(env={"MYPYPI_CORE_METADATA": setting, "MYPYPI_CACHE_TIME": "0"})
            assert advertised(daemon, "app") == [expected]
            assert advertised(daemon, "app") == [expected]
            daemon.stop()
        assert [request.status for request in index.seen("/simple/app/")] == [200, 304] * 4


class TestStored:
    """Pages offer the metadata of stored wheels where ranges of upstream's can't give it."""

    @pytest.fixture(params=["no ranges", "strict"])
    def daemon(self, request: pytest.FixtureRequest, daemon_factory: DaemonFactory) -> Iterator[Daemon]:
        """A daemon in front of an index that answers no ranges, or in strict mode. Pages are fresh for a second."""
        with FakeIndex(ranges=request.param == "strict") as index:
            publish(index)
            strict = {"MYPYPI_UPSTREAM_STRICT": "true"} if request.param == "strict" else {}
            env = {"MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_CACHE_TIME": "1", **strict}
            daemon = daemon_factory(env=env)
            self.index = index
            yield daemon

    def test_next_client_resolves_without_wheels(self, client: Client, daemon: Daemon, tmp_path: Path) -> None:
        """After one install, other clients read the metadata alone. They get the same answer, also without upstream."""
        index = self.index
        assert normalised(client.install(daemon.url, "app")) == ALL
        for artifact in WANTED:
            eventually(lambda project=artifact.project: advertised(daemon, project), lambda found: True in found)  # type: ignore[misc]
        files = index.count("/packages/")
        with index.refusing():
            place = tmp_path / "another"
            place.mkdir()
            assert resolve(type(client)(place), daemon.url, "app") == ALL
        assert index.count("/packages/") == files
        asked = [line for line in daemon.log.splitlines() if "GET /file/" in line and ".whl.metadata" in line]
        assert {artifact.filename for artifact in WANTED if any(artifact.filename in line for line in asked)} == {
            artifact.filename for artifact in WANTED
        }
        answer = get(link(daemon, index, APP))
        assert (answer.status, answer.body) == (200, APP.metadata)
        assert "immutable" in (answer.headers["Cache-Control"] or "")
        assert_metadata_was_never_requested(index)

    @pytest.mark.parametrize("serve", ["redirect", "proxy"])
    def test_wheel_in_the_bucket(self, serve: str, cluster: Cluster) -> None:
        """The metadata of a wheel that another host has uploaded is read out of the bucket, in strict mode as well."""
        publish(cluster.index, APP)
        cluster.settings |= {"UPSTREAM_STRICT": "true", "CACHE_TIME": "1", "S3_SERVE": serve}
        first = cluster.server("first", CORE_METADATA="false")
        cluster.worker("first")
        assert advertised(first, "app") == [False]
        assert cluster.get(first, APP).body == APP.content
        cluster.wait_uploaded(APP)
        server = cluster.server("second")
        cluster.worker("second")
        assert advertised(server, "app") == [False]
        assert cluster.follow(server, APP).body == APP.content
        eventually(lambda: advertised(server, "app"), lambda found: found == [True])
        answer = get(f"{server.url}{cluster.path(APP)}.metadata")
        if answer.status == 302:
            answer = get(answer.headers["Location"])
        assert (answer.status, answer.body) == (200, APP.metadata)
        assert cluster.fetched(APP) == 1
        ranges_read = [request.headers["Range"] for request in cluster.proxy.seen("/") if request.headers["Range"]]
        assert "bytes=-32768" in ranges_read


class TestFailures:
    """Wheels without readable metadata."""

    def test_damaged_wheel(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """A file that is no wheel ends in a 502, and is not advertised with metadata again."""
        index.add(Artifact("app-1.0-py3-none-any.whl", incompressible(100_000)), extra=NONE)
        broken = index.url_of("app-1.0-py3-none-any.whl").replace("://", "/")
        daemon = daemon_factory()
        assert advertised(daemon, "app") == [True]
        answer = get(f"{daemon.url}/file/{broken}.metadata")
        assert answer.status == 502
        assert "metadata" in answer.text
        assert advertised(daemon, "app") == [None]
        assert get(f"{daemon.url}/file/{broken}.metadata").status == 404
        assert len(get(f"{daemon.url}/file/{broken}").body) == 100_000

    def test_missing_wheel(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """A wheel that upstream does not have is a 404, with the metadata off the page."""
        publish(index)
        daemon = daemon_factory()
        assert advertised(daemon, "app") == [True]
        fault = index.fault(index.path_of(APP.filename), Status(404))
        assert get(link(daemon, index, APP)).status == 404
        fault.wait_served()
        assert advertised(daemon, "app") == [None]

    def test_resolver_goes_on_without_a_damaged_wheel(
        self, uv: Uv, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """A damaged old version does not keep clients from the others."""
        publish(index, APP, LIB, TOOL)
        index.add(Artifact("lib-0.5-py3-none-any.whl", incompressible(100_000)), extra=NONE)
        daemon = daemon_factory()
        assert resolve(uv, daemon.url, "app") == ALL
