"""Tests of the catalog, in memory and in a real Redis. They cover the client during outages as well."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import Clock, deferLater
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from mypypi.coordination import Pause
from mypypi.errors import CatalogDown
from mypypi.interfaces import ICatalog
from mypypi.model import Form, Page, PageId, Refusal
from mypypi.redis.catalog import RedisCatalog
from mypypi.redis.client import RedisClient
from mypypi.settings.types import RedisUrl
from tests.support.fakes import MemoryCatalog
from tests.support.redis_server import RedisServer, free_port

T = TypeVar("T")
NOW = 1_793_000_000.25
DAY = 86_400
reactor: Any = the_reactor

HTML = Form("text/html", "ab12", 11, b"\x1f\x8b\x00\r\n\xff html", "http://here.example")
JSON = Form("application/vnd.pypi.simple.v1+json", "cd34", 12, b"\x1f\x8b\x00\r\n\xfe json")
PAGE = Page(
    PageId("project", "requests"),
    checked_at=1_793_000_000.123456,
    forms={"html": HTML, "json": JSON},
    upstream_etag='W/"0123"',
    upstream_modified="Mon, 02 Nov 2026 10:00:00 GMT",
    source="sha256-00ff",
    version="v1",
    extracts=True,
)


class CatalogPromises:
    """The promises of every catalog. A test case beside this class sets `catalog` and `clock` in its setUp."""

    catalog: ICatalog
    clock: Clock

    def test_provides_the_interface(self) -> None:
        """The catalog has every method of ICatalog, with its arguments."""
        assert verifyObject(ICatalog, self.catalog)

    async def test_page_is_returned_as_it_was_put(self) -> None:
        """Every field of a page, and every byte of its forms, is kept."""
        await self.catalog.put_page(PAGE, ())
        kept = await self.catalog.get_page(PAGE.id)
        assert kept == PAGE
        assert kept is not None
        assert (kept.forms["html"], kept.forms["json"]) == (HTML, JSON)

    async def test_unknown_page_is_none(self) -> None:
        """An unknown page is None, and so is its stamp. Deleting or touching it is no error."""
        await self.catalog.delete_page(PAGE.id)
        await self.catalog.touch_page(PAGE.id, "v1", 1.0)
        assert await self.catalog.get_page(PAGE.id) is None
        assert await self.catalog.page_stamp(PAGE.id) is None

    async def test_page_is_replaced_completely(self) -> None:
        """A new version of a page keeps no form or validator of the old one."""
        await self.catalog.put_page(PAGE, ())
        newer = Page(PAGE.id, checked_at=2.0, forms={"json": evolve(JSON, body=b"newer")}, version="v2")
        await self.catalog.put_page(newer, ())
        assert newer == await self.catalog.get_page(PAGE.id)
        assert await self.catalog.page_stamp(PAGE.id) == ("v2", 2.0)

    async def test_stamp_has_version_and_time(self) -> None:
        """A page's stamp has its version and exact time, without its forms."""
        await self.catalog.put_page(PAGE, ())
        assert await self.catalog.page_stamp(PAGE.id) == ("v1", 1_793_000_000.123456)

    async def test_touch_of_the_current_version_changes_its_time(self) -> None:
        """Touching the current version changes its time, and nothing else."""
        await self.catalog.put_page(PAGE, ())
        await self.catalog.touch_page(PAGE.id, "v1", 1_793_000_000.2)
        assert evolve(PAGE, checked_at=1_793_000_000.2) == await self.catalog.get_page(PAGE.id)

    async def test_touch_of_another_version_changes_nothing(self) -> None:
        """Touching a version that was replaced changes nothing. Otherwise the new version would look fresh."""
        await self.catalog.put_page(PAGE, ())
        await self.catalog.touch_page(PAGE.id, "v0", 1_793_000_000.2)
        assert await self.catalog.get_page(PAGE.id) == PAGE

    async def test_missing_page_differs_from_an_unknown_one(self) -> None:
        """A 404 from upstream is kept as a missing page, until the page appears."""
        missing = Page(PAGE.id, checked_at=1.0, version="none", refusal=Refusal(404))
        await self.catalog.put_page(missing, ())
        assert missing == await self.catalog.get_page(PAGE.id)
        await self.catalog.put_page(PAGE, ())
        assert await self.catalog.get_page(PAGE.id) == PAGE

    async def test_deleted_page_is_gone(self) -> None:
        """A purge deletes the page and its stamp, and no other page."""
        other = evolve(PAGE, id=PageId("project", "flask"))
        await self.catalog.put_page(PAGE, ())
        await self.catalog.put_page(other, ())
        await self.catalog.delete_page(PAGE.id)
        assert await self.catalog.get_page(PAGE.id) is None
        assert await self.catalog.page_stamp(PAGE.id) is None
        assert other == await self.catalog.get_page(other.id)

    async def test_pages_with_odd_names_do_not_mix(self) -> None:
        """Slashes, colons and percent signs never mix up pages or indexed links."""
        odd = [
            PageId("root"),
            PageId("project", "a/b"),
            PageId("project", "a", "b"),
            PageId("project", "a%2Fb"),
            PageId("project", "", "a"),
            PageId("project", "@scope/näme", "1!2.0+local:x y"),
        ]
        for page in odd:
            await self.catalog.put_page(evolve(PAGE, id=page, version=repr(page)), (f"link of {page!r}",))
        for page in odd:
            assert evolve(PAGE, id=page, version=repr(page)) == await self.catalog.get_page(page)
            assert page == await self.catalog.page_listing(f"link of {page!r}")

    async def test_text_that_looks_like_a_number_stays_text(self) -> None:
        """
        Text that looks like a number is not converted.

        A version 1.10 does not become 1.1, and an etag keeps its zeros.
        """
        page = evolve(PAGE, id=PageId("release", "0123", "1.10"), version="1.10", upstream_etag="000", source="1e5")
        page = evolve(page, forms={"1.10": evolve(JSON, etag="00012345", body=b"00012345")})
        await self.catalog.put_page(page, ("1.10",))
        assert page == await self.catalog.get_page(page.id)
        assert await self.catalog.page_stamp(page.id) == ("1.10", page.checked_at)
        assert page.id == await self.catalog.page_listing("1.10")
        await self.catalog.withhold(page.id, "2.50")
        assert await self.catalog.withheld(page.id) == {"2.50"}

    async def test_answers_to_ranges(self) -> None:
        """Whether an origin answers ranges is known for a week, or for an hour if it does not."""
        assert await self.catalog.answers_ranges("https/files.example") is None
        await self.catalog.put_answers_ranges("https/files.example", True)
        await self.catalog.put_answers_ranges("https/files.example:8443", False)
        assert await self.catalog.answers_ranges("https/files.example") is True
        assert await self.catalog.answers_ranges("https/files.example:8443") is False
        await self.catalog.put_answers_ranges("https/files.example", False)
        assert await self.catalog.answers_ranges("https/files.example") is False

    async def test_indexed_links_lead_to_their_page(self) -> None:
        """Each indexed link leads to its page, even after a purge. An unknown link leads to none."""
        links = tuple(f"https/files.example/{n}/x-1.{n}0.whl" for n in range(1200))
        await self.catalog.put_page(PAGE, links)
        await self.catalog.delete_page(PAGE.id)
        found = [await self.catalog.page_listing(link) for link in links]
        assert [PAGE.id] * 1200 == found
        assert await self.catalog.page_listing("https/files.example/other.whl") is None

    async def test_withheld_link_is_advertised_again_after_a_day(self) -> None:
        """A link is withheld on its own page, for a day after the last report."""
        await self.catalog.withhold(PAGE.id, "a.whl.metadata")
        self.clock.advance(DAY / 2)
        await self.catalog.withhold(PAGE.id, "b.whl.metadata")
        assert await self.catalog.withheld(PAGE.id) == {"a.whl.metadata", "b.whl.metadata"}
        assert await self.catalog.withheld(PageId("project", "flask")) == frozenset()
        self.clock.advance(DAY / 2)
        assert await self.catalog.withheld(PAGE.id) == {"b.whl.metadata"}
        await self.catalog.withhold(PAGE.id, "b.whl.metadata")
        self.clock.advance(DAY / 2)
        assert await self.catalog.withheld(PAGE.id) == {"b.whl.metadata"}
        self.clock.advance(DAY / 2)
        assert await self.catalog.withheld(PAGE.id) == frozenset()

    async def test_offers_last_for_a_month(self) -> None:
        """The metadata of a stored wheel is offered on its own page, for a month after the wheel was last found."""
        await self.catalog.offer(PAGE.id, "a.whl")
        self.clock.advance(20 * DAY)
        await self.catalog.offer(PAGE.id, "b.whl")
        assert await self.catalog.offered(PAGE.id) == {"a.whl", "b.whl"}
        assert await self.catalog.offered(PageId("project", "flask")) == await self.catalog.withheld(PAGE.id) == set()
        self.clock.advance(10 * DAY)
        assert await self.catalog.offered(PAGE.id) == {"b.whl"}

    async def test_lease_has_one_owner(self) -> None:
        """A lease has one owner until it is released or expires. Only the owner can release it."""
        assert await self.catalog.take_lease("page/requests", "me", 10) is None
        held = await self.catalog.take_lease("page/requests", "you", 10, "mine now")
        assert held is not None
        assert (held.owner, held.about) == ("me", "")
        assert 0 < held.left <= 10
        assert await self.catalog.take_lease("page/flask", "you", 10) is None
        await self.catalog.release_lease("page/requests", "you")
        assert await self.catalog.take_lease("page/requests", "you", 10) is not None
        await self.catalog.release_lease("page/requests", "me")
        assert await self.catalog.take_lease("page/requests", "you", 10) is None

    async def test_lease_is_renewed_by_its_owner(self) -> None:
        """A renewal sets a new text and a later expiry."""
        assert await self.catalog.take_lease("page/requests", "me", 1, "10 of 100") is None
        assert await self.catalog.take_lease("page/requests", "me", 60, "90 of 100") is None
        held = await self.catalog.take_lease("page/requests", "you", 60)
        assert held is not None
        assert held.about == "90 of 100"
        assert 1 < held.left <= 60

    async def test_back_off_is_shared_until_it_is_ended(self) -> None:
        """
        A back-off is shared until it is ended, and the last one counts.

        It is kept for some minutes after its time, so that the next one can be longer.
        """
        now = self.clock.seconds()
        assert await self.catalog.pause("https://index.example:443") is None
        for pause in (Pause(now + 1.5, "upstream answered 500"), Pause(now + 30, "it sends nonsense", 7, 502)):
            await self.catalog.put_pause("https://index.example:443", pause)
            assert await self.catalog.pause("https://index.example:443") == pause
        self.clock.advance(200)
        assert await self.catalog.pause("https://index.example:443") == pause
        assert await self.catalog.pause("http://index.example:80") is None
        for _ in range(2):
            await self.catalog.end_pause("https://index.example:443")
            assert await self.catalog.pause("https://index.example:443") is None

    async def test_check_of_a_working_catalog_succeeds(self) -> None:
        """The check of a working catalog raises nothing."""
        await self.catalog.check()


