"""The differences between the ecosystems, for tests of promises that both keep.

A kind publishes packages upstream and knows their URLs here. The promises about pages and files are tested once, in
classes that take a `Kind`; see `tests/end_to_end/test_page_promises.py` and `tests/end_to_end/test_file_promises.py`.
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
    """
    A package file that upstream has.

    `path` is its path on the daemon, `upstream_path` that on upstream.
    """

    name: str
    content: bytes
    upstream_path: str
    path: str


class Kind(ABC):
    """One ecosystem, as tests see it."""

    #: The value of MYPYPI_PACKAGE_TYPE.
    package_type: str
    #: The Accept header of this kind of client in a request for a page.
    accept: str

    @abstractmethod
    def upstream(self, **options: object) -> FileHost:
        """Make an upstream; options are those of its class (`plain`, `auth`, …)."""

    @abstractmethod
    def publish(self, upstream: FileHost, name: str = "thing", version: str = "1.0", padding: int = 0) -> Published:
        """
        Publish this version of a package upstream.

        The package's page lists it.
        """

    @abstractmethod
    def replace(self, upstream: FileHost, published: Published) -> Published:
        """Replace the bytes at the same upstream URL, and update the page."""

    @abstractmethod
    def page_path(self, name: str) -> str:
        """The path of a package's page on the daemon."""

    @abstractmethod
    def upstream_page_path(self, name: str) -> str:
        """The path of a package's page on upstream."""

    @abstractmethod
    def file_links(self, page_url: str, page: dict[str, object]) -> list[str]:
        """The absolute URLs of a page's files, resolved as a client does."""


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
