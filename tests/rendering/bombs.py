"""Pages made to hurt the process that reads them, each with what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from attrs import frozen

from mypypi.model import PageId, SourceDocument
from tests.rendering.processes import HTML, JSON, THING, URL
from tests.support.swollen import barely_swollen

PACKUMENT = PageId("packument", "thing")
ANCHOR = b'<a href="thing-1.0.tar.gz">thing-1.0.tar.gz</a>'


#: What becomes of a bomb: a page, or an error with one of these texts. Time and memory may end in any order.
PAGE = "a page"
TOO_MUCH = "takes too (long|much memory)"
DEEP = "nested too deeply"


@frozen
class Bomb:
    """A hostile page. `result` is a pattern: `PAGE` for one that is harmless, else that of its error."""

    make: Callable[[], bytes]
    result: str = PAGE
    page: PageId = THING
    content_type: str = HTML

    @property
    def source(self) -> SourceDocument:
        return _source(self)


@cache
def _source(bomb: Bomb) -> SourceDocument:
    return SourceDocument(barely_swollen(bomb.make()), bomb.content_type, f"{URL}/simple/thing/", "gzip")


#: A page with as many links as a page may have. It is within all limits but that of time: it takes a minute.
ENDLESS: Final = Bomb(lambda: b"<html>" + ANCHOR * 1_000_000, TOO_MUCH)
#: A page of 60 MB that needs more than 1 GiB of memory.
JSON_OBJECTS: Final = Bomb(lambda: b'{"files":[' + b"{}," * 20_000_000 + b"{}]}", TOO_MUCH, content_type=JSON)

BOMBS: Final = {
    "comments": Bomb(lambda: b"<html>" + b"<!--" * 100_000),
    "declarations": Bomb(lambda: b"<html>" + b"<![" * 200_000),
    "nested tags": Bomb(lambda: b"<html>" + b"<div>" * 200_000),
    "nested anchors": Bomb(lambda: b"<html>" + b"<a>" * 50_000),
    "a million links": ENDLESS,
    "more links": Bomb(lambda: b"<html>" + b"<a>" * 1_100_000, f"more than 1000000 links|{TOO_MUCH}"),
    "JSON objects": JSON_OBJECTS,
    "deep JSON": Bomb(lambda: b'{"files":' + b"[" * 300_000, DEEP, content_type=JSON),
    "deep JSON with an end": Bomb(
        lambda: b'{"files":[],"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}", DEEP, content_type=JSON
    ),
    "deep packument": Bomb(lambda: b'{"name":"thing","a":' + b'{"a":' * 300_000, DEEP, PACKUMENT, JSON),
    "packument of objects": Bomb(
        lambda: b'{"name":"thing","versions":{},"a":[' + b"{}," * 20_000_000 + b"{}]}",
        f"{PAGE}|{TOO_MUCH}",
        PACKUMENT,
        JSON,
    ),
    "packument of versions": Bomb(
        lambda: b'{"name":"thing","versions":{' + b",".join(b'"%d":{}' % number for number in range(3_000_000)) + b"}}",
        f"more than 1000000 versions|{TOO_MUCH}",
        PACKUMENT,
        JSON,
    ),
}
