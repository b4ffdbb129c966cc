"""Package files in an S3 bucket: what is there, links to it, and putting files there. The importer of boto3.

Knows keys, objects and links. Everything here blocks and is called in threads. Must never know packages, pages,
requests, or why a file is uploaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import boto3
from attrs import field, frozen
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mypypi.errors import StorageDown
from mypypi.model import Digest, StoredFile
from mypypi.storage.s3_upload import DIGEST_METADATA, PART_BYTES, S3Uploader, error_code

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings

_CONNECT_SECONDS = 3
#: Seconds without a byte of an answer, and tries: where a client or a health check waits, and for an upload.
_ASK_SECONDS, _ASK_TRIES = 4, 2
_UPLOAD_SECONDS, _UPLOAD_TRIES = 30, 3
#: Error codes for a missing object. Without the permission to list the bucket, S3 answers 403 for one.
_MISSING = ("404", "NoSuchKey", "NotFound", "403", "AccessDenied", "Forbidden")
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


class S3Bucket:
    """
    One bucket, below one prefix. Every method blocks; errors of the provider are raised as StorageDown.

    Files above `part_bytes` are uploaded in parts of that size.
    """

    def __init__(self, settings: BucketSettings, *, part_bytes: int = PART_BYTES) -> None:
        self._settings = settings
        self._uploader = S3Uploader(part_bytes)
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
            if error_code(error) in _MISSING:
                return {}
            raise
        return found

    def upload(self, path: Path, key: str, digest: Digest, cancelled: Event) -> StoredFile:
        """
        Put a whole, checked file into the bucket. Setting `cancelled` ends the upload.

        A large file is not sent again where it is there already, as when a job is done twice. For a small one the
        question would cost as much as the upload. Raises UploadCancelled, StorageDown, and OSError for the file.
        """
        size = path.stat().st_size
        stored = StoredFile(key, size, digest)
        try:
            if size <= self._uploader.part_bytes or self.head(key) != stored:
                self._uploader.upload(self._uploading, self._target(key), path, key, digest, cancelled)
            there = self._head(self._uploading, key)
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error
        if there.get("ContentLength") != size:
            raise StorageDown("the bucket does not hold what was uploaded")
        return stored

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


def _digest_of(found: dict[str, Any]) -> Digest | None:
    try:
        return Digest.parse(found.get("Metadata", {}).get(DIGEST_METADATA, ""))
    except ValueError:
        return Digest.strongest({"md5": found.get("ETag", "").strip('"')})


def _down(error: Exception) -> StorageDown:
    """In a few words; what S3 says of a refused signature would hold the access key."""
    if isinstance(error, ClientError):
        return StorageDown(f"S3 answered {error_code(error) or 'with an error'} to {error.operation_name}")
    return StorageDown(f"S3 can't be reached: {type(error).__name__}")
