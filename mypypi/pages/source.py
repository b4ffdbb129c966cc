"""The upstream of an index, and how its pages are rendered: by which rules, and when again although nothing changed.

Knows the renderer, and what is known of files and their origins. Must never know when a page is fresh, or who asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from mypypi.model import Page, PageId, PageRules, SourceDocument

if TYPE_CHECKING:
    from mypypi.interfaces import IEcosystem
    from mypypi.rendering.renderer import Renderer
    from mypypi.rendering.tasks import CompressedPage
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.range_support import RangeSupport


@frozen
class PageSource:
    """
    The upstream of an index, and the means to render its pages.

    With `ranges`, pages advertise the metadata of wheels although upstream's do not, where it can be read out of them:
    out of ranges that upstream answers, and out of wheels that are stored. In strict operation, only out of the latter.
    `usual_base` returns the address of this server that most clients use, empty if none did yet.
    """

    ecosystem: IEcosystem
    upstream: Upstream
    renderer: Renderer
    ranges: RangeSupport | None = None
    usual_base: Callable[[], str] = str

    def validators(self, cached: Page | None) -> tuple[str, str]:
        """Return upstream's ETag and Last-Modified of a cached page; empty if it has to be rendered again anyway."""
        if cached is None or self._has_to_change(cached):
            return "", ""
        return cached.upstream_etag, cached.upstream_modified

    async def render(
        self,
        page: PageId,
        document: SourceDocument,
        withheld: frozenset[str],
        offered: Callable[[PageId], Awaitable[frozenset[str]]],
        cached: Page | None,
    ) -> tuple[CompressedPage, bool]:
        """
        Render a page. Returns it, and whether what is known of its origins can't change any more.

        `withheld` are its links that are withheld, and `offered` finds the wheels whose metadata is stored, which is
        needed for few pages. The page has no forms if it is the cached one. Raises as `Renderer.render` does.
        """
        known = "" if cached is None or self._has_to_change(cached) else cached.source

        async def render(rules: PageRules) -> CompressedPage:
            return await self.renderer.render(page, document, rules, known, self.usual_base())

        if self.ranges is None:
            return await render(PageRules(withheld)), False
        rules = PageRules(withheld, self._ranged)
        rendered = await render(rules)
        if not rendered.untried:
            return rendered, True
        is_known = await self._find_out(rendered.untried)
        found = evolve(rules, ranged=self._ranged, offered=await offered(page))
        return (rendered if found == rules else await render(found)), is_known

    @property
    def _ranged(self) -> frozenset[str]:
        """The origins whose answers to ranges are believed."""
        return frozenset() if self.ranges is None or self.renderer.strict else self.ranges.ranged

    async def _find_out(self, untried: tuple[str, ...]) -> bool:
        """Find out whether the origins of these files answer ranges. Returns whether that is known, or need not be."""
        if self.ranges is None or self.renderer.strict:
            return True
        await self.ranges.find_out(untried)
        return self.ranges.is_known(untried)

    def _has_to_change(self, cached: Page) -> bool:
        """Whether the cached page was rendered before it was known whether its wheels' metadata can be read, or not."""
        return not cached.missing and cached.extracts != (self.ranges is not None)
