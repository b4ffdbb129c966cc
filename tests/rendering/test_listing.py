"""Tests of the listing: a page's files by link, packed."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from mypypi.digests import Digest
from mypypi.model import IN_WHEEL, ListedRow, PackageFile
from mypypi.rendering.listing import Listing

SHA256 = Digest("sha256", "0" * 64)


def file(number: int, size: int | None = None) -> PackageFile:
    link = f"https/files.example/packages/ab/cd/{'0' * 56}/thing-1.{number}-py3-none-any.whl"
    return PackageFile(link, link.replace("/", "://", 1), SHA256 if number % 2 else None, size)


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_every_file_is_found_by_its_link(count: int) -> None:
    """A listing has every file as it was, with all fields, and finds no other link."""
    files = [file(number, size=number or None) for number in range(count)]
    listing = Listing.of(files)
    assert len(listing) == count
    assert [listing.get(file.link) for file in files] == files
    assert listing.get(file(count).link) is None
    assert listing.get("") is None


def test_an_empty_listing_has_no_file() -> None:
    """A page without files has an empty listing."""
    assert Listing.of([]) == Listing()
    assert (len(Listing()), Listing().size, Listing().get("a")) == (0, 0, None)


@pytest.mark.parametrize(
    "link",
    ["https/files.example/ä-1.0.zip", "https/files.example/\U0001f40d.zip", "a/" * 35_000],
    ids=["letter", "emoji", "long"],
)
def test_odd_links_are_found(link: str) -> None:
    """Links may be long, and have any characters."""
    odd = PackageFile(link, "https://files.example/odd.zip")
    assert Listing.of([odd]).get(link) == odd


def test_a_link_that_no_page_can_have_is_not_found() -> None:
    """A request for a link that is no text is answered as for any other missing link."""
    assert Listing.of([file(1)]).get("https/files.example/\udcff.zip") is None


def test_one_of_several_files_with_the_same_link_is_found() -> None:
    """Of several files with one link, always the same one is found."""
    files = [file(1, size=number) for number in (3, 1, 2)]
    found = {Listing.of(order).get(file(1).link) for order in (files, files[::-1])}
    assert len(found) == 1
    assert found <= set(files)


def test_rows_are_packed_as_files() -> None:
    """A page that comes with rows has the listing that its forms would give, with every key and digest."""
    several = "sha512-" + "a" * 128 + " sha512-" + "b" * 128
    rows: list[ListedRow] = [
        ("thing/-/thing-1.0.0.tgz", "https://r.example/thing-1.0.0.tgz", several, None, "https/r.example/1.tgz", None),
        ("https/f.example/a-1.whl", "https://f.example/a-1.whl", str(SHA256), 7, "https/f.example/a-1.whl", IN_WHEEL),
        ("https/f.example/b-1.whl", "https://f.example/b-1.whl", "", None, "https/f.example/b-1.whl", str(SHA256)),
    ]
    files = [PackageFile.of(link, url, digests, size, key) for link, url, digests, size, key, _ in rows]
    beside = [f"{file.link}.metadata" for file in files[1:]]
    files.append(PackageFile(beside[0], f"{files[1].url}.metadata", key=beside[0], wheel=files[1]))
    files.append(PackageFile(beside[1], f"{files[2].url}.metadata", SHA256, key=beside[1]))
    listing = Listing.of_rows(rows)
    assert listing == Listing.of(files)
    assert [listing.get(file.link) for file in files] == files
    assert listing.get("thing/-/thing-1.0.0.tgz.metadata") is None
    assert listing.named("a-1.whl.metadata") == [files[3]]


def test_a_file_costs_few_bytes() -> None:
    """
    A listing takes less than half of the memory of a dictionary of the same files.

    `size` tells how much, which the memory cache relies on.
    """
    count = 5_000
    tracemalloc.start()
    try:
        files = {file(number).link: file(number) for number in range(count)}
        objects, _ = tracemalloc.get_traced_memory()
        listing = Listing.of(files.values())
        gc.collect()
        both, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    taken = both - objects
    assert taken == pytest.approx(listing.size, rel=0.01)
    assert taken < objects / 2
    assert taken / count < 2 * len(file(count).link) + 100
