"""Tests of the room for drafts: what one draft has taken, no other one gets, in any process of this host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from mypypi.errors import FileTooLarge, StorageFull
from mypypi.files.drafts import Drafts
from mypypi.files.room import SPARE, STEP, Room

LIMIT = 100_000_000

#: Takes room in a process of its own, and says so.
_TAKER = """
import sys
from pathlib import Path
from mypypi.files.room import Room
room = Room(Path(sys.argv[1]), 100_000_000)
room.share().ask(int(sys.argv[2]))
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[list[Room]]:
    """Two processes' views of one room: each holds its own lock."""
    with ExitStack() as ending:
        rooms = [Room(tmp_path / "room", LIMIT) for _ in range(2)]
        for room in rooms:
            ending.callback(room.close)
        yield rooms


def disk_with(free: int) -> mock._patch[mock.Mock]:
    """A disk with this many bytes free."""
    return mock.patch("mypypi.files.room.os.statvfs", return_value=SimpleNamespace(f_bavail=free, f_frsize=1))


def test_what_is_taken_is_taken_for_all_processes(rooms: list[Room]) -> None:
    """A draft gets no room that another one has taken, in this process or another. It can be taken once given back."""
    first, second, third = rooms[0].share(), rooms[0].share(), rooms[1].share()
    first.ask(60_000_000)
    for share in (second, third):
        with pytest.raises(StorageFull, match="MYPYPI_DRAFTS_MAX_BYTES"):
            share.ask(40_000_001)
    third.ask(40_000_000)
    with pytest.raises(StorageFull):
        second.ask(1)
    first.give_back()
    second.ask(60_000_000)


def test_free_space_that_is_promised_is_not_given_twice(rooms: list[Room]) -> None:
    """Bytes that a draft has taken and not written yet do not count as free. Written ones are not free anyway."""
    first, second = rooms[0].share(), rooms[1].share()
    with disk_with(SPARE + 30_000):
        first.ask(20_000)
        with pytest.raises(StorageFull, match="the disk has"):
            second.ask(10_001)
    first.note_used(20_000)
    with disk_with(SPARE + 10_000):
        with pytest.raises(StorageFull):
            second.ask(10_001)
        second.ask(10_000)


def test_small_drafts_take_what_was_just_found_free(rooms: list[Room]) -> None:
    """A small draft needs no look at the disk for a second after the last one. It is counted as any other."""
    first, second, third = rooms[0].share(), rooms[0].share(), rooms[1].share()
    assert not first.ask_for_little(1_000)
    first.ask(10_000)
    with mock.patch.object(Room, "_others") as looks:
        assert second.ask_for_little(1_000_000)
        assert not rooms[0].share().ask_for_little(2_000_000)
        assert not third.ask_for_little(1_000)
        looks.assert_not_called()
    with pytest.raises(StorageFull, match="1010000 of MYPYPI_DRAFTS_MAX_BYTES"):
        third.ask(LIMIT - 1_009_999)
    third.ask(LIMIT - 1_010_000)
    second.give_back()
    with mock.patch("mypypi.files.room.time.monotonic", return_value=time.monotonic() + 2):
        assert not second.ask_for_little(1_000)


def test_small_drafts_find_a_disk_that_was_just_filled(rooms: list[Room]) -> None:
    """Another program may fill the disk at any moment. Then a small draft finds no room, as any other."""
    rooms[0].share().ask(10_000)
    with disk_with(4_000_000):
        assert not rooms[0].share().ask_for_little(1_000)
    assert rooms[0].share().ask_for_little(1_000)


def test_small_drafts_without_a_directory(rooms: list[Room], tmp_path: Path) -> None:
    """If the directory was removed, a small draft takes no room. The next look at the other processes creates it."""
    rooms[0].share().ask(10_000)
    shutil.rmtree(tmp_path / "room")
    share = rooms[0].share()
    assert not share.ask_for_little(1_000)
    share.ask(1_000)
    assert rooms[0].share().ask_for_little(1_000)


