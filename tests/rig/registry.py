"""A fake npm registry on loopback.

It answers like the public one, or like a simpler one. Knows the registry's addresses and headers. Must never import the
code under test, or its parsers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, quote, unquote

from .host import FileHost, compressed, or_not_modified
from .packages import Tarball
from .packuments import ABBREVIATED, EPOCH, FULL, Package, Signer, Version, attestations, iso, spec
from .wire import Reply, Request

#: Time between one change and the next, so that dates with a resolution of one second distinguish them.
_TIME_STEP = timedelta(seconds=7, milliseconds=123)


class FakeRegistry(FileHost):
    """
    A registry with packuments, tarballs and the registry's own endpoints.

    With `plain` it answers as a simple intermediary does: always in full, without ETag, 304, gzip or ranges, and
    without keys, attestations, search or audit. Packages can be changed at any time. `audits` are the decoded audit
    requests.
    """

    def __init__(
        self,
        *,
        plain: bool = False,
        ranges: bool = True,
        auth: tuple[str, str] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.audits: list[object] = []
        self._packages: dict[str, Package] = {}
        self._advisories: dict[str, list[dict[str, object]]] = {}
        self._now = EPOCH
        self._signer = Signer()
        self._hosts: dict[str, FileHost] = {}
        super().__init__(auth=auth, plain=plain, ranges=ranges, address=address)

    # Packages

    def add(
        self,
        tarball: Tarball,
        *,
        at: FileHost | None = None,
        path: str | None = None,
        tag: str | None = "latest",
        extra: Mapping[str, object] | None = None,
        dist: Mapping[str, object] | None = None,
        attested: bool = False,
    ) -> str:
        """
        List a version and serve its tarball; return its URL.

        The tarball is served here or on the host `at`. `path` is its percent-encoded path and query, if it is not the
        usual one. The fields in `extra` (``deprecated``, for example) are added to the version's object, and those in
        `dist` to its ``dist``. They replace fields of the same name: another ``integrity``, for example, or no such
        field with None.
        """
        host = at or self
        path = path or f"/{quote(tarball.name, safe='@/')}/-/{quote(tarball.filename, safe='+')}"
        url = host.url + path
        attestations_url = f"{self.url}/-/npm/v1/attestations/{quote(spec(tarball), safe='@')}" if attested else ""
        signature = self._signer.sign(tarball)
        with self.changed:
            package = self._touch(tarball.name)
            version = Version(tarball, url, extra or {}, dist or {}, package.modified, signature, attestations_url)
            package.versions[tarball.version] = version
            if tag is not None:
                package.tags[tag] = tarball.version
            self._hosts[url] = host
        host.put(_decoded(path), tarball.content)
        return url

    def replace(self, tarball: Tarball) -> str:
        """Replace the tarball of a version, and its digests; return its URL."""
        with self.changed:
            version = self._touch(tarball.name).versions[tarball.version]
            version.tarball, version.signature = tarball, self._signer.sign(tarball)
            host = self._hosts[version.url]
        host.put(_decoded(version.url.removeprefix(host.url)), tarball.content)
        return version.url

    def describe(self, name: str, extra: Mapping[str, object]) -> None:
        """Add these fields, such as a ``readme``, to a package's full packument."""
        with self.changed:
            self._touch(name).extra.update(extra)

    def tag(self, name: str, tag: str, version: str) -> None:
        """Set a tag, as ``npm dist-tag add`` does."""
        with self.changed:
            self._touch(name).tags[tag] = version

    def advise(self, name: str, vulnerable_versions: str) -> None:
        """Report these versions of a package as vulnerable in later audits."""
        advisory = {
            "id": 1000 + len(self._advisories),
            "url": "https://advisories.example/1",
            "title": "made by a test",
            "severity": "high",
            "vulnerable_versions": vulnerable_versions,
        }
        with self.changed:
            self._advisories.setdefault(name, []).append(advisory)

    def package(self, name: str) -> Package:
        """The current data of a package."""
        with self.changed:
            return self._packages[name]

    def keys(self) -> dict[str, object]:
        """The public keys of the registry's signatures."""
        return self._signer.keys()

    def _touch(self, name: str) -> Package:
        """Mark a package as modified now, and return it."""
        self._now += _TIME_STEP
        package = self._packages.setdefault(name, Package(name, self._now))
        package.modified = self._now
        return package

    # Replies

    def answer(self, request: Request) -> Reply:
        """Answer with a document, or else as a file host."""
        segments = unquote(request.path).split("/")[1:]
        if segments[0] == "-":
            return self._own_endpoint(request, segments[1:])
        parts = 2 if segments[0].startswith("@") else 1
        name, rest = "/".join(segments[:parts]), segments[parts:]
        if request.method not in ("GET", "HEAD") or len(rest) > 1:
            return super().answer(request)
        with self.changed:
            package = self._packages.get(name)
            if package is None:
                return _document(None)
            if not rest:
                return self._packument(request, package)
            version = package.find(rest[0])
            return _document(version.document() if version else None)

    def _packument(self, request: Request, package: Package) -> Reply:
        """
        A packument in the requested form, with validators.

        If the registry is plain, it is always the full form, without validators.
        """
        if self.plain:
            return _document(package.full())
        abbreviated = ABBREVIATED in (request.headers.get("Accept") or "")
        reply = _document(package.abbreviated(), ABBREVIATED) if abbreviated else _document(package.full())
        validators = {
            "ETag": f'"{hashlib.blake2b(reply.body, digest_size=12).hexdigest()}"',
            "Last-Modified": format_datetime(package.modified, usegmt=True),
            "Cache-Control": "public, max-age=300",
        }
        return or_not_modified(request, compressed(request, Reply(200, {**reply.headers, **validators}, reply.body)))

    def _own_endpoint(self, request: Request, segments: list[str]) -> Reply:
        """Answer a request for one of the registry's own endpoints, below ``/-/``."""
        if self.plain:
            return Reply.text(404 if request.method == "GET" else 405)
        found: object = None
        with self.changed:
            match segments:
                case ["ping"]:
                    found = {}
                case ["package", *name, "dist-tags"]:
                    package = self._packages.get("/".join(name))
                    found = package.tags if package else None
                case ["npm", "v1", "keys"]:
                    found = self.keys()
                case ["npm", "v1", "attestations", *name]:
                    found = self._attestations("/".join(name))
                case ["v1", "search"]:
                    found = self._search(parse_qs(request.query))
                case ["npm", "v1", "security", *kind] if request.method == "POST":
                    found = self._audit(request, "/".join(kind))
        return compressed(request, _document(found))

    def _attestations(self, spec_text: str) -> object:
        name, _, number = spec_text.rpartition("@")
        package = self._packages.get(name)
        version = package.find(number) if package else None
        return attestations(version) if version else None

    def _search(self, query: Mapping[str, list[str]]) -> object:
        text, first, size = (
            query.get(name, [default])[0] for name, default in (("text", ""), ("from", 0), ("size", 20))
        )
        found = [package for package in self._packages.values() if str(text) in package.name]
        shown = [{"package": package.search_result()} for package in found]
        return {"objects": shown[int(first) :][: int(size)], "total": len(found), "time": iso(self._now)}

    def _audit(self, request: Request, kind: str) -> object:
        """
        Answer one of the three kinds of audit.

        ``advisories/bulk`` takes package names with their versions; the two older kinds take a dependency tree.
        """
        encoded = request.headers.get("Content-Encoding") == "gzip"
        question = json.loads(gzip.decompress(request.body) if encoded else request.body)
        self.audits.append(question)
        if kind == "advisories/bulk":
            return {name: found for name, found in self._advisories.items() if name in question}
        if kind not in ("audits", "audits/quick"):
            return None
        asked = question["dependencies"]
        found = [advisory for name in asked for advisory in self._advisories.get(name, [])]
        counts = {"info": 0, "low": 0, "moderate": 0, "high": len(found), "critical": 0}
        return {
            "actions": [],
            "advisories": {str(advisory["id"]): advisory for advisory in found},
            "muted": [],
            "metadata": {"vulnerabilities": counts, "totalDependencies": len(asked)},
        }


def _document(document: object, content_type: str = FULL) -> Reply:
    """A JSON document without validators, or 404 if it is None."""
    status = 404 if document is None else 200
    body = json.dumps({"error": "Not found"} if document is None else document, separators=(",", ":")).encode()
    return Reply(status, {"Content-Type": content_type, "Content-Length": str(len(body))}, body)


def _decoded(path: str) -> str:
    """The path under which a host keeps this file: decoded, without its query."""
    return unquote(path.partition("?")[0])
