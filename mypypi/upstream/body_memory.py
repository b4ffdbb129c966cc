"""The memory for bodies that are kept whole, such as pages: what all of them hold together, and which of them waits.

Knows numbers of bytes. Must never know connections, or what a body is.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

#: Bytes that bodies hold together in a process, from their arrival until they are rendered or passed on. Beyond that,
#: only small bodies go on arriving, up to as much again, and one large one. The connections of the others are paused.
MOST_HELD = 32 * 1024 * 1024
#: Bytes of a small body. Of pages in gzip encoding, few have more.
SMALL = 1024 * 1024


class BodyMemory:
    """
    The memory of the bodies of one process.

    One of the bodies that wait is favoured, the smallest: it goes on to its end, however large it is. So all of them
    end one after the other, and the memory is bounded by twice `most` and one body of the largest size.
    """

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held = 0  # without the favoured one
        self._favoured: BodyClaim | None = None
        self._waiting: dict[BodyClaim, Callable[[], object]] = {}

    @property
    def held(self) -> int:
        """Bytes that all bodies hold."""
        return self._held + (self._favoured.size if self._favoured is not None else 0)

    def claim(self) -> BodyClaim:
        """Return the claim of a body from which nothing has arrived yet."""
        return BodyClaim(self)

    def take(self, claim: BodyClaim, count: int, resume: Callable[[], object]) -> bool:
        """Count bytes of a body; see `BodyClaim.take`."""
        claim.size += count
        if claim is not self._favoured:
            self._held += count
            self._waiting[claim] = resume
            self._favour_one()
        goes_on = self._may_go_on(claim)
        if goes_on:
            self._waiting.pop(claim, None)
        return goes_on

    def release(self, claim: BodyClaim) -> None:
        """Free the memory of a body; see `BodyClaim.release`."""
        self._waiting.pop(claim, None)
        if claim is self._favoured:
            self._favoured = None
        else:
            self._held -= claim.size
        claim.size = 0
        self._favour_one()
        for waiting in sorted(self._waiting, key=_size):
            if self._may_go_on(waiting) and (resume := self._waiting.pop(waiting, None)):
                resume()

    def _may_go_on(self, claim: BodyClaim) -> bool:
        most = 2 * self._most if claim.size <= SMALL else self._most
        return claim is self._favoured or self._held <= most

    def _favour_one(self) -> None:
        """Let the smallest body that waits for memory go on, unless another one is favoured."""
        waiting = [claim for claim in self._waiting if not self._may_go_on(claim)]
        if self._favoured is None and waiting:
            self._favoured = min(waiting, key=_size)
            self._held -= self._favoured.size


def _size(claim: BodyClaim) -> int:
    return claim.size


@define(eq=False)
class BodyClaim:
    """What one body holds: `size` bytes."""

    _memory: BodyMemory
    size: int = field(default=0, init=False)

    def take(self, count: int, resume: Callable[[], object]) -> bool:
        """
        Count bytes that have arrived. Return whether more may arrive now.

        Otherwise no more should be read until `resume` is called, which never happens after `release`.
        """
        return self._memory.take(self, count, resume)

    def release(self) -> None:
        """Free the memory: the body is not held any more. May be called more than once."""
        self._memory.release(self)
