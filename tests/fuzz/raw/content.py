"""What the upstream of the raw fuzzers has: a package with one file for each name that is asked for.

Knows the two ecosystems' formats. Must never know how answers are damaged or sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
from random import Random

from attrs import frozen

SIMPLE = "application/vnd.pypi.simple.v1+json"
METADATA = b"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
_SIZES = (1, 10, 1000, 1000, 40_000, 70_000, 300_000)


@frozen
class Package:
    """
    The package with this name. Its file is at `file_host`, a URL without a trailing slash.

    Without `digest`, its page does not tell the file's digest, and without `size` not its size.
    """

    name: str
    file_host: str
    digest: bool = True
    size: bool = True

    @property
    def content(self) -> bytes:
        rng = Random(self.name)  # noqa: S311
        return rng.randbytes(rng.choice(_SIZES))

    @property
    def wheel(self) -> str:
        return f"{self.name.replace('-', '_')}-1.0-py3-none-any.whl"

    @property
    def wheel_path(self) -> str:
        """The wheel's path at its host."""
        return f"/files/{self.name}/{self.wheel}"

    @property
    def tarball_path(self) -> str:
        """The tarball's path, at its host and here."""
        return f"/{self.name}/-/{self.name}-1.0.0.tgz"

    @property
    def wheel_target(self) -> str:
        """The wheel's path at the daemon."""
        return f"/file/{self.file_host.replace('://', '/')}{self.wheel_path}"

    def simple(self) -> bytes:
        """The project's page in JSON."""
        file: dict[str, object] = {"filename": self.wheel, "url": self.file_host + self.wheel_path}
        file["hashes"] = {"sha256": hashlib.sha256(self.content).hexdigest()} if self.digest else {}
        file["core-metadata"] = {"sha256": hashlib.sha256(METADATA).hexdigest()}
        if self.size:
            file["size"] = len(self.content)
        return json.dumps({"meta": {"api-version": "1.1"}, "name": self.name, "files": [file]}).encode()

    def html(self) -> bytes:
        """The project's page in HTML."""
        fragment = f"#sha256={hashlib.sha256(self.content).hexdigest()}" if self.digest else ""
        link = f'<a href="{self.file_host}{self.wheel_path}{fragment}">{self.wheel}</a>'
        return f"<!DOCTYPE html><html><body>{link}</body></html>".encode()

    def project(self) -> bytes:
        """The project in the older JSON API."""
        return json.dumps({"info": {"name": self.name, "version": "1.0"}, "urls": [], "releases": {}}).encode()

    def packument(self) -> bytes:
        """The package's page in npm mode."""
        integrity = f"sha512-{base64.b64encode(hashlib.sha512(self.content).digest()).decode()}"
        dist = {"tarball": self.file_host + self.tarball_path} | ({"integrity": integrity} if self.digest else {})
        version = {"name": self.name, "version": "1.0.0", "dist": dist}
        tags = {"latest": "1.0.0"}
        return json.dumps({"name": self.name, "dist-tags": tags, "versions": {"1.0.0": version}}).encode()

    def at(self, target: str, accept: str) -> tuple[bytes, str] | None:
        """The content at this path of upstream, with its type. None: upstream has nothing there."""
        path = target.partition("?")[0]
        if path == f"/simple/{self.name}/":
            return (self.simple(), SIMPLE) if "json" in accept else (self.html(), "text/html")
        if path in (f"/pypi/{self.name}/json", f"/pypi/{self.name}/1.0/json"):
            return self.project(), "application/json"
        if path == f"/{self.name}":
            return self.packument(), "application/json"
        if path in (self.wheel_path, self.tarball_path):
            return self.content, "application/octet-stream"
        return (METADATA, "text/plain") if path == f"{self.wheel_path}.metadata" else None


def name_in(target: str) -> str:
    """The name of the package that a path of upstream belongs to; "" if there is none."""
    segments = target.partition("?")[0].split("/")[1:]
    if segments[0] in ("simple", "pypi", "files", "good", "loop", "via", "back") and len(segments) > 1:
        return segments[1]
    return segments[0] if segments[0] != "-" else ""
