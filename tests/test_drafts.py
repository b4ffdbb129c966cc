"""Drafts: made, filled, and swept when nobody fills them any more."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from unittest import mock

import pytest

from mypypi.drafts import Draft, Drafts


@pytest.fixture
def drafts(tmp_path: Path) -> Drafts:
    return Drafts(tmp_path / "below" / "drafts")


def abandoned(drafts: Drafts) -> Draft:
    """A draft whose process is gone: its lock went with its descriptor."""
    draft = drafts.create()
    draft.content.close()
    return draft


def test_draft_is_made_where_drafts_lie(drafts: Drafts, tmp_path: Path) -> None:
    """In a directory that is made for it, readable for whoever may read stored files."""
    draft = drafts.create()
    assert draft.path.parent == tmp_path / "below" / "drafts"
    assert draft.path.stat().st_mode & 0o777 == 0o644
    assert (draft.content.length, draft.content.begun) == (0, False)
    draft.content.close()


def test_draft_takes_bytes_at_any_offset(drafts: Drafts) -> None:
    """Also where the system takes only a few at a time."""
    draft = drafts.create()
    pwrite = os.pwrite
    with mock.patch("os.pwrite", lambda fd, data, offset: pwrite(fd, bytes(data)[:3], offset)):
        draft.write(b"world", 6)
        draft.write(b"hello ", 0)
    assert draft.path.read_bytes() == b"hello world"
    draft.content.close()


def test_dropped_draft_can_be_read_on(drafts: Drafts) -> None:
    """It is out of sight; whoever has it open keeps it. Dropping twice is no error."""
    draft = drafts.create()
    draft.write(b"bytes", 0)
    draft.drop()
    draft.drop()
    assert not draft.path.exists()
    assert os.pread(draft.content.fd, 9, 0) == b"bytes"
    draft.content.close()


def test_draft_that_nobody_fills_is_swept(drafts: Drafts) -> None:
    """Promise 5: what a killed process left goes; what is being filled stays, in this process and in others."""
    gone, living = abandoned(drafts), drafts.create()
    assert drafts.sweep() == 1
    assert not gone.path.exists()
    assert living.path.exists()
    assert drafts.sweep() == 0
    living.content.close()


def test_other_files_are_not_swept(drafts: Drafts) -> None:
    """Only drafts are; and without a directory there is nothing to do."""
    assert drafts.sweep() == 0
    draft = abandoned(drafts)
    other = draft.path.with_name("README")
    other.write_bytes(b"mine")
    assert drafts.sweep() == 1
    assert other.exists()


def test_draft_is_swept_under_its_lock(drafts: Drafts) -> None:
    """Whoever makes a draft gets its lock only when the sweep has done with it, and sees that it is gone."""
    draft = abandoned(drafts)
    unlink = Path.unlink
    locked: list[bool] = []

    def unlink_and_look(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - as pathlib has it
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.append(True)
        unlink(path, missing_ok)

    with mock.patch("pathlib.Path.unlink", unlink_and_look):
        drafts.sweep()
    assert locked == [True]
    assert not draft.path.exists()


def test_draft_that_was_swept_while_it_was_made_is_made_again(drafts: Drafts) -> None:
    """A sweep may come between the making of the file and its lock."""
    flock = fcntl.flock
    swept: list[int] = []

    def sweep_first(fd: int, how: int) -> None:
        if not swept:
            swept.append(0)
            swept.append(drafts.sweep())
        flock(fd, how)

    with mock.patch("fcntl.flock", sweep_first):
        draft = drafts.create()
    assert swept == [0, 1]
    assert draft.path.exists()
    assert os.fstat(draft.content.fd).st_nlink == 1
    draft.content.close()


def test_room_is_what_the_disk_has_left(drafts: Drafts) -> None:
    """In bytes, for whoever may write there."""
    assert 0 < drafts.room() < 2**63
