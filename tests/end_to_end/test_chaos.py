"""Runs the chaos test in its short form; `tests.chaos` has the long one."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.chaos.__main__ import run


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")
def test_each_fault_once_breaks_no_promise(tmp_path: Path) -> None:
    """
    Each kind of fault happens once, and every promise is kept.

    There is no wrong byte, no client error that the specification does not allow, and nothing left over.
    """
    report, violations = run(tmp_path, seconds=0, seed=1)
    print(report)  # noqa: T201 - pytest shows the output of a failed test
    assert violations == []
