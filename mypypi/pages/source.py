"""The upstream of an index, and how its pages are rendered: by which rules, and when again although nothing changed.

Knows the renderer, and what is known of the origins of files. Must never know the catalog's pages, or who asks.
"""

from __future__ import annotations

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

    With `ranges`, pages advertise the metadata of wheels although upstream's do not, where it can be read out of them.
    """

    ecosystem: IEcosystem
    upstream: Upstream
    renderer: Renderer
    ranges: RangeSupport | None = None

    def validators(self, cached: Page | None) -> tuple[str, str]:
        """Return upstream's ETag and Last-Modified of a cached page; empty if it has to be rendered again anyway."""
        if cached is None or self._has_to_change(cached):
            return "", ""
        return cached.upstream_etag, cached.upstream_modified

    async def render(
        self, page: PageId, document: SourceDocument, withheld: frozenset[str], cached: Page | None
    ) -> tuple[CompressedPage, bool]:
        """
        Render a page. Returns it, and whether its rules can't change any more for the same document.

        It has no forms if it is the cached page. Raises as `Renderer.render` does.
        """
        known = "" if cached is None or self._has_to_change(cached) else cached.source
        if self.ranges is None:
            return await self.renderer.render(page, document, PageRules(withheld), known), False
        rules = PageRules(withheld, self.ranges.ranged)
        rendered = await self.renderer.render(page, document, rules, known)
        if rendered.untried:
            await self.ranges.find_out(rendered.untried)
            if self.ranges.ranged != rules.ranged:
                rules = evolve(rules, ranged=self.ranges.ranged)
                rendered = await self.renderer.render(page, document, rules, known)
        return rendered, self.ranges.is_known(rendered.untried)

    def _has_to_change(self, cached: Page) -> bool:
        """Whether the cached page was rendered before it was known whether its wheels' metadata can be read, or not."""
        return not cached.missing and cached.extracts != (self.ranges is not None)
