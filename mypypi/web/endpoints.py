"""What the Klein applications have in common: their errors have one handler, and the routes of a path can be found.

Knows Klein. Must never know what a route does, or what an error means for the client.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from klein import Klein
from twisted.internet.defer import maybeDeferred
from werkzeug.exceptions import HTTPException

from mypypi.web.errors import respond_to

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure
    from twisted.web.http import Request

_METHODS = ("GET", "POST")


class RoutingApp(Klein):
    """A Klein application whose failed requests are answered, or broken off, in one place."""

    def __init__(self) -> None:
        super().__init__()
        # For paths without a route. It is not called once the client has left: Klein logs the error as unhandled.
        self.handle_errors(Exception)(_failed)  # type: ignore[arg-type] # Klein does not name the type of bytes later

    def execute_endpoint(self, endpoint: str, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Handle a request with a route."""
        handled = maybeDeferred(super().execute_endpoint, endpoint, request, *args, **kwargs)
        return handled.addErrback(lambda failure: respond_to(request, failure))


def _failed(_routes: Any, request: Request, failure: Failure) -> bytes | Deferred[None]:
    return respond_to(request, failure)


def endpoints_of(app: Klein, segments: list[str]) -> set[str]:
    """Return the names of the routes that answer a path, with any method; `segments` are the path's, decoded."""
    adapter = app.url_map.bind("here.example")
    found = set()
    for method in _METHODS:
        with suppress(HTTPException):
            endpoint, _ = adapter.match("/" + "/".join(segments), method=method)
            found.add(str(endpoint))
    return found
