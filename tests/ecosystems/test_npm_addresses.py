"""Tests of the tarball addresses of other registries: the links that they mean here."""

from __future__ import annotations

import time

import pytest

from mypypi.ecosystems.npm_addresses import tarball_links

NAME = "name/-/name-1.0.0.tgz"
SCOPED = "@scope/name/-/name-1.0.0.tgz"
OF_JSR = "@jsr/std__path/-/std__path-1.0.8.tgz"
DIGEST = "9c2e0f41f1a0d8f3a1c5"

#: The paths of tarballs by the registry that uses them, and the link that each means.
ADDRESSES = {
    "the npm registry": ("name/-/name-1.0.0.tgz", NAME),
    "the npm registry, scoped": ("@scope/name/-/name-1.0.0.tgz", SCOPED),
    "GitHub Packages": (f"download/@scope/name/1.0.0/{DIGEST}", SCOPED),
    "GitHub Enterprise": (f"_registry/npm/download/@scope/name/1.0.0/{DIGEST}", SCOPED),
    "a CouchDB": ("registry/name/-/name-1.0.0.tgz", NAME),
    "a CouchDB, scoped": ("registry/@scope/name/-/name-1.0.0.tgz", SCOPED),
    "Nexus": ("repository/npm/name/-/name-1.0.0.tgz", NAME),
    "Nexus, scoped": ("repository/npm/@scope/name/-/name-1.0.0.tgz", SCOPED),
    "Artifactory": ("api/npm/npm-repo/name/-/name-1.0.0.tgz", NAME),
    "Artifactory, scoped": ("artifactory/api/npm/npm-repo/@scope/name/-/@scope/name-1.0.0.tgz", SCOPED),
    "GitLab": ("api/v4/projects/1/packages/npm/@scope/name/-/@scope/name-1.0.0.tgz", SCOPED),
    "Gitea": ("api/packages/owner/npm/name/-/1.0.0/name-1.0.0.tgz", NAME),
    "Gitea, scoped": ("api/packages/owner/npm/@scope/name/-/1.0.0/name-1.0.0.tgz", SCOPED),
    "CodeArtifact": ("npm/repo/@scope/name/-/name-1.0.0.tgz", SCOPED),
    "Azure Artifacts": ("org/_packaging/feed/npm/registry/name/-/name-1.0.0.tgz", NAME),
    "Google Artifact Registry": ("project/repo/@scope/name/-/@scope/name-1.0.0.tgz", SCOPED),
    "Verdaccio below a prefix": ("verdaccio/@scope/name/-/name-1.0.0.tgz", SCOPED),
    "Font Awesome": ("@scope/name/-/1.0.0/name-1.0.0.tgz", SCOPED),
    "cnpm": ("name/download/name-1.0.0.tgz", NAME),
    "cnpm, scoped": ("@scope/name/download/@scope/name-1.0.0.tgz", SCOPED),
    "cnpm's files": ("packages/@scope/name/1.0.0/name-1.0.0.tgz", SCOPED),
    "npm-register": (f"@scope/name/-/@scope/name-1.0.0/{DIGEST}.tgz", SCOPED),
    "JSR": ("~/11/@jsr/std__path/1.0.8.tgz", OF_JSR),
    "JSR without a prefix": ("@jsr/std__path/1.0.8.tgz", OF_JSR),
    "a scope before the filename alone": ("npm/-/@scope/name-1.0.0.tgz", SCOPED),
    "a scope and another package's name": ("npm/-/@scope/npm-1.0.0.tgz", "@scope/npm/-/npm-1.0.0.tgz"),
    "a file beside its package": ("name/name-1.0.0.tar.gz", NAME),
    "a filename alone": ("-/name-1.0.0.tgz", NAME),
    "a pre-release": ("name/-/1.0.0-rc.2/name-1.0.0-rc.2.tgz", "name/-/name-1.0.0-rc.2.tgz"),
    "a name that looks like a version": ("a/b-1.0.0-c/b-1.0.0-c-2.0.0.tgz", "b-1.0.0-c/-/b-1.0.0-c-2.0.0.tgz"),
    "a name that ends with a number": ("a/b/base-64-0.1.0.tgz", "base-64/-/base-64-0.1.0.tgz"),
    "a filename of its own": ("repository/npm/name/-/whatever", "name/-/whatever"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "link"), ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_of_another_registry_means_one_link(path: str, link: str) -> None:
    """The name with the version, or the filename, tells the tarball, whatever else the path has."""
    assert tarball_links(path.split("/")) == [link]


@pytest.mark.parametrize(
    ("path", "links"),
    [
        ("npm/-/name-1.0.0.tgz", ["npm/-/name-1.0.0.tgz", NAME]),
        ("@scope/name/-/scope-name-1.0.0.tgz", ["@scope/name/-/scope-name-1.0.0.tgz", SCOPED]),
        ("@scope/name/-/@scope-name-1.0.0.tgz", ["@scope/name/-/@scope-name-1.0.0.tgz", SCOPED]),
        ("@scope/name/-/other-1.0.0.tgz", ["@scope/name/-/other-1.0.0.tgz"]),
    ],
)
def test_the_path_as_it_is_comes_first(path: str, links: list[str]) -> None:
    """A path in the conventional form is first read as it is. A path with a scope never means a package without one."""
    assert tarball_links(path.split("/")) == links


@pytest.mark.parametrize(
    "path",
    [
        "name", "@scope/name", "name/1.0.0", "@scope/name/1.0.0", "name/latest", "-", "download", "-/-",
        "name/1.0.0/package.json", "name/name-1.0.0/index.js", "a/b/c/d", "thing/-/x/y", "-/v1/unheard-of",
        "repository/npm/.hidden/-/whatever", "@scope/1.0.0.tgz", "a b/-/whatever",
    ],
)  # fmt: skip
def test_another_path_means_no_tarball(path: str) -> None:
    """A path that names no version of a package, or an invalid name, means no tarball."""
    assert tarball_links(path.split("/")) == []


@pytest.mark.parametrize("segment", ["1.0.0-" * 1300 + "~.tgz", "a-" * 4000 + ".tgz", "9" * 8000 + ".tgz"])
def test_a_long_path_is_read_fast(segment: str) -> None:
    """A path that is made to be hard to read takes no noticeable time."""
    before = time.perf_counter()
    tarball_links(["npm", "-", segment])
    assert time.perf_counter() - before < 0.1
