"""A range of a file's bytes, as a value.

Knows the syntax of ranges (RFC 9110, section 14). Must never know a file, or who asks for it.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class ByteRange:
    """
    One range of a file's bytes (RFC 9110, section 14.1.2), as ``str()`` writes it.

    From the byte at `first` to the one at `last`, or to the end. Without a `first`, it is the last `last` bytes.
    """

    first: int | None
    last: int | None

    def __str__(self) -> str:
        return f"bytes={'' if self.first is None else self.first}-{'' if self.last is None else self.last}"

    @property
    def length(self) -> int | None:
        """How many bytes it has at most; None if it goes to the end of the file."""
        return self.last if self.first is None or self.last is None else self.last - self.first + 1

    def within(self, total: int) -> tuple[int, int]:
        """Return where it starts and stops in a file of `total` bytes. It is empty if it lies outside."""
        if self.first is None:
            return max(0, total - (self.last or 0)), total
        stop = total if self.last is None else min(self.last + 1, total)
        return min(self.first, stop), stop
