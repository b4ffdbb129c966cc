"""
An upstream that answers as a real one did, after a time that can be set; `benchmarks.installs` starts it.

``python -m benchmarks.replay ORIGIN LATENCY [plain]`` prints its port, and serves until its standard input ends. For
what it has not been asked before, it asks ORIGIN, another server, and answers the same ever after. Each answer comes
LATENCY seconds after its request. Pages of Python indexes have whole URLs of files, as PyPI's have. With ``plain``,
they offer no metadata of wheels (PEP 658).
``/-/sent`` tells how many bytes of pages and of files it has sent.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from gzip import compress, decompress
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as Question
from urllib.request import urlopen

from attrs import frozen
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from benchmarks.recorded import listen, run

reactor: Any = _reactor
#: The headers of an answer that are repeated.
_KEPT = ("Content-Type", "Content-Encoding", "ETag", "Last-Modified", "Cache-Control")
_OFFERS = ("core-metadata", "data-dist-info-metadata", "dist-info-metadata")
_OFFER_IN_HTML = re.compile(rb' data-(?:dist-info|core)-metadata="[^"]*"')
#: The start of a link that is relative to a project's page, in JSON or HTML.
_RELATIVE = re.compile(rb'((?:"(?:url|provenance)": ?|href=)")(?:\.\./)+')


@frozen
class Recording:
    """One answer of the origin."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Replay(Resource):
    """Answers with recordings."""

    isLeaf = True

    def __init__(self, origin: str, latency: float, *, plain: bool) -> None:
        super().__init__()
        self._origin = origin
        self._latency = latency
        self._plain = plain
        self._recordings: dict[tuple[str, str], Recording] = {}
        self._sent: Counter[str] = Counter()

    def render(self, request: Any) -> int:
        reactor.callLater(self._latency, self._serve, request)
        return NOT_DONE_YET

    def _serve(self, request: Any) -> None:
        path = request.uri.decode()
        if path == "/-/sent":
            self._answer(Recording(200, (), json.dumps(self._sent).encode()), request)
            return
        accept, host = (request.getHeader(name) or "" for name in ("accept", "host"))
        name = path, "" if is_file(path) else accept
        if name in self._recordings:
            self._answer(self._recordings[name], request)
            return
        found = deferToThread(self._ask, path, {"Accept": accept, "Accept-Encoding": "gzip", "Host": host})
        found.addCallback(lambda recording: self._answer(self._recordings.setdefault(name, recording), request))
        found.addErrback(request.processingFailed)

    def _ask(self, path: str, headers: dict[str, str]) -> Recording:
        if self._plain and path.endswith(".metadata"):
            return Recording(404, (), b"")
        try:
            answer = urlopen(Question(self._origin + path, headers=headers))  # noqa: S310 - a server that we started
        except HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            kept = {name: answer.headers[name] for name in _KEPT if answer.headers[name]}
        if path.startswith("/simple/"):
            page = decompress(body) if "Content-Encoding" in kept else body
            page = _RELATIVE.sub(rb"\1http://%s/" % headers["Host"].encode(), page)
            if self._plain:
                page = without_offers(page) if page.startswith(b"{") else _OFFER_IN_HTML.sub(b"", page)
            body = compress(page, 6) if "Content-Encoding" in kept else page
        return Recording(answer.status or 0, tuple(kept.items()), body)

    def _answer(self, recording: Recording, request: Any) -> None:
        body, status, path = recording.body, recording.status, request.uri.decode()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.getHeader("range") or "")
        request.setHeader("Accept-Ranges", "bytes")
        if asked and status == 200 and is_file(path):
            first, last = asked.groups()
            start = int(first) if first else max(0, len(body) - int(last))
            stop = min(int(last) + 1, len(body)) if first and last else len(body)
            request.setHeader("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
            body, status = body[start:stop], 206
        request.setResponseCode(status)
        for name, value in recording.headers:
            request.setHeader(name, value)
        request.setHeader("Content-Length", str(len(body)))
        if request.method == b"GET" and status < 300:
            self._sent["metadata" if path.endswith(".metadata") else "files" if is_file(path) else "pages"] += len(body)
        request.write(body)
        request.finish()


def without_offers(page: bytes) -> bytes:
    """Return a page in JSON whose files have no metadata."""
    document = json.loads(page)
    for file in document.get("files", []):
        for name in _OFFERS:
            file.pop(name, None)
    return json.dumps(document, separators=(",", ":")).encode()


def is_file(path: str) -> bool:
    """Whether this is the path of a package file, which is the same whatever a client accepts."""
    return path.startswith("/file/") or "/-/" in path


def main(origin: str, latency: str, *plain: str) -> None:
    """Serve until standard input ends."""
    run(listen(Replay(origin, float(latency), plain=bool(plain))))


if __name__ == "__main__":
    main(*sys.argv[1:])
