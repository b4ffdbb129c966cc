"""Tests of how Simple pages are told from other HTML, such as a form to sign in."""

from __future__ import annotations

import pytest

from mypypi.errors import BadUpstreamResponse
from mypypi.model import RenderedPage
from tests.ecosystems.server_pages import FILES, NAMES, PROJECT_PAGES, ROOT_PAGES, SDIST
from tests.ecosystems.simple_pages import (
    ROOT,
    SIMPLE_HTML,
    WHEEL,
    anchor,
    as_json,
    filenames,
    render,
)

#: Pages for people with something to use: a form, a button, a script, or a redirect.
INTERACTIVE = {
    "a form with links": """<!DOCTYPE html><html><head><title>Sign in</title></head><body>
        <form action="/login" method="post"><input name="user"><input type="password" name="password"></form>
        <a href="/login">Login</a> <a href="/reset">Forgot your password?</a> <a href="/static/help.html">Help</a>""",
    "a form in capitals": '<HTML><BODY><FORM ACTION="/login"><INPUT TYPE=password></FORM></BODY></HTML>',
    "a form of a proxy": '<form method="post" action="https://sso.example/saml"><input type="hidden" name="SAMLRequest"'
    ' value="x"></form><noscript><a href="https://sso.example/continue">Continue</a></noscript>',
    "a redirect by a meta element": '<html><head><meta http-equiv="refresh" content="0; url=/login"></head></html>',
    "a redirect with a link": "<META HTTP-EQUIV='Refresh' CONTENT='0;URL=https://portal.example/start'>"
    '<a href="https://portal.example/start">Click here</a>',
    "a portal of scripts": '<!DOCTYPE html><html><head><script src="/static/app.js"></script></head>'
    '<body><div id="root"></div></body></html>',
    "a script that redirects": '<script>window.location = "https://sso.example/login"</script>',
    "a button": "<h1>Welcome to the guest network</h1><button onclick=accept()>Accept the terms</button>",
    "an inner frame": '<iframe src="https://portal.example/"></iframe>',
    "a form that offers programs": '<form><input name="user"></form><a href="/vpn-client-5.2.exe">Windows</a>'
    '<a href="/vpn-client-5.2.dmg">macOS</a><a href="/ca-certificate-1.zip">Certificate</a>',
}
#: Pages for people with text and links only, or with nothing.
STATIC = {
    "a link to sign in": '<html><body>Please <a href="/login">sign in</a> first.</body></html>',
    "links to assets": '<link rel="stylesheet" href="/static/app.css"><a href="/static/app.js">app.js</a>'
    '<a href="/">Home</a>',
    "a moved page": "<html><head><title>302 Found</title></head><body><h1>Found</h1>The document has moved "
    '<a href="https://sso.example/login?to=%2Fsimple">here</a>.</body></html>',
    "a note of maintenance": "<!doctype html><title>Maintenance</title><h1>We will be back soon</h1>"
    '<a href="https://status.example/">See our status page</a>',
    "a message": "<html><body><p>Access denied by policy 1234.</p></body></html>",
    "an empty page": "<html></html>",
    "a page that only has a comment": "<!-- -->",
    "a default page": "<html><body><h1>It works!</h1></body></html>",
    "a download": '<p>To go on, install <a href="/agent-7.1.msi">our agent</a>.</p>',
}
#: What says that a page is a Simple page, even if it lists nothing.
MARKS = {
    "a meta element": '<meta name="pypi:repository-version" content="1.0">',
    "a title": "<title>Links for holy-grail</title>",
    "a heading": "<h1>Links for holy-grail</h1>",
    "devpi's title": "<title>root/pypi: links for holy-grail</title>",
    "a title in capitals": "<TITLE>LINKS FOR HOLY_GRAIL</TITLE>",
}
REFRESH_FORM = '<form action="/refresh" method="post"><input name="refresh" type="submit" value="Refresh"/></form>'


def read(page: str) -> RenderedPage:
    return render(page, content_type="text/html; charset=utf-8")


def read_root(page: str) -> RenderedPage:
    return render(page, ROOT, "text/html; charset=utf-8", url="https://index.example/simple/")


def names(rendered: RenderedPage) -> list[str]:
    return [project["name"] for project in as_json(rendered)["projects"]]


