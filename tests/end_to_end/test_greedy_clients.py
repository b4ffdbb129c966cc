"""Tests requests that would make the daemon keep or do more than they are worth."""

from __future__ import annotations

import pytest

from tests.conftest import Sites
from tests.rig.http import get
from tests.support.kinds import NPMKind, PyPIKind

LONG = "1" * 8000


class TestNames:
    """What does not exist is remembered for a while, so names have limits."""

    @pytest.mark.parametrize("path", ["/pypi/thing/{}/json"])
    def test_a_long_version_of_a_project_is_refused(self, sites: Sites, path: str) -> None:
        """A version of thousands of characters is refused without a request to upstream."""
        self.assert_refused(sites, PyPIKind(), path)

    @pytest.mark.parametrize("path", ["/thing/{}", "/@scope/thing/{}", "/-/npm/v1/attestations/thing@{}"])
    def test_a_long_version_of_a_package_is_refused(self, sites: Sites, path: str) -> None:
        """So is a version or tag of a package, or its attestations."""
        self.assert_refused(sites, NPMKind(), path)

    @staticmethod
    def assert_refused(sites: Sites, kind: PyPIKind | NPMKind, path: str) -> None:
        site = sites(kind)
        before = len(site.upstream.requests)
        answer = get(site.daemon.url + path.format(LONG))
        assert (answer.status, "at most 256 characters" in answer.text) == (400, True)
        assert len(site.upstream.requests) == before
