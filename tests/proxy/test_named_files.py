"""Tests of files that are asked for by their exact name: on pages that are older, and at other indexes' addresses."""

from __future__ import annotations

import os
from functools import partial
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred

from mypypi.errors import NotFound, UpstreamDown, UpstreamRefused
from mypypi.pages.page_cache import RECHECK_AFTER
from mypypi.proxy.answers import RedirectToUpstream
from mypypi.proxy.cold_files import ColdFilePolicy
from mypypi.proxy.proxy import Proxy
from mypypi.upstream.client import Upstream
from tests.proxy.test_proxy import DATA, FILE, LINK, NAME, PAGE, SIZE, THING, URL, ProxyTestCase, listed

NEW = "https://files.example/thing-1.1-py3-none-any.whl"
NEW_LINK = "https/files.example/thing-1.1-py3-none-any.whl"


class AppearingTest(ProxyTestCase):
    """A file that its page does not list leads to one revalidation of the page, before the answer is 404."""

    def upstream_lists(self, *files: dict[str, object]) -> None:
        super().upstream_lists(*files)
        reply = self.wire.replies[PAGE]
        reply.headers["etag"] = f'"{len(files)}"'

    def age_page(self, seconds: float = RECHECK_AFTER) -> None:
        self.cache_page()
        self.clock.advance(seconds)

    def test_file_that_appears_while_its_page_is_fresh_is_fetched(self) -> None:
        """A lock file that names a new version works at once. It takes one conditional request for the page."""
        self.age_page()
        self.upstream_lists(listed(), listed(NEW))
        self.request_file(NEW_LINK)
        self.assertEqual([PAGE, PAGE, "/thing-1.1-py3-none-any.whl"], self.wire.paths)
        self.assertEqual('"1"', self.wire.exchanges[1].headers["if-none-match"])

    def test_metadata_that_appears_is_fetched(self) -> None:
        """The same goes for the ``.metadata`` of a new wheel, and for that of a known one."""
        self.age_page()
        self.upstream_lists(listed(core_metadata=True), listed(NEW, core_metadata=True))
        self.request_file(f"{NEW_LINK}.metadata")
        self.request_file(f"{LINK}.metadata")
        self.assertEqual([PAGE, PAGE, f"{NEW_LINK[19:]}.metadata", f"{FILE}.metadata"], self.wire.paths)

    def test_project_that_appears_has_its_file(self) -> None:
        """A remembered 404 of the project's page is revalidated as well."""
        self.wire.reply(PAGE, 404)
        self.assert_fails(NotFound)
        self.clock.advance(RECHECK_AFTER)
        self.upstream_lists(listed())
        self.start_fetch()
        self.assertEqual([PAGE, PAGE, FILE], self.wire.paths)

    def test_upstream_is_asked_once_in_five_seconds(self) -> None:
        """However many files are asked for that a page lacks, upstream gets one request for it in that time."""
        self.age_page()
        for number in range(20):
            self.assert_fails(NotFound, f"https/files.example/thing-{number}.tar.gz")
        self.assertEqual([PAGE, PAGE], self.wire.paths)
        self.clock.advance(RECHECK_AFTER - 0.1)
        self.assert_fails(NotFound, NEW_LINK)
        self.assertEqual(2, len(self.wire.paths))
        self.clock.advance(0.1)
        self.assert_fails(NotFound, NEW_LINK)
        self.assertEqual(3, len(self.wire.paths))

    def test_clients_that_wait_share_the_request(self) -> None:
        """Clients in several processes that ask meanwhile share one request to upstream."""
        other = self.make_proxy()
        self.age_page()
        self.now(other.pages.get(THING))
        self.wire.replies.clear()
        waiting: list[Deferred[Any]] = [self.request_file(NEW_LINK) for _ in range(3)]
        waiting += [self.start(other.file(NEW_LINK)) for _ in range(3)]
        self.clock.advance(0)
        self.assertEqual([PAGE, PAGE], self.wire.paths)
        self.wire.last.answer(304, etag='"1"')
        self.clock.pump([0.1] * 20)
        for each in waiting:
            self.failureResultOf(each, NotFound)
        self.assertEqual([PAGE, PAGE], self.wire.paths)

    def test_upstream_that_can_not_be_asked_is_503(self) -> None:
        """While upstream fails, the answer is never 404 (promise 7): for a page that is held, and a remembered 404."""
        self.age_page()
        self.wire.reply(PAGE, 503)
        for _ in range(2):
            self.assert_fails(UpstreamDown, NEW_LINK)
        self.assertEqual([PAGE, PAGE], self.wire.paths)
        self.wire.reply(PAGE, 404)
        self.clock.advance(400)
        self.assert_fails(NotFound, NEW_LINK)
        self.clock.advance(RECHECK_AFTER)
        self.wire.refuses = True
        self.assert_fails(UpstreamDown, NEW_LINK)

    def test_page_that_is_refused_meanwhile_is_refused(self) -> None:
        """A refusal of the page is passed on as what it is."""
        self.age_page()
        self.wire.reply(PAGE, 403)
        self.assert_fails(UpstreamRefused, NEW_LINK)

    def test_listed_file_causes_no_request_for_its_page(self) -> None:
        """A file that the page lists is served without a look at upstream's page, however old that is."""
        self.age_page(1000)
        self.start_fetch()
        self.assertEqual([PAGE, FILE], self.wire.paths)


