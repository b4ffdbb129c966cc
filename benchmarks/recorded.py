"""
An upstream with as many pages, of the same sizes, as real installs read; `benchmarks.cold` starts it.

``sizes.json`` has two lists, recorded in November 2026. ``pypi`` are the pages that uv reads to resolve jupyterlab,
pandas, scikit-learn, matplotlib, flask, sqlalchemy, requests and fastapi, each with its number of files and its bytes.
``npm`` are the packuments that npm reads to install next, webpack, eslint, jest, vite, express, react, typescript and
an AWS SDK, each with its number of versions and its bytes. The content is made up: random digests and names, so that
it compresses about as well as the real one.

For pypi, there is a project ``files`` with two package files as well, of random bytes.

``python -m benchmarks.recorded KIND LATENCY`` prints its port, and serves until its standard input ends. Each answer
comes LATENCY seconds after its request.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

reactor: Any = _reactor
SIZES: dict[str, list[tuple[int, int]]] = json.loads(Path(__file__).with_name("sizes.json").read_text())
#: Bytes of a body that its etag is made from: no two bodies begin with as many that are the same.
MOST_HASHED = 1 << 20
TYPES = {"pypi": "application/vnd.pypi.simple.v1+json", "npm": "application/json"}


def names(kind: str) -> list[str]:
    """The names of all packages, as many as there are sizes."""
    return [f"package-{number}" for number in range(len(SIZES[kind]))]


def path_of(kind: str, name: str) -> str:
    """The path of a package's page."""
    return f"/simple/{name}/" if kind == "pypi" else f"/{name}"


def page(name: str, files: int, url: str) -> bytes:
    """Make a project's page with so many files, as PyPI writes it."""
    made = random.Random(name)
    listed = []
    for number in range(files):
        version = f"1.{number // 20}.{number % 20}"
        is_wheel = number % 3 > 0
        rest = f"-cp3{number % 15}-abi3-manylinux_2_28_x86_64.whl" if is_wheel else ".tar.gz"
        filename = f"{name.replace('-', '_')}-{version}{rest}"
        digest = f"{made.getrandbits(256):064x}"
        directory = f"{digest[:2]}/{digest[2:4]}/{made.getrandbits(240):060x}"
        metadata = {"sha256": f"{made.getrandbits(256):064x}"} if is_wheel else False
        listed.append(
            {
                "core-metadata": metadata,
                "data-dist-info-metadata": metadata,
                "filename": filename,
                "hashes": {"sha256": digest},
                "provenance": None,
                "requires-python": ">=3.9",
                "size": made.randrange(10**4, 10**8),
                "upload-time": f"2025-{made.randrange(1, 13):02}-12T10:{made.randrange(60):02}:07.123456Z",
                "url": f"{url}/packages/{directory}/{filename}",
                "yanked": False,
            }
        )
    document = {"files": listed, "meta": {"api-version": "1.4"}, "name": name, "versions": ["1.0"]}
    return json.dumps(document, separators=(",", ":")).encode()


