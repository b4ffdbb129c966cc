"""The fuzzer of upstream's answers: one random raw answer for each case, and what a client gets then."""

from __future__ import annotations

import json
from collections import OrderedDict
from random import Random
from threading import Lock

from attrs import field, frozen
from typing_extensions import Self

from tests.fuzz.raw.answers import POISON, RawAnswer, Targets, make_answer, well
from tests.fuzz.raw.campaign import Fuzzer
from tests.fuzz.raw.content import METADATA, SIMPLE, Package, name_in
from tests.fuzz.raw.server import ADDRESSES, PATIENCE, RawServer, Received
from tests.fuzz.raw.talk import ask
from tests.fuzz.world import PASSWORD, Answer, Violation

#: Seconds within which every request has its answer or its end.
TIMEOUT = 45.0
#: Seconds that a legal answer may take; a slower one may get a 503.
_SLOW = 1.0
#: Statuses of a page that upstream answers well: the bytes after another answer on the same connection may hurt it, and
#: requests may be paused.
_MAY_FAIL = (502, 503)
#: Cases whose answers are kept, since the daemon may go on with them.
_MOST_CASES = 2000
_KINDS = {
    "pypi": ("simple", "simple", "html", "json", "wheel", "wheel", "wheel", "metadata"),
    "npm": ("packument", "packument", "abbreviated", "version", "tarball", "tarball", "tarball", "audit", "search"),
}
_ABBREVIATED = "application/vnd.npm.install-v1+json"
_NOT_FOUND = RawAnswer((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",))
_FILE_KINDS = ("wheel", "tarball", "metadata")
#: Kinds that are passed through: what upstream answers is not checked here.
_PASSED = ("audit", "search")


@frozen
class Case:
    """One case: the package, what is asked, and the answer of upstream to that."""

    package: Package
    kind: str
    answer: RawAnswer = field(repr=False)
    upstream_path: str


class UpstreamFuzzer(Fuzzer):
    """Upstream answers one request of each case with random bytes, and all others well. Use as a context manager."""

    def __init__(self, patience: float = PATIENCE) -> None:
        super().__init__()
        self.server = RawServer(self.answer, patience)
        self.url = self.server.urls[0]
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._problems: list[str] = []
        self._lock = Lock()

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def problems(self) -> list[str]:
        with self._lock:
            found, self._problems = self._problems, []
        return found

    # Upstream

    def answer(self, request: Received) -> RawAnswer:
        """Return the answer to a request of a daemon."""
        name = name_in(request.target)
        self._check_credentials(request)
        with self._lock:
            case = self._cases.get(name)
        path = request.target.partition("?")[0]
        if path.startswith("/loop/"):
            return _moved(request.target)
        if path.startswith("/via/"):
            return _moved(f"{self.url}/back/{name}")
        if case is None and path in ("/-/v1/search", "/-/npm/v1/security/advisories/bulk"):
            case = self._passed(request)
        if case is not None and path == case.upstream_path:
            return case.answer
        package = Package(name, self.url) if case is None else case.package
        if path.startswith(("/good/", "/back/")) and case is not None:
            return well(*_content(case))
        found = package.at(request.target, request.headers.get("accept", ""))
        return _NOT_FOUND if found is None else well(*found)

    def _passed(self, request: Received) -> Case | None:
        """The case that a request without a package's name belongs to."""
        text = (
            request.target.partition("?text=")[2] or request.body.decode("latin-1").partition('"')[2].partition('"')[0]
        )
        with self._lock:
            return self._cases.get(text.partition("&")[0])

    def _check_credentials(self, request: Received) -> None:
        strange = request.address != ADDRESSES[0] or request.target.startswith("/back/")
        if strange and ("authorization" in request.headers or PASSWORD in str(request)):
            with self._lock:
                self._problems.append(f"credentials were sent to {request}")
        if "cookie" in request.headers:
            with self._lock:
                self._problems.append(f"a cookie was sent: {request.headers['cookie'][:200]}")

    # Cases

    def run(self, number: int, rng: Random, package_type: str, port: int) -> None:
        kind, name = rng.choice(_KINDS[package_type]), f"case-{number}"
        host = rng.choice(self.server.urls) if kind in _FILE_KINDS else self.url
        package = Package(name, host, digest=rng.random() < 0.8, size=rng.random() < 0.7)
        case = Case(package, kind, RawAnswer(()), _upstream_path(package, kind))
        good = rng.choice(self.server.urls) if kind in _FILE_KINDS else self.url
        back = f"{self.server.urls[1]}/via/{name}"
        targets = Targets(f"{good}/good/{name}", f"{good}/loop/{name}", back, f"/marker/{name}", self.server.urls[1:])
        case = Case(package, kind, make_answer(rng, *_content(case), targets), case.upstream_path)
        with self._lock:
            self._cases[name] = case
            if len(self._cases) > _MOST_CASES:
                self._cases.popitem(last=False)
        try:
            self._check(case, port)
            if rng.random() < 0.5:
                self._check(case, port)  # again: from the cache, or a failure that is remembered
        except Violation as error:
            raise Violation(f"{kind} with {case.answer.label} (legal: {case.answer.legal}): {error}") from None
        self._check_cold(f"cold-{number}", package_type, port)

    def _check(self, case: Case, port: int) -> None:
        if case.kind in _FILE_KINDS:
            page = ask(port, _page_of(case), timeout=TIMEOUT)
            if page.status in _MAY_FAIL:
                self.counts[f"page {page.status}"] += 1
                return
            if page.status != 200:
                raise Violation(f"the page gets {page}")
        answer = _ask(case, port)
        self.counts[f"{case.kind} {answer.status}"] += 1
        if POISON in answer.body:
            raise Violation(f"the bytes after an answer are in {answer}")
        if PASSWORD.encode() in answer.body:
            raise Violation(f"a client received the password: {answer}")
        _check_status(case, answer)
        whole = answer.status == 200 and answer.whole
        if whole and case.kind in _FILE_KINDS and not _is_right(case, answer):
            raise Violation(f"wrong content: {answer.body[:100]!r}")
        slow = case.answer.pause * len(case.answer.pieces) > _SLOW
        legal = case.answer.legal and not slow and case.kind not in _PASSED
        if legal and answer.status != 503 and not (whole and _is_right(case, answer)):
            raise Violation(f"a legal answer becomes {answer.status}, {answer.body[:300]!r}")

    def _check_cold(self, name: str, package_type: str, port: int) -> None:
        """Ask for a page that nobody asked for before, which upstream answers well."""
        target, accept = (f"/simple/{name}/", SIMPLE) if package_type == "pypi" else (f"/{name}", "application/json")
        answer = ask(port, target, accept=accept, timeout=TIMEOUT)
        self.counts[f"cold {answer.status}"] += 1
        if answer.status not in (200, *_MAY_FAIL) or (answer.status == 200 and name.encode() not in answer.body):
            raise Violation(f"a cold page of another project gets {answer.status}, {answer.body[:300]!r}")


def _moved(location: str) -> RawAnswer:
    return RawAnswer((f"HTTP/1.1 302 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode(),))


def _check_status(case: Case, answer: Answer) -> None:
    """
    No internal error; and a 404 only if upstream's answer may be read as one.

    Metadata that upstream lists, but gives wrongly, is no longer listed here.
    """
    if answer.status == 500 or b"internal error: see the server's log" in answer.body:
        if case.kind in _PASSED and b" 500" in b"".join(case.answer.pieces)[:2000]:
            return
        raise Violation(f"an internal error: {answer}")
    raw = b"".join(case.answer.pieces)
    may_be_absent = case.kind == "metadata" or any(code in raw for code in (b"404", b"410", b"451", b"30"))
    if answer.status == 404 and not may_be_absent:
        raise Violation(f"upstream's failure becomes a 404: {answer.body[:300]!r}")


def _upstream_path(package: Package, kind: str) -> str:
    name = package.name
    return {
        "simple": f"/simple/{name}/",
        "html": f"/simple/{name}/",
        "json": f"/pypi/{name}/json",
        "wheel": package.wheel_path,
        "metadata": f"{package.wheel_path}.metadata",
        "tarball": package.tarball_path,
        "audit": "/-/npm/v1/security/advisories/bulk",
        "search": "/-/v1/search",
    }.get(kind, f"/{name}")


def _content(case: Case) -> tuple[bytes, str]:
    """What upstream has at the path of the case, with its type."""
    package = case.package
    if case.kind in _PASSED:
        return b'{"objects":[]}', "application/json"
    if case.kind == "html":
        return package.html(), "text/html"
    found = package.at(case.upstream_path, SIMPLE)
    assert found is not None
    return found


def _page_of(case: Case) -> str:
    name = case.package.name
    return f"/{name}" if case.kind == "tarball" else f"/simple/{name}/"


def _target(case: Case) -> str:
    package = case.package
    return {
        "wheel": package.wheel_target,
        "metadata": f"{package.wheel_target}.metadata",
        "version": f"/{package.name}/1.0.0",
        "search": f"/-/v1/search?text={package.name}",
    }.get(case.kind, case.upstream_path)


def _ask(case: Case, port: int) -> Answer:
    """Send the request of the case."""
    if case.kind == "audit":
        body = json.dumps({case.package.name: ["1.0.0"]}).encode()
        return ask(port, _target(case), method="POST", body=body, timeout=TIMEOUT)
    accepts = {"simple": SIMPLE, "html": "text/html", "abbreviated": _ABBREVIATED}
    return ask(port, _target(case), accept=accepts.get(case.kind, "*/*"), timeout=TIMEOUT)


def _is_right(case: Case, answer: Answer) -> bool:
    """Whether a complete answer is right. That of a file without a digest may be anything, unless upstream is legal."""
    package = case.package
    if case.kind == "metadata":
        return answer.body == METADATA
    if case.kind in _FILE_KINDS:
        return answer.body == package.content or not (package.digest or case.answer.legal)
    if case.kind == "html":
        return package.wheel.encode() in answer.body
    document = json.loads(answer.body)
    if case.kind == "simple":
        return [file["filename"] for file in document["files"]] == [package.wheel]
    return bool(document.get("name") == package.name or document["info"]["name"] == package.name)
