"""Tests of forms that are derived from pages: for which addresses they are made, for whom, and what they cost."""

from __future__ import annotations

import json
import zlib
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import NotFound, TemporarilyUnavailable
from mypypi.model import Form, Page, PageId, PageRules, Part
from mypypi.pages.client_turns import MOST_AT_ONCE, MOST_WAITING, ClientTurns
from mypypi.pages.derived import LARGEST_CUT, DerivedForms, Wanted
from mypypi.pages.known_bases import IDLE, MOST_BASES, MOST_OF_CLIENT, KnownBases
from mypypi.pages.memory_cache import MemoryCache
from mypypi.rendering.parts import BLOCK, PartIndex
from mypypi.rendering.renderer import Renderer
from mypypi.rendering.tasks import PARTS, perform
from tests.rendering.processes import document
from tests.support.memory import AtOnce, MemoryTestCase

URL = "https://registry.example"
THING = PageId("packument", "thing")
VERSIONS = {f"1.0.{number}": {"dist": {"tarball": f"{URL}/thing-1.0.{number}.tgz"}} for number in range(50)}
PACKUMENT = json.dumps({"name": "thing", "dist-tags": {"latest": "1.0.7"}, "versions": VERSIONS}).encode()


class TestKnownBases:
    """A few addresses are known at a time."""

    def test_the_number_of_addresses_is_limited(self) -> None:
        """Only so many addresses are known, and only so many of one client."""
        bases = KnownBases(Clock())
        invented = [f"http://{number}.example" for number in range(100)]
        assert sum(bases.use(base, "attacker") for base in invented) == MOST_OF_CLIENT
        assert bases.accepts("http://new.example", "other")
        assert not bases.accepts("http://new.example", "attacker")
        others = [bases.use(f"http://other{number}.example", f"client {number}") for number in range(100)]
        assert sum(others) == MOST_BASES - MOST_OF_CLIENT
        assert bases.use("http://other0.example", "attacker"), "an address is known to all clients"

    def test_an_address_that_is_no_longer_used_loses_its_place(self) -> None:
        """An unused address gives its place to another one. An address in use keeps it."""
        clock = Clock()
        bases = KnownBases(clock)
        for number in range(MOST_BASES):
            assert bases.use(f"http://{number}.example", f"client {number}")
        clock.advance(IDLE - 1)
        assert bases.use("http://0.example", "client 1")
        assert not bases.use("http://new.example", "new")
        clock.advance(1)
        assert bases.use("http://new.example", "new")
        assert bases.accepts("http://0.example", "new")


class ClientTurnsTest(MemoryTestCase):
    """Work is done for each client in turn."""

    def setUp(self) -> None:
        super().setUp()
        self.turns = ClientTurns()
        self.running: list[tuple[str, Deferred[None]]] = []

    def work(self, client: str) -> Deferred[None]:
        async def do() -> None:
            done: Deferred[None] = Deferred()
            self.running.append((client, done))
            await done

        return self.start(self.turns.run(client, do))

    def test_a_client_does_not_keep_others_waiting(self) -> None:
        """One client's work is done a few pieces at a time. Another client's begins at once."""
        mine = [self.work("greedy") for _ in range(20)]
        assert [client for client, _ in self.running] == ["greedy"] * MOST_AT_ONCE
        other = self.work("other")
        assert self.running[-1][0] == "other"
        self.running.pop()[1].callback(None)
        self.now(other)
        while self.running:
            self.running.pop(0)[1].callback(None)
        for each in mine:
            self.now(each)
        assert self.turns._clients == {}

    def test_more_work_than_may_wait_is_refused(self) -> None:
        """A client with too much work gets an error at once. Work that is cancelled while it waits never begins."""
        mine = [self.work("greedy") for _ in range(MOST_AT_ONCE + MOST_WAITING)]
        assert self.turns.is_full("greedy")
        assert not self.turns.is_full("other")
        self.failing(self.work("greedy"), TemporarilyUnavailable)
        for each in mine:
            each.cancel()
            self.failing(each, CancelledError)
        assert len(self.running) == MOST_AT_ONCE, "work that has begun keeps its turn"
        assert not self.turns.is_full("greedy")
        for _, done in self.running:
            done.callback(None)
        assert self.turns._clients == {}


