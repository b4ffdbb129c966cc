"""Drafts: filled by one, followed by others, gone on with by whoever comes after, and swept when nobody does."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from unittest import mock

import pytest

from mypypi.errors import NotFound
from mypypi.files.drafts import ABANDONED_SECONDS, Draft, Drafts, State

NAME = "0123abcd"


@pytest.fixture
def drafts(tmp_path: Path) -> Drafts:
    return Drafts(tmp_path / "below" / "drafts")


def abandoned(drafts: Drafts, name: str = NAME, *, since: float = ABANDONED_SECONDS + 1) -> Draft:
    """A draft whose process has been gone for so many seconds: its lock went with it."""
    draft = drafts.open(name)
    draft.write(b"half", 0)
    draft.close()
    then = time.time() - since
    for path in (draft.path, draft.path.with_suffix(".note")):
        os.utime(path, (then, then))
    return draft


def test_draft_is_made_where_drafts_lie(drafts: Drafts, tmp_path: Path) -> None:
    """In a directory that is made for it, readable for whoever may read stored files."""
    draft = drafts.open(NAME)
    assert draft.filling
    assert draft.path.parent == tmp_path / "below" / "drafts"
    assert draft.path.stat().st_mode & 0o777 == 0o644
    assert (draft.content.length, draft.content.begun, draft.state) == (0, False, State())
    draft.close()


def test_draft_takes_bytes_at_any_offset(drafts: Drafts) -> None:
    """Also where the system takes only a few at a time."""
    draft = drafts.open(NAME)
    pwrite = os.pwrite
    with mock.patch("os.pwrite", lambda fd, data, offset: pwrite(fd, bytes(data)[:3], offset)):
        draft.write(b"world", 6)
        draft.write(b"hello ", 0)
    assert draft.path.read_bytes() == b"hello world"
    draft.close()


def test_dropped_draft_can_be_read_on(drafts: Drafts) -> None:
    """It is out of sight; whoever has it open keeps it. Dropping twice is no error."""
    draft = drafts.open(NAME)
    draft.write(b"bytes", 0)
    draft.drop()
    draft.drop()
    assert list(draft.path.parent.iterdir()) == []
    assert os.pread(draft.content.fd, 9, 0) == b"bytes"
    draft.close()


def test_second_one_follows_the_first(drafts: Drafts) -> None:
    """It sees the bytes as they come, and what is said of them; it has nothing new to see where nothing is new."""
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


def test_second_one_hears_what_went_wrong(drafts: Drafts) -> None:
    """And does not go on with what is worth nothing."""
    filled, followed = drafts.open(NAME), drafts.open(NAME)
    filled.write_failure(NotFound("upstream does not have this"))
    filled.drop()
    filled.close()
    followed.refresh()
    assert followed.state.error == ("NotFound", "upstream does not have this", None)
    assert not followed.take_over()
    followed.close()


def test_what_is_told_long_windedly_is_still_read(drafts: Drafts) -> None:
    """A note has room for so much; a message that is longer is cut."""
    filled, followed = drafts.open(NAME), drafts.open(NAME)
    filled.write_failure(NotFound("…" * 5000))
    followed.refresh()
    assert followed.state.error == ("NotFound", "…" * 1000, None)
    filled.write_note(State())
    followed.refresh()
    assert followed.state == State()
    for draft in (filled, followed):
        draft.close()


def test_only_one_takes_over(drafts: Drafts) -> None:
    """Once nobody fills it any more, and not before."""
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


def test_what_a_process_left_behind_is_gone_on_with(drafts: Drafts) -> None:
    """Whoever opens it next fills it, with what is there."""
    draft = drafts.open(NAME)
    draft.write(b"half", 0)
    draft.write_note(State(begun=True, total=8))
    draft.close()
    again = drafts.open(NAME)
    assert (again.filling, again.content.length, again.state) == (True, 4, State(begun=True, total=8))
    again.empty()
    assert (again.content.length, again.state, again.path.stat().st_size) == (0, State(), 0)
    again.close()


def test_follower_without_a_file_waits_for_it(drafts: Drafts) -> None:
    """Between the note and the draft, or after the draft was put where it belongs: it never makes one of its own."""
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


def test_draft_that_nobody_fills_is_swept(drafts: Drafts) -> None:
    """Promise 5: what a killed process left goes; what is being filled stays, in this process and in others."""
    gone, living = abandoned(drafts), abandoned(drafts, "45ef")
    living = drafts.open("45ef")
    assert drafts.sweep() == 1
    assert not gone.path.exists()
    assert living.path.exists()
    assert drafts.sweep() == 0
    living.close()


def test_draft_is_left_for_a_while(drafts: Drafts) -> None:
    """For those who may want to go on with it."""
    young = abandoned(drafts, since=ABANDONED_SECONDS - 5)
    assert drafts.sweep() == 0
    assert young.path.exists()


def test_other_files_are_not_swept(drafts: Drafts) -> None:
    """Only drafts are, those without a note too; and without a directory there is nothing to do."""
    assert drafts.sweep() == 0
    draft = abandoned(drafts)
    draft.path.with_suffix(".note").unlink()
    other = draft.path.with_name("README")
    other.write_bytes(b"mine")
    os.utime(other, (0, 0))
    assert drafts.sweep() == 1
    assert list(draft.path.parent.iterdir()) == [other]


def test_draft_is_swept_under_its_lock(drafts: Drafts) -> None:
    """Whoever opens it just then sees that it is gone, and makes another one."""
    draft = abandoned(drafts)
    unlink = Path.unlink
    opened: list[Draft] = []

    def open_and_unlink(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - as pathlib has it
        opened.append(drafts.open(NAME))
        unlink(path, missing_ok)

    with mock.patch("pathlib.Path.unlink", open_and_unlink):
        assert drafts.sweep() == 1
    assert [each.filling for each in opened] == [False, False]
    assert all(each.has_ended() and not each.take_over() for each in opened)
    assert not draft.path.exists()
    for each in opened:
        each.close()


def test_draft_that_was_swept_while_it_was_made_is_made_again(drafts: Drafts) -> None:
    """A sweep may come between the making of the note and its lock."""
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


def test_room_is_what_the_disk_has_left(drafts: Drafts) -> None:
    """In bytes, for whoever may write there."""
    assert 0 < drafts.room() < 2**63
