"""Finds the routes of a Klein application that a path has.

Knows Klein's URL map. Must never know what a route does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from werkzeug.exceptions import HTTPException

if TYPE_CHECKING:
    from klein import Klein

_METHODS = ("GET", "POST")


def endpoints_of(app: Klein, segments: list[str]) -> set[str]:
    """Return the names of the routes that answer a path, with any method; `segments` are the path's, decoded."""
    adapter = app.url_map.bind("here.example")
    found = set()
    for method in _METHODS:
        with suppress(HTTPException):
            endpoint, _ = adapter.match("/" + "/".join(segments), method=method)
            found.add(str(endpoint))
    return found
