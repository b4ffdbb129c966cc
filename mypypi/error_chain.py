"""Walks from an error to the errors that it came from.

Knows how Python links errors. Must never know what an error means.
"""

from __future__ import annotations

from collections.abc import Iterator


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """
    Yield an error, then the one that it came from, and so on.

    An error that was raised twice may have come from itself. Each is yielded once.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
