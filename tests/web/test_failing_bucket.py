"""Tests of stored files that can't be read from the bucket, on a whole server in memory.

Clients get the files from upstream instead. The bucket is a stub; `tests/end_to_end/test_failing_bucket.py` has a real
one.
"""

from __future__ import annotations

import hashlib
import json
import random
from base64 import b64encode
from pathlib import Path
from unittest.mock import patch

import pytest
from attrs import define, field
from twisted.logger import formatEvent

from mypypi.digests import Digest
from mypypi.errors import StorageDown, StorageRefused
from mypypi.model import StoredFile
from mypypi.storage.bucket_breaker import CONFIRMED_SECONDS, LONGEST_PAUSE
from tests.fuzz.world import UPSTREAM, Answer, Transmission, World
from tests.support.memory import Exchange, response, sha256

BUCKET = "https://bucket.example"
FILES = "https://files.example"
DATA = random.Random(1).randbytes(100_000)  # noqa: S311
SHA512 = hashlib.sha512(DATA)
PYPI, NPM = "pypi", "npm"
REASON = "S3 answered 500 to HeadObject"


@define
class StubBucket:
    """Stands for `S3Bucket`: every object has the same bytes. `failure` is raised instead of an answer."""

    digest: Digest
    failure: StorageDown | None = None
    asked: list[str] = field(factory=list)

    def has(self, key: str) -> bool:
        """See `S3Bucket.has`."""
        self.asked.append(key)
        if self.failure is not None:
            raise self.failure
        return True

    def head(self, key: str) -> StoredFile | None:
        """See `S3Bucket.head`."""
        self.has(key)
        return StoredFile(key, len(DATA), self.digest)

    def link(self, key: str) -> str:
        """See `S3Bucket.link`."""
        return f"{BUCKET}/{key}"

    def check(self) -> None:
        """See `S3Bucket.check`."""


class Slow(Transmission):
    """Sends a few pieces, with pauses that are longer than the time-out for the first byte."""

    def to(self, exchange: Exchange) -> None:
        """Send a piece now, and the rest later."""
        exchange.send(self.data[: self.piece])
        if self.data[self.piece :]:
            exchange._wire.clock.callLater(6, Slow(self.data[self.piece :], self.piece).to, exchange)


class Scene:
    """
    A server in memory whose upstream lists two files. Both are in the bucket.

    `upstream` and `bucket` are the answers to a GET for a file.
    """

    def __init__(self, directory: Path, package_type: str = PYPI, **settings: str) -> None:
        self.upstream = self.bucket = Transmission(response(200, DATA))
        self._npm = package_type == NPM
        self.stub = StubBucket(Digest("sha512", SHA512.hexdigest()) if self._npm else sha256(DATA))
        extra = {
            "MYPYPI_FILE_STORAGE_DRIVER": "s3",
            "MYPYPI_S3_BUCKET": "packages",
            "MYPYPI_S3_ENDPOINT_URL": BUCKET,
            "MYPYPI_CORE_METADATA": "false",  # no metadata is read out of the files, so clients alone read the bucket
            **{f"MYPYPI_{name}": value for name, value in settings.items()},
        }
        with patch("mypypi.storage.s3.S3Bucket", lambda _: self.stub):
            self.world = World(package_type, directory, self._answer, lambda _: True, extra)
        for number in (1, 2):
            self.get(number)
        self.forget_answer()

    def get(self, number: int = 1, method: bytes = b"GET", **headers: str) -> Answer:
        name = self._name(number)
        path = f"/thing/-/{name}" if self._npm else f"/file/{FILES.replace('://', '/')}/{name}"
        return self.world.get(path, method, **headers)

    def page(self) -> str:
        """The page that lists the files."""
        return self.world.get("/thing" if self._npm else "/simple/thing/").body.decode()

    def forget_answer(self) -> None:
        """Let so much time pass that the bucket's last answer does not count any more, and a trial is due."""
        self.world.reactor.advance(max(CONFIRMED_SECONDS, LONGEST_PAUSE))

    def from_bucket(self) -> int:
        """The number of requests that the bucket got by links."""
        return sum(exchange.origin == BUCKET for exchange in self.world.wire.exchanges)

    def lines(self, words: str) -> int:
        """The number of log lines with these words."""
        return sum(words in (formatEvent(event) or "") for event in self.world.logged)

    def _name(self, number: int) -> str:
        return f"thing-{number}.0.0.tgz" if self._npm else f"thing-{number}.0-py3-none-any.whl"

    def _answer(self, exchange: Exchange) -> Transmission:
        if exchange.origin == BUCKET:
            return self.bucket
        if exchange.path == "/simple/thing/":
            listed = [{"filename": name, "url": f"{FILES}/{name}"} for name in map(self._name, (1, 2))]
            files = [{**each, "hashes": {"sha256": sha256(DATA).hex}} for each in listed]
            return _json({"meta": {"api-version": "1.0"}, "name": "thing", "files": files})
        if exchange.path == "/thing":
            integrity = f"sha512-{b64encode(SHA512.digest()).decode()}"
            tarballs = {f"{number}.0.0": f"{UPSTREAM}/thing/-/{self._name(number)}" for number in (1, 2)}
            versions = {
                version: {"name": "thing", "version": version, "dist": {"tarball": url, "integrity": integrity}}
                for version, url in tarballs.items()
            }
            return _json({"name": "thing", "versions": versions})
        return self.upstream


