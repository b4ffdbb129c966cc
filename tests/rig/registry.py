"""An upstream npm registry on loopback, as the public one answers, or as a lesser one does.

Knows the registry's addresses and headers. Must never import the code it is to test, or its parsers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, quote, unquote

from .host import FileHost, compressed, unless_known
from .packages import Tarball
from .packuments import ABBREVIATED, EPOCH, FULL, Package, Signer, Version, attestations, iso, spec
from .wire import Reply, Request

#: Passes between one change and the next, so that dates to the second tell them apart.
_MEANWHILE = timedelta(seconds=7, milliseconds=123)


class FakeRegistry(FileHost):
    """
    The registry: packuments, its own endpoints and, unless told otherwise, the tarballs.

    With `plain`, it answers as a bare intermediary does: always in full, no ETag, 304, gzip or ranges, no keys,
    attestations, search or audit. Packages may be changed at any time. `audits` are the questions it was POSTed,
    decoded.
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

    # What it lists

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
        List a version and serve its tarball, here or `at` another host, behind this percent-encoded path (and query)
        where it is not the usual one; returns its URL.

        `extra` is added to its object (``deprecated``, say), `dist` to what that says of the tarball, in place of
        fields of the same name: another ``integrity``, say, or none with None.
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
        """Put other bytes, and their digests, behind the URL of this version; returns the URL."""
        with self.changed:
            version = self._touch(tarball.name).versions[tarball.version]
            version.tarball, version.signature = tarball, self._signer.sign(tarball)
            host = self._hosts[version.url]
        host.put(_decoded(version.url.removeprefix(host.url)), tarball.content)
        return version.url

    def describe(self, name: str, extra: Mapping[str, object]) -> None:
        """Add these fields to a package's full packument: a ``readme``, say."""
        with self.changed:
            self._touch(name).extra.update(extra)

    def tag(self, name: str, tag: str, version: str) -> None:
        """``npm dist-tag add``."""
        with self.changed:
            self._touch(name).tags[tag] = version

    def advise(self, name: str, vulnerable_versions: str) -> None:
        """From now on, audits say that these versions of a package are vulnerable."""
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
        """What is known of a package now."""
        with self.changed:
            return self._packages[name]

    def keys(self) -> dict[str, object]:
        """The keys that signatures are checked with."""
        return self._signer.keys()

    def _touch(self, name: str) -> Package:
        """The package, which changes now."""
        self._now += _MEANWHILE
        package = self._packages.setdefault(name, Package(name, self._now))
        package.modified = self._now
        return package

    # How it answers

    def answer(self, request: Request) -> Reply:
        """What the path is of, or what the host of files says."""
        segments = unquote(request.path).split("/")[1:]
        if segments[0] == "-":
            return self._own(request, segments[1:])
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
        """In the form that is wanted and with validators; where it is plain, in full and without."""
        if self.plain:
            return _document(package.full())
        abbreviated = ABBREVIATED in (request.headers.get("Accept") or "")
        reply = _document(package.abbreviated(), ABBREVIATED) if abbreviated else _document(package.full())
        validators = {
            "ETag": f'"{hashlib.blake2b(reply.body, digest_size=12).hexdigest()}"',
            "Last-Modified": format_datetime(package.modified, usegmt=True),
            "Cache-Control": "public, max-age=300",
        }
        return unless_known(request, compressed(request, Reply(200, {**reply.headers, **validators}, reply.body)))

    def _own(self, request: Request, segments: list[str]) -> Reply:
        """The registry's own endpoints, below ``/-/``."""
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

    def _attestations(self, wanted: str) -> object:
        name, _, number = wanted.rpartition("@")
        package = self._packages.get(name)
        version = package.find(number) if package else None
        return attestations(version) if version else None

    def _search(self, query: Mapping[str, list[str]]) -> object:
        text, first, size = (
            query.get(name, [default])[0] for name, default in (("text", ""), ("from", 0), ("size", 20))
        )
        found = [package for package in self._packages.values() if str(text) in package.name]
        shown = [{"package": package.found()} for package in found]
        return {"objects": shown[int(first) :][: int(size)], "total": len(found), "time": iso(self._now)}

    def _audit(self, request: Request, kind: str) -> object:
        """The three kinds: of package names with their versions, and, older, of a tree of dependencies."""
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
    """A document as the registry sends it, without validators: compact; None is not found."""
    status = 404 if document is None else 200
    body = json.dumps({"error": "Not found"} if document is None else document, separators=(",", ":")).encode()
    return Reply(status, {"Content-Type": content_type, "Content-Length": str(len(body))}, body)


def _decoded(path: str) -> str:
    """Where a host keeps what is behind this path, whatever its query."""
    return unquote(path.partition("?")[0])
