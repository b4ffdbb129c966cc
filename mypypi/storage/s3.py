"""Package files in a bucket: the only importer of boto3.

Knows keys, objects and links. What it does takes long and blocks: it is called in threads. Must never know packages,
pages, requests, or why something is uploaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import boto3
from attrs import field, frozen
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mypypi.errors import StorageDown
from mypypi.model import Digest, StoredFile
from mypypi.storage.s3_upload import Interrupt, Section, Stopped

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings

#: A larger file is uploaded in parts of this size (bytes). S3 takes ten thousand of them.
_PART = 16 * 1024 * 1024
_CONNECT_SECONDS = 3
#: Seconds without a byte of an answer: where a client or a health check waits for it, and for an upload.
_ASK_SECONDS, _ASK_TRIES = 4, 2
_UPLOAD_SECONDS, _UPLOAD_TRIES = 30, 3
_FOREVER = "public, max-age=31536000, immutable"
#: Who may not list a bucket gets 403 for what is not there.
_GONE = ("404", "NoSuchKey", "NotFound", "403", "AccessDenied", "Forbidden")
#: What providers without checksums say; that a checksum does not fit is another matter.
_UNKNOWN = ("NotImplemented", "InvalidRequest", "InvalidArgument")
_DIGEST = "digest"
#: The longest name of an object, in bytes.
_MAX_NAME = 1024


@frozen
class BucketSettings:
    """How a bucket is reached."""

    name: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    public: bool = False
    link_seconds: int = 600

    @classmethod
    def of(cls, settings: Settings) -> BucketSettings:
        """As the settings say."""
        access, secret = settings.s3_access_key, settings.s3_secret_key
        return cls(
            settings.s3_bucket or "",
            settings.s3_prefix,
            settings.s3_endpoint_url,
            settings.s3_region,
            access.reveal() if access is not None else None,
            secret.reveal() if secret is not None else None,
            settings.s3_public,
            settings.s3_key_ttl,
        )


class Bucket:
    """
    One bucket, below one prefix. Every method blocks; errors of the provider are raised as StorageDown.

    A file that is larger than `part` bytes is uploaded in parts of that size.
    """

    def __init__(self, settings: BucketSettings, *, part: int = _PART) -> None:
        self._settings = settings
        self._part = part
        self._checksums = True
        self._lock = Lock()
        self._session: Any = None
        self._clients: dict[int, Any] = {}

    @property
    def _asking(self) -> Any:
        return self._client(_ASK_SECONDS, _ASK_TRIES)

    @property
    def _uploading(self) -> Any:
        return self._client(_UPLOAD_SECONDS, _UPLOAD_TRIES)

    def _client(self, seconds: int, tries: int) -> Any:
        """Made when it is needed first: it takes a quarter of a second of processor time."""
        with self._lock:
            if seconds not in self._clients:
                self._clients[seconds] = self._connect(seconds, tries)
            return self._clients[seconds]

    def _connect(self, seconds: int, tries: int) -> Any:
        settings = self._settings
        # Over TLS, and with a checksum, a signature of the content adds nothing but a second reading of it.
        plain = (settings.endpoint_url or "").startswith("http:")
        self._session = self._session or boto3.session.Session()
        return self._session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            config=Config(
                signature_version="s3v4",
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=seconds,
                retries={"mode": "standard", "total_max_attempts": tries},
                max_pool_connections=64,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if settings.endpoint_url else "auto", "payload_signing_enabled": plain},
            ),
        )

    def head(self, key: str) -> StoredFile | None:
        """
        What is stored under this key; None for nothing.

        Its digest is the one noted at the upload; where a provider does not keep notes, the MD5 that most give as the
        ETag of what was uploaded in one piece.
        """
        try:
            found = self._head(self._asking, key)
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error
        digest = _digest_of(found)
        return None if digest is None else StoredFile(key, int(found["ContentLength"]), digest)

    def _head(self, client: Any, key: str) -> dict[str, Any]:
        """What S3 says of an object; nothing where there is none."""
        try:
            found: dict[str, Any] = client.head_object(**self._target(key))
        except ClientError as error:
            if _code(error) in _GONE:
                return {}
            raise
        return found

    def upload(self, path: Path, key: str, digest: Digest, stopped: Event) -> StoredFile:
        """
        Put a whole, checked file there. `stopped` ends it.

        A large one is not sent again where it is there already, as when a job is done twice; to ask that of a small
        one costs as much as to send it. Raises Stopped, StorageDown, and OSError for the file.
        """
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                if size <= self._part:
                    whole = Section(file, 0, size, stopped)
                    self._check_in(lambda checksums: self._put(whole, key, digest, checksums=checksums))
                elif self.head(key) != StoredFile(key, size, digest):
                    self._abandon_parts(key)
                    parts = [
                        Section(file, start, min(self._part, size - start), stopped)
                        for start in range(0, size, self._part)
                    ]
                    self._check_in(lambda checksums: self._put_parts(parts, key, digest, checksums=checksums))
            there = self._head(self._uploading, key)
        except Interrupt:
            raise Stopped from None
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error
        if there.get("ContentLength") != size:
            raise StorageDown("the bucket does not hold what was uploaded")
        return StoredFile(key, size, digest)

    def _check_in(self, put: Callable[[bool], None]) -> None:
        """Upload with checksums, unless the provider does not know them."""
        checksums = self._checksums
        try:
            put(checksums)
        except ClientError as error:
            if not checksums or _code(error) not in _UNKNOWN:
                raise
            put(False)
            self._checksums = False  # it did matter

    def _put(self, whole: Section, key: str, digest: Digest, *, checksums: bool) -> None:
        checksum: dict[str, str] = {}
        if checksums and digest.algorithm == "sha256":
            checksum = _checksum(bytes.fromhex(digest.hex))
        elif checksums:
            checksum = _checksum(whole.sha256())
        whole.seek(0)
        self._uploading.put_object(
            **self._target(key), Body=whole, ContentLength=whole.length, **_described(key, digest), **checksum
        )

    def _put_parts(self, parts: list[Section], key: str, digest: Digest, *, checksums: bool) -> None:
        client, target = self._uploading, self._target(key)
        algorithm = {"ChecksumAlgorithm": "SHA256"} if checksums else {}
        target["UploadId"] = client.create_multipart_upload(**target, **_described(key, digest), **algorithm)[
            "UploadId"
        ]
        try:
            sent = []
            for number, part in enumerate(parts, 1):
                part.seek(0)
                checksum = _checksum(part.sha256()) if checksums else {}
                answer = client.upload_part(
                    **target, PartNumber=number, Body=part, ContentLength=part.length, **checksum
                )
                sent.append({"PartNumber": number, "ETag": answer["ETag"], **checksum})
            client.complete_multipart_upload(**target, MultipartUpload={"Parts": sent})
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # then whoever does it again takes them back
                client.abort_multipart_upload(**target)
            raise

    def _abandon_parts(self, key: str) -> None:
        """Take back the parts that an upload left behind whose process was killed. Where that is not known, nothing."""
        target = self._target(key)
        with suppress(ClientError):
            found = self._uploading.list_multipart_uploads(Bucket=target["Bucket"], Prefix=target["Key"])
            for upload in found.get("Uploads", ()):
                if upload["Key"] == target["Key"]:
                    self._uploading.abort_multipart_upload(**target, UploadId=upload["UploadId"])

    def link(self, key: str) -> str:
        """
        An address at which anybody gets the object: signed for `link_seconds`, or plain where it is public.

        Raises StorageDown where there are no credentials to sign with.
        """
        settings = self._settings
        try:
            url = self._asking.generate_presigned_url(
                "get_object", Params=self._target(key), ExpiresIn=settings.link_seconds
            )
        except BotoCoreError as error:
            raise _down(error) from error
        return str(url).partition("?")[0] if settings.public else str(url)

    def delete(self, key: str) -> None:
        """Nothing happens where there is nothing."""
        try:
            self._asking.delete_object(**self._target(key))
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error

    def check(self) -> None:
        """Raises StorageDown with a reason when the bucket does not answer."""
        try:
            self._asking.head_bucket(Bucket=self._settings.name)
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error

    def keys(self) -> set[str]:
        """The keys of all objects there."""
        prefix = self._name("")
        found: set[str] = set()
        try:
            for page in self._uploading.get_paginator("list_objects_v2").paginate(
                Bucket=self._settings.name, Prefix=prefix
            ):
                found.update(item["Key"].removeprefix(prefix) for item in page.get("Contents", ()))
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error
        return found

    def _target(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._settings.name, "Key": self._name(key)}

    def _name(self, key: str) -> str:
        name = f"{self._settings.prefix}/{key}" if self._settings.prefix else key
        if len(name) <= _MAX_NAME:
            return name
        short = hashlib.sha256(name.encode()).hexdigest()
        return f"{name[: _MAX_NAME - len(short) - 1]}.{short}"


def _described(key: str, digest: Digest) -> dict[str, Any]:
    """What S3 tells those who get the object."""
    filename = unquote(key.rpartition("/")[2]).partition("?")[0]
    return {
        "ContentType": "application/octet-stream",
        "CacheControl": _FOREVER,
        "ContentDisposition": f"attachment; filename*=UTF-8''{quote(filename)}",
        "Metadata": {_DIGEST: str(digest)},
    }


def _checksum(sha256: bytes) -> dict[str, str]:
    """What S3 checks what it gets against: for a small file, the index's own digest where that is one."""
    return {"ChecksumSHA256": base64.b64encode(sha256).decode()}


def _digest_of(found: dict[str, Any]) -> Digest | None:
    try:
        return Digest.parse(found.get("Metadata", {}).get(_DIGEST, ""))
    except ValueError:
        return Digest.strongest({"md5": found.get("ETag", "").strip('"')})


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _down(error: Exception) -> StorageDown:
    """In a few words; what S3 says of a refused signature would hold the access key."""
    if isinstance(error, ClientError):
        return StorageDown(f"S3 answered {_code(error) or 'with an error'} to {error.operation_name}")
    return StorageDown(f"S3 can't be reached: {type(error).__name__}")
