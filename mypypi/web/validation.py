"""What every request passes before it is routed: its method, and whether its path is one that anybody means.

Knows request lines. Must never know routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from twisted.web.resource import IResource, Resource

from mypypi.errors import BadRequest, MyPyPiError
from mypypi.web.errors import answer
from mypypi.web.public_address import is_host

if TYPE_CHECKING:
    from twisted.web.http import Request

_LONGEST_TARGET = 8192
_SCOPE = re.compile(rb"(/(?:@|%40)[^/%]+)%2[fF]")
_HEX = frozenset(b"0123456789abcdefABCDEF")


#: From the segments of a path to the methods that are answered there.
Methods = Callable[[list[str]], tuple[str, ...]]


class TargetTooLong(MyPyPiError):
    """RFC 9110, section 15.5.15."""

    status = 414


class RequestValidator(Resource):
    """
    Lets requests through to `inner`, which may use `segments_of` on those that passed. `methods` says what may be asked
    of a path; `scoped` whether a segment that starts with ``@`` may have an encoded slash in it.
    """

    isLeaf = True

    def __init__(self, inner: IResource, methods: Methods, *, scoped: bool = False) -> None:
        super().__init__()
        self._inner = inner
        self._methods = methods
        self._scoped = scoped

    def render(self, request: Request) -> bytes | int:
        """Answer here what can't mean anything, pass on the rest."""
        try:
            _check_host(request)
            segments = segments_of(request, scoped=self._scoped)
        except MyPyPiError as error:
            return answer(request, error.status, str(error))
        methods = self._methods(segments)
        if request.method.decode("latin-1") not in methods:
            body = answer(request, 405, f"this server is a read-only cache: here it answers {' and '.join(methods)}")
            request.setHeader(b"allow", ", ".join(methods).encode())
            return body
        result: bytes | int = self._inner.render(request)
        return result


def segments_of(request: Request, *, scoped: bool = False) -> list[str]:
    """
    The decoded segments of the request's path, of which the last may be empty (a trailing slash). With `scoped`, an
    encoded slash parts a segment in two where that starts with ``@``, as npm's clients write a scope.

    Raises BadRequest for a path that no client means: broken percent-encoding, an encoded slash, control characters,
    text that is not UTF-8, ``.``, ``..`` or nothing between two slashes. Raises TargetTooLong.
    """
    target: bytes = request.uri
    if len(target) > _LONGEST_TARGET:
        raise TargetTooLong(f"the address is longer than {_LONGEST_TARGET} bytes")
    path = target.partition(b"?")[0]
    if not path.startswith(b"/"):
        raise BadRequest("the address does not start with a slash")
    if scoped:
        path = _SCOPE.sub(rb"\1/", path)
    segments = [_decoded(segment) for segment in path[1:].split(b"/")]
    if "" in segments[:-1] or "." in segments or ".." in segments:
        raise BadRequest("the address has an empty segment, '.' or '..' in it")
    return segments


def _check_host(request: Request) -> None:
    """Raises BadRequest for what can't be a host (RFC 9112, section 3.2); whoever sends none has nothing to say."""
    hosts = request.requestHeaders.getRawHeaders(b"host", [])
    if len(hosts) > 1 or (hosts and hosts[0] and not is_host(hosts[0].decode("latin-1"))):
        raise BadRequest("the Host header is not a host")


def _decoded(segment: bytes) -> str:
    for part in segment.split(b"%")[1:]:
        if len(part) < 2 or part[0] not in _HEX or part[1] not in _HEX:  # noqa: PLR2004 - two hex digits
            raise BadRequest("the address has a broken percent-encoding in it")
    raw = unquote_to_bytes(segment)
    if b"/" in raw or b"\\" in raw:
        raise BadRequest("the address has an encoded slash or a backslash in it")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadRequest("the address is not UTF-8") from None
    if not text.isprintable():
        raise BadRequest("the address has characters in it that can't be printed")
    return text
