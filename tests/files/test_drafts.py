"""Tests of drafts: how processes fill, follow, continue and sweep them."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from unittest import mock

import pytest

from mypypi.errors import NotFound
from mypypi.files.drafts import ABANDONED_SECONDS, Draft, Drafts, State
from mypypi.files.room import Room

NAME = "0123abcd"


@pytest.fixture
def drafts(tmp_path: Path) -> Drafts:
    return Drafts(tmp_path / "below" / "drafts", Room(tmp_path / "below" / "room"))


def abandoned(drafts: Drafts, name: str = NAME, *, since: float = ABANDONED_SECONDS + 1) -> Draft:
    """Return a draft whose process died this many seconds ago, and lost its lock."""
    draft = drafts.open(name)
    draft.write(b"half", 0)
    draft.close()
    then = time.time() - since
    for path in (draft.path, draft.path.with_suffix(".note")):
        os.utime(path, (then, then))
    return draft


def test_draft_is_created_in_the_directory(drafts: Drafts, tmp_path: Path) -> None:
    """A draft is created in the drafts' directory, which is created if needed. Only its group can read it, too."""
    draft = drafts.open(NAME)
    assert draft.filling
    assert draft.path.parent == tmp_path / "below" / "drafts"
    assert draft.path.stat().st_mode & 0o777 == 0o640
    assert (draft.content.length, draft.content.begun, draft.state) == (0, False, State())
    draft.close()


def test_bytes_are_written_at_any_offset(drafts: Drafts) -> None:
    """All bytes are written at their offset, even if one system call writes only a few."""
    draft = drafts.open(NAME)
    pwrite = os.pwrite
    with mock.patch("os.pwrite", lambda fd, data, offset: pwrite(fd, bytes(data)[:3], offset)):
        draft.write(b"world", 6)
        draft.write(b"hello ", 0)
    assert draft.path.read_bytes() == b"hello world"
    draft.close()


def test_dropped_draft_stays_readable(drafts: Drafts) -> None:
    """A dropped draft stays readable for processes that have it open. Dropping it twice is no error."""
    draft = drafts.open(NAME)
    draft.write(b"bytes", 0)
    draft.drop()
    draft.drop()
    assert list(draft.path.parent.iterdir()) == []
    assert os.pread(draft.content.fd, 9, 0) == b"bytes"
    draft.close()


def test_second_process_follows_the_first(drafts: Drafts) -> None:
    """A follower sees new bytes and notes, and whether anything is new."""
    filled, followed = drafts.open(NAME), drafts.open(NAME)
    assert (filled.filling, followed.filling) == (True, False)
    filled.write(b"hello ", 0)
    filled.write_note(State(begun=True, total=11, validator='"v1"'))
    assert followed.refresh()
    assert (followed.content.length, followed.content.begun, followed.content.total) == (6, True, 11)
    assert not followed.refresh()
    filled.write(b"world", 6)
    filled.write_note(State(begun=True, total=11, digest="md5-0"))
    assert followed.refresh()
    assert (followed.state.digest, os.pread(followed.content.fd, 99, 0)) == ("md5-0", b"hello world")
    assert not followed.has_ended()
    filled.drop()
    assert followed.has_ended()
    for draft in (filled, followed):
        draft.close()


def test_follower_sees_the_error(drafts: Drafts) -> None:
    """A follower sees the error in the note, and can't take over the failed draft."""
    filled, followed = drafts.open(NAME), drafts.open(NAME)
    filled.write_failure(NotFound("upstream does not have this"))
    filled.drop()
    filled.close()
    followed.refresh()
    assert followed.state.error == ("NotFound", "upstream does not have this", None, 404)
    assert not followed.take_over()
    followed.close()


def test_long_error_message_is_truncated(drafts: Drafts) -> None:
    """A long error message is truncated to fit into the note."""
    filled, followed = drafts.open(NAME), drafts.open(NAME)
    filled.write_failure(NotFound("…" * 5000))
    followed.refresh()
    assert followed.state.error == ("NotFound", "…" * 1000, None, 404)
    filled.write_note(State())
    followed.refresh()
    assert followed.state == State()
    for draft in (filled, followed):
        draft.close()


