"""Tests of the bucket: S3 that fails or is down, checksums, and cancelled uploads."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from unittest import mock

from botocore.exceptions import ClientError

from mypypi.digests import Digest
from mypypi.errors import OutOfDescriptors, StorageDown
from mypypi.settings.loading import load_settings
from mypypi.storage import s3
from mypypi.storage.s3 import BucketSettings
from mypypi.storage.s3_upload import UploadCancelled
from tests.rig.descriptors import few_descriptors
from tests.rig.faults import Fault, Status
from tests.rig.s3 import ACCESS_KEY, SECRET_KEY, Refuse, Swallow
from tests.support.buckets import KEY, LARGE, PART, BucketTestCase, StopAfter

WHEEL = b"a wheel" * 1000
#: Seconds; longer than all tries take with the limits of `short_limits`.
SOON = 5.0


def base64_sha256(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


class BucketTest(BucketTestCase):
    """A storage with a bucket on moto's server."""

    __test__ = True

    def setUp(self) -> None:
        super().setUp()
        # boto3 sleeps between two tries; no test needs to wait for that.
        sleep = mock.patch("botocore.endpoint.time.sleep")
        self.sleep = sleep.start()
        self.addCleanup(sleep.stop)

    def fault(self, method: str, fault: Fault, times: int | None = None) -> Fault:
        return self.proxy.fault(f"{method} {self.proxy.path_of(self.name())}", fault, times)

    def checksums(self) -> list[str | None]:
        """Return the checksums of all PUT requests, in order."""
        return [request.headers["x-amz-checksum-sha256"] for request in self.proxy.asked("PUT", self.name())]

    @contextmanager
    def short_limits(self) -> Iterator[None]:
        """Set short time limits for S3, and check that they are kept."""
        began = time.monotonic()
        with mock.patch.multiple(s3, _CONNECT_SECONDS=1, _ASK_SECONDS=0.2, _UPLOAD_SECONDS=0.3):
            yield
        self.assertLess(time.monotonic() - began, SOON)

    def assert_down(self, expected: str) -> None:
        """
        Check that S3 counts as down for this reason.

        The bucket has no file, uploads and the check fail with the reason, and no error shows a secret. The file that
        waits is served.
        """
        self.assertIsNone(self.find("https/files.example/other"))
        errors = [self.upload_error(StorageDown), self.failing(self.storage.check(), StorageDown)]
        for error in errors:
            self.assertIn(expected, str(error))
            for secret in (ACCESS_KEY, SECRET_KEY):
                self.assertNotIn(secret, repr(error))
        self.assertEqual(WHEEL, self.read(self.found()))
        self.clock.advance(10)

    def assert_back(self) -> None:
        """Check that the waiting file is uploaded, once, and found in the bucket."""
        self.proxy.mend()
        self.upload()
        self.now(self.storage.check())
        self.assertEqual((None, WHEEL), (self.found().path, self.read(self.found())))
        self.assertEqual([self.name()], self.server.names())

    def test_bucket_that_answers_503(self) -> None:
        """An upload that S3 answers with 503 is tried three times. After that, the queue tries it again later."""
        self.keep(WHEEL)
        fault = self.proxy.fault("/", Status(503))
        self.assert_down("S3 answered")
        self.assertEqual(3, self.asked("PUT"))
        self.assertGreater(fault.served, 3)
        self.assert_back()

    def test_bucket_that_refuses_connections(self) -> None:
        """A bucket that refuses connections counts as down."""
        self.keep(WHEEL)
        with self.proxy.refusing():
            self.assert_down("S3 can't be reached: EndpointConnectionError")
        self.assert_back()

    def test_no_descriptor_is_left(self) -> None:
        """A process that can't open a connection to S3 says so. S3 has not failed, and is asked again at once."""
        assert self.bucket._asking  # boto3 reads its files
        with few_descriptors([os.getpid()], 0):
            error = self.failing(self.storage._reads.look_up(KEY), OutOfDescriptors)
        self.assertIn("S3 can't be asked: this server has run out of file descriptors", str(error))
        self.assertEqual(0, self.asked("HEAD"))
        self.assertIsNone(self.now(self.storage.find(KEY)))
        self.assertEqual(1, self.asked("HEAD"))

    def test_bucket_that_denies_access(self) -> None:
        """The error names S3's code, but not its message with keys and signatures."""
        self.keep(WHEEL)
        self.proxy.fault("/", Refuse(403, "SignatureDoesNotMatch"))
        self.assert_down("S3 answered")
        self.assertEqual(1, self.asked("PUT"))
        self.assert_back()

    def test_bucket_that_does_not_respond(self) -> None:
        """A bucket that does not respond times out soon."""
        with self.short_limits():
            self.keep(WHEEL)
            self.proxy.fault("/", Swallow())
            self.assert_down("S3 can't be reached: ReadTimeoutError")
            self.assert_back()

    def test_limits_are_short_where_a_client_waits(self) -> None:
        """A look-up ends after a few seconds, and boto3 does not repeat it. Uploads have more time."""
        asking = self.bucket._asking.meta.config
        self.assertEqual((3, 3), (asking.connect_timeout, asking.read_timeout))
        self.assertEqual((1, "standard"), (asking.retries["total_max_attempts"], asking.retries["mode"]))
        self.assertEqual(30, self.bucket._uploading.meta.config.read_timeout)

    def test_single_failure_is_retried(self) -> None:
        """A single 500 is retried, even in the middle of an upload."""
        for method, content in (("PUT", WHEEL), ("POST", LARGE), ("HEAD", WHEEL)):
            self.keep(content)
            self.fault(method, Status(500), times=1)
            self.upload()
            self.assertEqual(content, self.read(self.found()))

    def test_large_upload_that_fails_in_the_middle(self) -> None:
        """A large upload that fails removes its parts, and the file waits. The next upload sends all of it."""
        self.keep(LARGE)
        with mock.patch.object(self.bucket._uploading, "complete_multipart_upload", side_effect=self.error("SlowDown")):
            self.upload_error(StorageDown)
        self.assertEqual(([], []), (self.server.names(), self.server.pending()))
        self.upload()
        self.assertEqual(LARGE, self.read(self.found()))

    def error(self, code: str) -> ClientError:
        return ClientError({"Error": {"Code": code}}, "CompleteMultipartUpload")

    def test_upload_that_is_cancelled(self) -> None:
        """An upload can be cancelled at any point. Nothing of it stays in the bucket, and the file waits."""
        for content, looks in ((WHEEL, 0), (WHEEL, 1), (LARGE, 0), (LARGE, 20), (LARGE, 110)):
            self.keep(content)
            cancelled = StopAfter(looks)
            with mock.patch.object(self.storage, "stopped", cancelled):
                self.upload_error(UploadCancelled)
            self.assertTrue(cancelled.is_set())
            self.assertEqual(([], []), (self.server.names(), self.server.pending()))
            self.assertIsNotNone(self.found().path)
        self.assertGreater(self.asked("PUT"), 0, "no part was sent before the end")
        self.sleep.assert_not_called()
        self.now(self.storage.check())

    def test_upload_that_is_cancelled_while_s3_does_not_respond(self) -> None:
        """A cancelled upload ends with the try under way, and starts no other."""
        waiting = self.keep(WHEEL)
        assert waiting.path is not None
        fault = self.fault("PUT", Swallow())
        cancelled, ended = Event(), []

        def upload() -> None:
            try:
                self.bucket.upload(waiting.path or Path(), KEY, waiting.digest, cancelled)
            except UploadCancelled as error:
                ended.append(error)

        with self.short_limits():
            thread = Thread(target=upload)
            thread.start()
            fault.wait_served()
            cancelled.set()
            thread.join(SOON)
        self.assertEqual((1, 1), (len(ended), self.asked("PUT")))

    def test_checksum_is_sent(self) -> None:
        """The index's own digest is sent, and S3 checks the bytes against it."""
        self.keep(WHEEL)
        self.upload()
        self.assertEqual([base64_sha256(WHEEL)], self.checksums())

    def test_checksum_of_each_part_is_sent(self) -> None:
        """A checksum is sent for each part of a large file."""
        self.keep(LARGE)
        self.upload()
        parts = [LARGE[start : start + PART] for start in range(0, len(LARGE), PART)]
        self.assertEqual([base64_sha256(part) for part in parts], self.checksums())

    def test_checksum_is_computed_for_other_digests(self) -> None:
        """If the index has no SHA-256, it is computed for the checksum. The index's digest is noted on the object."""
        digest = Digest("sha1", hashlib.sha1(WHEEL, usedforsecurity=False).hexdigest())
        path = self.drafts / "a.draft"
        path.write_bytes(WHEEL)
        self.now(self.storage.commit(KEY, path, digest))
        self.upload()
        self.assertEqual(([base64_sha256(WHEEL)], digest), (self.checksums(), self.found().digest))
        self.now(self.catalog.forget_stored(KEY))
        self.assertEqual(digest, self.found().digest)

    def test_provider_without_checksums(self) -> None:
        """A provider that does not support checksums gets no more of them."""
        self.keep(WHEEL)
        self.fault("PUT", Refuse(501, "NotImplemented"), times=1)
        self.upload()
        self.assertEqual(WHEEL, self.read(self.found()))
        self.assertIsNone(self.checksums()[-1])
        before = len(self.checksums())
        self.keep(LARGE)
        self.upload()
        self.assertEqual([None] * 3, self.checksums()[before:])
        self.assertEqual(LARGE, self.read(self.found()))

    def test_provider_without_checksums_of_parts(self) -> None:
        """If a provider refuses checksums of parts, the parts are removed and sent without."""
        self.keep(LARGE)
        self.fault("PUT", Refuse(400, "InvalidRequest"), times=1)
        self.upload()
        self.assertEqual([None] * 3, self.checksums()[-3:])
        self.assertEqual((LARGE, []), (self.read(self.found()), self.server.pending()))

    def test_wrong_checksum_is_not_retried_without_one(self) -> None:
        """Promise 1: bytes that do not match their checksum are never sent without one."""
        self.keep(WHEEL)
        fault = self.fault("PUT", Refuse(400, "BadDigest"), times=1)
        self.assertIn("BadDigest", str(self.upload_error(StorageDown)))
        fault.wait_served()
        self.assertEqual(1, self.asked("PUT"))
        self.upload()
        self.assertEqual([base64_sha256(WHEEL)] * 2, self.checksums())

    def test_refusal_for_another_reason_leaves_checksums_on(self) -> None:
        """
        A provider still gets checksums if it refuses an upload without one as well.

        Then the checksum was not the reason.
        """
        self.keep(WHEEL)
        self.fault("PUT", Refuse(400, "InvalidRequest"), times=2)
        self.upload_error(StorageDown)
        self.upload()
        self.assertEqual(base64_sha256(WHEEL), self.checksums()[-1])

    def test_file_that_has_changed_on_the_disk(self) -> None:
        """Promise 1: S3 refuses a file that has changed on the disk. It keeps nothing of it."""
        waiting = self.keep(WHEEL)
        assert waiting.path is not None
        waiting.path.write_bytes(WHEEL[::-1])
        self.upload_error(StorageDown)
        self.assertEqual([], self.server.names())

    def test_size_is_checked_after_an_upload(self) -> None:
        """An incomplete object is not recorded, and the file stays on the disk."""
        for content in (WHEEL, LARGE):
            self.keep(content)
            client = self.bucket._uploading
            with mock.patch.multiple(client, put_object=self.truncate, complete_multipart_upload=self.truncate):
                error = self.upload_error(StorageDown)
            self.assertEqual("the bucket does not have the complete file after its upload", str(error))
            self.assertIsNone(self.now(self.catalog.stored(KEY)))
            self.assertEqual(content, self.read(self.found()))

    def truncate(self, **_: object) -> None:
        self.server.put(self.name(), b"short")

    def test_object_without_metadata_is_known_by_its_etag(self) -> None:
        """
        The digest of an object without metadata comes from its ETag.

        Other programs upload such objects, in one piece. An object without any digest counts as missing.
        """
        self.server.put(self.name(), WHEEL)
        expected = Digest("md5", hashlib.md5(WHEEL, usedforsecurity=False).hexdigest())
        self.assertEqual(expected, self.found().digest)
        begun = self.server.client.create_multipart_upload(Bucket=self.server.bucket, Key=self.name("other"))
        where = {"Bucket": self.server.bucket, "Key": self.name("other"), "UploadId": begun["UploadId"]}
        part = self.server.client.upload_part(**where, PartNumber=1, Body=WHEEL)
        self.server.client.complete_multipart_upload(
            **where, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        )
        self.assertIsNone(self.find("other"))

    def test_records_stay_if_the_bucket_can_not_be_listed(self) -> None:
        """Records stay if the bucket can't be listed, since the objects may exist."""
        self.keep(WHEEL)
        self.upload()
        self.proxy.fault("/", Refuse(403, "AccessDenied"))
        self.failing(self.storage.sweep_records(), StorageDown)
        self.assertIsNotNone(self.now(self.catalog.stored(KEY)))

    def test_small_file_takes_two_requests(self) -> None:
        """A small file takes two requests: a PUT and a HEAD."""
        self.keep(WHEEL)
        self.upload()
        self.assertEqual(["PUT", "HEAD"], [request.method for request in self.proxy.requests])

    def test_bucket_without_credentials(self) -> None:
        """The error names the settings for credentials. Neither they nor boto3's own sources have any."""
        with mock.patch("botocore.credentials.CredentialResolver.load_credentials", return_value=None):
            self.storage = self.make_storage(self.make_bucket(access_key=None, secret_key=None))
            waiting = self.keep(WHEEL)
            for work in (self.storage.check(), self.storage.upload(KEY), self.storage.link(waiting)):
                error = str(self.failing(work, StorageDown))
                self.assertIn("S3 can't be used without credentials: set MYPYPI_S3_ACCESS_KEY and MYPYPI_S3_SEC", error)
                self.assertNotIn("reached", error)

    def test_deleting_while_s3_is_down(self) -> None:
        """Deleting fails while S3 is down, since the object stays."""
        self.proxy.fault("/", Status(503))
        self.failing(self.storage.delete(KEY), StorageDown)

    def test_settings_of_a_bucket(self) -> None:
        """The bucket's settings are those of the environment."""
        texts = {
            "MYPYPI_FILE_STORAGE_DRIVER": "s3",
            "MYPYPI_S3_BUCKET": "packages",
            "MYPYPI_S3_PREFIX": "/pre/",
            "MYPYPI_S3_ACCESS_KEY": ACCESS_KEY,
            "MYPYPI_S3_SECRET_KEY": SECRET_KEY,
            "MYPYPI_S3_ENDPOINT_URL": "https://s3.example",
            "MYPYPI_S3_REGION": "eu-central-1",
            "MYPYPI_S3_PUBLIC": "true",
            "MYPYPI_S3_KEY_TTL": "900",
        }
        expected = BucketSettings(
            "packages", "pre", "https://s3.example", "eu-central-1", ACCESS_KEY, SECRET_KEY, True, 900
        )
        self.assertEqual(expected, BucketSettings.of(load_settings(texts)))
