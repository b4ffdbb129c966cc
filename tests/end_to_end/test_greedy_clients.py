"""Tests requests that would make the daemon keep or do more than they are worth."""

from __future__ import annotations

import pytest

from tests.conftest import Sites
from tests.rig.http import get
from tests.support.kinds import NPMKind, PyPIKind

LONG = "1" * 8000
PYPI, NPM = PyPIKind(), NPMKind()

#: Addresses in which `LONG` is a name of a project, a package or a file, and no short name is one.
NAMES = [
    *((PYPI, path) for path in ("/simple/{}/", "/simple/{}", "/pypi/{}/json", "/pypi/{}/1.0/json", "/x/{}-1.0.whl")),
    *((PYPI, path) for path in ("/file/https/up.example/{}", "/file/https/{}/x-1.0.whl", "/{}")),
    *((NPM, path) for path in ("/{}", "/{}/1.0.0", "/@{}/x", "/@x/{}", "/@x%2f{}", "/{}/-/x-1.0.0.tgz")),
    *((NPM, path) for path in ("/-/package/{}/dist-tags", "/-/npm/v1/attestations/{}@1.0.0")),
]
#: Addresses of files with a short name of a project or package.
FILES = [
    *((PYPI, path) for path in ("/{}/thing-1.0.tar.gz", "/file/https/up.example/thing-1.0.whl?{}")),
    *((NPM, path) for path in ("/thing/-/{}.tgz", "/thing/-/thing-{}.tgz")),
]


class TestNames:
    """What does not exist is remembered for a while, so names have limits."""

    @pytest.mark.parametrize("path", ["/pypi/thing/{}/json"])
    def test_a_long_version_of_a_project_is_refused(self, sites: Sites, path: str) -> None:
        """A version of thousands of characters is refused without a request to upstream."""
        assert "at most 256 characters" in self.refused(sites, PYPI, path)

    @pytest.mark.parametrize("path", ["/thing/{}", "/@scope/thing/{}", "/-/npm/v1/attestations/thing@{}"])
    def test_a_long_version_of_a_package_is_refused(self, sites: Sites, path: str) -> None:
        """So is a version or tag of a package, or its attestations."""
        assert "at most 256 characters" in self.refused(sites, NPM, path)

    @pytest.mark.parametrize(("kind", "path"), NAMES)
    def test_a_long_name_is_refused(self, sites: Sites, kind: PyPIKind | NPMKind, path: str) -> None:
        """So is a name of a project, a package or a file."""
        self.refused(sites, kind, path)

    @pytest.mark.parametrize(("kind", "path"), FILES)
    def test_a_long_name_of_a_file_is_looked_for_on_its_page(
        self, sites: Sites, kind: PyPIKind | NPMKind, path: str
    ) -> None:
        """Of an address that names a project and a file, upstream is asked for the project alone."""
        site = sites(kind)
        assert get(site.daemon.url + path.format(LONG)).status == 404
        assert {request.path for request in site.upstream.requests} == {"/simple/thing/" if kind is PYPI else "/thing"}

    @pytest.mark.parametrize("kind", [PYPI, NPM])
    def test_a_target_that_is_too_long_is_refused(self, sites: Sites, kind: PyPIKind | NPMKind) -> None:
        """A target of more than 8 kB is refused as such. Its query counts, and so do its encodings."""
        url = sites(kind).daemon.url
        assert [get(f"{url}/{more}{LONG}").status for more in ("%41" * 80, "x?" + "y" * 200)] == [414, 414]

    @staticmethod
    def refused(sites: Sites, kind: PyPIKind | NPMKind, path: str) -> str:
        site = sites(kind)
        before = len(site.upstream.requests)
        answer = get(site.daemon.url + path.format(LONG))
        assert answer.status in (400, 404)
        assert len(site.upstream.requests) == before
        return answer.text
