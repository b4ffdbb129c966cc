"""Tests of the page at ``/-/``, on a whole server in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mypypi import __version__
from tests.fuzz.world import Transmission, World

Serve = Callable[..., World]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """A function that makes a server with these settings, whose upstream must not be asked."""

    def make(package_type: str = "pypi", **settings: str) -> World:
        texts = {f"MYPYPI_{name}": text for name, text in settings.items()}
        return World(package_type, tmp_path, lambda _: Transmission(b"", cut=True), lambda _: False, texts)

    return make


@pytest.mark.parametrize(
    ("package_type", "command"),
    [
        ("pypi", "pip install --index-url http://here.example/simple/ flask"),
        ("npm", "npm install --registry http://here.example/ express"),
    ],
)
def test_a_person_sees_what_this_server_is(serve: Serve, package_type: str, command: str) -> None:
    """A browser gets a page with version, upstream, a command to copy, and links to health and metrics."""
    answer = serve(package_type).get("/-/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    page = answer.body.decode()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for part in (__version__, "https://up.example", command, 'href="health/ready"', 'href="metrics"'):
        assert part in page


def test_a_program_gets_json(serve: Serve) -> None:
    """``Accept: application/json`` gets the same as JSON, with links relative to this address."""
    answer = serve("npm").get("/-/", Accept="application/json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["vary"] == "Accept, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Prefix"
    assert json.loads(answer.body) == {
        "version": __version__,
        "serves": "npm",
        "upstream": "https://up.example",
        "try": "npm install --registry http://here.example/ express",
        "health": "health/ready",
        "metrics": "metrics",
    }


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_no_secret_is_shown(serve: Serve, accept: str) -> None:
    """Neither credentials for upstream nor its path, which is a token at some registries, are shown."""
    world = serve(UPSTREAM_URL="https://up.example/s3cret/basic", UPSTREAM_PASSWORD="hush")
    body = world.get("/-/", Accept=accept).body
    assert b"https://up.example" in body
    assert not [secret for secret in (b"s3cret", b"hush", b"somebody") if secret in body]


def test_the_page_runs_nothing(serve: Serve) -> None:
    """The page forbids scripts, frames and styles, and is neither cached nor read as another type."""
    headers = serve().get("/-/").headers
    assert headers["content-security-policy"].startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_the_public_address_is_escaped(serve: Serve) -> None:
    """The address of the command is the public one, escaped for HTML and as it is in JSON."""
    world = serve(PUBLIC_URL="https://packages.example/a&<b>")
    assert b"https://packages.example/a&amp;&lt;b&gt;/simple/" in world.get("/-/").body
    command = json.loads(world.get("/-/", Accept="application/json").body)["try"]
    assert command == "pip install --index-url https://packages.example/a&<b>/simple/ flask"


def test_a_head_request_gets_the_length(serve: Serve) -> None:
    """HEAD has the headers of GET and no body."""
    world = serve()
    shown, described = world.get("/-/"), world.get("/-/", method=b"HEAD")
    assert (described.status, described.headers["content-length"]) == (200, str(len(shown.body)))


def test_other_types_are_not_acceptable(serve: Serve) -> None:
    """A client that accepts neither HTML nor JSON gets a 406."""
    assert serve().get("/-/", Accept="image/png").status == 406


def test_the_root_stays_as_it_is(serve: Serve) -> None:
    """The root of npm mode is the registry's JSON, which clients read; that of pypi mode is text."""
    assert json.loads(serve("npm").get("/", Accept="text/html").body) == {"mypypi": "a cache for npm packages"}
    assert serve().get("/", Accept="text/html").headers["content-type"].startswith("text/plain")
