"""Finds, links, uploads and deletes package files in an S3 bucket.

This module alone imports boto3. Everything here blocks and is called in threads. Knows keys, objects and links. Must
never know packages, pages, requests, or why a file is uploaded.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from attrs import field, frozen
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected

from mypypi.descriptors import NONE_LEFT, is_shortage
from mypypi.digests import Digest
from mypypi.errors import OutOfDescriptors, StorageDown, StorageRefused, TemporarilyUnavailable
from mypypi.model import StoredFile
from mypypi.storage.s3_upload import DIGEST_METADATA, PART_BYTES, S3Uploader, error_code
from mypypi.tls import explain_chain

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings

#: Time limit for connecting, in seconds.
_CONNECT_SECONDS = 3
#: Seconds without a byte of the answer, and number of tries, for a request that a client or a health check waits for.
#: boto3 would repeat a request that timed out as well, which would double the time.
_ASK_SECONDS, _ASK_TRIES = 3, 1
#: The same for an upload.
_UPLOAD_SECONDS, _UPLOAD_TRIES = 30, 3
#: Seconds within which a failure is fast. Such a look-up is tried once more: S3 answers 500 or 503 now and then, and
#: may close a connection that was kept open.
_FAST = 1.0
#: Error codes for a missing object, and for one that is missing or forbidden: to an account without permission to list
#: the bucket, S3 answers 403 for a missing object.
_MISSING = ("404", "NoSuchKey", "NotFound")
_REFUSED = ("403", "AccessDenied", "Forbidden")
_SERVER_ERROR = 500
#: The longest name of an object, in bytes.
_MAX_NAME = 1024


@frozen
class BucketSettings:
    """The address of a bucket, the credentials for it, and the kind of its links."""

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
        """Return the bucket's part of all settings."""
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
    One bucket, below one prefix.

    Every method blocks, and raises StorageDown for boto3's errors. Files above `part_bytes` are uploaded in parts of
    that size.
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
        """Return the client with these limits. It is created at first use: that takes 0.25 s of processor time."""
        with self._lock:
            if seconds not in self._clients:
                self._clients[seconds] = self._connect(seconds, tries)
            return self._clients[seconds]

    def reload(self) -> None:
        """
        Read again, for new requests, the files that boto3 takes credentials and trusted certificates from.

        Raises StorageDown if there are no credentials in them; then nothing changes.
        """
        try:
            session = boto3.session.Session()
            found = self._settings.access_key is not None or session.get_credentials() is not None
        except BotoCoreError as error:
            raise StorageDown(f"the credentials for S3 can't be read: {error}") from error
        if not found:
            raise StorageDown("the credentials for S3 can't be read: boto3 finds none, see MYPYPI_S3_ACCESS_KEY")
        with self._lock:
            self._session, self._clients = session, {}

    def _connect(self, seconds: int, tries: int) -> Any:
        settings = self._settings
        # Over TLS, and with a checksum, a signature of the content would only make boto3 read the file once more.
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
        Return the file stored under this key, or None.

        Its digest comes from the object's metadata. Some providers do not keep metadata. Then it is the MD5, if the
        provider gives one as the ETag; most do so for objects that were uploaded in one piece.

        Raises StorageRefused if the object is missing or forbidden.
        """
        found = self._ask(key)
        digest = _digest_of(found)
        return None if digest is None else StoredFile(key, int(found["ContentLength"]), digest)

    def has(self, key: str) -> bool:
        """Whether there is an object under this key. Raises StorageRefused if it is missing or forbidden."""
        return bool(self._ask(key))

    def _ask(self, key: str) -> dict[str, Any]:
        """Return S3's description of an object, for a caller who waits; empty if it is missing."""
        began = time.monotonic()
        try:
            try:
                return self._head(self._asking, key, _MISSING)
            except (ClientError, ConnectionClosedError) as error:
                if not _may_pass(error) or time.monotonic() - began > _FAST:
                    raise
                return self._head(self._asking, key, _MISSING)
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error

    def _head(self, client: Any, key: str, missing: tuple[str, ...]) -> dict[str, Any]:
        """Return S3's description of an object; empty if S3 answers with one of the error codes in `missing`."""
        try:
            found: dict[str, Any] = client.head_object(**self._target(key))
        except ClientError as error:
            if error_code(error) in missing:
                return {}
            raise
        return found

    def upload(self, path: Path, key: str, digest: Digest, cancelled: Event) -> StoredFile:
        """
        Upload a complete, verified file. Setting `cancelled` ends the upload.

        A large file is not uploaded again if the bucket has it, for instance because the same job runs twice. For a
        small file, that check would cost as much as the upload.

        Raises UploadCancelled, StorageDown, and OSError for the file.
        """
        size = path.stat().st_size
        stored = StoredFile(key, size, digest)
        try:
            if size <= self._uploader.part_bytes or not self._is_there(stored):
                self._uploader.upload(self._uploading, self._target(key), path, key, digest, cancelled)
            there = self._head(self._uploading, key, _MISSING + _REFUSED)
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error
        if there.get("ContentLength") != size:
            raise StorageDown("the bucket does not have the complete file after its upload")
        return stored

    def _is_there(self, stored: StoredFile) -> bool:
        """Whether the bucket has this file already. One that is refused is uploaded."""
        with suppress(StorageRefused):
            return self.head(stored.key) == stored
        return False

    def link(self, key: str) -> str:
        """
        Return a URL from which any client gets the object.

        It is signed, and expires after `link_seconds`; for a public bucket it is not signed.

        Raises StorageDown if there are no credentials to sign with.
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
        """Delete the object, if there is one."""
        try:
            self._asking.delete_object(**self._target(key))
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error

    def check(self) -> None:
        """Raise StorageDown, with the reason, if the bucket does not answer."""
        try:
            self._asking.head_bucket(Bucket=self._settings.name)
        except (ClientError, BotoCoreError) as error:
            raise _down(error) from error

    def keys(self) -> set[str]:
        """Return the keys of all objects below the prefix."""
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


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed at once: S3 failed, or closed a connection that was kept open."""
    if not isinstance(error, ClientError):
        return True
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= _SERVER_ERROR


def _down(error: Exception) -> TemporarilyUnavailable:
    """Convert boto3's error. S3's own message is left out: for a refused signature, it contains the access key."""
    if is_shortage(error):
        return OutOfDescriptors(f"S3 can't be asked: {NONE_LEFT}; try again")
    if isinstance(error, ClientError):
        kind = StorageRefused if error_code(error) in _REFUSED else StorageDown
        return kind(f"S3 answered {error_code(error) or 'with an error'} to {error.operation_name}")
    name = type(error).__name__
    if isinstance(error, (NotConnected, HTTPClientError)):
        why = explain_chain(error, urlsplit(str(error.kwargs.get("endpoint_url", ""))).hostname or "S3")
        return StorageDown(f"S3 can't be reached: {why or name}")
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return StorageDown(
            "S3 can't be used without credentials: set MYPYPI_S3_ACCESS_KEY and MYPYPI_S3_SECRET_KEY, or give boto3 "
            f"others, such as an instance role or a profile ({name})"
        )
    return StorageDown(f"S3 can't be used: {name}")
