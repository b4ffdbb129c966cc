"""Validates every request before it is routed: method, Host header and path.

Knows request lines, and the path prefix that a proxy may have left on them. Must never know routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from twisted.web.resource import IResource, Resource

from mypypi.errors import BadRequest, MyPyPiError
from mypypi.file_keys import EMPTY_SEGMENT
from mypypi.web.errors import NOTHING_HERE, READ_ONLY, answer
from mypypi.web.public_address import is_host

if TYPE_CHECKING:
    from twisted.web.http import Request

_LONGEST_TARGET = 8192
_SCOPE = re.compile(rb"(/(?:@|%40)[^/%]+)%2[fF]")
_HEX = frozenset(b"0123456789abcdefABCDEF")
#: An encoded letter, digit, ``-``, ``.`` or ``_``, which no client has to encode (RFC 3986, section 2.3).
_NEEDLESSLY_ENCODED = re.compile(rb"%(?:2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")
#: The first segment of paths for operators and of the registry's endpoints.
_RESERVED = "-"


#: Maps the segments of a path to the methods that are allowed there.
Methods = Callable[[list[str]], tuple[str, ...]]

#: Takes a request and its segments, removes a prefix from the request, and returns the segments that remain.
RemovePrefix = Callable[["Request", list[str]], list[str]]


class TargetTooLong(MyPyPiError):
    """The request target is too long (RFC 9110, section 15.5.15)."""

    status = 414


class RequestValidator(Resource):
    """
    Passes valid requests on to `inner`, and refuses all others.

    `inner` may call `segments_of` on the requests that it gets. `methods` gives the allowed methods for a path. With
    `scoped`, a segment that starts with ``@`` may contain an encoded slash. `remove_prefix` is called before the method
    is checked.

    A path below ``/-/`` has one spelling. A proxy in front may block ``/-/metrics``, and must not have to know that
    ``/%2d/metrics`` is the same address (RFC 3986, section 6.2.2.2).
    """

    isLeaf = True

    def __init__(
        self, inner: IResource, methods: Methods, *, scoped: bool = False, remove_prefix: RemovePrefix | None = None
    ) -> None:
        super().__init__()
        self._inner = inner
        self._methods = methods
        self._scoped = scoped
        self._remove_prefix = remove_prefix

    def render(self, request: Request) -> bytes | int:
        """Refuse an invalid request; pass a valid one on."""
        try:
            _check_host(request)
            segments = segments_of(request, scoped=self._scoped)
        except MyPyPiError as error:
            return answer(request, error.status, str(error))
        is_spelled_out = not _NEEDLESSLY_ENCODED.search(request.uri.partition(b"?")[0])
        if self._remove_prefix is not None:
            segments = self._remove_prefix(request, segments)
        if segments[0] == _RESERVED and not is_spelled_out:
            return answer(request, 404, NOTHING_HERE)
        methods = self._methods(segments)
        if request.method.decode("latin-1") not in methods:
            return _refuse(request, methods)
        result: bytes | int = self._inner.render(request)
        return result


def segments_of(request: Request, *, scoped: bool = False) -> list[str]:
    """
    Return the decoded segments of the request's path.

    The last segment is empty if the path ends with a slash. With `scoped`, an encoded slash splits a segment that
    starts with ``@``, since npm's clients write scopes so.

    Raises BadRequest for a path that no client means: broken percent-encoding, an encoded slash, control characters,
    text that is not UTF-8, ``.``, ``..`` or an empty segment before the last. Raises TargetTooLong.
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
        raise BadRequest("the address contains an empty segment, '.' or '..'")
    return segments


def _refuse(request: Request, methods: tuple[str, ...]) -> bytes:
    """
    Refuse a method, with the reason and the allowed methods.

    npm's clients show the body's ``error``. twine, which uploads with POST, shows the reason phrase alone.
    """
    reason = READ_ONLY if "GET" in methods else f"this address answers {' and '.join(methods)} only"
    body = answer(request, 405, reason)
    if request.method == b"POST":
        request.setResponseCode(405, reason.encode())
    request.setHeader(b"allow", ", ".join(methods).encode())
    return body


def _check_host(request: Request) -> None:
    """
    Raise BadRequest for an invalid Host header (RFC 9112, section 3.2).

    A request without one is accepted.
    """
    hosts = request.requestHeaders.getRawHeaders(b"host", [])
    if len(hosts) > 1 or (hosts and hosts[0] and not is_host(hosts[0].decode("latin-1"))):
        raise BadRequest("the Host header is not a host")


def _decoded(segment: bytes) -> str:
    for part in segment.split(b"%")[1:]:
        if len(part) < 2 or part[0] not in _HEX or part[1] not in _HEX:  # noqa: PLR2004 - two hex digits
            raise BadRequest("the address contains a broken percent-encoding")
    raw = unquote_to_bytes(segment)
    if b"/" in raw or b"\\" in raw:
        raise BadRequest("the address contains an encoded slash or a backslash")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadRequest("the address is not UTF-8") from None
    if not text.isprintable() and text != EMPTY_SEGMENT:
        raise BadRequest("the address contains characters that can't be printed")
    return text
