"""The page at ``/-/``: what this server is, for a person with a browser, and the same as JSON.

Knows what is served, and to which address links lead. Must never show a secret: any client may read it.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from attrs import frozen

from mypypi import __version__
from mypypi.web.negotiation import choose_type, vary_on

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.web.public_address import Addresses

_TYPES = {"text/html": "html", "application/json": "json"}

#: The page has text and links only, since `web.request` forbids browsers all else on every response.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>MyPyPi</title></head>
<body>
<h1>MyPyPi {version}</h1>
<p>A read-only cache for {packages} from {upstream}.</p>
<p>To use it:</p>
<pre>{try}</pre>
<ul>
<li><a href="health/ready">Health</a></li>
<li><a href="metrics">Metrics</a></li>
</ul>
</body>
</html>
"""
_PACKAGES = {"pypi": "Python packages", "npm": "npm packages"}


@frozen
class About:
    """
    Answers with version, ecosystem, upstream, and a command to copy.

    `example` returns that command for an address of this server, which ends with a slash.
    """

    package_type: str
    upstream_url: str
    addresses: Addresses
    example: Callable[[str], str]

    def answer(self, request: Request) -> bytes:
        """Return the page as HTML or JSON, and set its headers. Raises BadRequest, NotAcceptable."""
        vary_on(request, "Accept")
        form = _TYPES[choose_type(request.getHeader("accept"), _TYPES)]
        facts = {
            "version": __version__,
            "serves": self.package_type,
            "upstream": _origin(self.upstream_url),
            "try": self.example(f"{self.addresses.base(request)}/"),
        }
        if form == "json":
            links = {"health": "health/ready", "metrics": "metrics"}
            body, content_type = msgspec.json.encode({**facts, **links}), b"application/json"
        else:
            shown = facts | {"packages": _PACKAGES[self.package_type]}
            page = _PAGE.format_map({name: escape(text) for name, text in shown.items()})
            body, content_type = page.encode(), b"text/html; charset=utf-8"
        request.setHeader(b"content-type", content_type)
        request.setHeader(b"content-length", b"%d" % len(body))
        request.setHeader(b"cache-control", b"no-store")
        return body


def _origin(url: str) -> str:
    """Return scheme, host and port. Some registries have users write a token into the path or before the host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
