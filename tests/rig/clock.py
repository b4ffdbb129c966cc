"""The time of day as daemons see it, which a test sets while they run.

Knows how a Python process is told its time. Must never know which program it is.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

DAY = 86_400.0


class WallClock:
    """
    The clock of a host. It is right until `set_ahead`.

    `path` is a file of its own. Daemons that have `env` in their environment, and `module` on their Python path, follow
    it at once, with all their child processes.
    """

    #: The directory with the module that shifts the time.
    module = Path(__file__).parent / "shifted"

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)
        self.env = {"RIG_CLOCK": str(path)}

    def set_ahead(self, seconds: float) -> None:
        """Set the clock so many seconds ahead of the right time; 0 mends it."""
        self._shared[:8] = struct.pack("d", seconds)
