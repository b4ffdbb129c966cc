"""
Strict mode with real clients, whose settings are their own: a file that takes half a minute to arrive is installed.

Each is told to come again, with 503 and a Retry-After. npm and pnpm do so after 10 and 60 s whatever that says, which
is why these tests may take 90 s.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import pytest
from attrs import frozen

from mypypi.settings.settings import default_upstream
from tests.conftest import daemons
from tests.rig.clients import Client, Npm, Pip, Pnpm, Poetry, Uv, Yarn
from tests.rig.daemon import Daemon
from tests.rig.faults import Trickle
from tests.rig.host import FileHost
from tests.rig.index import FakeIndex
from tests.rig.packages import make_tarball, make_wheel
from tests.rig.registry import FakeRegistry

SIZE = 300_000
SECONDS = 30
STRICT = {"MYPYPI_UPSTREAM_STRICT": "true"}


@frozen
class Side:
    """One ecosystem: upstream, and a daemon before it that is strict."""

    upstream: FileHost
    daemon: Daemon

    def publish(self, name: str) -> str:
        """A package whose file takes `SECONDS` to arrive here; the path of the file upstream."""
        if isinstance(self.upstream, FakeIndex):
            wheel = make_wheel(name, padding=SIZE)
            self.upstream.add(wheel)
            path = self.upstream.path_of(wheel.filename)
        else:
            assert isinstance(self.upstream, FakeRegistry)
            tarball = make_tarball(name, padding=SIZE)
            path = self.upstream.add(tarball).removeprefix(self.upstream.url)
        self.upstream.fault(path, Trickle(SIZE / SECONDS, piece=SIZE // 300))
        return path

    def statuses(self, path: str) -> list[int]:
        """What the daemon answered to each request for this file, in order."""
        name = re.escape(path.rpartition("/")[2])
        return [int(status) for status in re.findall(rf"\] \S+ (\d+) .* GET \S+/{name} ", self.daemon.log)]


@pytest.fixture(scope="module")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with FakeIndex() as index, daemons(index.url, tmp_path_factory.mktemp("pypi") / "data") as start:
        yield Side(index, start(env=STRICT))


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with FakeRegistry() as registry, daemons(registry.url, tmp_path_factory.mktemp("npm") / "data") as start:
        yield Side(registry, start(env=STRICT | {"MYPYPI_PACKAGE_TYPE": "npm"}))


def install_all(clients: Mapping[str, tuple[Client, Side]]) -> dict[str, list[int]]:
    """
    Each client installs a package of its own, all at the same time: what each was answered when it asked for the file.

    Each was told to come again, and has the file in the end; upstream was asked for it once.
    """
    paths = {name: side.publish(f"for-{name}") for name, (_, side) in clients.items()}
    with ThreadPoolExecutor(len(clients)) as pool:
        installing = {
            name: pool.submit(client.install, side.daemon.url, f"for-{name}")
            for name, (client, side) in clients.items()
        }
    answered = {name: side.statuses(paths[name]) for name, (_, side) in clients.items()}
    print(answered)  # noqa: T201 - pytest shows it when the test fails
    for name, (_, side) in clients.items():
        assert f"for-{name}" in installing[name].result()
        assert answered[name][0] == 503
        assert answered[name][-1] == 200
        assert side.upstream.count(paths[name]) == 1
    return answered


def test_clients_of_this_environment(pypi: Side, npm: Side, tmp_path: Path) -> None:
    """pip, uv and npm; pip comes again when it was told to, and that is when the file is there."""
    answered = install_all(
        {
            "pip": (Pip(tmp_path / "pip"), pypi),
            "uv": (Uv(tmp_path / "uv"), pypi),
            "npm": (Npm(tmp_path / "npm", patient=True), npm),
        }
    )
    assert answered["pip"] == [503, 200]


def public(package_type: str, page: str) -> dict[str, str]:
    """Settings for a daemon before the public index or registry, where that can be reached."""
    url = f"{default_upstream(package_type)}/{page}"
    try:
        urllib.request.urlopen(url, timeout=20).close()  # noqa: S310 - it is https
    except URLError as error:
        pytest.skip(f"what the public {package_type} has can't be reached: {error.reason}")
    trust = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    return {"MYPYPI_PACKAGE_TYPE": package_type, "MYPYPI_UPSTREAM_URL": "", **trust}


@pytest.fixture
def poetry(tmp_path: Path) -> Poetry:
    """The newest there is, installed through a daemon."""
    settings = public("pypi", "simple/poetry/")
    pip = Pip(tmp_path / "for-poetry")
    with daemons("", tmp_path / "for-poetry" / "data") as start:
        pip.install(start(env=settings).url, "poetry")
    return Poetry(tmp_path / "poetry", pip.place / "pip-0")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the newest pnpm and yarn there are, installed through a daemon."""
    settings = public("npm", "pnpm")
    npm = Npm(tmp_path / "for-project", patient=True)
    with daemons("", npm.place / "data") as start:
        project = npm.project(start(env=settings).url)
        npm.run("install", "--prefix", project, "pnpm", "@yarnpkg/cli-dist")
    return project


@pytest.mark.live
def test_clients_of_the_registries(pypi: Side, npm: Side, poetry: Poetry, project: Path, tmp_path: Path) -> None:
    """poetry, pnpm and yarn, as they are now; poetry and yarn come again when they were told to."""
    answered = install_all(
        {
            "poetry": (poetry, pypi),
            "pnpm": (Pnpm(tmp_path / "pnpm", source=project), npm),
            "yarn": (Yarn(tmp_path / "yarn", source=project), npm),
        }
    )
    assert (answered["poetry"], answered["yarn"]) == ([503, 200], [503, 200])
