"""Tests of malformed fields in Simple pages: one bad value never takes a page, or another file, away from clients."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.errors import BadUpstreamResponse
from tests.ecosystems.json_values import anything
from tests.ecosystems.simple_pages import (
    FILE_FIELDS,
    OTHER_SHA256,
    PROJECT,
    SHA256,
    SHA512,
    WHEEL,
    WHEEL_LINK,
    WHEEL_URL,
    anchor,
    as_html,
    as_json,
    check_strictly,
    filenames,
    only_file,
    project,
    pypi,
    read_by_pip,
    render,
    wheel,
)

#: The value of a field that is left out.
ABSENT = object()
#: The value of a field that is passed on as upstream sent it.
SAME = object()
OTHER = {"filename": "holy_grail-2.0.zip", "url": "https://files.example/packages/holy_grail-2.0.zip"}

NO_TEXT: tuple[Any, ...] = (None, 1, "", [], {})
READABLE_TIMES = (
    *("2026-11-01T10:00:00.123456Z", "2026-11-01T10:00:00.123Z", "2026-11-01T10:00:00Z"),
    *("2026-11-01T10:00:00+00:00", "2026-11-01T10:00:00.123456-08:00"),
)
UNREADABLE_TIMES: tuple[Any, ...] = (
    *("yesterday", "", "Sun, 01 Nov 2026 10:00:00 GMT", "2026-13-01T10:00:00Z", "2026-11-01T25:00:00Z"),
    *("0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-01T10:00:00+99:00", "20261101"),
    *("2026-11-01T10:00:00Z[UTC]", "\u0662\u0660\u0662\u0666-11-01", 1793527200, 1.5, None, [], True),
)


def each(name: str, served: object, *values: object) -> list[tuple[str, object, object]]:
    """Return an example for each of these values of a field, with the value that is served in its place."""
    return [(name, value, value if served is SAME else served) for value in values]


hashes = st.dictionaries(
    st.sampled_from(["sha256", "sha512", "md5", "blake2b", "SHA256", "crc32"]),
    anything | st.sampled_from([SHA256, SHA512, "0f" * 16, "a1", ""]),
)
#: Values of any kind for the known fields, with some that look right.
odd_files = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(FILE_FIELDS, anything)
    | {
        "filename": st.just(WHEEL) | anything,
        "url": st.sampled_from([WHEEL_URL, "x.whl", "//[", "ftp://files.example/x.whl"]) | anything,
        "hashes": hashes | anything,
        "core-metadata": hashes | anything,
        "upload-time": st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-5][0-9](:[0-6][0-9])?)?Z?")
        | anything,
    },
)
odd_pages = st.fixed_dictionaries(
    {"files": st.lists(odd_files | anything, max_size=3)},
    optional={
        "versions": anything,
        "alternate-locations": anything,
        "meta": st.fixed_dictionaries({}, optional={"api-version": st.sampled_from(["1.0", "1.9", 1, None])})
        | anything,
        "name": st.sampled_from(["holy-grail", "Holy_Grail"]) | anything,
        "project-status": st.fixed_dictionaries({}, optional={"status": anything, "reason": anything}),
    },
)


class TestOddFields:
    """Fields of files whose values have another type or form than the PEPs define."""

    @pytest.mark.parametrize(
        ("name", "odd", "served"),
        [
            *each("hashes", {}, None, [], "sha256=" + SHA256, 5, {"sha256": 5}, {"sha256": None}),
            *each(
                "hashes",
                {},
                {"sha256": ""},
                {"sha256": "xyz"},
                {"sha256": "a1"},
                {"sha256": SHA256[1:]},
                {"sha256": f"{SHA256}00"},
            ),
            ("hashes", {"sha256": SHA256, "md5": None}, {"sha256": SHA256}),
            ("hashes", {"sha256": SHA256.upper()}, {"sha256": SHA256}),
            ("hashes", {"SHA256": SHA256.upper()}, {"sha256": SHA256}),
            ("hashes", {"SHA256": OTHER_SHA256, "sha256": SHA256}, {"sha256": SHA256}),
            ("hashes", {"CRC32": "XY"}, {"CRC32": "XY"}),
            ("core-metadata", {"SHA256": OTHER_SHA256.upper()}, {"sha256": OTHER_SHA256}),
            ("hashes", {"crc32": "x", "blake2b": SHA512}, {"crc32": "x", "blake2b": SHA512}),
            ("size", "5", 5),
            *each("size", ABSENT, "5 kB", "", "-1", "9" * 30, None, -1, 2**63, 5.0, 1.5, True, [5]),
            ("requires-python", "any will do", "any will do"),
            *each("requires-python", ABSENT, 3, 3.9, [">=3.9"], {}, True),
            *each("yanked", SAME, True, False, "", "leaks"),
            *each("yanked", True, 1, ["leaks"], {"reason": "leaks"}),
            *each("yanked", ABSENT, None, 0, [], {}),
            *each("core-metadata", SAME, True, False, {}),
            *each("core-metadata", True, "true", 1, {"sha256": "xyz"}, {"sha256": 5}, {"sha256": None}),
            *each("core-metadata", ABSENT, "false", "", None, 0, []),
            ("core-metadata", {"sha256": OTHER_SHA256, "md5": 1}, {"sha256": OTHER_SHA256}),
            ("dist-info-metadata", "true", True),
            ("data-dist-info-metadata", {"sha256": 5}, True),
            *each("provenance", ABSENT, 5, True, [], {}),
        ],
    )
    def test_odd_values_are_converted_or_left_out(self, name: str, odd: object, served: object) -> None:
        """A value that can be understood is converted, any other is left out. The other files are not touched."""
        rendered = render(project({**wheel(), name: odd}, OTHER))
        mended, other = as_json(rendered)["files"]
        assert mended.get(name, ABSENT) == served
        assert type(mended.get(name, ABSENT)) is type(served)
        assert other == {**OTHER, "url": "../../file/https/files.example/packages/holy_grail-2.0.zip", "hashes": {}}
        assert rendered.notes == ()
        check_strictly(rendered)

    @pytest.mark.parametrize(
        ("odd", "served"),
        [
            *((time, time) for time in READABLE_TIMES),
            ("2026-11-01T10:00:00", "2026-11-01T10:00:00Z"),
            ("2026-11-01 10:00", "2026-11-01T10:00:00Z"),
            ("2026-11-01 10:00:00 +0100", "2026-11-01T10:00:00+01:00"),
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("2026-11-01t10:00:00z", "2026-11-01T10:00:00Z"),
            ("2026-11-01T10:00:00.1Z", "2026-11-01T10:00:00.100000Z"),
            ("2026-11-01T10:00:00.123456789Z", "2026-11-01T10:00:00.123456Z"),
            *((unreadable, ABSENT) for unreadable in UNREADABLE_TIMES),
        ],
    )
    def test_times_have_a_form_that_clients_read(self, odd: object, served: object) -> None:
        """An upload time keeps its form if all clients read it. Others are converted; without an offset, to UTC."""
        rendered = render(project(wheel(upload_time=odd)))
        assert only_file(rendered).get("upload-time", ABSENT) == served
        check_strictly(rendered)

    @pytest.mark.parametrize(
        ("attributes", "fields"),
        [
            ({"size": "5"}, {"size": 5}),
            ({"size": "5 kB"}, {}),
            ({"upload_time": "2026-11-01 10:00"}, {"upload-time": "2026-11-01T10:00:00Z"}),
            ({"upload_time": "yesterday"}, {}),
            ({"yanked": "true"}, {"yanked": "true"}),
            ({"gpg_sig": "maybe"}, {"gpg-sig": False}),
            ({"requires_python": ""}, {}),
            ({"core_metadata": ""}, {"core-metadata": True}),
            ({"core_metadata": "sha256=xyz"}, {"core-metadata": True}),
            ({"core_metadata": "sha256=a1"}, {"core-metadata": True}),
            ({"core_metadata": f"SHA256={OTHER_SHA256}"}, {"core-metadata": {"sha256": OTHER_SHA256}}),
            ({"core_metadata": "false", "dist_info_metadata": "true"}, {}),
            ({"hashes": "md5", "url": "x"}, {}),
        ],
    )
    def test_odd_attributes_in_html_are_converted_or_left_out(
        self, attributes: dict[str, str], fields: dict[str, Any]
    ) -> None:
        """The attributes of HTML are treated as the fields of JSON."""
        rendered = render(anchor(**attributes), content_type="text/html")
        assert only_file(rendered) == {
            "filename": WHEEL,
            "url": f"../../file/{WHEEL_LINK}",
            "hashes": {"sha256": SHA256},
            **fields,
        }
        check_strictly(rendered)

    @pytest.mark.parametrize(
        "fragment", ["", "#", "#sha256=", "#sha256=xyz", "#sha256=a1", "#md5=a1", "#sha1", "#&&=&"]
    )
    def test_odd_fragments_are_no_hashes(self, fragment: str) -> None:
        """A fragment that is no whole hash is left out. uv would reject the page for it."""
        rendered = render(f'<a href="{WHEEL_URL}{fragment}">x</a>', content_type="text/html")
        assert only_file(rendered)["hashes"] == {}
        assert f'href="../../file/{WHEEL_LINK}"' in as_html(rendered)
        check_strictly(rendered)

    @given(page=odd_pages)
    def test_strict_clients_accept_any_page_that_is_rendered(self, page: dict[str, Any]) -> None:
        """Any page is refused as a whole, or has types and forms that strict clients accept."""
        try:
            rendered = render(page)
        except BadUpstreamResponse:
            return
        check_strictly(rendered)
        pypi.listing(PROJECT, {"json": rendered.forms["json"].body})


class TestUnusableFiles:
    """Files that clients could not fetch."""

    @pytest.mark.parametrize(
        "unusable",
        [
            *(None, 1, "x", [], {}),
            {"filename": WHEEL},
            {"url": WHEEL_URL},
            *(wheel(url=odd) for odd in (*NO_TEXT, "//[", "https://[broken/x.whl")),
            *(wheel(filename=odd) for odd in NO_TEXT),
        ],
    )
    def test_they_are_left_out_with_one_note(self, unusable: object) -> None:
        """Unusable files are left out; the others stay. One note has their number."""
        rendered = render(project(unusable, OTHER, unusable, wheel()))
        assert filenames(rendered) == [OTHER["filename"], WHEEL]
        assert rendered.notes == ("2 files without a usable url and filename were left out",)
        check_strictly(rendered)

    @pytest.mark.parametrize("url", ["https://me:secret@files.example/x.whl", "x y.whl"])
    def test_odd_urls_are_passed_on(self, url: str) -> None:
        """A URL that only clients can use is passed on. One that keeps its address is noted."""
        rendered = render(project(wheel(url=url)))
        assert filenames(rendered) == [WHEEL]
        note = "1 files can't be served from here and keep upstream's address"
        assert rendered.notes == (() if url == "x y.whl" else (note,))

    def test_anchors_without_a_file_are_no_malformed_entries(self) -> None:
        """Links to other places are usual in HTML: they are left out without a note."""
        page = '<a href="../">Up</a><a name="top">Top</a><a href="">x</a><a>x</a><a href="//[">x</a>' + anchor()
        rendered = render(page, content_type="text/html")
        assert (filenames(rendered), rendered.notes) == ([WHEEL], ())

    def test_two_entries_may_have_one_filename(self) -> None:
        """Both entries with one filename are passed on and can be fetched. Which of them counts, clients decide."""
        second = wheel(url=f"https://mirror.example/{WHEEL}", hashes={"sha256": OTHER_SHA256})
        rendered = render(project(wheel(), second))
        assert [link.filename for link in read_by_pip(rendered)] == [WHEEL, WHEEL]
        listed = pypi.listing(PROJECT, {"json": rendered.forms["json"].body})
        assert [file.url for file in listed.values()] == [WHEEL_URL, second["url"]]
        twice = render(anchor() * 2, content_type="text/html")
        assert filenames(twice) == [WHEEL, WHEEL]


class TestPageFields:
    """Fields of the page itself."""

    @pytest.mark.parametrize("meta", [{}, {"meta": None}, {"meta": []}, {"meta": "1.0"}, {"meta": {}}])
    def test_the_meta_object_may_be_missing(self, meta: dict[str, Any]) -> None:
        """A page without a usable ``meta`` has version 1.0."""
        rendered = render({"name": "holy-grail", "files": [wheel()], **meta})
        assert as_json(rendered)["meta"] == {"api-version": "1.0"}
        check_strictly(rendered)

    @pytest.mark.parametrize(
        ("version", "served"),
        [("1.0", "1.0"), ("1.99", "1.99"), ("1.12345", "1.12345"), (1.1, "1.1"), (None, "1.0"), ("", "1.0")],
    )
    def test_any_minor_version_is_accepted(self, version: object, served: str) -> None:
        """Minor versions only add fields (PEP 629), so an unknown one is passed on. A missing one is 1.0."""
        rendered = render(project(wheel(), meta={"api-version": version}))
        assert as_json(rendered)["meta"]["api-version"] == served
        assert only_file(rendered)["filename"] == WHEEL

    def test_html_of_any_minor_version_has_the_version_of_its_fields(self) -> None:
        """A page from HTML has version 1.0, since it lacks fields that later versions demand (PEP 700)."""
        rendered = render(f'<meta name="pypi:repository-version" content="1.99">{anchor()}', content_type="text/html")
        assert as_json(rendered)["meta"] == {"api-version": "1.0"}
        check_strictly(rendered)

    @pytest.mark.parametrize("version", ["2.0", "2", "0.9", "10.0", "v1", "one", 2, 2.1, [1], True])
    def test_another_major_version_is_refused(self, version: object) -> None:
        """Another major version may mean anything (PEP 629). It is refused with its number."""
        with pytest.raises(BadUpstreamResponse, match=r"version .* of the Simple Repository API, and only 1\.x"):
            render(project(wheel(), meta={"api-version": version}))
        page = f'<meta name="pypi:repository-version" content="{version}">{anchor()}'
        with pytest.raises(BadUpstreamResponse, match=r"only 1\.x is supported"):
            render(page, content_type="text/html")

    @pytest.mark.parametrize("name", [{}, {"name": None}, {"name": 5}, {"name": ["holy-grail"]}])
    def test_a_missing_name_is_filled_in(self, name: dict[str, Any]) -> None:
        """A page without a usable name gets the normalised name of the project."""
        rendered = render({"files": [wheel()], **name})
        assert as_json(rendered)["name"] == "holy-grail"
        assert "<h1>Links for holy-grail</h1>" in as_html(rendered)
        check_strictly(rendered)

    @pytest.mark.parametrize("name", ["Holy-Grail", "holy_grail", "HOLY.GRAIL", "holy--grail", "!", ""])
    def test_another_spelling_of_the_name_is_accepted(self, name: str) -> None:
        """Another spelling is the same project (PEP 503), and a name that can't be one says nothing."""
        assert filenames(render(project(wheel(), name=name))) == [WHEEL]

    @pytest.mark.parametrize("name", ["holy-grail-2", "grail", "Other"])
    def test_the_page_of_another_project_is_refused(self, name: str) -> None:
        """A page of another project is refused with that project's name, whatever files it lists."""
        with pytest.raises(BadUpstreamResponse, match=f"it is the page of another project, {name.lower()}"):
            render(project(wheel(), name=name))

    @pytest.mark.parametrize(
        ("status", "served"),
        [
            *[(None, ABSENT), ("archived", ABSENT), (5, ABSENT), ([], ABSENT), (True, ABSENT)],
            ({"status": "invented", "reason": "x", "new": 1}, {"status": "invented", "reason": "x", "new": 1}),
            ({"status": None, "reason": 5}, {}),
        ],
    )
    def test_an_odd_status_is_left_out(self, status: object, served: object) -> None:
        """A status of the wrong type is left out (PEP 792). uv would reject the page for it."""
        rendered = render(project(wheel(), **{"project-status": status}))
        assert as_json(rendered).get("project-status", ABSENT) == served
        check_strictly(rendered)

    @pytest.mark.parametrize("field", ["versions", "alternate-locations"])
    @pytest.mark.parametrize("odd", [None, "1.0", 5, [None, 5], {}])
    def test_fields_that_no_client_is_strict_about_are_passed_on(self, field: str, odd: object) -> None:
        """Other fields are passed on as upstream sent them."""
        rendered = render(project(wheel(), **{field: odd}))
        assert as_json(rendered)[field] == odd
        check_strictly(rendered)

    @pytest.mark.parametrize("files", [{}, {"files": None}, {"files": {}}, {"files": "x"}, {"files": 5}])
    def test_a_page_without_a_list_of_files_is_refused(self, files: dict[str, Any]) -> None:
        """A document without a list of files may be an error message. It is refused, not taken for an empty page."""
        with pytest.raises(BadUpstreamResponse, match="it has no list of files"):
            render({"meta": {"api-version": "1.0"}, "name": "holy-grail", **files})
