"""The npm ecosystem: names and links of packages, and which pages a registry has.

Terms are npm's own (npm registry documentation: "Package Metadata", "Package Signatures"). Knows names and links. Must
never know where a page comes from or goes to: no I/O, no request.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from zope.interface import implementer

from mypypi.ecosystems.lenient_json import decode, without_mark
from mypypi.ecosystems.packument import ABBREVIATED, FULL, render_packument
from mypypi.ecosystems.packument_parts import dist_tags, manifest, parts_in
from mypypi.errors import BadRequest, BadUpstreamResponse, NotFound
from mypypi.file_keys import key_of
from mypypi.interfaces import IEcosystem
from mypypi.model import (
    PackageFile,
    PageId,
    PageRequest,
    PageRules,
    Part,
    RenderedForm,
    RenderedPage,
    SourceDocument,
    Span,
)

__all__ = ["ABBREVIATED", "FULL", "NPM", "check_name", "is_name"]

#: Legacy names may have capitals and some characters that new names may not have; none is unsafe in a path.
_NAME = re.compile(r"(?:@[A-Za-z0-9\-._~!'()*]+/)?[A-Za-z0-9\-._~!'()*]+")
_LONGEST_NAME = 214


@implementer(IEcosystem)
class NPM:
    """
    The ecosystem of npm registries.

    The kinds of pages: ``packument``, a package's page; ``keys``, the registry's signing keys; and ``attestations``,
    those of ``name@version``. A tarball's link has the conventional form, ``{name}/-/{file}.tgz``, wherever upstream
    stores the tarball.
    """

    name = "npm"
    scoped = True

    def __init__(self, upstream_url: str, *, strict: bool = False) -> None:
        """`strict`: versions whose tarball can't be served from here are left out."""
        self._upstream_url = upstream_url
        self._strict = strict

    def page_request(self, page: PageId) -> PageRequest:
        """See `IEcosystem.page_request`. The full packument is requested; its abbreviated form is made here."""
        if page.kind == "packument":
            return PageRequest(f"/{_escaped(page.project)}", FULL)
        if page.kind == "keys":
            return PageRequest("/-/npm/v1/keys", FULL, "keys")
        return PageRequest(f"/-/npm/v1/attestations/{quote(page.project, safe='@')}", FULL, "attestations")

    def render(self, page: PageId, source: SourceDocument, rules: PageRules) -> RenderedPage:
        """See `IEcosystem.render`."""
        if page.kind != "packument":
            decode(source.body, dict[str, Any])
            return RenderedPage({"full": RenderedForm(FULL, without_mark(source.body))})
        try:
            return render_packument(page.project, source, strict=self._strict)
        except RecursionError:  # JSON that could be parsed may be too deep to encode
            raise BadUpstreamResponse("upstream's response can't be parsed: it is nested too deeply") from None

    def listing_form(self, page: PageId, forms: Container[str]) -> str | None:
        """See `IEcosystem.listing_form`."""
        return "files" if page.kind == "packument" else None

    def listing(self, page: PageId, forms: Mapping[str, bytes]) -> dict[str, PackageFile]:
        """See `IEcosystem.listing`."""
        listed = {}
        for link, url, digests, *key in msgspec.json.decode(forms["files"], type=list[tuple[str, ...]]):
            listed[link] = PackageFile.of(link, url, digests, key=key[0] if key else "")  # version 0.1 wrote no keys
        return listed

    def pages_for(self, link: str) -> tuple[PageId, ...]:
        """See `IEcosystem.pages_for`."""
        name, found, _ = link.partition("/-/")
        return (PageId("packument", name),) if found and _NAME.fullmatch(name) else ()

    def key_for(self, link: str) -> str | None:
        """See `IEcosystem.key_for`. The key is right if upstream's own links have the conventional form."""
        try:
            return key_of(f"{self._upstream_url}/{quote(link, safe='@/')}")
        except ValueError:
            return None

    def made_from(self, name: str) -> tuple[str, Part] | None:
        """See `IEcosystem.made_from`. Both forms of a packument are made when it is rendered."""
        return None

    def part(self, part: Part, body: bytes) -> bytes:
        """See `IEcosystem.part`. A packument's parts: "version", by version or dist-tag, and "dist-tags"."""
        if part.kind == "version":
            return manifest(body, part.name)
        if part.kind == "dist-tags":
            return dist_tags(body)
        raise NotFound(f"a packument has no such part: {part.kind}")

    def parts(self, page: PageId, name: str, body: bytes) -> dict[Part, Span] | None:
        """See `IEcosystem.parts`. They are parts of the full packument."""
        return parts_in(body) if page.kind == "packument" and name == "full" else None

    def listed_on(self, page: PageId) -> tuple[PageId, Part] | None:
        """See `IEcosystem.listed_on`. A packument lists the versions that attestations may be of."""
        if page.kind != "attestations":
            return None
        name, _, version = page.project.rpartition("@")
        return PageId("packument", name), Part("version", version)

    def example(self, address: str) -> str:
        """See `IEcosystem.example`."""
        return f"npm install --registry {address} express"


def check_name(name: str) -> str:
    """Return the name if it can be a package's. Raises BadRequest."""
    if not is_name(name):
        raise BadRequest("this is not the name of an npm package")
    return name


def is_name(name: str) -> bool:
    """Whether this can be a package's name."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None and not name.startswith(".")


def _escaped(name: str) -> str:
    """Encode a name as one path segment, with the scope's slash, as npm does."""
    return quote(name, safe="@").replace("%2F", "%2f")
