"""Tests of how the addresses of tarballs are replaced: quickly where all are alike, and else one by one."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.ecosystems import tarballs
from mypypi.ecosystems.npm import NPM
from mypypi.model import BASE_PLACEHOLDER, PageId, PageRules, RenderedPage, SourceDocument

HOST = "https://registry.example"
BASE = BASE_PLACEHOLDER.decode()
DIGEST = "sha512-" + "A" * 86 + "=="


def address(number: int, name: str = "thing") -> str:
    return f"{HOST}/{name}/-/{name.rpartition('/')[2]}-1.0.{number}.tgz"


def packument(count: int = 3, name: str = "thing", **fields: Any) -> dict[str, Any]:
    """A packument whose tarballs all have the conventional address."""
    versions = {
        f"1.0.{number}": {"name": name, "dist": {"tarball": address(number, name), "integrity": DIGEST}}
        for number in range(count)
    }
    return {"name": name, "versions": versions, **fields}


def render(body: bytes, name: str = "thing") -> RenderedPage:
    source = SourceDocument(body, "application/json", f"{HOST}/{name}")
    return NPM(HOST).render(PageId("packument", name), source, PageRules())


def render_slowly(body: bytes, name: str = "thing") -> RenderedPage:
    """Render with each address replaced by itself."""
    with mock.patch.object(tarballs, "_PLAIN_ADDRESS", mock.Mock(fullmatch=lambda _: None)):
        return render(body, name)


def is_quick(body: bytes) -> bool:
    """Whether no address had to be looked for with the regular expression."""
    with mock.patch.object(tarballs, "_TARBALL") as slow:
        slow.sub.return_value = b"{}"
        render(body)
    return not slow.sub.called


@pytest.mark.parametrize("name", ["thing", "@acme/thing"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_conventional_addresses(name: str, separators: tuple[str, str]) -> None:
    """With the usual addresses, the forms and the listing are those that the slow way gives."""
    body = json.dumps(packument(name=name), separators=separators).encode()
    found = render(body, name)
    assert found == render_slowly(body, name)
    full = json.loads(found.forms["full"].body)
    expected = [address(number, name).replace(HOST, BASE) for number in range(3)]
    assert [version["dist"]["tarball"] for version in full["versions"].values()] == expected


def test_usual_packuments_are_quick() -> None:
    """As registries write them, compact or with spaces."""
    for separators in ((",", ":"), (", ", ": ")):
        assert is_quick(json.dumps(packument(readme='"tarball":"x"'), separators=separators).encode())


odd_addresses = st.one_of(
    st.integers(0, 3).map(address),
    st.sampled_from([
        *(f"{HOST}/thing/-/thing-1.0.0.tgz?sig=1", f"{HOST}/other/-/thing-1.0.0.tgz", f"{HOST}/thing/-/else.tgz"),
        *("thing-1.0.1.tgz", "ftp://host/thing-1.0.1.tgz", f"{HOST}/thing/-/../-/thing-1.0.1.tgz", "", '"tarball":"'),
        *("https://user@host/thing/-/thing-1.0.0.tgz", f"{HOST}/thing/-//thing-1.0.0.tgz", f"{HOST}/thing/-/x.tgz/"),
    ]),
)  # fmt: skip
places = st.sampled_from(["homepage", "dist", "version", "repeated"])


@given(st.lists(st.tuples(places, odd_addresses), max_size=3), st.booleans(), st.sampled_from(["", "\\/", "\\u002f"]))
def test_addresses_elsewhere(odd: list[tuple[str, str]], spaced: bool, slash: str) -> None:  # noqa: FBT001 - generated
    """Whatever addresses there are, and wherever, the result is that of the slow way."""
    whole = packument()
    repeated = ""
    for place, found in odd:
        if place == "homepage":
            whole["homepage"] = {"tarball": found}
        elif place == "dist":
            whole["versions"]["1.0.1"]["dist"]["tarball"] = found
        elif place == "version":
            whole["versions"]["1.0.2"]["funding"] = {"tarball": found}
        else:
            repeated = json.dumps({"1.0.0": {"dist": {"tarball": found}}})[1:-1] + ","
    text = json.dumps(whole, separators=(", ", ": ") if spaced else (",", ":"))
    text = text.replace('"versions":{', f'"versions":{{{repeated}').replace(
        '"versions": {', f'"versions": {{{repeated}'
    )
    if slash:
        text = text.replace("/thing-1.0.2", f"{slash}thing-1.0.2")
    assert render(text.encode()) == render_slowly(text.encode())


def test_an_address_that_takes_the_place_of_another() -> None:
    """As many addresses as versions, one of which is no version's: it is left as it is."""
    body = json.dumps(packument(homepage={"tarball": f"{HOST}/thing/-/guide.tgz"}), separators=(",", ":"))
    body = body.replace(f'"tarball":"{address(1)}', f'"t\\u0061rball":"{address(1)}')
    found = render(body.encode())
    assert found == render_slowly(body.encode())
    assert json.loads(found.forms["full"].body)["homepage"]["tarball"] == f"{HOST}/thing/-/guide.tgz"
