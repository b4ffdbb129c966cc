"""Renders a project's page of the usual form quickly: upstream's own bytes, in which only links are replaced.

Nearly all pages of PyPI have this form: JSON without a malformed field, one host for all files, and links in which at
most a plus sign is encoded. Links may be relative, as those of many other indexes are. Any other page is left to
`mypypi.ecosystems.pypi`, which gives the same result for every page that is rendered here. Knows that form. Must never
mend anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from itertools import islice
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from mypypi.digests import Digest
from mypypi.ecosystems.pypi_names import is_file_of
from mypypi.ecosystems.simple_fields import mend_page, usable_hashes
from mypypi.ecosystems.simple_html_reader import MOST_LINKS
from mypypi.ecosystems.simple_links import TO_FILES, TO_FILES_HERE
from mypypi.ecosystems.simple_page import SIMPLE_JSON, check_name, check_version
from mypypi.ecosystems.simple_side_files import EXTRACTED, can_extract
from mypypi.ecosystems.usual_links import UnusualError, expect, links_of, path_in, prefix_of, prefixes
from mypypi.file_keys import origin_in, plain_key_of
from mypypi.model import IN_WHEEL, ListedRow, PageRules, RenderedForm, RenderedPage

_Metadata = bool | dict[str, str] | UnsetType


class _File(Struct, rename="kebab", forbid_unknown_fields=True, gc=False):
    """A file as PEP 691, 700, 714 and 740 define it. Any other field, or type of a field, is not usual."""

    filename: str
    url: str
    hashes: dict[str, str]
    size: Annotated[int, Meta(ge=0, le=2**63 - 1)] | UnsetType = UNSET
    upload_time: str | UnsetType = UNSET
    yanked: bool | str = False
    requires_python: str | None = None
    provenance: str | None = None
    core_metadata: _Metadata = UNSET
    dist_info_metadata: _Metadata = UNSET
    data_dist_info_metadata: _Metadata = UNSET


class _Turned(Struct, rename="kebab", gc=False):
    """The fields of a file that are changed here."""

    url: str
    provenance: str | None = None
    core_metadata: _Metadata = UNSET
    extracted: bool = msgspec.field(name=EXTRACTED, default=False)


class _TurnedPage(Struct):
    files: list[_Turned]


_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_FILES = msgspec.json.Decoder(list[_File])
_TURNED = msgspec.json.Decoder(_TurnedPage)
_HEX = b"0123456789abcdef"
#: Times that all clients can read, in UTC, each in a line.
_TIMES = re.compile(
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{3}|\.[0-9]{6})?Z\n)*"
)
#: How members with a text are written: as PyPI does, or with a space.
_WRITTEN = ('"%s":"%s', '"%s": "%s')
_OFFERED = f'"core-metadata":true,"{EXTRACTED}":true'.encode()
#: Bytes of the largest page, of which there are several copies here. The largest one of PyPI has 10 MB.
_LARGEST = 16 * 1024 * 1024
#: Bytes for each file, and for all else. A larger page has many spaces, which are not passed on.
_MOST_OF_FILE, _MOST_BESIDES = 2_000, 100_000
_REFUSED = (b'"core-metadata":false', b'"core-metadata": false')
_LAST_YEAR = 9999
#: Spellings of a project's name in filenames that are remembered.
_MOST_SPELLINGS = 10
_MOST_DATES = 10_000


def usual_page(project: str, rules: PageRules, body: bytes, base: str) -> RenderedPage | None:
    """
    Render a project's page in JSON; None if it has not the usual form, or may be another project's.

    `base` is the URL that its links are relative to.
    """
    try:
        return _rendered(project, rules, body, base)
    except (UnusualError, msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError, RecursionError):
        return None


def _rendered(project: str, rules: PageRules, body: bytes, base: str) -> RenderedPage:
    expect(not rules.withheld and len(body) <= _LARGEST)
    body.decode()  # parts that are not decoded below may have any bytes
    files = _read(project, body)
    written, prefix = prefixes(files[0].url, base)
    urls, links = links_of([file.url for file in files], written, prefix)
    expect([link.rpartition("/")[2] for link in links] == [file.filename for file in files])
    _check_times([file.upload_time for file in files if file.upload_time is not UNSET])
    digests, metadata = _digests([file.hashes for file in files]), _metadata(files)
    lacking = [
        digest is None and file.filename[-4:].lower() == ".whl" for digest, file in zip(metadata, files, strict=True)
    ]
    offered = [lacks and can_extract(link, rules) for link, lacks in zip(links, lacking, strict=True)]
    if any(offered):
        metadata = [IN_WHEEL if is_offered else digest for digest, is_offered in zip(metadata, offered, strict=True)]
    rows = [
        (link, url, digest, None if file.size is UNSET else file.size, link, beside)
        for link, url, file, digest, beside in zip(links, urls, files, digests, metadata, strict=True)
    ]
    provenances = _provenances([file.provenance for file in files])
    turned = _withlinks_of(body, written, TO_FILES + path_in(prefix), files, offered)
    if provenances:
        turned = _with_provenances(turned, prefix_of(provenances[0][1]), len(provenances))
        rows += provenances
    _check(turned, urls, files, offered)
    return RenderedPage(
        {"json": RenderedForm(SIMPLE_JSON, turned, based=bool(provenances))},
        tuple(_strays(project, files, rows)),
        extracts=(origin_in(links[0]),) if any(offered) else (),
        untried=() if rules.ranged is None else _first_lacking(urls, lacking, offered),
        rows=rows,
    )


def _first_lacking(urls: list[str], lacking: list[bool], offered: list[bool]) -> tuple[str, ...]:
    """Return the URL of the first wheel that lacks metadata of upstream's, and for which none is offered."""
    found = (url for url, lacks, has in zip(urls, lacking, offered, strict=True) if lacks and not has)
    return tuple(islice(found, 1))


