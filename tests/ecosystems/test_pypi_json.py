"""Tests of PyPI's own JSON about a project or a version: only the addresses of files are changed."""

from __future__ import annotations

import json

import pytest

from mypypi.errors import BadUpstreamResponse
from mypypi.model import BASE_PLACEHOLDER, PageId
from tests.ecosystems.simple_pages import WHEEL_LINK, WHEEL_URL, render, wheel


class TestPyPIsOwnJson:
    """PyPI's own JSON about a project or a version."""

    PAGE = PageId("json", "holy-grail", "1.0")

    def test_only_the_urls_of_files_are_changed(self) -> None:
        """Every file's URL leads to this server's address; all else is unchanged."""
        foreign = {"filename": "x", "url": "https://files.example/%2F/x"}
        document = {
            "info": {"name": "Holy-Grail", "url": WHEEL_URL, "description": f"see {WHEEL_URL}"},
            "urls": [wheel(), foreign, None],
            "releases": {"1.0": [wheel()], "2.0": None},
            "vulnerabilities": [],
        }
        form = render(document, self.PAGE, "application/json").forms["json"]
        assert (form.media_type, form.based) == ("application/json", True)
        ours = wheel(url=f"{BASE_PLACEHOLDER.decode()}/file/{WHEEL_LINK}")
        assert json.loads(form.body) == {
            **document,
            "urls": [ours, foreign, None],
            "releases": {"1.0": [ours], "2.0": None},
        }

    def test_only_web_links_stay(self) -> None:
        """A file whose URL is neither http nor https is left out of every list."""
        odd = [
            {"filename": "x", "url": url} for url in ("javascript:x", "DATA:text/html,x", "file:///srv/x", "ftp://x/y")
        ]
        document = {"info": {"name": "Holy-Grail"}, "urls": [*odd, None], "releases": {"1.0": [*odd, wheel()]}}
        found = json.loads(render(document, self.PAGE, "application/json").forms["json"].body)
        assert (found["urls"], len(found["releases"]["1.0"])) == ([None], 1)

    @pytest.mark.parametrize("body", [b"[]", b"{}", b'{"info": 1}', b"<html>"])
    def test_other_json_is_refused(self, body: bytes) -> None:
        """Other JSON than PyPI's is refused as upstream's fault."""
        with pytest.raises(BadUpstreamResponse):
            render(body, self.PAGE, "application/json")
