"""Tests of clients that ask for versions which do not exist: upstream is asked for few of them."""

from __future__ import annotations

import json

from mypypi.errors import NotFound, TemporarilyUnavailable
from mypypi.model import PageId
from mypypi.pages.guesses import GUESS_SECONDS, MOST_GUESSES
from mypypi.pages.page_cache import RECHECK_AFTER
from tests.pages.test_page_cache import PagesTestCase

PROJECT = "/pypi/thing/json"


class GuessesTest(PagesTestCase):
    """A project with two releases, one of them without files, and a client that invents others."""

    def setUp(self) -> None:
        super().setUp()
        self.releases: dict[str, list[object]] = {"1.0": [], "1.1.0": []}
        self.upstream_lists(self.releases)
        for number in range(200):
            self.wire.reply(f"/pypi/thing/9.{number}/json", 404)
            self.wire.reply(f"/pypi/other/9.{number}/json", 404)

    def upstream_lists(self, releases: object) -> None:
        document = {"info": {"name": "thing"}, "releases": releases, "urls": []}
        self.wire.reply(PROJECT, 200, json.dumps(document).encode(), content_type="application/json", etag='"1"')
        self.upstream_has_version("1.1.0")

    def upstream_has_version(self, version: str) -> None:
        document = {"info": {"name": "thing", "version": version}, "urls": []}
        body = json.dumps(document).encode()
        self.wire.reply(f"/pypi/thing/{version}/json", 200, body, content_type="application/json")

    def asked(self, path: str = PROJECT) -> int:
        return [exchange.path for exchange in self.wire.exchanges].count(path)

    def guess(self, count: int, project: str = "thing", client: str = "guesser") -> None:
        """Ask for invented versions as the route does: once more, since upstream may have it by now."""
        for number in range(count):
            page = PageId("json", project, f"9.{number}")
            self.failing(self.pages.get(page, client), NotFound)
            self.failing(self.pages.revalidated(page, client), NotFound)

    def test_upstream_is_asked_for_few_invented_versions(self) -> None:
        """After some versions that do not exist, the list of releases tells. It is asked for every few seconds."""
        self.guess(200)
        assert self.upstream_requests == MOST_GUESSES + 1
        self.clock.advance(RECHECK_AFTER)
        self.guess(200)
        assert (self.upstream_requests, self.asked()) == (MOST_GUESSES + 2, 2)
        assert self.wire.last.headers["if-none-match"] == '"1"'

    def test_a_version_that_exists_is_found(self) -> None:
        """A release without files, another spelling of one, and a new one are served in the middle of it all."""
        self.guess(100)
        for version in ("1.1.0", "1.1"):
            self.upstream_has_version(version)
            assert self.now(self.pages.get(PageId("json", "thing", version), "guesser")).page.forms
        self.upstream_lists({**self.releases, "9.7": []})
        self.upstream_has_version("9.7")
        self.clock.advance(RECHECK_AFTER + 60)  # the answers that upstream gave have expired by then
        self.wire.reply(PROJECT, 200, self.wire.replies[PROJECT].body, content_type="application/json", etag='"2"')
        assert self.now(self.pages.get(PageId("json", "thing", "9.7"), "guesser")).page.forms

    def test_a_list_that_does_not_tell_is_no_proof(self) -> None:
        """Without a list of releases, the client that guesses has to wait. Other clients and projects do not."""
        for answers in ((404, b""), (200, b'{"info":{"name":"thing"},"urls":[]}'), (500, b"")):
            self.wire.reply(PROJECT, answers[0], answers[1], content_type="application/json")
            self.guess(MOST_GUESSES)
            error = self.failing(self.pages.get(PageId("json", "thing", "9.150"), "guesser"), TemporarilyUnavailable)
            assert error.retry_after == GUESS_SECONDS
            assert "do not exist" in str(error)
            assert self.now(self.pages.get(PageId("json", "thing", "1.1.0"), "other")).page.forms
            self.failing(self.pages.get(PageId("json", "other", "9.1"), "guesser"), NotFound)
            self.clock.advance(10 * GUESS_SECONDS)
            self.failing(self.pages.get(PageId("json", "thing", "9.150"), "guesser"), NotFound)
            self.clock.advance(10 * GUESS_SECONDS)