def _digests(hashes: list[dict[str, str]]) -> list[str]:
    """Return the strongest digest of each file's hashes, as a text. Nothing in them has to be mended."""
    values = [each.get("sha256", "") for each in hashes if len(each) == 1]
    if len(values) == len(hashes) and _are_sha256(values):
        return [f"sha256-{value}" for value in values]
    expect(all(usable_hashes(each) == each for each in hashes))
    return [str(Digest.strongest(each) or "") for each in hashes]


def _are_sha256(values: list[str]) -> bool:
    return set(map(len, values)) <= {64} and not "".join(values).encode().translate(None, _HEX)


def _metadata(files: list[_File]) -> list[str | None]:
    """Return the digest of each file's metadata, as a text; empty if it is not given, None for a file without any."""
    for file in files:
        metadata, old = file.core_metadata, file.data_dist_info_metadata
        if old != metadata or file.dist_info_metadata is not UNSET:
            every = [each for each in (old, file.dist_info_metadata) if each is not UNSET]
            expect(metadata is not UNSET or not every)
            expect(all(usable_hashes(each) == each for each in every if isinstance(each, dict)))
    given = [file.core_metadata for file in files if isinstance(file.core_metadata, dict)]
    digests = iter(_digests(given))
    found: list[str | None] = []
    for file in files:
        metadata = file.core_metadata
        found.append(next(digests) if isinstance(metadata, dict) else "" if metadata is True else None)
    return found


def _provenances(urls: list[str | None]) -> list[ListedRow]:
    """Return the rows of the files' provenances. Each has a plain URL."""
    rows: list[ListedRow] = []
    for url in urls:
        if url:
            link = plain_key_of(url)
            if link is None:
                raise UnusualError
            rows.append((link, url, "", None, link, None))
    expect(len({row[0] for row in rows}) == len(rows))
    return rows


