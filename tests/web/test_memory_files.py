"""Tests of large bodies in files in memory."""

from __future__ import annotations

import gc
import os
from unittest import mock

import pytest

from mypypi import descriptors
from mypypi.web.memory_files import LARGEST, MemoryFiles
from tests.support.memory import open_descriptors

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files in memory are Linux's")


def test_a_body_has_one_file() -> None:
    """The same body is written once, and its file has all of its bytes."""
    files, body = MemoryFiles(), os.urandom(100_000)
    content = files.content(body)
    assert content is not None
    assert files.content(body) is content
    assert (content.whole, content.readable) == (True, len(body))
    assert os.pread(content.fd, len(body) + 1, 0) == body


def test_bodies_are_told_apart() -> None:
    """Each body has its own file, also when one has gone and another lies at its place in memory."""
    files = MemoryFiles()
    for number in range(200):
        body = bytes([number % 256]) * 100_000
        content = files.content(body)
        assert content is not None
        assert os.pread(content.fd, len(body), 0) == body


def test_files_are_few_and_are_closed() -> None:
    """There are 32 files at most. One that is not needed any more is closed, but not while it is being sent."""
    gc.collect()
    before, files = open_descriptors(), MemoryFiles()
    sent = files.content(os.urandom(100_000))
    assert sent is not None
    sent.open()
    bodies = [os.urandom(70_000) for _ in range(100)]
    for body in bodies:
        assert files.content(body) is not None
    assert open_descriptors() == before + 33
    assert len(os.pread(sent.fd, 100_000, 0)) == 100_000
    sent.close()
    del sent, files
    gc.collect()
    assert open_descriptors() == before


def test_what_has_no_room_has_no_file() -> None:
    """A very large body has none, nor has any where no descriptor or no memory is left."""
    gc.collect()
    before, files, body = open_descriptors(), MemoryFiles(), bytes(70_000)
    assert files.content(bytes(LARGEST + 1)) is None
    with mock.patch.object(os, "memfd_create", side_effect=OSError(24, "Too many open files")):
        assert files.content(body) is None
    with mock.patch.object(os, "write", side_effect=OSError(28, "No space left on device")):
        assert files.content(body) is None
    with mock.patch.object(descriptors, "scarcity", return_value=0.1):
        assert files.content(body) is None
    with mock.patch.object(os, "write", return_value=len(body) - 1):
        assert files.content(body) is None
    gc.collect()
    assert open_descriptors() == before
    assert files.content(body) is not None
