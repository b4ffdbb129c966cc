"""Rough weather, in a short form: see `tests.chaos` for the long one."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.chaos.__main__ import run


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process is Linux's")
def test_rough_weather(tmp_path: Path) -> None:
    """Each kind of fault once: no wrong byte, no client error that the specification does not allow, nothing left."""
    report, wrongs = run(tmp_path, seconds=0, seed=1)
    print(report)  # noqa: T201 - pytest shows it when the test fails
    assert wrongs == []
