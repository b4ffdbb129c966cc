"""Pages of Python indexes for the tests of this package, and how they are rendered and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from pip._internal.index.collector import IndexContent, parse_links
from pip._internal.models.link import Link

from mypypi.ecosystems.pypi import PyPI
from mypypi.model import BASE_PLACEHOLDER, PageId, PageRules, RenderedForm, RenderedPage, SourceDocument

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
SIMPLE_HTML = "application/vnd.pypi.simple.v1+html"
SHA256, OTHER_SHA256, SHA512 = "a1" * 32, "b2" * 32, "c3" * 64
ROOT, PROJECT = PageId("root"), PageId("simple", "holy-grail")
WHEEL = "holy_grail-1.0-py3-none-any.whl"
WHEEL_URL = f"https://files.example/packages/{WHEEL}"
WHEEL_LINK = f"https/files.example/packages/{WHEEL}"
#: The address of package files here, before it is replaced by the one that clients use.
HERE = f"{BASE_PLACEHOLDER.decode()}/file"
#: The fields of a file whose type a PEP defines.
FILE_FIELDS = (
    *("filename", "url", "hashes", "size", "upload-time", "requires-python", "yanked", "provenance"),
    *("core-metadata", "dist-info-metadata", "data-dist-info-metadata"),
)
#: The fields of a project's page whose type a PEP defines.
PAGE_FIELDS = ("meta", "name", "files", "project-status")

pypi = PyPI("https://index.example")


def render(
    document: object,
    page: PageId = PROJECT,
    content_type: str = SIMPLE_JSON,
    withheld: frozenset[str] = frozenset(),
    url: str = "https://index.example/simple/holy-grail/",
) -> RenderedPage:
    """Render upstream's document. A document that is neither bytes nor text is encoded as JSON."""
    if isinstance(document, str):
        body = document.encode()
    else:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return pypi.render(page, SourceDocument(body, content_type, url), PageRules(withheld))


def project(*files: object, **fields: object) -> dict[str, Any]:
    return {"meta": {"api-version": "1.4"}, "name": "holy-grail", "files": list(files), **fields}


def wheel(**fields: object) -> dict[str, object]:
    return {"filename": WHEEL, "url": WHEEL_URL, "hashes": {"sha256": SHA256}} | {
        name.replace("_", "-"): value for name, value in fields.items()
    }


def anchor(filename: str = WHEEL, **attributes: str) -> str:
    """Return an anchor to a file of upstream, with these ``data-`` attributes."""
    extra = "".join(f' data-{name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<a href="https://files.example/packages/{filename}#sha256={SHA256}"{extra}>{filename}</a><br/>\n'


def as_json(rendered: RenderedPage) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(rendered.forms["json"].body)
    return document


def as_html(rendered: RenderedPage) -> str:
    return form_of(rendered, "html").body.decode()


def form_of(rendered: RenderedPage, name: str) -> RenderedForm:
    """The form with this name, made from another one if it is not made with the page."""
    made_from = pypi.made_from(name)
    if name in rendered.forms or made_from is None:
        return rendered.forms[name]
    source, part = made_from
    form = rendered.forms[source]
    return RenderedForm("text/html", pypi.part(part, form.body), form.based)


def filenames(rendered: RenderedPage) -> list[str]:
    return [file["filename"] for file in as_json(rendered)["files"]]


def only_file(rendered: RenderedPage) -> dict[str, Any]:
    [file] = as_json(rendered)["files"]
    assert isinstance(file, dict)
    return file


def read_by_pip(rendered: RenderedPage, name: str = "json") -> list[Link]:
    """Read a form with pip's own parser, which raises errors of many kinds for malformed fields."""
    form = form_of(rendered, name)
    url = "http://here.example/simple/holy-grail/"
    return list(parse_links(IndexContent(form.body, form.media_type, None, url, cache_link_parsing=False)))


class _File(msgspec.Struct, rename="kebab"):
    """A file with the types of PEP 691, 700, 714 and 740. uv accepts no others."""

    filename: str
    url: str
    hashes: dict[str, str]
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    upload_time: Annotated[datetime, msgspec.Meta(tz=True)] | msgspec.UnsetType = msgspec.UNSET
    requires_python: str | None = None
    yanked: bool | str = False
    core_metadata: bool | dict[str, str] = False
    dist_info_metadata: bool | dict[str, str] = False
    data_dist_info_metadata: bool | dict[str, str] = False
    provenance: str | None = None


class _Meta(msgspec.Struct, rename="kebab"):
    api_version: Annotated[str, msgspec.Meta(pattern=r"^\s*1")]


class _Status(msgspec.Struct):
    status: str = "active"
    reason: str = ""


class _Page(msgspec.Struct, rename="kebab"):
    meta: _Meta
    name: str
    files: list[_File]
    project_status: _Status | msgspec.UnsetType = msgspec.UNSET


#: The lengths of the hashes that uv decodes.
_LENGTHS = {"md5": 32, "sha256": 64, "sha384": 96, "sha512": 128, "blake2b": 128}


def check_strictly(rendered: RenderedPage) -> None:
    """
    Read both forms as strict clients do. Raises an error of any kind if they would reject the page.

    uv rejects the whole page for one value of the wrong type, and pip for some of them.
    """
    page = msgspec.json.decode(rendered.forms["json"].body, type=_Page)
    for file in page.files:
        for metadata in (file.core_metadata, file.dist_info_metadata, file.data_dist_info_metadata):
            _check_hashes(metadata if isinstance(metadata, dict) else {})
        _check_hashes(file.hashes)
    read = [len(read_by_pip(rendered, name)) for name in ("json", "html")]
    assert read == [len(page.files), len(page.files)]


def _check_hashes(hashes: Mapping[str, str]) -> None:
    for name, value in hashes.items():
        if name in _LENGTHS:
            assert len(bytes.fromhex(value)) * 2 == _LENGTHS[name], f"{name}={value}"
