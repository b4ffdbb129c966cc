"""Makes JSON from upstream readable where clients read it, though the parser here does not.

Clients accept a byte order mark, text that is not UTF-8, and halves of surrogate pairs. None accepts raw control
characters in strings. Knows JSON. Must never know what a document means.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from typing import Any

import msgspec

from mypypi.errors import BadUpstreamResponse

#: The parser's errors for bytes that are not JSON, not UTF-8, or nested too deeply.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

#: Matches escaped backslashes or a surrogate pair, to be kept (group 1), or else a lone surrogate, which the parser
#: would reject.
_SURROGATES = re.compile(
    rb"((?:\\\\){1,1000}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
#: An escape that may be half of a surrogate pair.
_HAS_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def without_mark(body: bytes) -> bytes:
    """Return the body without the byte order mark of UTF-8, which pip and bun ignore."""
    return body.removeprefix(BOM_UTF8)


def mended(body: bytes, encoding: str = "utf-8") -> bytes:
    """
    Return JSON in this encoding as valid UTF-8, with replacement characters for what can't be decoded.

    Registries truncate readmes, even in the middle of a surrogate pair. The parser rejects the rest of it.
    """
    text = without_mark(body.decode(encoding, errors="replace").encode())
    if not _HAS_SURROGATE.search(text):
        return text
    return _SURROGATES.sub(lambda match: match[1] or rb"\ufffd", text)


def decode(body: bytes, kind: Any) -> Any:
    """Parse JSON as this type, mended if that is needed. Raises BadUpstreamResponse."""
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as error:
        problem: Exception = error
    readable = mended(body)
    if readable != body:
        try:
            return msgspec.json.decode(readable, type=kind)
        except UNREADABLE as error:
            problem = error
    reason = "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)
    raise BadUpstreamResponse(f"upstream's response can't be parsed: {reason}")
