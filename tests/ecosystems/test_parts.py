"""Tests of the parts that pages say they have: they are those that can be cut out, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import NotFound
from mypypi.model import UNKNOWN_SPAN, PageId, Part, Span

URL = "https://registry.example"
THING = PageId("packument", "thing")
npm, pypi = NPM(URL), PyPI(URL)

_NAMES = st.sampled_from(["1.0.0", "2.0.0", "latest", "next", "dist-tags", "versions", "", "é", '"'])
_MANIFESTS = st.fixed_dictionaries({"dist": st.just({}), "x": st.sampled_from([1, "é", {}, "}", '"', "latest"])})
_PACKUMENTS = st.fixed_dictionaries(
    {"versions": st.dictionaries(_NAMES, _MANIFESTS)},
    optional={"dist-tags": st.one_of(st.dictionaries(_NAMES, _NAMES), st.just(None), st.just({"a": 1}))},
)


def assert_parts_are_right(packument: bytes) -> dict[Part, Span]:
    parts = npm.parts(THING, "full", packument)
    assert parts is not None
    for part, (offset, length) in parts.items():
        if (offset, length) != UNKNOWN_SPAN:
            assert packument[offset : offset + length] == npm.part(part, packument)
    return parts


@given(_PACKUMENTS, st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}]), _NAMES)
def test_the_parts_of_a_packument_are_those_that_can_be_cut_out(
    document: dict[str, object], options: dict[str, Any], asked: str
) -> None:
    """Each part lies where it is said to lie, and a name that is no part is not found in the packument either."""
    packument = json.dumps(document, **options).encode()
    parts = assert_parts_are_right(packument)
    assert Part("dist-tags") in parts
    if Part("version", asked) in parts:
        assert npm.part(Part("version", asked), packument)
    else:
        with pytest.raises(NotFound):
            npm.part(Part("version", asked), packument)


def test_all_versions_of_an_ordinary_packument_can_be_cut_out() -> None:
    """No part of a packument has to be parsed for, however similar its versions are."""
    versions = {f"1.0.{number}": {"name": "thing", "padding": "x" * 100, "n": number} for number in range(300)}
    document = {"name": "thing", "dist-tags": {"latest": "1.0.7"}, "versions": versions}
    parts = assert_parts_are_right(json.dumps(document, separators=(",", ":")).encode())
    assert len(parts) == 302
    assert UNKNOWN_SPAN not in parts.values()
    assert parts[Part("version", "latest")] == parts[Part("version", "1.0.7")]


@pytest.mark.parametrize(
    "packument",
    [
        b'{"versions":{"1":{"a":1},"2":{"b":2},"1":{"c":3},"3":{"d":4}}}',
        b'{"versions":{"1":{"a":"\\ud83d"},"2":{"b":2}},"versions":{"2":{"b":"\\ud83d"},"1":{}}}',
        b'{"versions":{"1":{"a":"\xff"},"2":{"b":"\\ud83d"}},"dist-tags":{"x":"1","y":"\\ud83d"}}',
    ],
    ids=["repeated keys", "repeated versions", "mended"],
)
def test_parts_that_are_not_found_exist_all_the_same(packument: bytes) -> None:
    """A repeated key, or bytes that the parser must mend, may hide where a part lies, but not that there is one."""
    parts = assert_parts_are_right(packument)
    assert {Part("version", "1"), Part("version", "2"), Part("dist-tags")} <= set(parts)


def test_a_tag_without_its_version_is_no_part() -> None:
    """A tag counts only if its version is there. A missing tag is not the version without a name."""
    packument = b'{"versions":{"":{"a":1},"1":{"b":2}},"dist-tags":{"latest":"9","old":"1"}}'
    parts = assert_parts_are_right(packument)
    assert [part.name for part in parts if part.kind == "version"] == ["old", "", "1"]
    with pytest.raises(NotFound):
        npm.part(Part("version", "invented"), packument)


def test_only_pages_that_list_something_have_parts() -> None:
    """The other forms and pages do not tell which parts there are."""
    for page, name in [(THING, "abbreviated"), (THING, "files"), (PageId("keys"), "full")]:
        assert npm.parts(page, name, b"{}") is None
    for page in (PageId("simple", "thing"), PageId("root"), PageId("json", "thing", "1.0")):
        assert pypi.parts(page, "json", b'{"releases":{"1.0":[]}}') is None
        assert pypi.parts(PageId("json", "thing"), "json", b'{"info":{},"releases":%s}' % b"{}") is None
    for odd in (
        b'{"info":{}}',
        b'{"releases":[]}',
        b'{"releases":null}',
        b'{"releases":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ):
        assert pypi.parts(PageId("json", "thing"), "json", odd) is None
    many = json.dumps({"releases": dict.fromkeys(map(str, range(50_000)))}).encode()
    assert pypi.parts(PageId("json", "thing"), "json", many) is None
    assert pypi.parts(PageId("json", "thing"), "json", b'{"releases":{"%s":[],"\\ud83d\\ude00":1}}' % (b"9" * 5000))


@pytest.mark.parametrize("asked", ["1.0", "1.0.0", "v1.0", "1.0.0.0", "01.0", "1"])
def test_each_spelling_of_a_release_is_listed(asked: str) -> None:
    """PEP 440 has several spellings of a version, and PyPI finds each. So none of them counts as missing."""
    parts = pypi.parts(PageId("json", "thing"), "json", b'{"releases":{"1.0.0":[],"not a version":[]}}')
    assert parts is not None
    for spelled in (asked, "not a version", "Not A Version"):
        listed = pypi.listed_on(PageId("json", "thing", spelled))
        assert listed is not None
        assert (listed[0], listed[1] in parts) == (PageId("json", "thing"), True)
    other = pypi.listed_on(PageId("json", "thing", "1.0.1"))
    assert other is not None
    assert other[1] not in parts


def test_pages_of_a_version_are_listed_on_the_page_of_their_project() -> None:
    """A version of a project, and attestations, have a page that lists them. Other pages have none."""
    found = npm.listed_on(PageId("attestations", "@acme/thing@1.0.0"))
    assert found == (PageId("packument", "@acme/thing"), Part("version", "1.0.0"))
    assert [npm.listed_on(page) for page in (THING, PageId("keys"))] == [None, None]
    assert [pypi.listed_on(PageId(kind, "thing")) for kind in ("simple", "json")] == [None, None]
