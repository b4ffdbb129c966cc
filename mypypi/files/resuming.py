"""Decides when an interrupted transfer goes on, and from which byte.

Knows errors and the head of an answer. Must never know drafts, or how bytes are received.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypypi.errors import MyPyPiError, TooSlow, Truncated, UpstreamPaused

if TYPE_CHECKING:
    from mypypi.upstream.responses import FileResponse

#: A transfer fails after more than this many interruptions in a row without a new byte, or in all by TooSlow.
FRUITLESS = 3
#: The number of attempts for one file, including those that bring new bytes.
_RESUMES = 50
#: Seconds before a transfer is resumed: doubled after each attempt without a new byte. While upstream is in back-off,
#: the transfer waits longer, up to the second value.
_PAUSE, _LONGEST_PAUSE = 0.2, 10.0


class FetchCancelled(Exception):
    """The transfer was stopped. The draft can be resumed."""


class Attempts:
    """Counts the interruptions of one transfer. Those by which it gave way to others are not counted."""

    def __init__(self) -> None:
        self._resumes = self._fruitless = self._slow = 0

    def pause(self, error: MyPyPiError, *, brought: bool) -> float:
        """
        Return the seconds until the next attempt. `brought` is whether the last one brought new bytes.

        While upstream is in back-off, they last until its end. Raises the error after too many fruitless attempts, and
        Truncated after too many in all.
        """
        self._fruitless = 0 if brought else self._fruitless + 1
        self._slow += isinstance(error, TooSlow)
        if max(self._fruitless, self._slow) > FRUITLESS:
            raise error
        self._resumes += 1
        if self._resumes >= _RESUMES:
            raise Truncated("upstream's body ended early too often")
        backoff = error.retry_after or 0 if isinstance(error, UpstreamPaused) else 0
        return max(_PAUSE * 2.0**self._fruitless, min(backoff, _LONGEST_PAUSE))


def bytes_to_skip(body: FileResponse, offset: int, total: int | None, *, has_digest: bool) -> int:
    """
    Return how many bytes of the body come before this offset, from which the rest was requested.

    `total` is the file's length as announced before, `has_digest` whether the index gives its digest. Raises Truncated
    if the body is not the rest of the same file.
    """
    if body.status == 200:  # noqa: PLR2004 - upstream does not support ranges, or has another version now
        if not has_digest or body.length not in (None, total):
            raise Truncated("upstream's body ended early and could not be resumed")
        return offset
    unit, _, rest = body.header("content-range").partition(" ")
    if unit != "bytes" or not rest.startswith(f"{offset}-"):
        raise Truncated("upstream resumed its body at another offset than requested")
    return 0