def packument(name: str, versions: int, size: int, url: str) -> bytes:
    """Make a full packument of so many versions and about as many bytes, as the npm registry writes it."""
    made = random.Random(name)
    listed = {}
    for number in range(versions):
        version = f"1.{number // 50}.{number % 50}"
        listed[version] = {
            "name": name,
            "version": version,
            "scripts": {"test": "node test.js", "build": "node build.js --minify"},
            "dist": {
                "integrity": "sha512-" + "A" * 20 + f"{made.getrandbits(264):066x}==",
                "shasum": f"{made.getrandbits(160):040x}",
                "tarball": f"{url}/{name}/-/{name}-{version}.tgz",
                "fileCount": 12,
                "unpackedSize": made.randrange(10**6),
                "signatures": [{"keyid": "SHA256:key", "sig": f"{made.getrandbits(384):096x}"}],
            },
            "gitHead": f"{made.getrandbits(160):040x}",
            "dependencies": {},
        }
    per_version = max(0, size // max(1, versions) - 620)
    for number, version in enumerate(listed.values()):
        # Dependencies are the same for many versions, as real ones are.
        chosen = random.Random(number // 10)
        count = per_version // 40
        version["dependencies"] = {f"dependency-{chosen.randrange(900)}": "^3.0.0" for _ in range(count)}
        version["devDependencies"] = {f"development-{chosen.randrange(900)}": "^4.0.0" for _ in range(count // 3)}
    latest = next(reversed(listed), "")
    document = {"_id": name, "name": name, "dist-tags": {"latest": latest}, "versions": listed, "readme": "x" * 500}
    return json.dumps(document, separators=(",", ":")).encode()


_FILES_PAGE = b"/simple/files/"
#: Bytes of the package files of the project ``files``, by their names.
FILES = {"files-1.0-py3-none-any.whl": 1 << 20, "files-2.0-py3-none-any.whl": 200 << 20}


def file(name: str) -> bytes:
    """Make a package file, which does not compress."""
    return random.Random(name).randbytes(FILES[name])


def page_of_files(bodies: dict[str, bytes], url: str) -> bytes:
    """Make the page of the project ``files``."""
    listed = [
        {"filename": name, "url": f"{url}/packages/{name}", "hashes": {"sha256": hashlib.sha256(body).hexdigest()}}
        for name, body in bodies.items()
    ]
    return json.dumps({"meta": {"api-version": "1.0"}, "name": "files", "files": listed}).encode()


class _Pages(Resource):
    """Answers each request after a time, with a body that is compressed already."""

    isLeaf = True

    def __init__(self, kind: str, latency: float) -> None:
        super().__init__()
        self._type = TYPES[kind]
        self._latency = latency
        self.bodies: dict[bytes, bytes] = {}

    def render(self, request: Request) -> int:
        reactor.callLater(self._latency, self._answer, request)
        return NOT_DONE_YET

    def _answer(self, request: Any) -> None:
        if request.path == _FILES_PAGE and _FILES_PAGE not in self.bodies:  # few benchmarks need them
            files = {name: file(name) for name in FILES}
            self.bodies[_FILES_PAGE] = gzip.compress(page_of_files(files, f"http://{request.getHeader('host')}"))
            self.bodies |= {f"/packages/{name}".encode(): body for name, body in files.items()}
        body = self.bodies.get(request.path, b"")
        request.setResponseCode(200 if body else 404)
        request.setHeader("content-type", self._type)
        if not request.path.startswith(b"/packages/"):
            request.setHeader("content-encoding", "gzip")
        request.setHeader("etag", f'"{hashlib.blake2b(body[:MOST_HASHED], digest_size=16).hexdigest()}"')
        request.setHeader("content-length", str(len(body)))
        request.write(body)
        request.finish()


class _UntilClosed(Protocol):
    def connectionLost(self, reason: Failure = connectionDone) -> None:
        reactor.stop()


def listen(resource: Resource) -> int:
    """Serve a resource on loopback. Returns the port."""
    return int(reactor.listenTCP(0, Site(resource), interface="127.0.0.1").getHost().port)


def run(port: int) -> None:
    """Print the port, and serve until standard input ends."""
    print(port, flush=True)
    StandardIO(_UntilClosed())
    reactor.run()


def main(kind: str, latency: str) -> None:
    """Serve until standard input ends."""
    pages = _Pages(kind, float(latency))
    port = listen(pages)
    url = f"http://127.0.0.1:{port}"
    for name, (count, size) in zip(names(kind), SIZES[kind], strict=True):
        body = page(name, count, url) if kind == "pypi" else packument(name, count, size, url)
        pages.bodies[path_of(kind, name).encode()] = gzip.compress(body, 6)
    if kind == "pypi":  # proxpi reads it before any page
        listed = {"meta": {"api-version": "1.4"}, "projects": [{"name": name} for name in names(kind)]}
        pages.bodies[b"/simple/"] = gzip.compress(json.dumps(listed).encode())
    run(port)


if __name__ == "__main__":
    main(*sys.argv[1:])
