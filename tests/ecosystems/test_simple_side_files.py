"""Tests of what a page advertises beside a file: signatures and provenance can be fetched from here (promise 9)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

import pytest

from mypypi.ecosystems.pypi import PyPI
from mypypi.model import PackageFile, PageId, PageRules, RenderedPage, SourceDocument
from tests.ecosystems.simple_pages import (
    HERE,
    OTHER_SHA256,
    PROJECT,
    SIMPLE_JSON,
    WHEEL,
    WHEEL_LINK,
    WHEEL_URL,
    anchor,
    as_html,
    only_file,
    project,
    pypi,
    render,
    wheel,
)

PROVENANCE_URL = f"https://index.example/integrity/holy-grail/1.0/{WHEEL}/provenance"
PROVENANCE_LINK = PROVENANCE_URL.replace("://", "/")


def listing(rendered: RenderedPage) -> Mapping[str, PackageFile]:
    return pypi.listing(PROJECT, {"json": rendered.forms["json"].body})


class TestProvenance:
    """The provenance of a file (PEP 740)."""

    def test_it_leads_here_in_both_forms(self) -> None:
        """Provenance has an absolute URL here, as PEP 740 demands, in JSON and HTML, from either of them."""
        for page in (project(wheel(provenance=PROVENANCE_URL)), anchor(provenance=PROVENANCE_URL)):
            rendered = render(page, content_type="")
            assert only_file(rendered)["provenance"] == f"{HERE}/{PROVENANCE_LINK}"
            assert f'data-provenance="{HERE}/{PROVENANCE_LINK}"' in as_html(rendered)
            assert all(form.based for form in rendered.forms.values())
            assert rendered.notes == ()

    def test_it_is_listed_as_a_file_without_a_digest(self) -> None:
        """The listing has the URL that upstream gave, without a digest, beside the file."""
        files = listing(render(project(wheel(provenance=PROVENANCE_URL))))
        assert list(files) == [PROVENANCE_LINK, WHEEL_LINK]
        assert files[PROVENANCE_LINK] == PackageFile(PROVENANCE_LINK, PROVENANCE_URL)

    def test_its_link_names_the_page(self) -> None:
        """PyPI's addresses of provenance name the project, so they work before its page was requested."""
        assert pypi.pages_for(PROVENANCE_LINK) == (PageId("simple", "holy-grail"),)
        assert render(project(wheel(provenance=PROVENANCE_URL))).indexed_links == ()
        odd = "https://index.example/attestations/77"
        for url in (WHEEL_URL, "https://files.example/%2F"):
            indexed = render(project(wheel(provenance=odd, url=url))).indexed_links
            assert indexed == ("https/index.example/attestations/77",)

    @pytest.mark.parametrize(
        ("given", "url"),
        [
            ("/p/1", "https://index.example/p/1"),
            ("p/1", "https://index.example/simple/holy-grail/p/1"),
            ("//p.example/1", "https://p.example/1"),
            ("https://p.example//1?v=2#x", "https://p.example//1?v=2"),
        ],
    )
    def test_any_url_is_turned(self, given: str, url: str) -> None:
        """Relative URLs, queries and empty segments are understood."""
        files = listing(render(project(wheel(provenance=given))))
        assert [file.url for file in files.values() if file.url != WHEEL_URL] == [url]

    @pytest.mark.parametrize("url", ["https://me:secret@index.example/p", "https://index.example/%2F", "https://["])
    def test_what_can_not_be_served_stays_with_a_note(self, url: str) -> None:
        """A URL that can't be turned stays as it is, and one note has their number."""
        rendered = render(project(wheel(provenance=url), wheel(provenance=url)))
        assert f'data-provenance="{url}"' in as_html(rendered)
        assert rendered.notes == ("2 links to provenance can't be served from here and keep upstream's address",)
        assert list(listing(rendered)) == [WHEEL_LINK]

    def test_what_can_not_be_served_is_left_out_in_strict_operation(self) -> None:
        """With strict operation, nothing leads elsewhere: provenance that can't be turned is left out, with a note."""
        source = SourceDocument(
            json.dumps(project(wheel(provenance="https://index.example/%2F"))).encode(),
            SIMPLE_JSON,
            "https://x.example/",
        )
        rendered = PyPI("https://index.example", strict=True).render(PROJECT, source, PageRules())
        assert only_file(rendered)["provenance"] is None
        assert rendered.notes == ("1 links to provenance that can't be served from here were left out",)

    def test_none_is_none(self) -> None:
        """A file without provenance has none, and its page is the same for every address."""
        for none in (None, ""):
            rendered = render(project(wheel(provenance=none)))
            assert only_file(rendered)["provenance"] == none
            assert not any(form.based for form in rendered.forms.values())
            assert list(listing(rendered)) == [WHEEL_LINK]

    def test_it_is_taken_off_the_page_if_upstream_lacks_it(self) -> None:
        """Withheld provenance is not advertised: upstream advertises it, but does not have it."""
        rendered = render(project(wheel(provenance=PROVENANCE_URL)), withheld=frozenset([PROVENANCE_LINK]))
        assert only_file(rendered)["provenance"] is None
        assert "provenance" not in as_html(rendered)
        assert list(listing(rendered)) == [WHEEL_LINK]

    def test_upstream_can_not_write_our_own_addresses(self) -> None:
        """The placeholder of our address in upstream's page is a host like any other, which does not exist."""
        rendered = render(project(wheel(provenance=f"{HERE}/https/files.example/x"), wheel(provenance=f"{HERE}/%2F")))
        assert set(listing(rendered)) == {
            WHEEL_LINK,
            f"{HERE}/https/files.example/x".replace("://", "/"),
        }

    def test_a_file_with_the_same_url_counts_more(self) -> None:
        """A URL that is both a file's and a provenance is listed with the file's digest."""
        files = listing(render(project(wheel(provenance=WHEEL_URL))))
        assert [file.digest is not None for file in files.values()] == [True]


