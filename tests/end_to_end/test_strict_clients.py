"""Tests strict mode with real clients in their own default settings.

Each client installs a file that takes half a minute to arrive, and first gets 503 with a Retry-After. npm and pnpm
retry after 10 and 60 s in any case, so these tests may take 90 s.
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

#: Size of each package file (bytes), and the time that upstream takes to send it (seconds).
SIZE = 300_000
TRANSFER_TIME = 30
STRICT = {"MYPYPI_UPSTREAM_STRICT": "true"}


@frozen
class Ecosystem:
    """One ecosystem: its upstream, and a strict daemon in front of it."""

    upstream: FileHost
    daemon: Daemon

    def publish(self, name: str) -> str:
        """Publish a package whose file takes `TRANSFER_TIME` to arrive. Return the file's path upstream."""
        if isinstance(self.upstream, FakeIndex):
            wheel = make_wheel(name, padding=SIZE)
            self.upstream.add(wheel)
            path = self.upstream.path_of(wheel.filename)
        else:
            assert isinstance(self.upstream, FakeRegistry)
            tarball = make_tarball(name, padding=SIZE)
            path = self.upstream.add(tarball).removeprefix(self.upstream.url)
        self.upstream.fault(path, Trickle(SIZE / TRANSFER_TIME, piece=SIZE // 300))
        return path

    def statuses(self, path: str) -> list[int]:
        """List the statuses of the daemon's responses for this file, in order."""
        name = re.escape(path.rpartition("/")[2])
        return [int(status) for status in re.findall(rf"\] \S+ (\d+) .* GET \S+/{name} ", self.daemon.log)]


@pytest.fixture(scope="module")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ecosystem]:
    with FakeIndex() as index, daemons(index.url, tmp_path_factory.mktemp("pypi") / "data") as start:
        yield Ecosystem(index, start(env=STRICT))


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ecosystem]:
    with FakeRegistry() as registry, daemons(registry.url, tmp_path_factory.mktemp("npm") / "data") as start:
        yield Ecosystem(registry, start(env=STRICT | {"MYPYPI_PACKAGE_TYPE": "npm"}))


def install_all(clients: Mapping[str, tuple[Client, Ecosystem]]) -> dict[str, list[int]]:
    """
    Install a package with each client, all at the same time.

    Return the statuses that each client got for its file. Each first gets 503 and has the file in the end. Upstream is
    asked for each file once.
    """
    paths = {name: ecosystem.publish(f"for-{name}") for name, (_, ecosystem) in clients.items()}
    with ThreadPoolExecutor(len(clients)) as pool:
        installing = {
            name: pool.submit(client.install, ecosystem.daemon.url, f"for-{name}")
            for name, (client, ecosystem) in clients.items()
        }
    answered = {name: ecosystem.statuses(paths[name]) for name, (_, ecosystem) in clients.items()}
    print(answered)  # noqa: T201 - pytest shows the output of a failed test
    for name, (_, ecosystem) in clients.items():
        assert f"for-{name}" in installing[name].result()
        assert answered[name][0] == 503
        assert answered[name][-1] == 200
        assert ecosystem.upstream.count(paths[name]) == 1
    return answered


def test_clients_of_this_environment(pypi: Ecosystem, npm: Ecosystem, tmp_path: Path) -> None:
    """
    The clients pip, uv and npm install the file.

    pip retries after the time in Retry-After, when the file is stored.
    """
    answered = install_all(
        {
            "pip": (Pip(tmp_path / "pip"), pypi),
            "uv": (Uv(tmp_path / "uv"), pypi),
            "npm": (Npm(tmp_path / "npm", patient=True), npm),
        }
    )
    assert answered["pip"] == [503, 200]


def public(package_type: str, page: str) -> dict[str, str]:
    """
    Return settings for a daemon in front of PyPI or the npm registry.

    Skips the test if the page can't be reached.
    """
    url = f"{default_upstream(package_type)}/{page}"
    try:
        urllib.request.urlopen(url, timeout=20).close()  # noqa: S310 - it is https
    except URLError as error:
        pytest.skip(f"the public {package_type} upstream can't be reached: {error.reason}")
    trust = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    return {"MYPYPI_PACKAGE_TYPE": package_type, "MYPYPI_UPSTREAM_URL": "", **trust}


@pytest.fixture
def poetry(tmp_path: Path) -> Poetry:
    """The newest poetry, installed through a daemon."""
    settings = public("pypi", "simple/poetry/")
    pip = Pip(tmp_path / "for-poetry")
    with daemons("", tmp_path / "for-poetry" / "data") as start:
        pip.install(start(env=settings).url, "poetry")
    return Poetry(tmp_path / "poetry", pip.place / "pip-0")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the newest pnpm and yarn, installed through a daemon."""
    settings = public("npm", "pnpm")
    npm = Npm(tmp_path / "for-project", patient=True)
    with daemons("", npm.place / "data") as start:
        project = npm.project(start(env=settings).url)
        npm.run("install", "--prefix", project, "pnpm", "@yarnpkg/cli-dist")
    return project


@pytest.mark.live
def test_clients_of_the_registries(
    pypi: Ecosystem, npm: Ecosystem, poetry: Poetry, project: Path, tmp_path: Path
) -> None:
    """The newest poetry, pnpm and yarn install the file. poetry and yarn retry after the time in Retry-After."""
    answered = install_all(
        {
            "poetry": (poetry, pypi),
            "pnpm": (Pnpm(tmp_path / "pnpm", source=project), npm),
            "yarn": (Yarn(tmp_path / "yarn", source=project), npm),
        }
    )
    assert (answered["poetry"], answered["yarn"]) == ([503, 200], [503, 200])
