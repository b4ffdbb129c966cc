"""Derives forms from a page's form: with this server's address in its links, or a part of it.

What is derived is made once, kept in bounded memory, and known by its etag before it is made. Knows forms, addresses
and parts. Must never know which pages are cached, or HTTP.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import evolve, frozen

from mypypi.coalescing import Coalescer
from mypypi.errors import NotFound
from mypypi.model import UNKNOWN_SPAN, Form, Page, Part, Span
from mypypi.pages.client_turns import ClientTurns
from mypypi.pages.known_bases import KnownBases
from mypypi.rendering.forms import derived, derived_etag
from mypypi.rendering.parts import PartIndex
from mypypi.rendering.tasks import PARTS

if TYPE_CHECKING:
    from mypypi.interfaces import IEcosystem
    from mypypi.pages.memory_cache import DerivedName, MemoryCache
    from mypypi.rendering.renderer import Renderer
    from mypypi.threads import Threads

#: Bytes that may be decoded to cut a part out in a thread of this process. Other parts are made in a render process.
LARGEST_CUT = 1024 * 1024


@frozen
class Wanted:
    """
    What a client wants of a page's form: with `base` as the address in its links, all of it or a `part`.

    A form that is made from another one is a part of that (see `IEcosystem.made_from`).

    The part lies at `span`, in the body that `index` knows.
    """

    form: Form
    base: str = ""
    part: Part | None = None
    span: Span = UNKNOWN_SPAN
    index: PartIndex | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is the form as it is."""
        return self.part is None and self.form.base in ("", self.base)

    @property
    def etag(self) -> str:
        """The etag that it has when it is made."""
        is_final = self.part is None and not self.form.based
        return self.form.etag if is_final else derived_etag(self.form, self.base, self.part)

    @property
    def name(self) -> DerivedName:
        """Its name among the derived forms in memory."""
        return (self.form.etag, self.base, "" if self.part is None else f"{self.part.kind} {self.part.name}")

    @property
    def can_be_cut(self) -> bool:
        """Whether it is cheap to make: a small part, of which is known where it lies."""
        return self.index is not None and self.span != UNKNOWN_SPAN and self.index.work(self.span) <= LARGEST_CUT

    def cut(self) -> Form:
        """Make a part that can be cut. Takes a few milliseconds, so it is for a thread."""
        assert self.index is not None
        return derived(self.form, self.index.cut(self.form.body, self.span), self.base, self.part)


