"""Tests of pages whose links contain this server's address: one page, and as many answers as there are addresses."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from twisted.logger import formatEvent

from mypypi.model import BASE_PLACEHOLDER
from mypypi.pages.known_bases import MOST_OF_CLIENT
from mypypi.rendering import tasks
from mypypi.web import pages
from tests.fuzz.world import UPSTREAM, Answer, Transmission, World, read_answer
from tests.support.memory import Exchange, response

_random = random.Random(1)  # noqa: S311
ABBREVIATED = "application/vnd.npm.install-v1+json"


def packument(name: str, count: int, padding: int) -> bytes:
    """A packument whose bytes can hardly be compressed."""
    versions = {
        f"1.0.{number}": {
            "name": name,
            "version": f"1.0.{number}",
            "readme": _random.randbytes(padding // 2).hex(),
            "dist": {"tarball": f"{UPSTREAM}/{name}/-/{name}-1.0.{number}.tgz"},
        }
        for number in range(count)
    }
    versions |= {"dist-tags": {"name": name, "dist": {"tarball": f"{UPSTREAM}/{name}/-/odd.tgz"}}}
    return json.dumps({"name": name, "dist-tags": {"latest": "1.0.1"}, "versions": versions}).encode()


PACKUMENTS = {"/big": packument("big", 150, 2000), "/app": packument("app", 3, 10)}
PROJECT = json.dumps(
    {
        "info": {"name": "big"},
        "releases": {"1.0": [{"filename": "big-1.0.zip", "url": f"{UPSTREAM}/big-1.0.zip", "digests": {}}] * 3000},
    }
).encode()


def upstream(exchange: Exchange) -> Transmission:
    body = PACKUMENTS.get(exchange.path, PROJECT if exchange.path == "/pypi/big/json" else None)
    if body is None:
        return Transmission(response(404))
    return Transmission(response(200, body, content_type="application/json", etag='"1"'))


@pytest.fixture
def derived() -> Iterator[list[object]]:
    """The tasks that derive a form, as they are done."""
    done: list[object] = []
    task, result, do = tasks._TASKS["DeriveTask"]

    def derive(*args: Any) -> object:
        done.append(args[-1])
        return do(*args)

    with patch.dict(tasks._TASKS, {"DeriveTask": (task, result, derive)}):
        yield done


@pytest.fixture
def npm(tmp_path: Path) -> World:
    return World("npm", tmp_path, upstream, lambda _: True)


def expected(path: str, host: str) -> Any:
    """What a client that knows the server by this host gets at a path."""
    document = json.loads(PACKUMENTS[path].replace(f"{UPSTREAM}/".encode(), f"http://{host}/".encode()))
    document["versions"]["dist-tags"]["dist"]["tarball"] = f"http://{host}{path}/-/{path[1:]}-dist-tags.tgz"
    return document


def content(answer: Answer) -> bytes:
    assert (answer.status, answer.whole) == (200, True)
    return gzip.decompress(answer.body) if answer.headers.get("content-encoding") == "gzip" else answer.body


class TestAddresses:
    """Requests that know the server by many addresses."""

    @pytest.mark.parametrize("encoding", ["gzip", "identity"])
    @pytest.mark.parametrize("path", ["/big", "/app"])
    def test_each_host_gets_its_own_links(self, npm: World, derived: list[object], path: str, encoding: str) -> None:
        """Forty hosts get the same bytes but for their own address, and few of them cost a derived form."""
        bodies = {}
        for host in [f"host{number}.example" for number in range(40)] * 2:
            answer = npm.get(path, Host=host, Accept_Encoding=encoding)
            bodies[host] = content(answer)
            assert json.loads(bodies[host]) == expected(path, host)
        plain = {body.replace(host.encode(), b"HOST") for host, body in bodies.items()}
        assert (len(plain), len(derived)) == (1, MOST_OF_CLIENT)

    def test_a_project_of_pypi_has_links_too(self, tmp_path: Path, derived: list[object]) -> None:
        """PyPI's JSON has the address in its links as well, and as many derived forms."""
        pypi = World("pypi", tmp_path, upstream, lambda _: True)
        for number in range(20):
            body = content(pypi.get("/pypi/big/json", Host=f"host{number}.example"))
            assert body.count(f"http://host{number}.example/file/".encode()) == 3000
            assert BASE_PLACEHOLDER not in body
        assert len(derived) == MOST_OF_CLIENT

    def test_a_head_costs_no_derived_form(self, npm: World, derived: list[object]) -> None:
        """HEAD has the validators of GET, and a length only where the form is there already."""
        heads = {
            host: npm.get("/big", b"HEAD", Host=host) for host in [f"host{number}.example" for number in range(40)]
        }
        assert derived == []
        for host, head in list(heads.items())[:2]:
            answer = npm.get("/big", Host=host)
            assert (head.status, head.body, head.headers["etag"]) == (200, b"", answer.headers["etag"])
            assert "content-length" not in head.headers
            length = npm.get("/big", b"HEAD", Host=host).headers["content-length"]
            assert int(length) == len(answer.body)
        assert len({head.headers["etag"] for head in heads.values()}) == 40

    @pytest.mark.parametrize("path", ["/big", "/big/1.0.7", "/big/latest", "/-/package/big/dist-tags"])
    @pytest.mark.parametrize("encoding", ["gzip", "identity"])
    def test_a_client_that_has_the_page_costs_no_derived_form(
        self, npm: World, derived: list[object], path: str, encoding: str
    ) -> None:
        """A conditional request ends in 304 without the body, with the etag of HEAD and of GET."""
        for number in range(20):
            asked: Any = {"Host": f"host{number}.example", "Accept_Encoding": encoding}
            etag = npm.get(path, b"HEAD", **asked).headers["etag"]
            for condition in (etag, "*", f'"other", W/{etag}'):
                answer = npm.get(path, If_None_Match=condition, **asked)
                assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
        assert derived == []
        assert npm.get(path, Host="host0.example", Accept_Encoding=encoding).headers["etag"]
        missing = npm.get("/big/9.9.9", If_None_Match="*")
        assert missing.status == 404, "there is nothing of which a client could have a copy"

    def test_a_page_that_ends_early_is_broken_off(self, npm: World) -> None:
        """Where the address is put in while sending, no length tells that the page is incomplete. The end does."""
        for number in range(MOST_OF_CLIENT):
            npm.get("/big", Host=f"host{number}.example")

        def cut_short(body: bytes) -> Iterator[bytes]:
            yield from list(inflated(body))[:-1]

        inflated = pages.inflated  # type: ignore[attr-defined]
        with patch.object(pages, "inflated", cut_short):
            received = npm.ask(b"GET /big HTTP/1.1\r\nHost: new.example\r\nConnection: close\r\n\r\n")
        assert not read_answer(received).whole
        assert any("broken off" in formatEvent(event) for event in npm.logged)
        assert json.loads(content(npm.get("/big", Host="new.example"))) == expected("/big", "new.example")