class MirrorTest(ProxyTestCase):
    """With MYPYPI_COLD_FILES=redirect, clients of a mirror are redirected to the mirror, as they would ask it."""

    cold_files = ColdFilePolicy(redirect=True)

    def make_proxy(self) -> Proxy:
        with mock.patch("tests.proxy.test_proxy.Upstream", partial(Upstream, public_host="files.example")):
            return super().make_proxy()

    def test_clients_are_redirected_to_the_mirror(self) -> None:
        """The page names the public registry's host, and the redirect names the mirror's."""
        self.assertEqual(RedirectToUpstream(f"{URL}{FILE}"), self.get())


class ElsewhereTest(ProxyTestCase):
    """The addresses that other indexes give to files end with the filename, by which the file is found."""

    def link_of(self, name: str = NAME) -> str:
        return self.now(self.proxy.link_of(name))

    def assert_not_found(self, name: str = NAME) -> str:
        return str(self.failing(self.start(self.proxy.link_of(name)), NotFound))

    def test_file_is_found_by_its_name(self) -> None:
        """The page that is held tells the link, or else upstream's page, once in five seconds."""
        self.assertEqual(LINK, self.link_of())
        self.clock.advance(1000)
        self.assertEqual(LINK, self.link_of())
        self.assertEqual([PAGE], self.wire.paths)
        self.upstream_lists(listed(NEW))
        self.assertEqual(NEW_LINK, self.link_of("thing-1.1-py3-none-any.whl"))
        self.assert_not_found("thing-1.2-py3-none-any.whl")
        self.assertEqual([PAGE, PAGE], self.wire.paths)

    def test_metadata_is_found_by_its_name(self) -> None:
        """A file's ``.metadata`` is found if the page advertises it."""
        self.upstream_lists(listed(core_metadata=True), listed(NEW))
        self.assertEqual(f"{LINK}.metadata", self.link_of(f"{NAME}.metadata"))
        self.assert_not_found("thing-1.1-py3-none-any.whl.metadata")

    def test_name_that_differs_from_the_urls_end_is_found(self) -> None:
        """A file is found by the name that the page gives to it, and served as by its own link."""
        url = "https://files.example/download?id=1"
        self.upstream_lists({**listed(url), "filename": NAME}, {**listed(f"{URL}/get/2"), "filename": "thing-2.zip"})
        for name, path in ((NAME, "/download?id=1"), ("thing-2.zip", "/get/2")):
            pending = self.request_file(self.link_of(name))
            self.assertEqual(path, self.wire.last.path)
            self.wire.last.answer(body=DATA)
            self.now(pending)
        served = self.get_content(self.link_of())
        self.assertEqual((True, DATA), (served.hit, os.pread(served.content.fd, SIZE, 0)))

    def test_name_of_several_files_is_found_if_they_have_one_digest(self) -> None:
        """Of several files with one name, one is served if all have the same digest. Otherwise none is."""
        mirror = f"https://other.example/{NAME}"
        self.upstream_lists(listed(), listed(mirror))
        self.assertIn(self.link_of(), {LINK, f"https/other.example/{NAME}"})
        for hashes in ({"sha256": "0" * 64}, {}):
            self.clock.advance(1000)
            self.upstream_lists(listed(), listed(mirror, hashes=hashes))
            self.cache_page()
            self.assertIn("several files", self.assert_not_found())

    def test_other_names_cause_no_request(self) -> None:
        """A name that belongs to no project, or is no name, is 404 without a request to upstream."""
        for name in ("favicon.ico", "", ".", "..", "index.html", "a/b-1.0.tar.gz", "thing"):
            self.assert_not_found(name)
        self.assertEqual([], self.wire.exchanges)

    def test_upstream_that_can_not_be_asked_is_503(self) -> None:
        """While upstream fails, the answer is never 404 (promise 7)."""
        self.wire.reply(PAGE, 503)
        self.failing(self.start(self.proxy.link_of(NAME)), UpstreamDown)
