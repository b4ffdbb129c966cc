"""Shifts the time of day of this process by the seconds in the file that RIG_CLOCK names. See `tests.rig.clock`.

Python imports this module at its start, before the program. The monotonic clock is not shifted.
"""  # noqa: INP001 - Python wants this name

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import Any


def _shift(path: str) -> None:
    with open(path, "r+b") as file:  # noqa: PTH123 - another import would slow down the start of each process
        shared = mmap.mmap(file.fileno(), 8)
    real, gmtime = time.time, time.gmtime

    def shifted() -> float:
        return real() + float(struct.unpack("d", shared[:8])[0])

    def shifted_gmtime(seconds: Any = None) -> time.struct_time:
        return gmtime(shifted() if seconds is None else seconds)

    time.time, time.gmtime = shifted, shifted_gmtime


if "RIG_CLOCK" in os.environ:
    _shift(os.environ["RIG_CLOCK"])
