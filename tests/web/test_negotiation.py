"""Which media type and encoding a client gets."""

from __future__ import annotations

import pytest

from mypypi.errors import NotAcceptable
from mypypi.web.negotiation import accepts_gzip, choose_type

HTML, JSON = "text/html", "application/vnd.pypi.simple.v1+json"
OFFERED = {HTML: "html", JSON: "json"}
#: What pip, uv and a browser really send.
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
    def test_best_of_what_is_offered_is_chosen(self, accept: str | None, chosen: str) -> None:
        """The first where a client has no preference."""
        assert choose_type(accept, OFFERED) == chosen

    @pytest.mark.parametrize("accept", ["image/png", f"{HTML};q=0", f"{JSON};q=0, {HTML};q=0", "nonsense", "*/*;q=0"])
    def test_client_that_takes_nothing_of_it_is_told_what_there_is(self, accept: str) -> None:
        """406, with the types that are served."""
        with pytest.raises(NotAcceptable, match=JSON.replace("+", r"\+")):
            choose_type(accept, OFFERED)


@pytest.mark.parametrize(
    ("accept_encoding", "gzip"),
    [
        (None, False), ("", False), ("identity", False), ("br", False), ("gzip;q=0", False), ("*;q=0", False),
        ("gzip", True), ("GZIP", True), ("gzip, deflate, br, zstd", True), ("*", True), ("identity, gzip;q=0.1", True),
    ],
)  # fmt: skip
def test_gzip_goes_to_those_who_take_it(accept_encoding: str | None, gzip: bool) -> None:  # noqa: FBT001 - a table
    """And identity to all others (RFC 9110, section 12.5.3)."""
    assert accepts_gzip(accept_encoding) == gzip
