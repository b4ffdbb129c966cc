"""Tests of the choice of media type and encoding."""

from __future__ import annotations

import pytest

from mypypi.errors import NotAcceptable
from mypypi.web.negotiation import accepts_gzip, choose_type

HTML, JSON = "text/html", "application/vnd.pypi.simple.v1+json"
OFFERED = {HTML: "html", JSON: "json"}
#: The Accept headers that pip, uv and a browser really send.
PIP = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01"
UV = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


class TestType:
    """Content negotiation by quality (RFC 9110, section 12.5.1)."""

    @pytest.mark.parametrize(
        ("accept", "chosen"),
        [
            (None, HTML), ("", HTML), ("  ", HTML), ("*/*", HTML), (BROWSER, HTML),
            (PIP, JSON), (UV, JSON), (JSON, JSON), (JSON.upper(), JSON),
            (f"{HTML}, {JSON}", HTML), (f"{HTML};q=0.5, {JSON};q=0.6", JSON), (f"{HTML};q=0, */*", JSON),
            (f"*/*;q=0.1, {JSON}", JSON), ("text/*", HTML), ("application/*", JSON),
        ],
    )  # fmt: skip
    def test_best_offered_type_is_chosen(self, accept: str | None, chosen: str) -> None:
        """The offered type with the highest quality is chosen; without a preference, the first one."""
        assert choose_type(accept, OFFERED) == chosen

    @pytest.mark.parametrize("accept", ["image/png", f"{HTML};q=0", f"{JSON};q=0, {HTML};q=0", "nonsense", "*/*;q=0"])
    def test_no_acceptable_type_is_an_error(self, accept: str) -> None:
        """A client that accepts no offered type gets a 406 that lists them."""
        with pytest.raises(NotAcceptable, match=JSON.replace("+", r"\+")):
            choose_type(accept, OFFERED)


@pytest.mark.parametrize(
    ("accept_encoding", "gzip"),
    [
        (None, False), ("", False), ("identity", False), ("br", False), ("gzip;q=0", False), ("*;q=0", False),
        ("gzip", True), ("GZIP", True), ("gzip, deflate, br, zstd", True), ("*", True), ("identity, gzip;q=0.1", True),
    ],
)  # fmt: skip
def test_gzip_is_sent_if_accepted(accept_encoding: str | None, gzip: bool) -> None:  # noqa: FBT001 - a table
    """Clients that accept gzip get it, all others get identity (RFC 9110, section 12.5.3)."""
    assert accepts_gzip(accept_encoding) == gzip