class TestSignatures:
    """The signature beside a file (PEP 503)."""

    def test_a_signature_is_listed_beside_its_file(self) -> None:
        """With ``gpg-sig``, ``.asc`` can be fetched, without a digest, like ``.metadata``."""
        for page in (project(wheel(gpg_sig=True)), anchor(gpg_sig="true")):
            files = listing(render(page, content_type=""))
            assert list(files) == [WHEEL_LINK, f"{WHEEL_LINK}.asc"]
            assert files[f"{WHEEL_LINK}.asc"] == PackageFile(f"{WHEEL_LINK}.asc", f"{WHEEL_URL}.asc")

    @pytest.mark.parametrize("given", [False, None, "true", 1])
    def test_other_values_advertise_none(self, given: object) -> None:
        """Only true advertises a signature."""
        assert list(listing(render(project(wheel(gpg_sig=given))))) == [WHEEL_LINK]

    def test_its_name_leads_to_the_page(self) -> None:
        """The signature of a file named after another project is indexed, as the file is."""
        assert pypi.pages_for(f"{WHEEL_LINK}.asc") == (PROJECT,)
        link = "https/files.example/other-1.0.zip"
        other = {"filename": "other-1.0.zip", "url": "https://files.example/other-1.0.zip", "gpg-sig": True}
        assert render(project(other)).indexed_links == (link, f"{link}.asc")

    def test_a_signature_that_can_not_be_served_is_not_advertised(self) -> None:
        """Neither one that upstream lacks, nor one whose address clients would guess differently."""
        missing = render(project(wheel(gpg_sig=True)), withheld=frozenset([f"{WHEEL_LINK}.asc"]))
        queried = render(project(wheel(gpg_sig=True, url=f"{WHEEL_URL}?v=1")))
        for rendered in (missing, queried):
            assert "gpg-sig" not in only_file(rendered)
            assert "gpg-sig" not in as_html(rendered)
            assert not [link for link in listing(rendered) if link.endswith(".asc")]

    def test_metadata_and_signature_are_independent(self) -> None:
        """One may be missing, and the other stays."""
        both = project(wheel(gpg_sig=True, core_metadata={"sha256": OTHER_SHA256}))
        for missing, left in ((".asc", ".metadata"), (".metadata", ".asc")):
            rendered = render(both, withheld=frozenset([WHEEL_LINK + missing]))
            assert list(listing(rendered)) == [WHEEL_LINK, WHEEL_LINK + left]


class TestForeignLinks:
    """Links that are no package files."""

    #: Clients fail for each of these, or ignore it. With pip, one of a newer version ends the whole install.
    FOREIGN = (
        *("mailto:x@y", "javascript:void(0)", "data:text/html,<b>x", "git+https://git.example/x@1.0#egg=x-1.0"),
        *("JavaScript:void(0)", "\x01 java\tscript:void(0)", "vbscript:x", "file:///srv/holy_grail-1.0.zip"),
        *("git+ssh://git@git.example/holy-grail-2.0.zip", "ftp://files.example/holy-grail-2.0.zip", "svn://x/y-1.zip"),
    )

    def test_they_are_left_out_with_one_note(self) -> None:
        """Links that no client could install from are in neither form, whichever upstream sends. One note has all."""
        anchors = "".join(f'<a href="{escape(url)}">x</a>' for url in self.FOREIGN)
        entries = ({"filename": "holy-grail-2.0.zip", "url": url} for url in self.FOREIGN)
        for page in (anchors + anchor(), project(*entries, wheel())):
            rendered = render(page, content_type="")
            assert only_file(rendered)["filename"] == WHEEL
            assert as_html(rendered).count("<a ") == 1
            assert rendered.notes == (f"{len(self.FOREIGN)} links that are no package files were left out",)

    @pytest.mark.parametrize("url", ["http://f.example/x-1.0.zip", "//f.example/x-1.0.zip", "x-1.0.zip", "/x-1.0.zip"])
    def test_what_clients_install_from_stays(self, url: str) -> None:
        """Absolute and relative links stay, and lead here."""
        for page in (f'<a href="{url}">x</a>', project({"filename": "x-1.0.zip", "url": url})):
            rendered = render(page, content_type="")
            assert only_file(rendered)["url"].startswith("../../file/http")
            assert rendered.notes == ()

    @pytest.mark.parametrize("url", ["javascript:void(0)", "data:text/html,x", "file://share/x", "ftp://x/p"])
    def test_provenance_elsewhere_is_left_out(self, url: str) -> None:
        """A link to provenance is one of http or https, too. The file stays."""
        rendered = render(project(wheel(provenance=url)))
        assert (only_file(rendered)["provenance"], rendered.notes) == (None, ())
        assert url not in as_html(rendered)


class TestFragments:
    """Hashes in the fragments of URLs in JSON."""

    def test_a_fragments_hash_is_the_files(self) -> None:
        """A fragment has hashes in JSON too, as pip reads it. ``hashes`` counts more."""
        fragment = f"#sha256={OTHER_SHA256.upper()}&md5={'0F' * 16}"
        file = only_file(render(project(wheel(url=WHEEL_URL + fragment, hashes={}))))
        assert file["hashes"] == {"sha256": OTHER_SHA256, "md5": "0f" * 16}
        file = only_file(render(project(wheel(url=WHEEL_URL + fragment))))
        assert file["hashes"] == {**wheel()["hashes"], "md5": "0f" * 16}  # type: ignore[dict-item]
