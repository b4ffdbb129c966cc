"""Tests of `mypypi.descriptors`, with the limit of this process. Linux only."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from unittest import mock

import pytest

from mypypi.descriptors import are_used_up, for_connections, is_shortage, scarcity
from mypypi.errors import OutOfDescriptors, StorageDown, StorageFull, storage_error
from tests.rig.descriptors import few_descriptors, open_numbers

_FREE = 100
pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux has prlimit")


@pytest.fixture
def opened() -> Iterator[list[int]]:
    """A list of descriptors that are closed after the test."""
    found: list[int] = []
    yield found
    for fd in found:
        os.close(fd)


def test_the_kept_descriptors_are_counted(opened: list[int]) -> None:
    """The descriptors that are kept free of connections are used one after the other, up to the last one."""
    highest = max(open_numbers(os.getpid()))
    while not opened or opened[-1] <= highest:  # the gaps below
        opened.append(os.dup(0))
    with few_descriptors([os.getpid()], _FREE):
        kept = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8
        assert 2 <= kept < _FREE
        last = [os.dup(0) for _ in range(_FREE)]
        opened.extend(last)
        with pytest.raises(OSError, match="Too many open files") as caught:
            os.dup(0)
        assert is_shortage(caught.value)
        assert are_used_up()
        assert [scarcity(fd) > 0 for fd in last] == [False] * (_FREE - kept) + [True] * kept
        assert scarcity(last[-1]) == 1
    assert not are_used_up()
    assert scarcity(opened[-1]) <= 0


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, OutOfDescriptors),
        (errno.ENFILE, OutOfDescriptors),
        (errno.ENOSPC, StorageFull),
        (errno.EIO, StorageDown),
    ],
)
def test_a_shortage_is_no_failure_of_the_storage(number: int, kind: type[Exception]) -> None:
    """An error of the storage is told from the lack of a descriptor."""
    error = storage_error(OSError(number, os.strerror(number)), "a file can't be read")
    assert type(error) is kind
    assert str(error).startswith("a file can't be read: ")


def test_clients_leave_descriptors_to_their_files() -> None:
    """There are so few connections that each client can get a file, and never more than thousands."""
    for limit, expected in ((256, 74), (1024, 320), (1_000_000, 8192), (resource.RLIM_INFINITY, 8192), (2, 1)):
        with mock.patch("resource.getrlimit", return_value=(limit, limit)):
            assert for_connections() == expected
