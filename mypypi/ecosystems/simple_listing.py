"""Reads the listing of a project's page from its JSON form: package files, and what lies beside them.

Knows the fields that `mypypi.ecosystems.pypi` has rendered. Must never know upstream's own pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from attrs import evolve

from mypypi.digests import Digest
from mypypi.ecosystems.pypi_names import projects_of
from mypypi.ecosystems.simple_html import has_metadata
from mypypi.ecosystems.simple_links import TO_FILES, TO_FILES_HERE, digest_of, url_of
from mypypi.ecosystems.simple_side_files import EXTRACTED
from mypypi.file_keys import key_from_segments, key_of
from mypypi.model import PackageFile, PageId


class _ListedFile(msgspec.Struct, rename="kebab", gc=False):
    """The fields of a file that `PyPI.listing` needs. All but `url` are upstream's, and may have any type."""

    url: str
    filename: Any = None
    hashes: Any = None
    size: Any = None
    core_metadata: Any = None
    gpg_sig: Any = None
    provenance: Any = None
    extracted: Any = msgspec.field(name=EXTRACTED, default=None)


class _Listing(msgspec.Struct):
    files: list[_ListedFile]


_LISTING = msgspec.json.Decoder(_Listing)


def listed_files(page: PageId, form: bytes) -> dict[str, PackageFile]:
    """Return the files of a page by link. One whose link ends otherwise than its name has a second one, by name."""
    listed: dict[str, PackageFile] = {}
    by_name: dict[str, PackageFile] = {}
    files = _LISTING.decode(form).files
    for file in files:
        link = by_name_link = None
        for each in _package_files([file]):  # the file, and what belongs to it: its link and a suffix
            if link is None:
                link, by_name_link = each.link, _link_by_name(page, each.link, file.filename)
            listed[each.link] = each
            if by_name_link is not None:
                alias = by_name_link + each.link.removeprefix(link)
                by_name[alias] = evolve(each, link=alias)
    found = {file.link: file for file in _provenances(files)} | by_name | listed
    for link, package_file in found.items():
        if package_file.wheel is not None:  # a page may list one link several times, and the last one counts
            found[link] = evolve(package_file, wheel=found[link.removesuffix(".metadata")])
    return found


def rows_of(files: Iterable[PackageFile], urls: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """Return files as rows for `listed_rows`: link, URL, digest, size; for metadata in a wheel, that wheel's link."""
    return [
        (file.link, urls.get(file.link, file.url), str(file.digest or ""), file.size)
        + (() if file.wheel is None else (file.wheel.link,))
        for file in files
    ]


def listed_rows(form: bytes) -> dict[str, PackageFile]:
    """Return the files of a form that `rows_of` has made, by link."""
    listed: dict[str, PackageFile] = {}
    rows = msgspec.json.decode(form, type=list[tuple[Any, ...]])
    for link, url, digest, size, *wheel in sorted(rows, key=len):  # the wheels come first
        parsed = Digest.parse(digest) if digest else None
        listed[link] = PackageFile(link, url, parsed, size, key=link, wheel=listed[wheel[0]] if wheel else None)
    return listed


def _package_files(files: list[_ListedFile]) -> Iterator[PackageFile]:
    for file in files:
        if not file.url.startswith(TO_FILES):
            continue
        url = url_of(file.url.removeprefix(TO_FILES))
        link = key_of(url)
        size = file.size if type(file.size) is int and file.size >= 0 else None
        listed = PackageFile(link, url, digest_of(file.hashes), size, key=link)
        yield listed
        if has_metadata(file.core_metadata):
            metadata = f"{link}.metadata"
            digest, wheel = digest_of(file.core_metadata), listed if file.extracted is True else None
            yield PackageFile(metadata, f"{url}.metadata", digest, key=metadata, wheel=wheel)
        if file.gpg_sig is True:
            signature = f"{link}.asc"
            yield PackageFile(signature, f"{url}.asc", key=signature)


def _provenances(files: list[_ListedFile]) -> Iterator[PackageFile]:
    for file in files:
        if isinstance(file.provenance, str) and file.provenance.startswith(TO_FILES_HERE):
            url = url_of(file.provenance.removeprefix(TO_FILES_HERE))
            with suppress(ValueError):  # upstream wrote that itself
                yield PackageFile(key_of(url), url)


def _link_by_name(page: PageId, link: str, filename: object) -> str | None:
    """Return a link that ends with the file's name, for one whose own link ends otherwise. None if it needs none."""
    if not isinstance(filename, str) or link.endswith(f"/{filename}"):
        return None
    try:
        segment = key_from_segments(["https", "host", filename]).rpartition("/")[2]
    except ValueError:
        return None
    if link.endswith(f"/{segment}") or page.project not in projects_of(segment):
        return None
    return f"{link}/{segment}"