def test_small_drafts_take_a_small_share_of_what_was_found_free(rooms: list[Room]) -> None:
    """Together they take a sixteenth, so that several processes do not take more than there is."""
    first, second = rooms[0].share(), rooms[0].share()
    with disk_with(SPARE + 10_000 + 160_000):
        first.ask(10_000)
    assert not second.ask_for_little(10_001)
    assert second.ask_for_little(10_000)
    assert not rooms[0].share().ask_for_little(1)


def test_room_of_a_process_that_dies_is_given_back(rooms: list[Room], tmp_path: Path) -> None:
    """A killed process holds no room any more, and nothing of it is left."""
    command = [sys.executable, "-c", _TAKER, str(tmp_path / "room"), "90000000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        share = rooms[0].share()
        with pytest.raises(StorageFull):
            share.ask(20_000_000)
        process.kill()
    share.ask(20_000_000)
    assert len(list((tmp_path / "room").glob("*.room"))) == 1


def test_a_process_that_ends_leaves_nothing(rooms: list[Room], tmp_path: Path) -> None:
    """A process that ends gives back all room, and deletes its file."""
    rooms[0].share().ask(LIMIT)
    rooms[0].close()
    rooms[1].share().ask(LIMIT)
    rooms[1].close()
    assert [path.name for path in (tmp_path / "room").iterdir()] == ["lock"]


def test_files_that_wait_for_upload_take_room(tmp_path: Path) -> None:
    """The limit counts files beside the drafts as well."""
    room = Room(tmp_path / "room", LIMIT, lambda: LIMIT - 10)
    with pytest.raises(StorageFull):
        room.share().ask(11)
    room.share().ask(10)
    room.close()


def test_a_draft_of_unknown_length_takes_room_in_steps(rooms: list[Room]) -> None:
    """It takes more than it needs at once, and only what it needs where there is no more."""
    share = rooms[0].share()
    share.ask_for_writing(1000)
    assert share.size == 1000 + STEP
    share.ask_for_writing(2000)
    assert share.size == 1000 + STEP
    rooms[1].share().ask(LIMIT - share.size - 10)
    share.ask_for_writing(share.size + 10)
    with pytest.raises(StorageFull):
        share.ask_for_writing(share.size + 1)


def test_a_share_follows_what_upstream_announces(rooms: list[Room]) -> None:
    """A share can become smaller, but not than what is used of it."""
    share = rooms[0].share()
    share.ask(LIMIT)
    share.ask(1000)
    rooms[1].share().ask(LIMIT - 1000)
    share.note_used(900)
    share.ask(10)
    assert (share.size, share.used) == (900, 900)


def test_check_tells_a_refusal_of_any_process_while_it_lasts(rooms: list[Room]) -> None:
    """While there is no room for a draft that was refused, each process says so. A draft over the limit is no news."""
    taken = rooms[0].share()
    taken.ask(90_000_000)
    with pytest.raises(FileTooLarge):
        rooms[0].share().ask(LIMIT + 1)
    rooms[1].check()
    with pytest.raises(StorageFull):
        rooms[0].share().ask(20_000_000)
    for room in rooms:
        with pytest.raises(StorageFull, match="no room for a file of 20000000 bytes"):
            room.check()
    taken.give_back()
    for room in rooms:
        room.check()


def test_a_deleted_directory_is_made_again(rooms: list[Room], tmp_path: Path) -> None:
    """The account survives the deletion of its directory, as by a program that cleans up."""
    rooms[0].share().ask(60_000_000)
    shutil.rmtree(tmp_path / "room")
    rooms[0].share().ask(1)
    with pytest.raises(StorageFull):
        rooms[1].share().ask(50_000_000)


def test_a_draft_that_is_continued_takes_room_for_the_rest(tmp_path: Path) -> None:
    """The bytes that a dead process has written count as used, not as needed once more."""
    room = Room(tmp_path / "room", LIMIT)
    drafts = Drafts(tmp_path / "drafts", room)
    before = drafts.open("0123")
    before.write(bytes(9000), 0)
    before.close()
    with disk_with(SPARE + 1000):
        after = drafts.open("0123")
        after.reserve(10_000)
        assert (after.share.size, after.share.used) == (10_000, 9000)
        with pytest.raises(StorageFull):
            after.reserve(10_001)
    after.close()
    assert os.listdir(tmp_path / "drafts")
    room.close()