def _json(value: object) -> Transmission:
    return Transmission(response(200, json.dumps(value).encode(), content_type="application/json"))


def assert_whole(answer: Answer, status: int = 200) -> None:
    assert (answer.status, answer.whole, answer.body) == (status, True, DATA)


@pytest.fixture(params=[PYPI, NPM])
def package_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestRedirects:
    """Clients that are redirected to the bucket while it works."""

    def test_clients_get_files_from_upstream_while_the_bucket_fails(self, tmp_path: Path, package_type: str) -> None:
        """
        No client is redirected into a failing bucket: it gets the file from upstream, and the next one from the disk.

        Once the bucket works, other files are redirected there again. The log has one line for each.
        """
        scene = Scene(tmp_path, package_type)
        assert scene.get().status == 302
        scene.forget_answer()
        scene.stub.failure = StorageDown(REASON)
        assert_whole(scene.get())
        assert_whole(scene.get())
        assert scene.lines(f"can't be read, they are fetched from upstream again: {REASON}") == 1
        scene.stub.failure = None
        scene.forget_answer()
        assert scene.get(2).headers["location"].startswith(BUCKET)
        assert scene.lines("can be read again") == 1
        assert_whole(scene.get())  # it waits on the disk for its upload

    def test_part_of_a_file(self, tmp_path: Path) -> None:
        """A client that asks for a part gets that part."""
        scene = Scene(tmp_path)
        scene.stub.failure = StorageDown(REASON)
        answer = scene.get(range="bytes=100-199")
        assert (answer.status, answer.body) == (206, DATA[100:200])

    def test_description_of_a_file(self, tmp_path: Path, package_type: str) -> None:
        """A HEAD is answered from the record, whatever the bucket and upstream do, and so is its condition."""
        scene = Scene(tmp_path, package_type)
        scene.stub.failure, scene.upstream = StorageDown(REASON), Transmission(response(503))
        asked = len(scene.stub.asked)
        answer = scene.get(method=b"HEAD")
        assert (answer.status, answer.headers["content-length"]) == (200, str(len(DATA)))
        assert "hit" in answer.headers["cache-status"]
        assert scene.get(method=b"HEAD", if_none_match=answer.headers["etag"]).status == 304
        assert len(scene.stub.asked) == asked

    def test_strict_mode(self, tmp_path: Path, package_type: str) -> None:
        """In strict mode, clients get the file once it is complete and checked, also where workers fetch cold files."""
        for mode in ("stream", "redirect"):
            scene = Scene(tmp_path / mode, package_type, UPSTREAM_STRICT="true", COLD_FILES=mode)
            scene.stub.failure = StorageDown(REASON)
            assert_whole(scene.get())

    def test_redirects_of_cold_files(self, tmp_path: Path) -> None:
        """With MYPYPI_COLD_FILES=redirect, clients are redirected to upstream."""
        scene = Scene(tmp_path, COLD_FILES="redirect")
        scene.stub.failure = StorageDown(REASON)
        assert scene.get().headers["location"].startswith(FILES)

    def test_missing_credentials(self, tmp_path: Path) -> None:
        """A bucket that can't be used at all is named, with what to do."""
        scene = Scene(tmp_path)
        scene.stub.failure = StorageDown("S3 can't be used without credentials: set MYPYPI_S3_ACCESS_KEY")
        scene.upstream = Transmission(response(404))
        assert b"set MYPYPI_S3_ACCESS_KEY" in scene.get().body


class TestBothFail:
    """The bucket can't be read, and upstream can't give the file either."""

    @pytest.mark.parametrize("serve", ["redirect", "proxy"])
    @pytest.mark.parametrize(
        ("status", "reason"),
        [(500, "upstream answered 500"), (404, "upstream does not have this"), (403, "upstream forbids access")],
    )
    def test_both_reasons_are_given(
        self, tmp_path: Path, package_type: str, serve: str, status: int, reason: str
    ) -> None:
        """
        The client gets a 503 with the reasons of S3 and of upstream, and a time for its next try.

        The file is stored, so it is not answered with 404, and its page goes on listing it.
        """
        scene = Scene(tmp_path, package_type, S3_SERVE=serve)
        scene.upstream = Transmission(response(status))
        scene.stub.failure = StorageDown(REASON)
        scene.bucket = Transmission(response(500))
        answer = scene.get()
        error = json.loads(answer.body)["error"]
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert error.startswith("the stored file can't be read: S3 answered 500")
        assert f"; and upstream can't give it: {reason}" in error
        assert "thing-1.0" in scene.page()

    def test_wrong_bytes_from_upstream(self, tmp_path: Path) -> None:
        """Upstream's bytes that are not the stored ones break the transfer. The page goes on listing the file."""
        scene = Scene(tmp_path)
        scene.stub.failure = StorageDown(REASON)
        scene.upstream = Transmission(response(200, DATA[::-1]))
        assert not scene.get().whole
        assert "thing-1.0" in scene.page()
        scene.stub.failure = None
        scene.forget_answer()
        assert scene.get().status == 302