def test_only_one_process_takes_over(drafts: Drafts) -> None:
    """One process takes over a draft, once no other process fills it."""
    filled, first, second = (drafts.open(NAME) for _ in range(3))
    filled.write(b"half", 0)
    filled.write_note(State(begun=True, total=8))
    first.refresh()
    assert not first.take_over()
    filled.close()
    assert first.take_over()
    assert not second.take_over()
    assert (first.filling, first.state, first.content.length) == (True, State(begun=True, total=8), 4)
    for draft in (first, second):
        draft.close()


def test_abandoned_draft_is_continued(drafts: Drafts) -> None:
    """A process that opens an abandoned draft continues with its bytes and its state."""
    draft = drafts.open(NAME)
    draft.write(b"half", 0)
    draft.write_note(State(begun=True, total=8))
    draft.close()
    again = drafts.open(NAME)
    assert (again.filling, again.content.length, again.state) == (True, 4, State(begun=True, total=8))
    again.empty()
    assert (again.content.length, again.state, again.path.stat().st_size) == (0, State(), 0)
    again.close()


def test_follower_does_not_create_the_file(drafts: Drafts) -> None:
    """A follower never creates the draft's file. It may be missing before its creation and after the commit."""
    filled = drafts.open(NAME)
    filled.path.unlink()
    followed = drafts.open(NAME)
    assert (followed.filling, followed.content.fd) == (False, -1)
    assert not filled.path.exists()
    filled.close()
    assert followed.take_over()
    assert followed.content.fd >= 0
    followed.drop()
    followed.close()


def test_abandoned_draft_is_swept(drafts: Drafts) -> None:
    """Abandoned drafts are swept (promise 5). Drafts that a process fills are kept."""
    left, filled = abandoned(drafts), abandoned(drafts, "45ef")
    filled = drafts.open("45ef")
    assert drafts.sweep() == 1
    assert not left.path.exists()
    assert filled.path.exists()
    assert drafts.sweep() == 0
    filled.close()


def test_draft_is_not_swept_at_once(drafts: Drafts) -> None:
    """A draft is not swept at once, since another process may continue it."""
    young = abandoned(drafts, since=ABANDONED_SECONDS - 5)
    assert drafts.sweep() == 0
    assert young.path.exists()


def test_other_files_are_not_swept(drafts: Drafts) -> None:
    """Only drafts are swept, with or without a note. A missing directory is no error."""
    assert drafts.sweep() == 0
    draft = abandoned(drafts)
    draft.path.with_suffix(".note").unlink()
    other = draft.path.with_name("README")
    other.write_bytes(b"mine")
    os.utime(other, (0, 0))
    assert drafts.sweep() == 1
    assert list(draft.path.parent.iterdir()) == [other]


def test_draft_is_swept_under_its_lock(drafts: Drafts) -> None:
    """A process that opens a draft during a sweep sees that it is gone."""
    draft = abandoned(drafts)
    unlink = Path.unlink
    opened: list[Draft] = []

    def open_and_unlink(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - pathlib's signature
        opened.append(drafts.open(NAME))
        unlink(path, missing_ok)

    with mock.patch("pathlib.Path.unlink", open_and_unlink):
        assert drafts.sweep() == 1
    assert [each.filling for each in opened] == [False, False]
    assert all(each.has_ended() and not each.take_over() for each in opened)
    assert not draft.path.exists()
    for each in opened:
        each.close()


def test_draft_swept_before_it_is_locked_is_created_again(drafts: Drafts) -> None:
    """A draft that is swept before it is locked is created again."""
    flock = fcntl.flock
    swept: list[int] = []
    abandoned(drafts)

    def sweep_first(fd: int, how: int) -> None:
        if not swept:
            swept.append(0)
            swept.append(drafts.sweep())
        flock(fd, how)

    with mock.patch("fcntl.flock", sweep_first):
        draft = drafts.open(NAME)
    assert swept == [0, 1]
    assert draft.filling
    assert draft.path.exists()
    assert not draft.has_ended()
    draft.close()
