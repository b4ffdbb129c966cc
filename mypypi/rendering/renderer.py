"""Renders pages of one index, makes forms for one address, reads listings and wheels, all in render processes.

Knows which task each of these is. Must never know upstream, the catalog, or clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred

from mypypi.byte_range import ByteRange
from mypypi.model import Form, PageId, PageRules, Part, SourceDocument
from mypypi.rendering.listing import Listing
from mypypi.rendering.parts import PartIndex
from mypypi.rendering.tasks import (
    CompressedPage,
    DeriveTask,
    ListingTask,
    PartsTask,
    RenderTask,
    Task,
    WheelAnswer,
    WheelTask,
    decode_result,
    encode_task,
)


@frozen
class Renderer:
    """
    Renders the pages of one index: those of the ecosystem with this `package_type`, behind this upstream.

    `run` does an encoded task, as `RenderPool.run` does. `strict`: MYPYPI_UPSTREAM_STRICT. Every method raises
    BadUpstreamResponse for a page that can't be understood or exceeds a limit, and TemporarilyUnavailable if too many
    pages wait.
    """

    package_type: str
    upstream_url: str
    run: Callable[[bytes], Deferred[bytes]]
    strict: bool = False

    async def render(
        self, page: PageId, source: SourceDocument, rules: PageRules, known: str = "", base: str = ""
    ) -> CompressedPage:
        """Render the page by these rules, for clients at this address. It has no forms if its digest is `known`."""
        rendered: CompressedPage = await self._do(RenderTask(page, source, rules, known, self.strict, base))
        return rendered

    async def listing(self, page: PageId, name: str, form: Form) -> Listing:
        """Read the files that a page lists from its form with this name (see `IEcosystem.listing_form`)."""
        listing: Listing = await self._do(ListingTask(page, name, form))
        return listing

    async def parts(self, page: PageId, name: str, form: Form) -> PartIndex:
        """Index the parts of a page's form with this name (see `IEcosystem.parts`)."""
        index: PartIndex = await self._do(PartsTask(page, name, form))
        return index

    async def derive(self, form: Form, base: str, part: Part | None) -> Form:
        """Make a form with `base` as the address in its links if given, or of a part of it. Raises NotFound."""
        derived: Form = await self._do(DeriveTask(form, base, part))
        return derived

    async def wheel_metadata(self, filename: str, total: int, parts: Sequence[tuple[int, bytes]]) -> bytes | ByteRange:
        """Read the metadata out of parts of a wheel, or return the range that is needed, too. See `metadata_in`."""
        answer: WheelAnswer = await self._do(WheelTask(filename, total, tuple(parts)))
        found = answer.metadata if answer.metadata is not None else answer.wanted
        assert found is not None
        return found

    async def _do(self, task: Task) -> Any:
        return decode_result(task, await self.run(encode_task(self.package_type, self.upstream_url, task)))