class DerivedForms:
    """
    Makes derived forms, and keeps them in `memory`.

    Those for the usual address need not be made. Those for another known one are made in render processes, a few at a
    time for each client. For any other address, the sender has to replace the one that the form has. So a client that
    invents addresses costs no rendering and no memory. Small parts are cut out in `threads`, whose work must be short.
    """

    def __init__(
        self, ecosystem: IEcosystem, renderer: Renderer, memory: MemoryCache, threads: Threads, clock: Any
    ) -> None:
        self._ecosystem = ecosystem
        self._renderer = renderer
        self._memory = memory
        self._threads = threads
        self._bases = KnownBases(clock)
        self._turns = ClientTurns()
        self._making: Coalescer[Form] = Coalescer()
        self._indexing: Coalescer[PartIndex] = Coalescer()

    def is_based(self, page: Page, name: str) -> bool:
        """Whether the page's form with this name has links with this server's address."""
        return self._source(page, name)[0].based

    def usual_base(self) -> str:
        """Return the address in whose links most forms were wanted lately; empty if there is none."""
        return self._bases.usual

    async def find(self, page: Page, name: str, base: str, part: Part | None = None) -> Wanted:
        """
        Return what is wanted of the page's form with this name, without making it.

        Raises NotFound if the page has no such part.
        """
        form, made = self._source(page, name)
        base = base if form.based else ""
        if part is None:
            return Wanted(form, base, made)
        index = await self._index(page, name, form)
        span = index.find(part)
        if span is None:
            raise NotFound(f"{part.kind} not found: {part.name}")
        return Wanted(form, base, part, span, index)

    def _source(self, page: Page, name: str) -> tuple[Form, Part | None]:
        """Return the form with this name; or the one that it is made from, and the part of that one that it is."""
        made_from = None if name in page.forms else self._ecosystem.made_from(name)
        if made_from is None:
            return page.forms[name], None
        source, part = made_from
        return page.forms[source], part

    async def has(self, page: Page, part: Part) -> bool | None:
        """Whether the page has this part. None if it was stored without an index, and so does not tell."""
        index = await self._stored_index(page)
        return None if index is None else index.find(part) is not None

    def kept(self, wanted: Wanted) -> Form | None:
        """Return the form, if it needs not be made."""
        if wanted.is_plain:
            return evolve(wanted.form, etag=wanted.etag, base="") if wanted.base else wanted.form
        return self._memory.derived(wanted.name)

    def use(self, base: str, client: str) -> None:
        """Note that a form with this address was wanted, if it has one."""
        if base:
            self._bases.use(base, client)

    def is_complete(self, wanted: Wanted, client: str) -> bool:
        """Whether `make` would return a form with the right address, if it was called now."""
        is_kept = wanted.is_plain or self._memory.derived(wanted.name) is not None
        return is_kept or wanted.can_be_cut or self._is_worth_it(wanted, client)

    async def make(self, wanted: Wanted, client: str) -> Form:
        """
        Return the form. If it has a `base`, its sender has to replace that.

        Raises TemporarilyUnavailable if too many wait to be made.
        """
        is_known = not wanted.base or (not self._turns.is_full(client) and self._bases.use(wanted.base, client))
        kept = self.kept(wanted)
        if kept is not None:
            return kept
        if wanted.can_be_cut:
            form = await self._threads.run(wanted.cut)
            if is_known:
                self._memory.put_derived(wanted.name, form)
            return form
        if is_known:
            return await self._made(wanted, client)
        if wanted.part is None:
            return evolve(wanted.form, etag=wanted.etag)
        unbased = evolve(wanted, base="")
        kept = self.kept(unbased)
        return evolve(kept if kept is not None else await self._made(unbased, client), etag=wanted.etag)

    def _is_worth_it(self, wanted: Wanted, client: str) -> bool:
        """Whether a form is to be made for its address and kept."""
        return not wanted.base or (self._bases.accepts(wanted.base, client) and not self._turns.is_full(client))

    async def _made(self, wanted: Wanted, client: str) -> Form:
        """Have it made in a render process when it is the client's turn, unless another client had it made by then."""

        async def make() -> Form:
            form = await self._renderer.derive(wanted.form, wanted.base, wanted.part)
            self._memory.put_derived(wanted.name, form)
            return form

        async def join() -> Form:
            kept = self.kept(wanted)
            return kept if kept is not None else await self._making.run(wanted.name, make)

        return await self._turns.run(client, join)

    async def _index(self, page: Page, name: str, form: Form) -> PartIndex:
        """Return the index of a form's parts: that of the page, or one that is made for a page without."""
        identity = f"{form.etag} {form.base}"

        async def make() -> PartIndex:
            made = await self._renderer.parts(page.id, name, form)
            self._memory.put_part_index(identity, made)
            return made

        index = await self._stored_index(page) or self._memory.part_index(identity)
        return index or await self._indexing.run(identity, make)

    async def _stored_index(self, page: Page) -> PartIndex | None:
        """Return the index that was stored with the page; None if there is none, or one that can't be read."""
        stored = page.forms.get(PARTS)
        if stored is None:
            return None
        index = self._memory.part_index(stored.etag)
        if index is None:
            try:
                index = await self._threads.run(_decoded, stored.body)
            except (msgspec.MsgspecError, zlib.error):  # of another version of this program
                return None
            self._memory.put_part_index(stored.etag, index)
        return index


def _decoded(stored: bytes) -> PartIndex:
    return PartIndex.decode(zlib.decompress(stored, 31))
