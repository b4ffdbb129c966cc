"""Tests that clients which log in, publish or upload end at once with a sentence that says that this is read-only.

npm runs as itself. For other clients, the requests that they were seen to send are sent as they are: twine 7, uv 0.13,
yarn 1 and 4, pnpm 12 and bun 1.4. Which part of the answer each of them prints stands beside its request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import daemons
from tests.rig.clients import Npm
from tests.rig.daemon import Daemon
from tests.rig.http import get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_tarball
from tests.rig.registry import FakeRegistry

SENTENCE = "this server is a read-only cache: log in, publish and upload at the registry or index behind it"

_APP = make_tarball("app")
_MARKS = count()


@pytest.fixture(scope="class")
def registry() -> Iterator[FakeRegistry]:
    """The upstream registry of this class, with one package."""
    with FakeRegistry() as fresh:
        fresh.add(_APP)
        yield fresh


@pytest.fixture(scope="class")
def daemon(registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The npm daemon of this class."""
    with daemons(registry.url, tmp_path_factory.mktemp("read-only") / "data") as start:
        yield start(env={"MYPYPI_PACKAGE_TYPE": "npm"})


@pytest.fixture(scope="class")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The pypi daemon of this class."""
    with FakeIndex() as index, daemons(index.url, tmp_path_factory.mktemp("read-only") / "data") as start:
        yield start()


def project_of(npm: Npm, daemon: Daemon) -> Path:
    """Create a project that can be published, whose user is logged in as far as npm knows."""
    project = npm.project(daemon.url)
    (project / "package.json").write_text(json.dumps({"name": "app", "version": "1.1.0"}))
    with (project / ".npmrc").open("a") as settings:
        settings.write(f"//127.0.0.1:{daemon.port}/:_authToken=made-up\n")
    return project


def refused_by(daemon: Daemon) -> list[str]:
    """Return the requests that the daemon has refused so far, from its log."""
    mark = f"settled-{next(_MARKS)}"
    assert get(f"{daemon.url}/-/health/live", {"X-Request-ID": mark}).status == 200
    daemon.wait_for_log(rf"{mark}\b")
    return re.findall(r" (?:401|405|501) none other .* B (\S+ \S+)", daemon.log)


class TestNpm:
    """npm itself, with its usual retries."""

    @pytest.mark.parametrize(
        "command",
        [
            "login",
            "login --auth-type=web",
            "adduser",
            "logout",
            "whoami",
            "publish {project}",
            "unpublish app@1.0.0 --force",
            "deprecate app@1.0.0 old",
            "owner add somebody app",
            "dist-tag add app@1.0.0 beta",
            "dist-tag rm app latest",
            "access list collaborators app",
            "access get status app",
            "team ls org:team",
            "org ls org",
            "token list",
            "profile get",
            "star app",
        ],
    )
    def test_commands_that_write_end_with_the_sentence(
        self, command: str, registry: FakeRegistry, daemon: Daemon, tmp_path: Path
    ) -> None:
        """
        A command that writes, or asks who the user is, fails at once with the sentence.

        npm asks for no name or password, and does not repeat what was refused. Upstream gets no write and no token.
        """
        npm = Npm(tmp_path, patient=True)
        project = project_of(npm, daemon)
        before = len(refused_by(daemon))
        failure = npm.fail(*command.format(project=project).split(), "--prefix", str(project))
        assert failure.count(SENTENCE) == 1
        assert not [prompt for prompt in ("Username", "Password", "ENEEDAUTH") if prompt in failure]
        assert len(refused_by(daemon)[before:]) == 1
        assert not [request for request in registry.requests if request.headers["Authorization"]]
        assert {request.method for request in registry.requests} <= {"GET", "HEAD"}


#: What clients were seen to send: method, path and body.
_REQUESTS = {
    "yarn 4 npm login": ("PUT", "/-/user/org.couchdb.user:me", b'{"_id":"org.couchdb.user:me","name":"me"}'),
    "yarn 4 npm publish": ("PUT", "/app", b'{"_id":"app","name":"app"}'),
    "yarn 4 npm tag add": ("PUT", "/-/package/app/dist-tags/beta", b'"1.0.0"'),
    "yarn 1 publish": ("PUT", "/@acme%2fapp", b'{"_id":"@acme/app","name":"@acme/app"}'),
    "yarn 1 owner add": ("GET", "/-/user/org.couchdb.user:me", b""),
    "pnpm 12 login": ("POST", "/-/v1/login", b"{}"),
    "pnpm 12 publish": ("PUT", "/app", b'{"_id":"app","name":"app"}'),
    "pnpm 12 owner add": ("PUT", "/-/package/app/owners", b'{"user":"me"}'),
    "pnpm 12 star": ("PUT", "/-/user/v1/star", b'{"name":"app","package":"app"}'),
    "bun publish": ("PUT", "/app", b'{"_id":"app","name":"app"}'),
    "bun pm whoami": ("GET", "/-/whoami", b""),
}


class TestOtherNpmClients:
    """The requests of yarn, pnpm and bun, which print the field ``error`` or the whole body."""

    @pytest.mark.parametrize("client", _REQUESTS)
    def test_the_body_has_the_sentence(self, daemon: Daemon, client: str) -> None:
        """The error of the body is the sentence, with a status that no client retries."""
        method, path, body = _REQUESTS[client]
        answer = get(daemon.url + path, {"Content-Type": "application/json"}, method=method, body=body)
        assert answer.status in (401, 405, 501)
        assert json.loads(answer.body)["error"].startswith(SENTENCE)
        assert (answer.headers["Retry-After"], answer.headers["WWW-Authenticate"]) == (None, None)


def upload(daemon: Daemon, path: str, size: int) -> tuple[int, str, str]:
    """
    Upload a file as twine and uv do, with this many bytes; return status, reason phrase and body.

    twine 7 prints the status and the reason phrase, and the body with ``--verbose``. uv prints the body.
    """
    boundary = "a853d20d02c44a50966e26bb6a62c50f"
    fields = {":action": "file_upload", "name": "thing", "version": "1.0", "filetype": "bdist_wheel"}
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields
    ]
    parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="content"; filename="thing-1.0.whl"\r\n\r\n')
    body = "".join(parts).encode() + bytes(size) + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Authorization": "Basic bWU6aHVzaA=="}
    connection = HTTPConnection(urlsplit(daemon.url).netloc, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.reason, answer.read().decode()
    finally:
        connection.close()


class TestUploads:
    """twine and uv, which upload to the address of an index."""

    @pytest.mark.parametrize("path", ["/", "/legacy/", "/simple/", "/pypi"])
    def test_an_upload_ends_with_the_sentence(self, pypi: Daemon, path: str) -> None:
        """The reason phrase and the body have the sentence, with a status after which twine and uv don't try again."""
        status, phrase, body = upload(pypi, path, 1000)
        assert (status, phrase, json.loads(body)) == (405, SENTENCE, {"error": SENTENCE})

    def test_a_large_upload_ends_with_a_sentence(self, pypi: Daemon) -> None:
        """A file that is larger than any request may be is refused as read-only, too, while it is still being sent."""
        status, phrase, body = upload(pypi, "/legacy/", 30_000_000)
        assert (status, json.loads(body)) == (413, {"error": phrase})
        assert "read-only cache" in phrase

    def test_a_large_publish_ends_with_a_sentence(self, daemon: Daemon) -> None:
        """A package, which npm sends in one PUT, is refused as read-only if it is larger than any request may be."""
        answer = get(f"{daemon.url}/app", method="PUT", body=bytes(9_000_000))
        assert answer.status == 413
        assert "read-only cache" in json.loads(answer.body)["error"]