class TestPagesForPeople:
    """HTML with status 200 that is no Simple page."""

    @pytest.mark.parametrize("page", INTERACTIVE.values(), ids=INTERACTIVE)
    def test_an_interactive_page_is_refused(self, page: str) -> None:
        """A form to sign in, a portal or a redirect is refused as upstream's fault, for projects and for the list."""
        with pytest.raises(BadUpstreamResponse, match=r"it is a page for people, .* lists no file of the project"):
            read(page)
        with pytest.raises(BadUpstreamResponse, match=r"it is a page for people, .* no list of projects"):
            read_root(page)

    @pytest.mark.parametrize("page", STATIC.values(), ids=STATIC)
    def test_a_static_page_is_doubtful(self, page: str) -> None:
        """A page with no link to a file of the project, and no mark, is doubtful: it never replaces a real one."""
        assert read(page).is_doubtful
        assert read_root(page).is_doubtful

    @pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
    def test_an_empty_page_with_a_mark_is_believed(self, mark: str) -> None:
        """A marked page without files is what upstream says: the project has none. A form does not change that."""
        for page in (mark, mark + REFRESH_FORM):
            rendered = read(page)
            assert (filenames(rendered), rendered.is_doubtful) == ([], False)

    @pytest.mark.parametrize(
        "mark", ['<meta name="pypi:repository-version" content="1.0">', "<title>Simple Index</title>"]
    )
    def test_an_empty_list_with_a_mark_is_believed(self, mark: str) -> None:
        """A marked list without projects is an empty index."""
        for page in (mark, mark + REFRESH_FORM):
            rendered = read_root(page)
            assert (names(rendered), rendered.is_doubtful) == ([], False)

    def test_the_media_type_is_a_mark(self) -> None:
        """A page of the Simple API's own media type is believed, whatever it has."""
        for page in ("<html></html>", INTERACTIVE["a form with links"]):
            assert not render(page, content_type=SIMPLE_HTML).is_doubtful
            assert not render(page, ROOT, SIMPLE_HTML).is_doubtful

    def test_json_is_never_doubtful(self) -> None:
        """A document with a list is a page, even if the list is empty."""
        assert not render({"files": []}).is_doubtful
        assert not render({"projects": []}, ROOT).is_doubtful


class TestPagesOfOtherProjects:
    """Pages whose title names another project."""

    @pytest.mark.parametrize("title", ["Links for spam", "links for Spam ", "root/pypi: links for spam"])
    @pytest.mark.parametrize("tag", ["title", "h1"])
    def test_the_page_of_another_project_is_refused(self, title: str, tag: str) -> None:
        """A page with another project in its title is refused, with files of that project and without."""
        for files in ("", anchor("spam-1.0.tar.gz")):
            with pytest.raises(BadUpstreamResponse, match="it is the page of another project, spam"):
                read(f"<html><{tag}>{title}</{tag}>{files}</html>")

    @pytest.mark.parametrize("title", ["Links for packages", "Links for all packages", "Links for !", "Our packages"])
    def test_files_of_the_project_count_more_than_a_title(self, title: str) -> None:
        """A title is for people: a page that lists files of the project is the project's."""
        rendered = read(f"<title>{title}</title>{FILES}")
        assert (filenames(rendered), rendered.is_doubtful) == ([WHEEL, SDIST], False)


class TestPagesOfServers:
    """Pages as real servers write them."""

    @pytest.mark.parametrize("page", PROJECT_PAGES.values(), ids=PROJECT_PAGES)
    def test_the_page_of_a_project_is_accepted(self, page: str) -> None:
        """The files are listed, nothing is left out, and there is no doubt."""
        rendered = read(page)
        assert filenames(rendered) == [WHEEL, SDIST]
        assert (rendered.is_doubtful, rendered.notes) == (False, ())

    @pytest.mark.parametrize("page", ROOT_PAGES.values(), ids=ROOT_PAGES)
    def test_the_list_of_projects_is_accepted(self, page: str) -> None:
        """The projects are listed, links to other places are not, and there is no doubt."""
        rendered = read_root(page)
        assert names(rendered) == ["Holy_Grail", "spam"]
        assert (rendered.is_doubtful, rendered.notes) == (False, ())

    @pytest.mark.parametrize(
        "filename", ["holy_grail-2.0-py2.7.egg", "Holy.Grail-2.0.win32-py2.7.exe", f"{WHEEL}.metadata"]
    )
    def test_any_file_of_the_project_convinces(self, filename: str) -> None:
        """One file of the project is enough, in any format and spelling, also next to a form."""
        assert not read(REFRESH_FORM + anchor("other-1.0.zip") + anchor(filename)).is_doubtful

    def test_invalid_names_in_the_list_are_left_out_with_one_note(self) -> None:
        """Names that no project can have are left out of the list. One note has their number."""
        document = {"projects": [{"name": "spam"}, {"name": "<b>"}, {}, None, {"name": 1}]}
        rendered = render(document, ROOT)
        assert names(rendered) == ["spam"]
        assert rendered.notes == ("4 projects without a valid name were left out",)
        rendered = read_root(NAMES + '<a href="x/">é</a>')
        assert names(rendered) == ["Holy_Grail", "spam"]
        assert rendered.notes == ("1 projects without a valid name were left out",)