#: What the bucket sends in place of a file before its first byte, and what is said of it.
NO_BYTE = {
    "500": (Transmission(response(500)), "S3 answered 500"),
    "503": (Transmission(response(503, retry_after="60")), "S3 answered 503"),
    "403": (Transmission(response(403)), "S3 answered 403"),
    "hangs": (Transmission(b""), "S3 did not answer within 3 seconds"),
    "closes": (Transmission(b"", cut=True), "S3 can't be reached"),
    "hangs after its head": (
        Transmission(response(200, b"", content_length=str(len(DATA)))),
        "no byte of the file came",
    ),
    "closes after its head": (
        Transmission(response(200, b"", content_length=str(len(DATA))), cut=True),
        "the connection that the file came from was closed",
    ),
}


class TestThroughTheServer:
    """Clients that get files from the bucket through the server (MYPYPI_S3_SERVE=proxy)."""

    @pytest.mark.parametrize("fault", NO_BYTE)
    def test_clients_get_files_from_upstream_if_no_byte_comes(
        self, tmp_path: Path, package_type: str, fault: str
    ) -> None:
        """
        A read that fails before its first byte is answered from upstream within seconds, for the whole file and a part.

        The next files are not read from the bucket until a trial is due.
        """
        scene = Scene(tmp_path, package_type, S3_SERVE="proxy")
        good, (scene.bucket, reason) = scene.bucket, NO_BYTE[fault]
        if fault == "403":
            scene.stub.failure = StorageRefused("S3 answered 403 to HeadObject")
        before, began = scene.from_bucket(), scene.world.reactor.seconds()
        answer = scene.get(range="bytes=100-199")
        assert (answer.status, answer.body, answer.headers["content-length"]) == (206, DATA[100:200], "100")
        assert scene.world.reactor.seconds() - began < 5
        assert_whole(scene.get(2))
        assert before < scene.from_bucket() <= before + 2  # a closed connection is tried once more
        assert scene.lines(f"can't be read, they are fetched from upstream again: {reason}") == 1
        scene.bucket, scene.stub.failure = good, None
        scene.forget_answer()

    def test_bytes_come_from_the_bucket_again(self, tmp_path: Path) -> None:
        """Once the bucket works again, the next read is the trial, and the following ones succeed."""
        scene = Scene(tmp_path, S3_SERVE="proxy")
        good, scene.bucket = scene.bucket, Transmission(response(500))
        assert_whole(scene.get(1))
        scene.bucket = good
        scene.forget_answer()
        before = scene.from_bucket()
        for _ in range(2):
            assert_whole(scene.get(2))
        assert scene.from_bucket() == before + 2
        assert (scene.lines("fetched from upstream again"), scene.lines("can be read again")) == (1, 1)

    def test_transfer_that_breaks_in_the_middle(self, tmp_path: Path) -> None:
        """A transfer that breaks or stops after its first bytes is broken for the client. Then nothing else is sent."""
        scene = Scene(tmp_path, S3_SERVE="proxy")
        for cut in (True, False):
            scene.bucket = Transmission(response(200, DATA)[:30_000], cut=cut)
            answer = scene.get()
            assert (answer.status, answer.whole) == (200, False)
            assert DATA.startswith(answer.body)

    def test_silence_in_a_body_is_borne_for_longer_than_before_it(self, tmp_path: Path) -> None:
        """Without a lowest rate, a body that goes on slowly is not broken off."""
        scene = Scene(tmp_path, S3_SERVE="proxy", UPSTREAM_MIN_RATE="0")
        scene.bucket = Slow(response(200, DATA), piece=len(DATA) // 5 + 1)
        began = scene.world.reactor.seconds()
        assert_whole(scene.get())
        assert scene.world.reactor.seconds() - began > 20

    def test_missing_object(self, tmp_path: Path) -> None:
        """A missing object is forgotten, and its file fetched again in the same response. The breaker stays closed."""
        scene = Scene(tmp_path, S3_SERVE="proxy")
        good, scene.bucket = scene.bucket, Transmission(response(404))
        assert_whole(scene.get())
        scene.bucket = good
        before = scene.from_bucket()
        assert_whole(scene.get(2))
        assert scene.from_bucket() == before + 1
        assert scene.lines("is missing in S3") == 1
        assert scene.lines("can't be read") == 0