class DerivedFormsTest(MemoryTestCase):
    """Derived forms of a packument, with render tasks that are counted. It was rendered before a client came."""

    #: The address for which pages are rendered.
    usual_base = ""

    def setUp(self) -> None:
        super().setUp()
        self.tasks: list[str] = []
        renderer = Renderer("npm", URL, self.run_task)
        self.memory = MemoryCache(10_000_000, 10_000_000)
        self.derived = DerivedForms(ECOSYSTEMS["npm"](URL), renderer, self.memory, AtOnce(), self.clock)
        self.renderer = renderer
        self.page = self.rendered(PACKUMENT)

    def rendered(self, packument: bytes) -> Page:
        source = document(packument, "application/json")
        page = self.now(self.renderer.render(THING, source, PageRules(), base=self.usual_base))
        self.tasks.clear()
        return Page(THING, 0.0, page.forms)

    def run_task(self, task: bytes) -> Deferred[bytes]:
        kinds = ("Render", "Listing", "Parts", "Derive")
        self.tasks.append(next(kind for kind in kinds if f"{kind}Task".encode() in task[:100]))
        done: Deferred[bytes] = Deferred()
        done.callback(perform(task))
        return done

    def made(self, base: str, part: Part | None = None, client: str = "a", page: Page | None = None) -> Form:
        wanted = self.now(self.derived.find(page or self.page, "full", base, part))
        is_complete = self.derived.is_complete(wanted, client)
        form = self.now(self.derived.make(wanted, client))
        assert (form.etag, form.based) == (wanted.etag, not is_complete)
        return form

    def expected(self, base: str, part: Part | None = None) -> bytes:
        """The known way: the whole form is parsed, and the address is put in at once."""
        body = zlib.decompress(self.page.forms["full"].body, 31)
        if part is not None:
            found: Any = json.loads(body)["versions"][part.name]
            body = json.dumps(found, separators=(", ", ": ")).encode()
        return body.replace(self.page.forms["full"].base.encode(), base.encode())

    def test_a_known_address_is_put_in_once(self) -> None:
        """The form for a known address is made once, for all clients."""
        for client in ("a", "b"):
            form = self.made("http://a.example", client=client)
            assert zlib.decompress(form.body, 31) == self.expected("http://a.example")
        assert self.tasks == ["Derive"]

    def test_an_invented_address_costs_no_rendering(self) -> None:
        """Beyond the known addresses, the form keeps the placeholder. Nothing is made or kept for it."""
        for number in range(100):
            form = self.made(f"http://{number}.example")
            assert form.based == (number >= MOST_OF_CLIENT)
        assert self.tasks == ["Derive"] * MOST_OF_CLIENT
        assert not self.made("http://b.example", client="b").based

    def test_validators_cost_nothing(self) -> None:
        """What is wanted has its etag before it is made, and takes no place among the known addresses."""
        etags = set()
        for number in range(100):
            wanted = self.now(self.derived.find(self.page, "full", f"http://{number}.example"))
            assert self.derived.is_complete(wanted, "a")
            assert self.derived.kept(wanted) is None
            etags.add(wanted.etag)
        assert (len(etags), self.tasks) == (100, [])
        assert self.made("http://7.example").etag in etags

    def test_a_part_is_cut_out_without_rendering(self) -> None:
        """A part of the page costs no rendering, for known and for invented addresses, and has the same bytes."""
        for number in range(20):
            base, part = f"http://{number}.example", Part("version", f"1.0.{number}")
            form = self.made(base, part)
            assert json.loads(zlib.decompress(form.body, 31)) == json.loads(self.expected(base, part))
        assert self.tasks == []

    def test_a_part_that_does_not_exist_costs_no_rendering(self) -> None:
        """Names that the page does not list are not looked for in the page."""
        for number in range(100):
            missing = self.derived.find(self.page, "full", "http://a.example", Part("version", f"9.0.{number}"))
            assert str(self.failing(missing, NotFound)) == f"version not found: 9.0.{number}"
        assert self.tasks == []

    def test_a_page_that_was_stored_without_an_index_gets_one(self) -> None:
        """A page of an earlier version is parsed once, not once for each part."""
        old = evolve(self.page, forms={name: form for name, form in self.page.forms.items() if name != PARTS})
        for number in range(20):
            part = Part("version", f"1.0.{number}")
            assert self.made("http://a.example", part, page=old) == self.made("http://a.example", part)
            self.failing(self.derived.find(old, "full", "http://a.example", Part("version", "9")), NotFound)
        assert self.tasks == ["Parts"]
        assert self.now(self.derived.has(old, part)) is None, "such a page does not tell"
        found = [self.now(self.derived.has(self.page, each)) for each in (part, Part("version", "9"))]
        assert found == [True, False]

    def test_only_what_takes_little_decoding_is_cut_in_this_process(self) -> None:
        """A large part, or one deep in a page that was stored without blocks, is made in a render process."""
        form, part, far = self.page.forms["full"], Part("version", "1.0.0"), 40 * BLOCK
        blocks = PartIndex(b"", tuple(range(50)))
        expected = [(blocks, far, 100, True), (PartIndex(b""), far, 100, False), (PartIndex(b""), 0, 100, True)]
        expected += [(blocks, 0, LARGEST_CUT, True), (blocks, 0, LARGEST_CUT + 1, False), (blocks, 0, 0, False)]
        for index, offset, length, can_be_cut in expected:
            assert Wanted(form, "", part, (offset, length), index).can_be_cut == can_be_cut

    def test_an_index_that_can_not_be_read_is_made_anew(self) -> None:
        """An index of another version of the program is no failure."""
        forms = {**self.page.forms, PARTS: evolve(self.page.forms[PARTS], etag="other", body=b"what is this?")}
        odd = evolve(self.page, forms=forms)
        part = Part("version", "latest")
        assert self.made("http://a.example", part, page=odd) == self.made("http://a.example", part)
        assert self.tasks == ["Parts"]
        assert self.now(self.derived.has(odd, part)) is None

    def test_a_part_that_can_not_be_cut_is_made_once_for_all_invented_addresses(self) -> None:
        """A part of unknown place is parsed out once. An invented address is put in by its sender."""
        odd = PACKUMENT.replace(b'"dist-tags"', b'"readme": "\\ud83d", "dist-tags"').replace(
            b'"1.0.3": {', b'"1.0.3": {"x": "\\ud83d", '
        )
        page, part = self.rendered(odd), Part("version", "1.0.3")
        for number in range(50):
            form = self.made(f"http://{number}.example", part, page=page)
            assert form.based == (number >= MOST_OF_CLIENT)
            assert (page.forms["full"].base.encode() in zlib.decompress(form.body, 31)) == form.based
        assert self.tasks == ["Derive"] * (MOST_OF_CLIENT + 1)