class MemoryCatalogTests(CatalogPromises, TestCase):
    """The catalog for tests keeps the promises of the real one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.catalog = self.memory = MemoryCatalog(self.clock)

    async def test_missing_page_expires(self) -> None:
        """
        A missing page is deleted some time after its last confirmation.

        So names that clients no longer request take no space.
        """
        await self.catalog.put_page(Page(PAGE.id, checked_at=1.0, version="none", refusal=Refusal(404)), ())
        self.clock.advance(DAY / 2)
        await self.catalog.touch_page(PAGE.id, "none", 2.0)
        self.clock.advance(DAY - 1)
        assert await self.catalog.get_page(PAGE.id) is not None
        self.clock.advance(1)
        assert await self.catalog.get_page(PAGE.id) is None

    async def test_back_off_expires(self) -> None:
        """A back-off is deleted some minutes after its time."""
        await self.catalog.put_pause("somewhere", Pause(self.clock.seconds() + 10, "gone"))
        self.clock.advance(309)
        assert await self.catalog.pause("somewhere") is not None
        self.clock.advance(1)
        assert await self.catalog.pause("somewhere") is None

    async def test_can_be_made_to_fail(self) -> None:
        """Tests can make the catalog fail with the error of the real one."""
        self.memory.down = "cable pulled"
        for ask in every_call(self.catalog):
            assert await reason_why(ask) == "cable pulled"


class RedisCatalogTests(CatalogPromises, TestCase):
    """The real catalog, in a real Redis on a unix socket."""

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.clock = Clock()
        self.clock.advance(NOW)
        self.client = await connected(self)
        self.catalog = RedisCatalog(self.client, "test", "pypi", self.clock)

    async def test_missing_page_expires(self) -> None:
        """A missing page expires some time after its last confirmation; other pages never expire."""
        await self.catalog.put_page(Page(PAGE.id, checked_at=1.0, version="none", refusal=Refusal(404)), ())
        key = "test:page:pypi:project/requests"
        assert 50 < await self.client.call("TTL", key) <= 60
        await self.client.call("EXPIRE", key, 10)
        await self.catalog.touch_page(PAGE.id, "none", 2.0)
        assert 50 < await self.client.call("TTL", key) <= 60
        await self.catalog.put_page(PAGE, ())
        await self.catalog.touch_page(PAGE.id, "v1", 2.0)
        assert await self.client.call("TTL", key) == -1

    async def test_back_off_expires(self) -> None:
        """A back-off expires some minutes after its time. A malformed one counts as none."""
        await self.catalog.put_pause("somewhere", Pause(self.clock.seconds() + 10, "gone"))
        assert 250 < await self.client.call("TTL", "test:pause:pypi:somewhere") <= 310
        await self.client.call("SET", "test:pause:pypi:somewhere", "garbled")
        assert await self.catalog.pause("somewhere") is None

    async def test_big_form_is_kept(self) -> None:
        """A form of 20 MB is kept byte for byte. Large packuments have that size."""
        page = evolve(PAGE, forms={"full": evolve(JSON, body=os.urandom(20_000_000))})
        await self.catalog.put_page(page, ())
        assert page == await self.catalog.get_page(PAGE.id)

    async def test_reader_never_sees_a_mix_of_two_versions(self) -> None:
        """Readers get one complete version while a page is replaced again and again."""
        pages = [
            evolve(PAGE, version=v, source=v, forms={n: evolve(HTML, body=v.encode() * 50_000) for n in names})
            for v, names in (("1", ("a", "b", "c")), ("2", ("b", "d")))
        ]
        await self.catalog.put_page(pages[0], ())
        await eventually(lambda: all_connected(self.client))
        seen: list[Page | None] = []

        async def read(times: int) -> None:
            seen.extend([await self.catalog.get_page(PAGE.id) for _ in range(times)])

        async def write(times: int) -> None:
            for number in range(times):
                await self.catalog.put_page(pages[number % 2], ())

        await gatherResults([Deferred.fromCoroutine(task) for task in (read(200), write(200), read(200), write(200))])
        assert all(page in pages for page in seen)
        assert {page.version for page in seen if page} == {"1", "2"}

    async def test_prefixes_and_ecosystems_do_not_mix(self) -> None:
        """Deployments that share a Redis see no data of each other."""
        await self.catalog.put_page(PAGE, ("x.whl",))
        await self.catalog.withhold(PAGE.id, "x.whl.metadata")
        for prefix, ecosystem in (("test2", "pypi"), ("test", "npm")):
            other = RedisCatalog(self.client, prefix, ecosystem, self.clock)
            assert await other.get_page(PAGE.id) is None
            assert await other.page_listing("x.whl") is None
            assert await other.withheld(PAGE.id) == frozenset()
        keys = await self.client.call("KEYS", "*")
        assert all(key.startswith(b"test:") for key in keys)

    async def test_malformed_record_counts_as_missing(self) -> None:
        """
        A lost or malformed field, or one of another release, counts as missing.

        So the page is fetched again, without an error.
        """
        key = "test:page:pypi:project/requests"
        for spoil in (("HDEL", key, "form:json"), ("HSET", key, "meta", '{"x":1}'), ("HSET", key, "stamp", "garbled")):
            await self.catalog.put_page(PAGE, ())
            await self.client.call(*spoil)
            assert await self.catalog.get_page(PAGE.id) is None
        assert await self.catalog.page_stamp(PAGE.id) is None

    async def test_withheld_links_expire(self) -> None:
        """The set of withheld links expires with its last link. Expired links are removed when another one is added."""
        key = "test:withheld:pypi:project/requests"
        await self.catalog.withhold(PAGE.id, "a")
        self.clock.advance(DAY)
        await self.catalog.withhold(PAGE.id, "b")
        assert await self.client.call("ZRANGE", key, 0, -1) == [b"b"]
        assert DAY - 60 < await self.client.call("TTL", key) <= DAY

    async def test_offers_expire(self) -> None:
        """The set of offers expires with its last one."""
        await self.catalog.offer(PAGE.id, "a.whl")
        assert 30 * DAY - 60 < await self.client.call("TTL", "test:offered:pypi:project/requests") <= 30 * DAY


class RedisOutageTests(TestCase):
    """Without Redis, every call fails soon with CatalogDown. When Redis is back, it is used without a restart."""

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def log_lines(self) -> list[str]:
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.events]

    def lines_about(self, url: RedisUrl) -> list[str]:
        return [line for line in self.log_lines() if line.startswith(f"Redis at {url}")]

    async def test_redis_that_is_started_later_is_used(self) -> None:
        """Calls fail at once until Redis is started, and then succeed. This holds over a unix socket and over TCP."""
        for tcp in (False, True):
            server = new_server(self, tcp=tcp)
            client = new_client(self, server.url())
            catalog = RedisCatalog(client, "test", "pypi", reactor)
            for ask in every_call(catalog):
                asked_at = reactor.seconds()
                assert "Redis can't be reached" in await reason_why(ask)
                assert reactor.seconds() - asked_at < 1.0
            assert len(self.lines_about(server.url())) == 1
            await server.start()
            await eventually(catalog.check)
            await catalog.put_page(PAGE, ())
            assert await catalog.get_page(PAGE.id) == PAGE

    async def test_killed_redis_is_logged_once_and_used_again(self) -> None:
        """
        A killed Redis costs errors, not delays.

        Its data is there after the restart, and the log has two lines in all.
        """
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url())
        catalog = RedisCatalog(client, "test", "pypi", reactor)
        await catalog.put_page(PAGE, ())
        await eventually(lambda: all_connected(client))
        await server.kill()
        for _ in range(30):
            assert "Redis can't be reached" in await reason_why(lambda: catalog.get_page(PAGE.id))
        await eventually(lambda: tried_often(client))
        await server.start()
        await eventually(catalog.check)
        assert await catalog.get_page(PAGE.id) == PAGE
        gone, back = self.lines_about(server.url())
        assert "can't be reached" in gone
        assert gone.endswith("; serving without it")
        assert back.endswith("is back")
        assert [gone, back] == self.log_lines()

    async def test_closed_connections_are_replaced_silently(self) -> None:
        """
        Connections that Redis closes are replaced; the next call waits for a new one.

        Nothing is logged: a Redis that closes idle connections is not down.
        """
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url())
        await client.check()
        await eventually(lambda: all_connected(client))
        other = new_client(self, server.url())
        await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually(lambda: none_connected(client))
        await client.check()
        assert self.log_lines() == []

    async def test_frozen_redis_does_not_block_requests(self) -> None:
        """A Redis that never answers costs one timeout. After that, calls fail at once until it answers."""
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url(), timeout=0.3)
        await eventually(lambda: all_connected(client))
        server.freeze()
        assert "no answer within 0.3 s" in await reason_why(client.check)
        assert "can't be reached" in await reason_why(client.check)
        asked_at = reactor.seconds()
        for _ in range(20):
            await reason_why(client.check)
        assert reactor.seconds() - asked_at < 0.3
        server.thaw()
        await eventually(lambda: all_connected(client))
        await client.check()
        assert client._open == set(client._usable)
        assert len(self.lines_about(server.url())) == 2

    async def test_wrong_password_is_reported_without_being_shown(self) -> None:
        """
        A refused password fails calls soon, and is neither shown nor logged.

        The client tries again, since the server's settings may be corrected.
        """
        server = new_server(self, "--requirepass", "right-horse")
        await server.start()
        client = new_client(self, server.url(password="wrong-horse"))
        reason = await reason_why(client.check)
        assert "WRONGPASS" in reason
        administrator = new_client(self, server.url(password="right-horse"))
        await administrator.call("CONFIG", "SET", "requirepass", "wrong-horse")
        await eventually(client.check)
        assert len(self.lines_about(server.url())) == 2
        assert "horse" not in reason + "".join(self.log_lines()) + repr(self.events) + repr(vars(client))

    async def test_password_that_redis_quotes_is_not_shown(self) -> None:
        """
        The error does not show a password that Redis quotes.

        A Redis without AUTH quotes that command with its arguments.
        """
        server = new_server(self, "--rename-command", "AUTH", "")
        await server.start()
        client = new_client(self, server.url(password="battery-staple" * 20))  # so long that Redis quotes a part of it
        reason = await reason_why(client.check)
        assert "unknown command" in reason
        assert "battery" not in reason + "".join(self.log_lines())

    async def test_user_password_and_database_are_used(self) -> None:
        """The client uses the user, password and database of its URL."""
        server = new_server(self, tcp=True)
        await server.start()
        administrator = new_client(self, server.url(db=3))
        await administrator.call("ACL", "SETUSER", "alice", "on", ">s3cret", "~*", "+@all")
        alice = new_client(self, server.url(username="alice", password="s3cret", db=3))
        await alice.call("SET", "who", "alice")
        assert await alice.call("ACL", "WHOAMI") == b"alice"
        assert await administrator.call("GET", "who") == b"alice"
        assert await new_client(self, server.url(db=0)).call("GET", "who") is None

    async def test_full_redis_is_reported_and_still_read(self) -> None:
        """A Redis that refuses writes is logged once, and pages are still read."""
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url())
        catalog = RedisCatalog(client, "test", "pypi", reactor)
        await catalog.put_page(PAGE, ())
        await client.call("CONFIG", "SET", "maxmemory", "1")
        for _ in range(5):
            assert "OOM" in await reason_why(lambda: catalog.put_page(PAGE, ()))
            assert await catalog.get_page(PAGE.id) == PAGE
        assert len(self.log_lines()) == 1
        assert "OOM" in self.log_lines()[0]

    async def test_slow_command_does_not_abort_its_connection(self) -> None:
        """
        A timeout does not abort a connection on which other replies arrive.

        A connection without any reply is aborted.
        """
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url(), timeout=0.3, connections=1)
        await client.check()
        connection = client._usable[0]
        quick = Deferred.fromCoroutine(client.call("ECHO", "quick"))
        slow = Deferred.fromCoroutine(client.call("BLPOP", "never", 0))
        assert await quick == b"quick"
        await self.assertFailure(slow, CatalogDown)
        assert client._usable == [connection]
        assert "is too slow" in self.log_lines()[0]
        assert "no answer" in await reason_why(client.check)
        await client.check()
        assert client._usable[0] is not connection

    async def test_cancelled_command_does_not_mix_up_replies(self) -> None:
        """The reply to a cancelled command goes to no other call."""
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url(), connections=1)
        await client.check()
        unwanted = Deferred.fromCoroutine(client.call("ECHO", "unwanted"))
        wanted = Deferred.fromCoroutine(client.call("ECHO", "wanted"))
        unwanted.cancel()
        await self.assertFailure(unwanted, CancelledError)
        assert await wanted == b"wanted"
        assert self.log_lines() == []

    async def test_stop_closes_every_connection(self) -> None:
        """
        `stop` fires when all connections are closed.

        Commands in progress and later ones fail, and `start` works again.
        """
        server = new_server(self)
        await server.start()
        client = new_client(self, server.url())
        await eventually(lambda: all_connected(client))
        under_way = Deferred.fromCoroutine(client.call("BLPOP", "never", 0))
        await client.stop()
        await self.assertFailure(under_way, CatalogDown)
        assert await reason_why(client.check) == "Redis can't be reached: not started"
        assert not client._open
        client.start()
        await client.check()

    async def test_stop_while_redis_is_down(self) -> None:
        """A client can stop although its Redis is down. Waiting calls fail."""
        client = new_client(self, RedisUrl("tcp", "127.0.0.1", free_port()))
        waiting = Deferred.fromCoroutine(client.check())
        await client.stop()
        await self.assertFailure(waiting, CatalogDown)

    async def test_tls_requires_a_trusted_certificate_for_the_host(self) -> None:
        """TLS requires a trusted certificate that names the host."""
        server = new_server(self, tcp=True)
        await server.start()
        certificate = certificate_for("127.0.0.1", server.directory / "certificate.pem")
        forward = ProxyFactory("127.0.0.1", server.url().port)
        forward.noisy = False
        context = DefaultOpenSSLContextFactory(str(certificate), str(certificate))
        port = reactor.listenSSL(0, forward, context, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = RedisUrl("tls", "127.0.0.1", port.getHost().port)
        with mock.patch.dict(os.environ, SSL_CERT_FILE=str(certificate)):
            await new_client(self, url).check()
            elsewhere = await reason_why(new_client(self, evolve(url, host="localhost")).check)
            assert "the certificate of localhost is for other hosts" in elsewhere
        assert "the certificate of 127.0.0.1 is self-signed" in await reason_why(new_client(self, url).check)


async def connected(case: TestCase) -> RedisClient:
    server = new_server(case)
    await server.start()
    return new_client(case, server.url())


def new_server(case: TestCase, *options: str, tcp: bool = False) -> RedisServer:
    server = RedisServer(reactor, *options, tcp=tcp)
    case.addCleanup(lambda: Deferred.fromCoroutine(server.clean_up()))
    return server


def new_client(case: TestCase, url: RedisUrl, timeout: float = 2.0, connections: int = 4) -> RedisClient:
    client = RedisClient(reactor, url, timeout, connections)
    client.start()
    case.addCleanup(client.stop)
    return client


def every_call(catalog: ICatalog) -> list[Callable[[], Awaitable[object]]]:
    """Return a call of each of the catalog's methods."""
    return [
        lambda: catalog.get_page(PAGE.id),
        lambda: catalog.page_stamp(PAGE.id),
        lambda: catalog.put_page(PAGE, ("x",)),
        lambda: catalog.touch_page(PAGE.id, "v1", 1.0),
        lambda: catalog.delete_page(PAGE.id),
        lambda: catalog.page_listing("x"),
        lambda: catalog.withhold(PAGE.id, "x"),
        lambda: catalog.withheld(PAGE.id),
        lambda: catalog.offer(PAGE.id, "x"),
        lambda: catalog.offered(PAGE.id),
        lambda: catalog.pause("x"),
        lambda: catalog.put_pause("x", Pause(1.0, "gone")),
        lambda: catalog.end_pause("x"),
        catalog.check,
    ]


async def reason_why(ask: Callable[[], Awaitable[object]]) -> str:
    """Return the text of the CatalogDown that a call raises."""
    try:
        answer = await ask()
    except CatalogDown as error:
        return str(error)
    raise AssertionError(f"should have raised CatalogDown, and gave {answer!r}")


async def eventually(ask: Callable[[], Awaitable[T]], bound: float = 10.0) -> T:
    """Repeat a call until it raises no CatalogDown. No event tells when a connection is open again."""
    deadline = reactor.seconds() + bound
    while True:
        try:
            return await ask()
        except CatalogDown:
            if reactor.seconds() > deadline:
                raise
        await deferLater(reactor, 0.02)


async def all_connected(client: RedisClient) -> None:
    if len(client._usable) < client._size:
        raise CatalogDown(f"{len(client._usable)} connections are made")


async def tried_often(client: RedisClient) -> None:
    if client._pause < 0.8:
        raise CatalogDown("it has not failed to connect three times yet")


async def none_connected(client: RedisClient) -> None:
    if client._usable:
        raise CatalogDown(f"{len(client._usable)} connections are left")


def certificate_for(address: str, path: Path) -> Path:
    """Write a self-signed certificate and its key to one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis.example")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path
