"""Tests what real clients ask for by exact name: lock files of other registries, new versions, files of a mirror.

Each install is compared with that of the same client without a daemon.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mypypi.settings.settings import default_upstream
from tests.conftest import DaemonFactory, daemons
from tests.rig.clients import Npm, Pip, Uv, installed, installed_modules
from tests.rig.daemon import Daemon
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_sdist, make_tarball, make_wheel
from tests.rig.registry import FakeRegistry

NPM = {"MYPYPI_PACKAGE_TYPE": "npm"}
#: Revalidates every page, so that an install without upstream uses stale pages.
NO_FRESHNESS = {"MYPYPI_CACHE_TIME": "0"}

#: Packages with the path that another registry gives to each one's tarball.
ELSEWHERE = [
    (make_tarball("@acme/github"), "/download/@acme/github/1.0.0/9c2e0f41f1a0"),
    (make_tarball("couch"), "/registry/couch/-/couch-1.0.0.tgz"),
    (make_tarball("nexus"), "/repository/npm/nexus/-/nexus-1.0.0.tgz"),
    (make_tarball("prefixed"), "/npm/-/prefixed-1.0.0.tgz"),
    (make_tarball("@acme/artifactory"), "/api/npm/npm-repo/@acme/artifactory/-/@acme/artifactory-1.0.0.tgz"),
    (make_tarball("@acme/repeated"), "/@acme/repeated/-/@acme/repeated-1.0.0.tgz"),
    (make_tarball("@acme/gitlab"), "/api/v4/projects/1/packages/npm/@acme/gitlab/-/@acme/gitlab-1.0.0.tgz"),
    (make_tarball("gitea"), "/api/packages/owner/npm/gitea/-/1.0.0/gitea-1.0.0.tgz"),
    (make_tarball("azure"), "/org/_packaging/feed/npm/registry/azure/-/azure-1.0.0.tgz"),
    (make_tarball("cnpm"), "/cnpm/download/cnpm-1.0.0.tgz"),
    (make_tarball("@acme/jsr"), "/~/11/@acme/jsr/1.0.0.tgz"),
]
EVERYTHING = {tarball.name: tarball.version for tarball, _ in ELSEWHERE}

#: Paths that other indexes give to a package file, before its name.
INDEXES = [
    "/packages/aa/bb/0123456789abcdef/",
    "/packages/{name}/1.0/",
    "/api/package/{name}/",
    "/api/packages/owner/pypi/files/{name}/1.0/",
    "/root/pypi/+f/0a1/23456789abcde/",
    "/api/pypi/repo/packages/packages/aa/bb/0123/",
    "/repository/pypi/packages/{name}/1.0/",
    "/org/_packaging/feed/pypi/download/{name}/1/",
    "/api/v4/projects/1/packages/pypi/files/0123456789/",
    "/simple/{name}/",
    "/",
]


@pytest.fixture
def npm(tmp_path: Path) -> Npm:
    return Npm(tmp_path)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fresh:
        yield fresh


@pytest.fixture
def npm_daemons(registry: FakeRegistry, tmp_path: Path) -> Iterator[DaemonFactory]:
    with daemons(registry.url, tmp_path / "data") as start:
        yield start


def wait_until_older(page_url: str) -> None:
    """Wait until the daemon would ask upstream again for what this page lacks: after five of its 300 seconds."""

    def seconds_left() -> int:
        found = re.search(r"ttl=(-?\d+)", get(page_url, {"Accept": "*/*"}).headers["Cache-Status"])
        assert found is not None
        return int(found[1])

    eventually(seconds_left, lambda left: left < 295)


class TestNpmLockFiles:
    """Tests package-lock.json of other registries, with npm's option to ask the registry in use."""

    def test_tarballs_at_other_registries_paths_are_installed(
        self, npm: Npm, registry: FakeRegistry, npm_daemons: DaemonFactory
    ) -> None:
        """
        ``npm ci`` installs from a lock file that names the paths of eleven registries.

        Upstream is an ordinary registry, which has the same tarballs at the usual paths. Without the daemon, npm can
        install from the other registry alone. Afterwards, the same works without upstream.
        """
        with FakeRegistry() as elsewhere:
            for tarball, path in ELSEWHERE:
                elsewhere.add(tarball, path=path)
                registry.add(tarball)
            project = npm.project(elsewhere.url, EVERYTHING)
            npm.run("install", "--prefix", project)
            assert installed_modules(project) == EVERYTHING
        lock = json.loads((project / "package-lock.json").read_bytes())["packages"]
        assert {each["resolved"] for each in lock.values() if "resolved" in each} == {
            elsewhere.url + path for _, path in ELSEWHERE
        }
        directly = npm.project(registry.url, EVERYTHING, lock=project)
        assert "E404" in npm.fail("ci", "--prefix", directly, "--replace-registry-host=always")
        daemon = npm_daemons(env=NPM | NO_FRESHNESS)
        assert self.ci(npm, daemon, project) == EVERYTHING
        with registry.refusing():
            assert self.ci(npm, daemon, project) == EVERYTHING

    @staticmethod
    def ci(npm: Npm, daemon: Daemon, lock: Path) -> dict[str, str]:
        project = npm.project(daemon.url, EVERYTHING, lock=lock)
        npm.run("ci", "--prefix", project, "--replace-registry-host=always")
        return installed_modules(project)

    def test_such_addresses_are_answered_like_the_usual_ones(
        self, registry: FakeRegistry, npm_daemons: DaemonFactory
    ) -> None:
        """HEAD, ranges and validators work at each, cold and stored. A version that is not there is 404."""
        daemon = npm_daemons(env=NPM)
        for tarball, path in ELSEWHERE:
            registry.add(tarball)
            head = get(daemon.url + path, method="HEAD")
            assert (head.status, head.headers["Content-Length"]) == (200, str(len(tarball.content)))
            part = get(daemon.url + path, {"Range": "bytes=5-20"})
            assert (part.status, part.body) == (206, tarball.content[5:21])
            whole = get(daemon.url + path)
            assert (whole.status, whole.body) == (200, tarball.content)
            usual = get(f"{daemon.url}/{tarball.name}/-/{tarball.filename}", {"If-None-Match": whole.headers["ETag"]})
            assert usual.status == 304
            missing = get(daemon.url + path.replace("1.0.0", "9.9.9"))
            assert (missing.status, bool(missing.json())) == (404, True)
        asked = [request for request in registry.requests if request.path.endswith(".tgz")]
        assert len(asked) == 3 * len(ELSEWHERE)  # a HEAD, a range, and the whole file

    def test_such_addresses_while_upstream_is_down_are_503(
        self, registry: FakeRegistry, npm_daemons: DaemonFactory
    ) -> None:
        """While upstream can't be asked, no such address is 404 (promise 7)."""
        daemon = npm_daemons(env=NPM)
        with registry.refusing():
            assert {get(daemon.url + path).status for _, path in ELSEWHERE} == {503}


