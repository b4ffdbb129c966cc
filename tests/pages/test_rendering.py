"""From upstream's bytes to a page's forms: here, and in a child for what is large."""

from __future__ import annotations

import hashlib
import sys
import zlib
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest

from mypypi.errors import BadUpstreamResponse
from mypypi.model import PageId, RenderedForm, SourceDocument
from mypypi.pages.rendering import Renderer, compress, render, render_in_child
from tests.support.memory import AtOnce, MemoryTestCase, simple_page

URL = "https://index.example"
THING = PageId("simple", "thing")
LINK = "https/files.example/thing-1.0.tar.gz"
STRAY = "https/files.example/other-1.0.tar.gz"


def source(*files: dict[str, object], padding: int = 0) -> SourceDocument:
    body = simple_page(*files) + b" " * padding
    return SourceDocument(body, "application/vnd.pypi.simple.v1+json", f"{URL}/simple/thing/")


def file(link: str, **fields: object) -> dict[str, object]:
    return {"filename": link.rpartition("/")[2], "url": link.replace("/", "://", 1), "hashes": {}, **fields}


class PressTest(MemoryTestCase):
    """Small pages in a thread, large ones in a child: with the same result."""

    def setUp(self) -> None:
        super().setUp()
        self.renderer = Renderer("pypi", URL, AtOnce())

    def rendered(self, source: SourceDocument, function: str) -> None:
        with mock.patch(f"mypypi.pages.rendering.{function}") as called:
            self.now(self.renderer.render(THING, source, frozenset()))
        called.assert_called_once_with("pypi", URL, THING, source, frozenset())

    def test_small_page_is_rendered_in_a_thread(self) -> None:
        """A child would cost more than it saves."""
        self.rendered(source(padding=512 * 1024 - 100), "render")

    def test_large_page_is_rendered_in_a_child(self) -> None:
        """Which does not hold this process's interpreter."""
        self.rendered(source(padding=512 * 1024), "render_in_child")


def test_child_renders_as_this_process_does() -> None:
    """Forms, links and all, with what is withheld left out."""
    listed = source(file(LINK, **{"core-metadata": True}), file(STRAY), padding=600_000)
    withheld = frozenset([f"{LINK}.metadata"])
    printed = render_in_child("pypi", URL, THING, listed, withheld)
    assert printed == render("pypi", URL, THING, listed, withheld)
    assert STRAY in printed.indexed_links
    assert b"core-metadata" not in zlib.decompress(printed.forms["json"].body, 31)


def test_child_tells_what_it_can_not_read() -> None:
    """In the same words."""
    broken = SourceDocument(b"neither", "text/plain", f"{URL}/simple/thing/")
    with pytest.raises(BadUpstreamResponse) as here:
        render("pypi", URL, THING, broken, frozenset())
    with pytest.raises(BadUpstreamResponse) as there:
        render_in_child("pypi", URL, THING, broken, frozenset())
    assert str(here.value) == str(there.value)


@pytest.mark.parametrize("program", ["false", "sleep-forever", "not-there"])
def test_child_that_fails_is_no_page(program: str, tmp_path: Path) -> None:
    """It dies, hangs, or can't be started: one page can't be taken in, and that is all."""
    executable = tmp_path / program
    if program != "not-there":
        executable.write_text("#!/bin/sh\n" + ("exit 1" if program == "false" else "exec sleep 60") + "\n")
        executable.chmod(0o755)
    with (
        mock.patch.object(sys, "executable", str(executable)),
        mock.patch("mypypi.pages.rendering._CHILD_TIMEOUT", 0.3),
        pytest.raises(BadUpstreamResponse),
    ):
        render_in_child("pypi", URL, THING, source(), frozenset())


def test_form_is_compressed_once_and_named_by_its_identity_bytes() -> None:
    """Its etag and its bytes are the same on every host, whatever the time."""
    rendered = RenderedForm("text/html", b"<html></html>" * 100, based=True)
    form = compress(rendered)
    assert form == compress(rendered)
    assert (form.media_type, form.size, form.based) == ("text/html", 1300, True)
    assert form.etag == hashlib.sha256(rendered.body).hexdigest()[:32]
    assert zlib.decompress(form.body, 31) == rendered.body
    assert len(form.body) < form.size
    assert form.body[4:8] == bytes(4), "no time in the gzip header (RFC 1952, section 2.3.1)"


def test_pages_come_from_the_ecosystem_of_that_name() -> None:
    """Of no other."""
    with pytest.raises(KeyError):
        render("cargo", URL, THING, cast("Any", None), frozenset())
