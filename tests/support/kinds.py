"""What differs between the ecosystems for a test: how a package is published upstream, and where it is found here.

The promises about pages and files are tested once, in classes that take a `Kind`; see `tests/test_page_promises.py`
and `tests/test_file_promises.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from urllib.parse import quote, urljoin, urlsplit

from attrs import frozen

from tests.rig.host import FileHost
from tests.rig.index import FakeIndex
from tests.rig.packages import Tarball, make_tarball, make_wheel
from tests.rig.registry import FakeRegistry


@frozen
class Published:
    """A package file that upstream has: its bytes, where upstream serves it, and the address of the file here."""

    name: str
    content: bytes
    upstream_path: str
    path: str


class Kind(ABC):
    """One ecosystem, as tests see it."""

    #: MYPYPI_PACKAGE_TYPE
    package_type: str
    #: What a client of this kind sends when it asks for a page.
    accept: str

    @abstractmethod
    def upstream(self, **options: object) -> FileHost:
        """An upstream that is not started yet; options are those of its class (`plain`, `auth`, …)."""

    @abstractmethod
    def publish(self, upstream: FileHost, name: str = "thing", version: str = "1.0", padding: int = 0) -> Published:
        """Let upstream have this version of a package, with a page that lists it."""

    @abstractmethod
    def replace(self, upstream: FileHost, published: Published) -> Published:
        """Let upstream have other bytes behind the same address, and a page that says so."""

    @abstractmethod
    def page_path(self, name: str) -> str:
        """Where a package's page is here."""

    @abstractmethod
    def upstream_page_path(self, name: str) -> str:
        """Where it is upstream."""

    @abstractmethod
    def file_links(self, page_url: str, page: dict[str, object]) -> list[str]:
        """The absolute addresses of the files that a page lists, as a client makes them out."""


class PyPIKind(Kind):
    package_type = "pypi"
    accept = "application/vnd.pypi.simple.v1+json"

    def upstream(self, **options: object) -> FakeIndex:
        return FakeIndex(**options)  # type: ignore[arg-type]

    def publish(self, upstream: FileHost, name: str = "thing", version: str = "1.0", padding: int = 0) -> Published:
        assert isinstance(upstream, FakeIndex)
        wheel = make_wheel(name, version, padding=padding)
        return self._published(name, wheel.content, upstream.add(wheel))

    def replace(self, upstream: FileHost, published: Published) -> Published:
        assert isinstance(upstream, FakeIndex)
        wheel = make_wheel(published.name, "1.0", modules={f"{published.name}.py": "other = True\n"})
        return self._published(published.name, wheel.content, upstream.replace(wheel))

    def page_path(self, name: str) -> str:
        return f"/simple/{name}/"

    def upstream_page_path(self, name: str) -> str:
        return f"/simple/{name}/"

    def file_links(self, page_url: str, page: dict[str, object]) -> list[str]:
        files = page["files"]
        assert isinstance(files, list)
        return [urljoin(page_url, file["url"]) for file in files]

    @staticmethod
    def _published(name: str, content: bytes, url: str) -> Published:
        parts = urlsplit(url)
        return Published(name, content, parts.path, quote(f"/file/{parts.scheme}/{parts.netloc}{parts.path}"))


class NPMKind(Kind):
    package_type = "npm"
    accept = "application/json"

    def upstream(self, **options: object) -> FakeRegistry:
        return FakeRegistry(**options)  # type: ignore[arg-type]

    def publish(self, upstream: FileHost, name: str = "thing", version: str = "1.0", padding: int = 0) -> Published:
        assert isinstance(upstream, FakeRegistry)
        tarball = make_tarball(name, version, padding=padding)
        upstream.add(tarball)
        return self._published(tarball)

    def replace(self, upstream: FileHost, published: Published) -> Published:
        assert isinstance(upstream, FakeRegistry)
        tarball = make_tarball(published.name, "1.0", source="module.exports = 'other';")
        upstream.replace(tarball)
        return self._published(tarball)

    def page_path(self, name: str) -> str:
        return f"/{name}"

    def upstream_page_path(self, name: str) -> str:
        return f"/{name}"

    def file_links(self, page_url: str, page: dict[str, object]) -> list[str]:
        versions = page["versions"]
        assert isinstance(versions, dict)
        return [version["dist"]["tarball"] for version in versions.values()]

    @staticmethod
    def _published(tarball: Tarball) -> Published:
        path = f"/{tarball.name}/-/{tarball.filename}"
        return Published(tarball.name, tarball.content, path, path)
