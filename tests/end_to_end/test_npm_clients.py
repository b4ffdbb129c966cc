"""npm installs through a daemon, as its users do, from a registry that is then gone; and asks it what else it asks."""

from __future__ import annotations

import gzip
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from mypypi.settings.settings import default_upstream
from tests.conftest import daemons
from tests.rig.clients import Npm, installed_modules
from tests.rig.daemon import Daemon
from tests.rig.faults import Hang, WrongBytes
from tests.rig.host import FileHost
from tests.rig.packages import Tarball, make_tarball
from tests.rig.registry import FakeRegistry
from tests.support.redis_server import free_port

APP = make_tarball("app", dependencies={"@scope/lib": "^1.0.0", "leaf": "1"}, padding=40_000)
LIB = make_tarball("@scope/lib", "1.1.0", dependencies={"leaf": "1"}, padding=40_000)
OLD_LIB = make_tarball("@scope/lib", "1.0.0")
NEXT_LIB = make_tarball("@scope/lib", "2.0.0-rc.1")
LEAF = make_tarball("leaf")

#: What installing app brings, from a registry with all of these.
ALL = {"app": "1.0.0", "@scope/lib": "1.1.0", "leaf": "1.0.0"}
WANTED = [APP, LIB, LEAF]

#: Asks upstream about every page anew, so that what is served without it is served though it failed.
SETTINGS = {"MYPYPI_PACKAGE_TYPE": "npm", "MYPYPI_CACHE_TIME": "0"}

#: npm asks Sigstore's own server first whether that has the keys of this registry. It has none but the public one's,
#: and here it can't be asked: this is what it would say.
NO_KEYS_AT_SIGSTORE = """
const Module = require('node:module')
const load = Module._load
const getTarget = async () => { throw Object.assign(new Error('no such target'), { code: 'TUF_FIND_TARGET_ERROR' }) }
Module._load = function (name, ...rest) {
  return name === '@sigstore/tuf' ? { initTUF: async () => ({ getTarget }) } : load.call(this, name, ...rest)
}
"""


def publish(registry: FakeRegistry, at: FileHost | None = None) -> None:
    """Let upstream have all the packages above, their tarballs there or `at` another host."""
    for tarball in [APP, OLD_LIB, LIB, LEAF]:
        registry.add(tarball, at=at)
    registry.add(NEXT_LIB, at=at, tag="next")


def fetched(host: FileHost) -> list[str]:
    """The tarballs that were asked for there, once for each time."""
    return sorted(path for request in host.requests if (path := request.path).endswith(".tgz"))


def path_of(tarball: Tarball) -> str:
    """Where a tarball lies, here and upstream."""
    return f"/{tarball.name}/-/{tarball.filename}"


def resolved(project: Path) -> set[str]:
    """The addresses of tarballs in a project's lock file."""
    packages = json.loads((project / "package-lock.json").read_bytes())["packages"]
    return {package["resolved"] for package in packages.values() if "resolved" in package}


@pytest.fixture(scope="class")
def registry() -> Iterator[FakeRegistry]:
    """The registry behind the daemon of this class, with all the packages above."""
    with FakeRegistry() as fresh:
        publish(fresh)
        yield fresh


