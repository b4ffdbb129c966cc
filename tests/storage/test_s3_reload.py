"""Tests that SIGHUP reads the files again from which boto3 takes credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from mypypi.errors import StorageDown
from mypypi.storage.s3 import BucketSettings, S3Bucket

HERE = BucketSettings("wheels", "", "http://127.0.0.1:1", "here-1")


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the credentials of boto3's default profile. There are no others."""
    path = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return path


def write(profile: Path, key: str) -> None:
    profile.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


def key_of(bucket: S3Bucket) -> str:
    """Return the access key that the bucket's links are signed with."""
    return bucket.link("x").partition("X-Amz-Credential=")[2].partition("%2F")[0]


def test_new_credentials_are_used(profile: Path) -> None:
    """Requests after a reload use the credentials that are in the file by now."""
    write(profile, "first")
    bucket = S3Bucket(HERE)
    assert key_of(bucket) == "first"
    write(profile, "second")
    assert key_of(bucket) == "first"
    bucket.reload()
    assert key_of(bucket) == "second"


@pytest.mark.parametrize("content", ["", "no profile at all"])
def test_a_file_that_can_not_be_used_changes_nothing(content: str, profile: Path) -> None:
    """If the file has no credentials, or can't be parsed, the old credentials stay in use."""
    write(profile, "first")
    bucket = S3Bucket(HERE)
    assert key_of(bucket) == "first"
    profile.write_text(content)
    with pytest.raises(StorageDown, match="the credentials for S3 can't be read"):
        bucket.reload()
    assert key_of(bucket) == "first"


@pytest.mark.usefixtures("profile")
def test_keys_in_the_settings_need_no_file() -> None:
    """With keys in the settings, there is no file that could be missing."""
    bucket = S3Bucket(BucketSettings("wheels", "", "http://127.0.0.1:1", "here-1", "own", "secret"))
    bucket.reload()
    assert key_of(bucket) == "own"