class UsualBaseTest(DerivedFormsTest):
    """The same for a packument that was rendered for the address that most clients use."""

    usual_base = "http://usual.example:8000/pypi"

    def test_the_usual_address_costs_nothing(self) -> None:
        """The form for the usual address is there already. Its etag is the one that it has on any other host."""
        assert self.page.forms["full"].base == self.usual_base
        form = self.made(self.usual_base)
        body = zlib.decompress(form.body, 31)
        assert (len(body), body.count(self.usual_base.encode())) == (form.size, len(VERSIONS))
        assert self.tasks == []
        self.usual_base = "http://elsewhere.example"
        elsewhere = self.rendered(PACKUMENT)
        assert elsewhere.forms["full"].etag == self.page.forms["full"].etag
        derived = self.made("http://usual.example:8000/pypi", page=elsewhere)
        assert (derived.etag, zlib.decompress(derived.body, 31), self.tasks) == (form.etag, body, ["Derive"])

    def test_most_used_address_is_the_usual_one(self) -> None:
        """The address with the most uses is the usual one, whatever a client invents meanwhile."""
        assert self.derived.usual_base() == ""
        for _ in range(3):
            self.made("http://a.example")
        for number in range(10):
            self.made(f"http://{number}.example", client="b")
        assert self.derived.usual_base() == "http://a.example"
        self.clock.advance(IDLE + 1)
        self.made("http://new.example")
        assert self.derived.usual_base() == "http://new.example"

    def test_part_of_a_page_without_an_index(self) -> None:
        """Forms with one etag and two addresses have parts at other places, and an index each."""
        pages = []
        for base in ("http://usual.example:8000/pypi", "http://a.example"):
            self.usual_base = base
            page = self.rendered(PACKUMENT)
            pages.append(evolve(page, forms={name: form for name, form in page.forms.items() if name != PARTS}))
        part = Part("version", "1.0.42")
        bodies = [zlib.decompress(self.made("http://a.example", part, page=page).body, 31) for page in pages]
        assert json.loads(bodies[0])["dist"]["tarball"].startswith("http://a.example/thing/-/")
        assert bodies[0] == bodies[1]
