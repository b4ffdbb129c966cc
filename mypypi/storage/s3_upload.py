"""Uploads one file to S3, in one piece or in parts. With checksums, if the provider supports them.

Knows boto3's client and its errors. Everything here blocks and is called in threads. Must never know which bucket, or
why a file is uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from attrs import define, frozen
from botocore.exceptions import BotoCoreError, ClientError

from mypypi.digests import Digest

#: A larger file is uploaded in parts of this size (bytes). S3 takes ten thousand parts.
PART_BYTES = 16 * 1024 * 1024
_BLOCK = 1 << 20
_IMMUTABLE = "public, max-age=31536000, immutable"
#: Error codes of providers that do not support checksums. A checksum that does not match has another code.
_UNKNOWN = ("NotImplemented", "InvalidRequest", "InvalidArgument")
#: The name under which the digest is kept in an object's metadata.
DIGEST_METADATA = "digest"


#: Named arguments of boto3's methods.
Fields = dict[str, Any]


class UploadCancelled(Exception):
    """The upload was cancelled, and its parts were removed."""


class _Interrupt(BaseException):
    """Ends an upload from within: boto3 takes every Exception for a broken connection, and tries again."""


@frozen
class FileSlice:
    """A file-like part of a file: `length` bytes from `start`. Once `cancelled` is set, reading ends the upload."""

    file: BinaryIO
    start: int
    length: int
    cancelled: Event

    def read(self, size: int | None = -1) -> bytes:
        """Read like a file object."""
        if self.cancelled.is_set():
            raise _Interrupt
        left = self.length - self.tell()
        return self.file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek like a file object, relative to the slice."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.length}[whence]
        return self.file.seek(self.start + base + offset) - self.start

    def tell(self) -> int:
        """Return the position in the slice."""
        return self.file.tell() - self.start

    def sha256(self) -> bytes:
        """The SHA-256 of the slice, which is at its start again afterwards."""
        hasher = hashlib.sha256()
        self.seek(0)
        while block := self.read(_BLOCK):
            hasher.update(block)
        self.seek(0)
        return hasher.digest()


@define
class S3Uploader:
    """
    Uploads files to a provider of S3. Files above `part_bytes` are uploaded in parts of that size.

    `checksums` turns false once the provider has refused a checksum and accepted the same upload without.
    """

    part_bytes: int = PART_BYTES
    checksums: bool = True

    def upload(self, client: Any, target: Fields, path: Path, key: str, digest: Digest, cancelled: Event) -> None:
        """
        Upload a complete, verified file to `target` (Bucket and Key).

        `key` is its storage key, from which its file name is derived. Setting `cancelled` ends the upload.

        Raises UploadCancelled, boto3's errors, and OSError for the file.
        """
        size = path.stat().st_size
        headers = _headers(key, digest)
        try:
            with path.open("rb") as file:
                if size <= self.part_bytes:
                    whole = FileSlice(file, 0, size, cancelled)
                    self._with_checksums(
                        lambda sums: _put_whole(client, target, headers, whole, digest, checksums=sums)
                    )
                else:
                    _remove_abandoned_parts(client, target)
                    parts = [
                        FileSlice(file, start, min(self.part_bytes, size - start), cancelled)
                        for start in range(0, size, self.part_bytes)
                    ]
                    self._with_checksums(lambda sums: _put_parts(client, target, headers, parts, checksums=sums))
        except _Interrupt:
            raise UploadCancelled from None

    def _with_checksums(self, put: Any) -> None:
        """Upload with checksums; without them if the provider does not support them."""
        checksums = self.checksums
        try:
            put(checksums)
        except ClientError as error:
            if not checksums or error_code(error) not in _UNKNOWN:
                raise
            put(False)
            self.checksums = False


def error_code(error: ClientError) -> str:
    """The code of an S3 error, such as ``NoSuchKey``; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _put_whole(
    client: Any, target: Fields, headers: Fields, whole: FileSlice, digest: Digest, *, checksums: bool
) -> None:
    checksum: dict[str, str] = {}
    if checksums and digest.algorithm == "sha256":
        checksum = _checksum(bytes.fromhex(digest.hex))
    elif checksums:
        checksum = _checksum(whole.sha256())
    whole.seek(0)
    client.put_object(**target, Body=whole, ContentLength=whole.length, **headers, **checksum)


def _put_parts(client: Any, target: Fields, headers: Fields, parts: list[FileSlice], *, checksums: bool) -> None:
    algorithm = {"ChecksumAlgorithm": "SHA256"} if checksums else {}
    upload_id = client.create_multipart_upload(**target, **headers, **algorithm)["UploadId"]
    target = {**target, "UploadId": upload_id}
    try:
        sent = []
        for number, part in enumerate(parts, 1):
            part.seek(0)
            checksum = _checksum(part.sha256()) if checksums else {}
            answer = client.upload_part(**target, PartNumber=number, Body=part, ContentLength=part.length, **checksum)
            sent.append({"PartNumber": number, "ETag": answer["ETag"], **checksum})
        client.complete_multipart_upload(**target, MultipartUpload={"Parts": sent})
    except BaseException:
        with suppress(ClientError, BotoCoreError):  # the next upload of this key removes the parts
            client.abort_multipart_upload(**target)
        raise


def _remove_abandoned_parts(client: Any, target: Fields) -> None:
    """Remove the parts that a killed process left behind. A provider that can't list them is left alone."""
    with suppress(ClientError):
        found = client.list_multipart_uploads(Bucket=target["Bucket"], Prefix=target["Key"])
        for upload in found.get("Uploads", ()):
            if upload["Key"] == target["Key"]:
                client.abort_multipart_upload(**target, UploadId=upload["UploadId"])


def _headers(key: str, digest: Digest) -> Fields:
    """The headers that S3 sends with the object, and the digest as its metadata."""
    filename = unquote(key.rpartition("/")[2]).partition("?")[0]
    return {
        "ContentType": "application/octet-stream",
        "CacheControl": _IMMUTABLE,
        "ContentDisposition": f"attachment; filename*=UTF-8''{quote(filename)}",
        "Metadata": {DIGEST_METADATA: str(digest)},
    }


def _checksum(sha256: bytes) -> dict[str, str]:
    """The SHA-256 that S3 checks the received bytes against."""
    return {"ChecksumSHA256": base64.b64encode(sha256).decode()}