@pytest.fixture(scope="class")
def daemon(registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of this class."""
    with daemons(registry.url, tmp_path_factory.mktemp("npm") / "data") as start:
        yield start(env=SETTINGS)


@pytest.fixture
def npm(tmp_path: Path) -> Npm:
    return Npm(tmp_path)


class TestInstall:
    def test_with_dependencies_cold_then_warm(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        Scoped and unscoped, no pre-release; then the same without upstream and with an empty cache, anew and from the
        lock file.

        Each tarball that is installed came from upstream once, and no other.
        """
        project = npm.project(daemon.url)
        npm.run("install", "--prefix", project, "app")
        assert installed_modules(project) == ALL
        with registry.refusing():
            assert npm.install(daemon.url, "app") == ALL
            daemon.wait_for_log("upstream fails, serving cached pages")
            from_lock = npm.project(daemon.url, {"app": "^1.0.0"}, lock=project)
            npm.run("ci", "--prefix", from_lock)
            assert installed_modules(from_lock) == ALL
        assert fetched(registry) == sorted(path_of(tarball) for tarball in WANTED)

    def test_a_pre_release_by_its_tag(self, npm: Npm, daemon: Daemon) -> None:
        """Tags are upstream's."""
        assert npm.install(daemon.url, "@scope/lib@next") == {"@scope/lib": "2.0.0-rc.1"}

    def test_a_deprecated_version(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """It is installed, and whoever does is told why not to."""
        registry.add(make_tarball("old"), extra={"deprecated": "it eats data"})
        assert npm.install(daemon.url, "old") == {"old": "1.0.0"}
        assert "it eats data" in npm.last

    def test_a_version_without_integrity(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """What was published before there was any has a shasum."""
        registry.add(make_tarball("ancient"), dist={"integrity": None})
        assert npm.install(daemon.url, "ancient") == {"ancient": "1.0.0"}

    def test_a_tarball_on_another_host(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """The daemon asks that host, npm does not: all that it knows of is here."""
        afar = make_tarball("@far/away")
        with FileHost() as files:
            registry.add(afar, at=files, path="/some/where/else.tgz")
            project = npm.project(daemon.url)
            npm.run("install", "--prefix", project, "@far/away")
            assert resolved(project) == {daemon.url + path_of(afar)}
            (asked,) = files.requests
            assert asked.headers["User-Agent"].startswith("mypypi/")
            with registry.refusing(), files.refusing():
                assert npm.install(daemon.url, "@far/away") == {"@far/away": "1.0.0"}

    def test_a_tarball_with_a_wrong_integrity(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """The install fails, nothing is kept, and it works as soon as upstream is mended."""
        broken = make_tarball("broken")
        registry.add(broken)
        fault = registry.fault(path_of(broken), WrongBytes())
        npm.fail("install", "--prefix", npm.project(daemon.url), "broken")
        assert fault.served > 0
        daemon.wait_for_log(rf"{broken.filename} was not stored")
        assert not [path for path in daemon.data.rglob("*") if path.name == broken.filename]
        registry.mend()
        assert npm.install(daemon.url, "broken") == {"broken": "1.0.0"}

    def test_a_version_that_there_is_not(self, npm: Npm, daemon: Daemon) -> None:
        """It is said to be that."""
        assert "No matching version found for leaf@9" in npm.fail(
            "install", "--prefix", npm.project(daemon.url), "leaf@9"
        )

    def test_a_package_that_there_is_not(self, npm: Npm, daemon: Daemon) -> None:
        """It is not found, and nothing is said to have failed."""
        assert "E404" in npm.fail("install", "--prefix", npm.project(daemon.url), "@scope/nothing-of-the-kind")

    def test_a_package_that_nobody_asked_for_while_upstream_is_gone(
        self, npm: Npm, registry: FakeRegistry, daemon: Daemon
    ) -> None:
        """It is not said to be missing: npm says who can't be reached."""
        registry.add(make_tarball("unseen"))
        with registry.refusing():
            failure = npm.fail("install", "--prefix", npm.project(daemon.url), "unseen")
        assert "E503" in failure
        assert "upstream can't be reached: connection was refused" in failure
        assert npm.install(daemon.url, "unseen") == {"unseen": "1.0.0"}

    def test_while_upstream_says_nothing(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        An install that reads page after page waits once, not for each of them.

        npm learns of each of these from the one before.
        """
        chain = [
            make_tarball(f"link{number}", dependencies={f"link{number + 1}": "1"} if number < 5 else None)
            for number in range(6)
        ]
        for tarball in chain:
            registry.add(tarball)
        everything = {tarball.name: tarball.version for tarball in chain}
        assert npm.install(daemon.url, "--no-audit", "link0") == everything
        hanging = registry.fault("/", Hang())
        assert npm.install(daemon.url, "--no-audit", "link0") == everything
        registry.mend()
        assert 0 < hanging.served < len(chain) // 2

    def test_from_a_lesser_registry(self, npm: Npm, tmp_path: Path) -> None:
        """One without validators, abbreviated packuments or an audit."""
        with FakeRegistry(plain=True) as lesser, daemons(lesser.url, tmp_path / "data") as start:
            publish(lesser)
            url = start(env=SETTINGS).url
            assert npm.install(url, "app") == ALL
            with lesser.refusing():
                assert npm.install(url, "app") == ALL


class TestLockFiles:
    def test_name_this_address(self, npm: Npm, daemon: Daemon) -> None:
        """In the conventional form, as the registry's own addresses are."""
        project = npm.project(daemon.url, ALL)
        npm.run("install", "--prefix", project)
        assert resolved(project) == {daemon.url + path_of(tarball) for tarball in WANTED}

    def test_name_none_where_that_is_wanted(self, npm: Npm, daemon: Daemon) -> None:
        """Such a lock file serves everybody."""
        project = npm.project(daemon.url, ALL)
        npm.run("install", "--prefix", project, "--omit-lockfile-registry-resolved")
        assert resolved(project) == set()
        other = npm.project(daemon.url, ALL, lock=project)
        npm.run("ci", "--prefix", other)
        assert installed_modules(other) == ALL

    def test_made_with_upstream_itself(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """Told to, npm asks here for the tarballs that it names, which are found."""
        project = npm.project(registry.url, ALL)
        npm.run("install", "--prefix", project)
        assert resolved(project) == {registry.url + path_of(tarball) for tarball in WANTED}
        other = npm.project(daemon.url, ALL, lock=project)
        npm.run("ci", "--prefix", other, "--replace-registry-host=always")
        assert installed_modules(other) == ALL
        with registry.refusing():
            other = npm.project(daemon.url, ALL, lock=project)
            npm.run("ci", "--prefix", other, "--replace-registry-host=always")
            assert installed_modules(other) == ALL


class TestQuestions:
    def test_view(self, npm: Npm, daemon: Daemon) -> None:
        """Versions, tags and any field of a version."""
        project = npm.project(daemon.url)
        view = npm.run("view", "--prefix", project, "--json", "@scope/lib", "versions", "dist-tags")
        assert json.loads(view) == {
            "versions": ["1.0.0", "1.1.0", "2.0.0-rc.1"],
            "dist-tags": {"latest": "1.1.0", "next": "2.0.0-rc.1"},
        }
        assert npm.run("view", "--prefix", project, "@scope/lib@next", "version", "dist.integrity").split() == [
            "version", "=", "'2.0.0-rc.1'", "dist.integrity", "=", f"'{NEXT_LIB.integrity}'",
        ]  # fmt: skip

    def test_outdated(self, npm: Npm, daemon: Daemon) -> None:
        """It tells what is newer by the registry's tags."""
        project = npm.project(daemon.url, {"@scope/lib": "1.0.0", "leaf": "1.0.0"})
        npm.run("install", "--prefix", project)
        outdated = json.loads(npm.fail("outdated", "--prefix", project, "--json"))
        assert {name: each["latest"] for name, each in outdated.items()} == {"@scope/lib": "1.1.0"}

    def test_dist_tag_ls(self, npm: Npm, daemon: Daemon) -> None:
        """As the registry has them."""
        tags = npm.run("dist-tag", "ls", "@scope/lib", "--prefix", npm.project(daemon.url))
        assert tags.splitlines() == ["latest: 1.1.0", "next: 2.0.0-rc.1"]

    def test_search(self, npm: Npm, daemon: Daemon) -> None:
        """The registry's own answer."""
        found = json.loads(npm.run("search", "--prefix", npm.project(daemon.url), "--json", "lib"))
        assert [package["name"] for package in found] == ["@scope/lib"]

    def test_ping(self, npm: Npm, daemon: Daemon) -> None:
        """Somebody is there."""
        assert "PONG" in npm.run("ping", "--prefix", npm.project(daemon.url))

    def test_whoami(self, npm: Npm, daemon: Daemon) -> None:
        """Nobody, even with a token that is good elsewhere."""
        assert "E401" in npm.fail("whoami", "--prefix", project_with_token(npm, daemon))

    def test_publish(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """It fails with a sentence, and upstream hears nothing of it, the token least of all."""
        project = project_with_token(npm, daemon)
        (project / "package.json").write_text(json.dumps({"name": "mine", "version": "1.0.0"}))
        failure = npm.fail("publish", str(project), "--prefix", project)
        assert "E405" in failure
        assert "read-only" in failure
        assert {request.method for request in registry.seen("/mine")} <= {"GET"}
        assert not [request for request in registry.requests if request.headers["Authorization"]]


def project_with_token(npm: Npm, daemon: Daemon) -> Path:
    """A new project whose user is logged in, as far as npm knows."""
    project = npm.project(daemon.url)
    with (project / ".npmrc").open("a") as settings:
        settings.write(f"//127.0.0.1:{daemon.port}/:_authToken=made-up\n")
    return project


class TestAudit:
    def test_is_upstreams(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """The question, which npm encodes with gzip, goes upstream as it is each time, and the answer comes back."""
        registry.add(make_tarball("holey"))
        registry.advise("holey", "<2")
        project = npm.project(daemon.url, {"holey": "1", "leaf": "1"})
        npm.run("install", "--prefix", project, "--no-audit")
        before = len(registry.audits)
        for _ in range(2):
            report = json.loads(npm.fail("audit", "--prefix", project, "--json"))
            assert list(report["vulnerabilities"]) == ["holey"]
        assert registry.audits[before:] == [{"holey": ["1.0.0"], "leaf": ["1.0.0"]}] * 2
        asked = registry.seen("/-/npm/v1/security/advisories/bulk")[-1]
        assert asked.headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(asked.body)) == {"holey": ["1.0.0"], "leaf": ["1.0.0"]}

    def test_does_not_keep_an_install_from_working(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """There is one with each install, and none where upstream is gone."""
        assert npm.install(daemon.url, "leaf") == {"leaf": "1.0.0"}
        with registry.refusing():
            assert npm.install(daemon.url, "leaf") == {"leaf": "1.0.0"}


class TestSignatures:
    @pytest.fixture
    def npm(self, tmp_path: Path) -> Npm:
        stand_in = tmp_path / "sigstore.js"
        stand_in.write_text(NO_KEYS_AT_SIGSTORE)
        return Npm(tmp_path, stand_in)

    def test_of_packages_signed_right(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """They are verified with the registry's key, here too when the registry is gone."""
        project = npm.project(daemon.url, {"app": "1"})
        npm.run("install", "--prefix", project, "--no-audit")
        assert "3 packages have verified registry signatures" in npm.run("audit", "signatures", "--prefix", project)
        assert registry.count("/-/npm/v1/keys") == 1
        with registry.refusing():
            assert "3 packages have verified registry signatures" in npm.run("audit", "signatures", "--prefix", project)

    def test_of_a_package_signed_wrong(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """It is reported: what upstream wrote is not touched."""
        of_another = registry.package("leaf").versions["1.0.0"].signature
        registry.add(make_tarball("forged"), dist={"signatures": [dict(of_another)]})
        project = npm.project(daemon.url, {"forged": "1", "leaf": "1"})
        npm.run("install", "--prefix", project, "--no-audit")
        report = npm.fail("audit", "signatures", "--prefix", project)
        assert "1 package has an invalid registry signature" in report
        assert "forged@1.0.0" in report
        assert "leaf@1.0.0" not in report


@pytest.fixture
def public_registry() -> str:
    """The address of the public registry, where it can be reached."""
    url = default_upstream("npm")
    try:
        urllib.request.urlopen(f"{url}/ms", timeout=20).close()  # noqa: S310 - it is https
    except URLError as error:
        pytest.skip(f"the public registry can't be reached: {error.reason}")
    return url


@pytest.mark.live
class TestPublicRegistry:
    def test_real_packages_cold_then_warm(self, npm: Npm, public_registry: str, tmp_path: Path) -> None:
        """What was installed once is installed again by a daemon on the same data that has no upstream any more."""
        trust = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
        wanted = ["debug", "@types/ms", "semver"]
        with daemons(public_registry, tmp_path / "data") as start:
            online = start(env=SETTINGS | trust)
            cold = npm.install(online.url, *wanted)
            assert {*wanted, "ms"} <= cold.keys()
            online.stop()
            offline = start(env=SETTINGS | {"MYPYPI_UPSTREAM_URL": f"http://127.0.0.1:{free_port()}"})
            assert npm.install(offline.url, *wanted) == cold
            offline.wait_for_log("upstream fails, serving cached pages")
