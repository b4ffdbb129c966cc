"""Tests of the keys of plain URLs, which are made without taking the URL apart: they are those of any other way."""

from __future__ import annotations

import re
from collections.abc import Callable
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mypypi import file_keys
from mypypi.ecosystems.simple_links import absolute_url, link_and_path, url_of
from mypypi.file_keys import key_of, plain_key_of, stable_key_of

NAME = "thing-1.0-py3-none-any.whl"
PLAIN = f"https://files.example/packages/ab/cd/{NAME}"
DIGEST = "0" * 64

_HOSTS = st.one_of(
    st.from_regex(r"[a-zA-Z0-9._:@%-]{0,12}", fullmatch=True),
    st.sampled_from(
        [
            "files.example",
            "127.0.0.1",
            "h:80",
            "h:443",
            "h:8080",
            "h:60000",
            "h:59999",
            "h:08080",
            "[::1]",
            "a..b",
            "-a",
            "a-",
        ]
    ),
)
_SEGMENTS = st.one_of(
    st.from_regex(r"[a-zA-Z0-9._+~%?#;@!'()*,=:&$\\\[\]^`{|}<> -]{0,12}", fullmatch=True),
    st.text(max_size=3),
    st.sampled_from([
        *("", ".", "..", "...", ".x", NAME, f"sha256-{DIGEST}.5", f"md5-{DIGEST[:32]}.1", "a" * 250, "a" * 251),
        *("%2e%2e", "a%2Fb", "\ue000", "%EE%80%80", "a\n", "?x=1", "#x", f"{NAME}?x=1"),
    ]),
)  # fmt: skip
urls = st.builds(
    lambda scheme, host, segments: f"{scheme}{host}/" + "/".join(segments),
    st.sampled_from(["https://", "http://", "HTTPS://", "ftp://", "//", "https:", "", " https://"]),
    _HOSTS,
    st.lists(_SEGMENTS, max_size=5),
)


def outcome(function: Callable[[], object]) -> object:
    """What a function returns, or that it raises ValueError."""
    try:
        return function()
    except ValueError:
        return ValueError


@given(urls)
@example(PLAIN)
@example(f"https://h/{'a/' * 1100}x")
@example(f"https://h/{'a/' * 49}x")
@example(f"https://h/{'a/' * 50}x")
@example(f"https://{'h' * 300}/x")
@example(f"https://h/{'a' * 256}")
@example(f"https://h/sha256-{DIGEST}.5")
@example("https://h/a/../x")
@example("https://h/a//x")
@example("https://h/a/")
@example("https://Files.example/x")
@example("https://h:8443/x")
@example("https://h:50443/x")
@example("https://h:99999/x")
@example("https://h:443/x")
@example(f"{PLAIN}\n")
def test_plain_urls_are_no_special_case(url: str) -> None:
    """A key, a link, its path and an absolute URL are the same with and without the short way for plain URLs."""

    def found() -> list[object]:
        ways: list[Callable[[], object]] = [
            lambda: key_of(url),
            lambda: stable_key_of(url, NAME),
            lambda: link_and_path(url),
            lambda: link_and_path(url, {url}),
            lambda: absolute_url("https://index.example/simple/thing/", url),
        ]
        return [outcome(way) for way in ways]

    quick = found()
    with mock.patch.object(file_keys, "_PLAIN", re.compile(r"(?!)")):
        assert quick == found()


@given(urls)
def test_a_link_leads_back_to_its_url(url: str) -> None:
    """The path of a plain URL's link gives the URL again."""
    plain = plain_key_of(url)
    if plain is not None:
        assert url_of(plain) == url


@pytest.mark.parametrize("url", [PLAIN, "http://127.0.0.1/a/b+c~1_2-x.tar.gz"])
def test_usual_urls_are_plain(url: str) -> None:
    """The URLs of package files take the short way."""
    assert plain_key_of(url) == url.replace("://", "/")