def _strays(project: str, files: list[_File], rows: list[ListedRow]) -> Iterator[str]:
    """Yield the links that the catalog has to index, since they do not name the project."""
    own: tuple[str, ...] = ()  # what names of this project's files begin with
    for file, (link, *_, metadata) in zip(files, rows, strict=False):
        filename = file.filename
        is_plain = filename.endswith(".whl") or (filename.endswith(".tar.gz") and filename.count("-") == 1)
        if is_plain and filename.startswith(own):
            continue
        if not is_file_of(link, project):
            yield link
            if metadata is not None:
                yield f"{link}.metadata"
        elif is_plain and len(own) < _MOST_SPELLINGS:
            name, dash, rest = filename.partition("-")
            if dash and rest[0].isdigit():
                own += (f"{name}-",)
    for link, *_ in rows[len(files) :]:
        if not is_file_of(link, project):
            yield link


def _read(project: str, body: bytes) -> list[_File]:
    """Return the files of a page, of which nothing else has to be mended."""
    fields = _FIELDS.decode(body)
    raw = fields.pop("files", None)
    document, mended = ({name: msgspec.json.decode(value) for name, value in fields.items()} for _ in range(2))
    if raw is None or not isinstance(document.get("name"), str):
        raise UnusualError
    check_name(document["name"], project)
    check_version(mended)
    mend_page(mended)
    expect(document == mended)
    files = _FILES.decode(raw)
    expect(0 < len(files) <= MOST_LINKS and len(body) <= len(files) * _MOST_OF_FILE + _MOST_BESIDES)
    return files


def _withlinks_of(body: bytes, prefix: str, turned: str, files: list[_File], offered: list[bool]) -> bytes:
    """
    Replace the links of all files, which begin with `prefix`, by links that begin with `turned`.

    `offered` says before which one metadata is to be advertised.
    """
    for written in _WRITTEN:
        old = (written % ("url", prefix)).encode()
        if body.count(old) == len(offered):
            new = (written % ("url", turned)).encode()
            if not any(offered):
                return body.replace(old, new)
            expect(body.count(b'"core-metadata"') == sum(file.core_metadata is not UNSET for file in files))
            *pieces, rest = body.split(old)
            for number, file in enumerate(files):
                if offered[number]:
                    pieces[number] = _with_offer(pieces[number], file)
            return new.join([*pieces, rest])
    raise UnusualError


def _with_offer(piece: bytes, file: _File) -> bytes:
    """Offer the metadata of a file whose link comes after this piece, in place of the field that says there is none."""
    if file.core_metadata is UNSET:
        return piece + _OFFERED + b","
    before, refused, after = max(map(piece.rpartition, _REFUSED), key=lambda parts: len(parts[0]))
    expect(refused != b"")
    return before + _OFFERED + after


def _with_provenances(body: bytes, prefix: str, count: int) -> bytes:
    """Replace the links of all `count` provenances."""
    for written in _WRITTEN:
        old = (written % ("provenance", prefix)).encode()
        if body.count(old) == count:
            return body.replace(old, (written % ("provenance", TO_FILES_HERE + path_in(prefix))).encode())
    raise UnusualError


def _check(body: bytes, urls: list[str], files: list[_File], offered: list[bool]) -> None:
    """Check that each link was replaced, and no other text. There were as many texts as links, so this is proof."""
    turned = _TURNED.decode(body).files
    expect([each.url for each in turned] == [TO_FILES + path_in(url) for url in urls])
    expect([each.extracted for each in turned] == offered)
    metadata = [is_offered or file.core_metadata for is_offered, file in zip(offered, files, strict=True)]
    expect([each.core_metadata for each in turned] == metadata)
    provenances = [file.provenance and TO_FILES_HERE + path_in(file.provenance) for file in files]
    expect([each.provenance for each in turned] == provenances)


def _check_times(times: list[str]) -> None:
    """Check that all clients can read these times, which are in UTC."""
    lines = "".join(f"{time}\n" for time in times)
    expect(_TIMES.fullmatch(lines) is not None and lines.count("\n") == len(times))
    expect(all(map(_is_date, {time[:10] for time in times})))


@lru_cache(_MOST_DATES)
def _is_date(text: str) -> bool:
    return date.fromisoformat(text).year < _LAST_YEAR
