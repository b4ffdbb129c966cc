"""Tests of files that upstream lists, and that clients must not get: wrong ones, and those of inner addresses."""

from __future__ import annotations

import hashlib
import json
import random
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from mypypi.files.content import HELD_WHOLE
from tests.fuzz.world import UPSTREAM, Answer, Transmission, World
from tests.support.memory import Exchange, response, sha256

_BYTES = random.Random(3).randbytes(2 * HELD_WHOLE)  # noqa: S311
INNER = "http://2130706441:81"


class Server:
    """A server in memory, of a project with one file of `data` at `host`, for which upstream sends `sent`."""

    def __init__(
        self, directory: Path, package_type: str = "pypi", *, data: bytes = b"", host: str = UPSTREAM, **settings: str
    ) -> None:
        name = "thing-1.0.0-py3-none-any.whl" if package_type == "pypi" else "thing-1.0.0.tgz"
        url = f"{host}/{name}" if package_type == "pypi" else f"{host}/thing/-/{name}"
        self.path = f"/file/{url.replace('://', '/')}" if package_type == "pypi" else f"/thing/-/{name}"
        self.sent = response(200, data)
        listed = {"filename": name, "url": url, "hashes": {"sha256": sha256(data).hex}, "size": len(data)}
        simple = {"meta": {"api-version": "1.0"}, "name": "thing", "files": [listed]}
        integrity = f"sha512-{b64encode(hashlib.sha512(data).digest()).decode()}"
        version = {"name": "thing", "version": "1.0.0", "dist": {"tarball": url, "integrity": integrity}}
        packument = {"name": "thing", "versions": {"1.0.0": version}}
        self._page = json.dumps(simple if package_type == "pypi" else packument).encode()
        texts = {f"MYPYPI_{key}": text for key, text in settings.items()}
        self.world = World(package_type, directory, self._answer, lambda _: True, texts)
        self.world.get("/simple/thing/" if package_type == "pypi" else "/thing")

    def _answer(self, exchange: Exchange) -> Transmission:
        if exchange.path in ("/simple/thing/", "/thing"):
            return Transmission(response(200, self._page, content_type="application/json"))
        return Transmission(self.sent, piece=8192, cut=True)

    def get(self, **headers: Any) -> Answer:
        return self.world.get(self.path, **headers)


def _wrong(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.fixture(params=["pypi", "npm"])
def package_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestSmallFile:
    """A file of up to 64 KiB is sent once its digest agreed."""

    @pytest.mark.parametrize("headers", [{}, {"range": "bytes=0-99"}, {"if_range": '"x"'}])
    @pytest.mark.parametrize("announced", [True, False])
    @pytest.mark.parametrize("size", [1, 5000, HELD_WHOLE])
    def test_wrong_one_is_an_error(
        self,
        tmp_path: Path,
        package_type: str,
        size: int,
        announced: bool,  # noqa: FBT001 - pytest's parameter
        headers: dict[str, str],
    ) -> None:
        """The client of a wrong file gets a 502 that says so, and no byte of the file."""
        data = _BYTES[:size]
        server = Server(tmp_path, package_type, data=data)
        server.sent = response(200, _wrong(data), **({} if announced else {"content_length": ""}))
        answer = server.get(**headers)
        assert (answer.status, answer.whole) == (502, True)
        assert "do not match the index's digest" in json.loads(answer.body)["error"]
        assert (answer.headers["cache-control"], "etag" in answer.headers) == ("no-store", False)

    @pytest.mark.parametrize("announced", [True, False])
    def test_right_one_is_sent(
        self,
        tmp_path: Path,
        package_type: str,
        announced: bool,  # noqa: FBT001 - pytest's parameter
    ) -> None:
        """The client of a right file gets it with the first request, and its length."""
        data = _BYTES[:HELD_WHOLE]
        server = Server(tmp_path, package_type, data=data)
        server.sent = response(200, data, **({} if announced else {"content_length": ""}))
        answer = server.get()
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, data, str(len(data)))

    def test_longer_one_breaks_off(self, tmp_path: Path, package_type: str) -> None:
        """A longer file is sent while it arrives, up to its last bytes. These are not sent if it is wrong."""
        server = Server(tmp_path, package_type, data=_BYTES)
        server.sent = response(200, _wrong(_BYTES))
        answer = server.get()
        assert (answer.status, answer.whole) == (200, False)
        assert 0 < len(answer.body) < len(_BYTES)

    @pytest.mark.parametrize("announced", [True, False])
    def test_file_that_is_passed_through(
        self,
        tmp_path: Path,
        announced: bool,  # noqa: FBT001 - pytest's parameter
    ) -> None:
        """
        A small file that is not kept, since no draft can be written, is checked first as well.

        Without a length, it may only have been cut off.
        """
        data = _BYTES[:HELD_WHOLE]
        server = Server(tmp_path, data=data)
        (tmp_path / "drafts").write_bytes(b"")
        for sent, status in ((_wrong(data), 502 if announced else 503), (data, 200)):
            server.sent = response(200, sent, **({} if announced else {"content_length": ""}))
            answer = server.get()
            assert (answer.status, answer.whole) == (status, True)
            assert (answer.body == data) == (status == 200)


class TestInnerAddress:
    """A file that a page lists at an inner address."""

    def test_clients_are_not_redirected_there(self, tmp_path: Path) -> None:
        """A client that would be redirected to upstream gets a 502 with the reason instead."""
        server = Server(tmp_path, data=b"wheel", host=INNER, COLD_FILES="redirect")
        answer = server.get()
        assert (answer.status, "location" in answer.headers) == (502, False)
        assert "a loopback address, which is not connected to" in json.loads(answer.body)["error"]

    @pytest.mark.parametrize(
        ("host", "settings"),
        [
            (INNER, {"UPSTREAM_TRUST": "127.0.0.0/8"}),
            ("https://files.example", {}),
        ],
        ids=["trusted", "public"],
    )
    def test_clients_are_redirected_elsewhere(self, tmp_path: Path, host: str, settings: dict[str, str]) -> None:
        """A client is redirected to a trusted address, and to a public one."""
        server = Server(tmp_path, data=b"wheel", host=host, COLD_FILES="redirect", **settings)
        answer = server.get()
        assert (answer.status, answer.headers["location"].startswith(host)) == (302, True)