class TestPythonLockFiles:
    """Tests lock files that name the files of other indexes, at the daemon's host."""

    WHEEL, SDIST = make_wheel("thing"), make_sdist("Some.Tool")

    @pytest.mark.parametrize("prefix", INDEXES)
    def test_files_at_other_indexes_paths_are_served(
        self, index: FakeIndex, daemon_factory: DaemonFactory, prefix: str
    ) -> None:
        """Files and ``.metadata`` are found by their names, with ranges, HEAD and validators. Others are 404."""
        daemon = daemon_factory()
        for artifact in (self.WHEEL, self.SDIST):
            index.add(artifact)
            url = daemon.url + prefix.format(name=artifact.project) + artifact.filename
            assert get(url, method="HEAD").headers["Content-Length"] == str(artifact.size)
            assert get(url, {"Range": "bytes=-9"}).body == artifact.content[-9:]
            whole = get(url)
            assert (whole.status, whole.body) == (200, artifact.content)
            assert get(url, {"If-None-Match": whole.headers["ETag"]}).status == 304
            assert get(url.replace("1.0", "9.9")).status == 404
            if artifact.metadata is not None:
                assert get(f"{url}.metadata").body == artifact.metadata
        assert get(f"{daemon.url}/nothing/at/all").status == 404

    def test_pip_and_uv_install_from_them(
        self, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path
    ) -> None:
        """
        Requirements with the addresses of another index are installed, and their digests checked.

        The clients do the same with the index itself. Afterwards, they do it without upstream.
        """
        index.add(self.WHEEL)
        daemon = daemon_factory(env=NO_FRESHNESS)
        pip, uv = Pip(tmp_path), Uv(tmp_path)
        digest = f"sha256={self.WHEEL.sha256}"
        paths = index.path_of(self.WHEEL.filename), f"/root/pypi/+f/0a1/23456789abcde/{self.WHEEL.filename}"
        direct = pip.new_directory()
        pip.run("install", "--target", direct, "--no-index", f"thing @ {index.url}{paths[0]}#{digest}")
        assert installed(direct) == {"thing": "1.0"}
        for path in paths:
            requirement = f"thing @ {daemon.url}{path}#{digest}"
            for _ in range(2):
                for client in (pip, uv):
                    target = client.new_directory()
                    command = ["install"] if client is pip else ["pip", "install"]
                    client.run(*command, "--target", target, "--no-index", requirement)
                    assert installed(target) == {"thing": "1.0"}

    def test_a_name_that_upstream_lists_for_different_files_is_404(
        self, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """A name is no answer where it may mean one of two files, and the reason is given."""
        url = index.add(self.WHEEL)
        twin = {"filename": self.WHEEL.filename, "url": f"/other/{self.WHEEL.filename}", "hashes": {"sha256": "0" * 64}}
        index.describe("thing", {"files": [{"filename": self.WHEEL.filename, "url": url, "hashes": {}}, twin]})
        answer = get(f"{daemon_factory().url}/packages/{self.WHEEL.filename}")
        assert answer.status == 404
        assert b"several files" in answer.body


class TestVersionsThatAppear:
    """Tests versions that upstream publishes while the daemon's page is fresh. Lock files made elsewhere name them."""

    def test_npm_installs_a_new_version(self, npm: Npm, registry: FakeRegistry, npm_daemons: DaemonFactory) -> None:
        """``npm ci`` installs a version that the daemon's page lacks. Upstream is asked once more for the page."""
        registry.add(make_tarball("app"))
        daemon = npm_daemons(env=NPM)
        assert npm.install(daemon.url, "--no-audit", "app") == {"app": "1.0.0"}
        registry.add(make_tarball("app", "1.1.0"))
        project = npm.project(registry.url, {"app": "^1.0.0"})
        npm.run("install", "--prefix", project, "--no-audit")
        assert installed_modules(project) == {"app": "1.1.0"}
        wait_until_older(f"{daemon.url}/app")
        before = registry.count("/app")
        through = npm.project(daemon.url, {"app": "^1.0.0"}, lock=project)
        npm.run("ci", "--prefix", through, "--no-audit", "--replace-registry-host=always")
        assert installed_modules(through) == {"app": "1.1.0"}
        assert registry.count("/app") == before + 1
        assert registry.seen("/app")[-1].headers["If-None-Match"]

    def test_a_version_and_a_tag_appear(self, registry: FakeRegistry, npm_daemons: DaemonFactory) -> None:
        """The object of a version or tag, and a package that was 404, appear after five seconds."""
        registry.add(make_tarball("app"))
        daemon = npm_daemons(env=NPM)
        paths = ("/app/1.1.0", "/app/next-tag", "/app/-/app-1.1.0.tgz", "/new/1.0.0", "/new/-/new-1.0.0.tgz")
        assert [get(daemon.url + path).status for path in paths] == [404] * 5
        registry.add(make_tarball("app", "1.1.0"), tag="next-tag")
        registry.add(make_tarball("new"))
        for path in paths:
            answer = eventually(lambda path=path: get(daemon.url + path), lambda answer: answer.status == 200)  # type: ignore[misc]
            assert answer.complete
        assert (registry.count("/app"), registry.count("/new")) == (2, 2)

    def test_attestations_of_a_new_version_renew_the_page(
        self, registry: FakeRegistry, npm_daemons: DaemonFactory
    ) -> None:
        """
        After a request for attestations of a version that the page lacks, the page has the version.

        pnpm sends it for each version in a lock file, and then looks for the version on the page. A version that the
        page lists costs no request.
        """
        registry.add(make_tarball("app"))
        daemon = npm_daemons(env=NPM)
        get(f"{daemon.url}/app")
        attestations = f"{daemon.url}/-/npm/v1/attestations/app@"
        wait_until_older(f"{daemon.url}/app")
        assert get(f"{attestations}1.0.0").status == 404
        assert registry.count("/app") == 1
        registry.add(make_tarball("app", "1.1.0"))
        assert b"1.1.0" not in get(f"{daemon.url}/app").body
        assert get(f"{attestations}1.1.0").status == 404
        assert b"1.1.0" in get(f"{daemon.url}/app").body
        assert registry.count("/app") == 2

    def test_attestations_of_a_new_package_renew_the_page(
        self, registry: FakeRegistry, npm_daemons: DaemonFactory
    ) -> None:
        """So it is for a package that was 404 five seconds ago."""
        daemon = npm_daemons(env=NPM)
        assert get(f"{daemon.url}/new").status == 404
        registry.add(make_tarball("new"))
        assert get(f"{daemon.url}/new").status == 404

        def asked() -> Answer:
            assert get(f"{daemon.url}/-/npm/v1/attestations/new@1.0.0").status == 404
            return get(f"{daemon.url}/new")

        assert eventually(asked, lambda answer: answer.status == 200).complete
        assert registry.count("/new") == 2

    def test_pip_installs_a_new_file(self, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path) -> None:
        """A wheel that a lock file names by its path is installed, as it is without the daemon."""
        pip = Pip(tmp_path)
        index.add(make_wheel("thing"))
        daemon = daemon_factory()
        assert pip.install(daemon.url, "thing") == {"thing": "1.0"}
        url = index.add(make_wheel("thing", "1.1"))
        wait_until_older(f"{daemon.url}/simple/thing/")
        through = f"{daemon.url}/file/{url.replace('://', '/')}"
        for address in (url, through):
            target = pip.new_directory()
            pip.run("install", "--target", target, "--no-index", f"thing @ {address}")
            assert installed(target) == {"thing": "1.1"}
        assert index.count("/simple/thing/") == 2

    def test_uv_installs_from_a_frozen_lock(
        self, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path
    ) -> None:
        """A frozen sync installs a new version, from a lock that was made with upstream and translated by the rule."""
        uv, project = Uv(tmp_path), tmp_path / "project"
        project.mkdir()
        lines = ["[project]", 'name = "project"', 'version = "1"', 'requires-python = ">=3.10"']
        (project / "pyproject.toml").write_text("\n".join([*lines, 'dependencies = ["thing"]']))
        index.add(make_wheel("thing"))
        daemon = daemon_factory()
        assert uv.install(daemon.url, "thing") == {"thing": "1.0"}
        index.add(make_wheel("thing", "1.1"))
        uv.run("lock", "--project", project, "--default-index", f"{index.url}/simple/")
        wait_until_older(f"{daemon.url}/simple/thing/")
        before = index.count("/simple/thing/")
        assert sync(uv, project) == {"thing": "1.1"}
        lock = project / "uv.lock"
        lock.write_text(re.sub(r'url = "(https?)://', rf'url = "{daemon.url}/file/\1/', lock.read_text()))
        shutil.rmtree(project / ".venv")
        assert sync(uv, project) == {"thing": "1.1"}
        assert index.count("/simple/thing/") == before + 1


class TestMirrors:
    """Tests a mirror whose packuments name the public registry's host, which can't be reached here."""

    def test_npm_installs_from_it(self, npm: Npm, registry: FakeRegistry, npm_daemons: DaemonFactory) -> None:
        """
        With and without the daemon, npm installs the same: both ask the mirror for the tarballs.

        A tarball is stored under its address as listed, so that it is found if upstream is the public registry one day.
        """
        there = default_upstream("npm")
        for tarball in (make_tarball("app", dependencies={"@acme/lib": "1"}), make_tarball("@acme/lib")):
            registry.add(tarball, dist={"tarball": f"{there}/{tarball.name}/-/{tarball.filename}"})
        direct = npm.install(registry.url, "--no-audit", "app")
        assert direct == {"app": "1.0.0", "@acme/lib": "1.0.0"}
        daemon = npm_daemons(env=NPM | NO_FRESHNESS)
        assert npm.install(daemon.url, "--no-audit", "app") == direct
        with registry.refusing():
            assert npm.install(daemon.url, "--no-audit", "app") == direct
        assert registry.count("/app/-/app-1.0.0.tgz") == 2
        assert (daemon.data / "files" / there.replace("://", "/") / "app/-/app-1.0.0.tgz").exists()


def sync(uv: Uv, project: Path) -> dict[str, str]:
    """Create an environment from the project's uv.lock alone. Return the installed packages."""
    uv.run("venv", "--clear", project / ".venv")
    uv.run("sync", "--project", project, "--frozen", "--no-install-project")
    (site,) = (project / ".venv").glob("lib/python*/site-packages")
    return installed(site)
