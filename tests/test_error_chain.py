"""Tests of `mypypi.error_chain`: every error that led to another is found, and the walk ends."""

from __future__ import annotations

import errno

from mypypi.descriptors import is_shortage
from mypypi.error_chain import chain_of
from mypypi.tls import explain_chain


def linked(*errors: Exception) -> Exception:
    """Return the first of these errors. Each came from the next one, and the last one from the first."""
    for error, cause in zip(errors, [*errors[1:], errors[0]], strict=True):
        error.__cause__ = cause
    return errors[0]


def test_an_error_that_came_from_itself_ends_the_walk() -> None:
    """An error that was raised again may have come from itself. Each error is found once."""
    first, second = ValueError("first"), KeyError("second")
    assert list(chain_of(linked(first, second))) == [first, second]
    assert list(chain_of(None)) == []


def test_readers_of_a_chain_end() -> None:
    """What an error says of descriptors and of TLS is found out, however its errors are linked."""
    assert not is_shortage(linked(ValueError(), KeyError()))
    assert is_shortage(linked(ValueError(), OSError(errno.EMFILE, "Too many open files")))
    assert explain_chain(linked(ValueError(), KeyError()), "here.example") is None