class TestParts:
    """Versions and dist-tags of a package."""

    def test_parts_are_those_of_the_page(self, npm: World, derived: list[object]) -> None:
        """Each version and tag is the object that the packument has, for any host. None costs a derived form."""
        for number in range(0, 150, 17):
            host = f"host{number}.example"
            version = json.loads(content(npm.get(f"/big/1.0.{number}", Host=host)))
            assert version == expected("/big", host)["versions"][f"1.0.{number}"]
        assert json.loads(content(npm.get("/big/latest")))["version"] == "1.0.1"
        assert derived == []

    @pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
    def test_parts_of_similar_names_are_told_apart(self, npm: World, derived: list[object], order: list[int]) -> None:
        """A version that is called dist-tags, the dist-tags, and what does not exist answer alike in any order."""
        host = "here.example"
        answers: list[tuple[str, Any]] = [
            ("/app/dist-tags", expected("/app", host)["versions"]["dist-tags"]),
            ("/-/package/app/dist-tags", {"latest": "1.0.1"}),
            ("/app/version%20dist-tags", None),
            ("/app/latest", expected("/app", host)["versions"]["1.0.1"]),
        ]
        for _ in range(2):
            for path, body in (answers[number] for number in order):
                answer = npm.get(path)
                assert (answer.status == 404) if body is None else (json.loads(content(answer)) == body)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_dist_tags_of_a_package_without_such_a_version(self, tmp_path: Path, order: tuple[int, int]) -> None:
        """The dist-tags exist for each package, and a version of that name does not: in both orders."""
        plain = PACKUMENTS["/app"].replace(b'"dist-tags": {"name"', b'"9.0.0": {"name"')
        npm = World("npm", tmp_path, lambda _: Transmission(response(200, plain)), lambda _: True)
        paths = ["/app/dist-tags", "/-/package/app/dist-tags"]
        for number in order + order:
            answer = npm.get(paths[number])
            assert answer.status == [404, 200][number]
