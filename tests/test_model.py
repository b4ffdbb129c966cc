"""Tests of digests, keys, and the names of files and pages."""

from __future__ import annotations

import hashlib

import pytest

from mypypi.digests import Digest, new_hasher
from mypypi.file_keys import as_uri, key_from_segments, key_of, stable_key_of
from mypypi.model import PackageFile, PageId

HEX = hashlib.sha256(b"").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class TestDigest:
    """A digest has an algorithm, and a value that is valid for it."""

    def test_text_is_read_back(self) -> None:
        """``Digest.parse`` reads back the text of any digest."""
        for algorithm in ("sha512", "sha384", "sha256", "sha224", "sha1", "md5"):
            digest = Digest(algorithm, new_hasher(algorithm).hexdigest())
            assert Digest.parse(str(digest)) == digest

    @pytest.mark.parametrize(
        "text",
        ["", "sha256", "sha256-", f"sha256-{HEX[1:]}", f"sha256-{HEX.upper()}", f"crc32-{HEX}", f"md5-{HEX}", HEX],
    )
    def test_other_text_is_not_a_digest(self, text: str) -> None:
        """A wrong length, upper case or an unsupported algorithm is refused."""
        with pytest.raises(ValueError, match="not a digest"):
            Digest.parse(text)

    def test_strongest_digest_is_used(self) -> None:
        """
        The strongest valid digest is used, in upper or lower case.

        A value that is invalid for its algorithm is skipped.
        """
        md5 = hashlib.md5(b"", usedforsecurity=False).hexdigest()
        assert Digest.strongest({"md5": md5, "sha256": HEX.upper(), "sha512": "short"}) == Digest("sha256", HEX)
        assert Digest.strongest({"md5": md5, "crc32": "00000000"}) == Digest("md5", md5)
        assert Digest.strongest({"sha256": 5, "md4": "x"}) is None

    def test_hasher_has_the_digests_algorithm(self) -> None:
        """A digest's hasher has its algorithm and starts empty."""
        assert Digest("sha256", OTHER).hasher().hexdigest() == HEX


class TestKey:
    """A key depends on the URL alone, and is always a safe path. All spellings of a URL have the same key."""

    @pytest.mark.parametrize(
        ("url", "key"),
        [
            ("https://files.example/a/b.whl", "https/files.example/a/b.whl"),
            ("https://FILES.example:443/a/b.whl#sha256=1", "https/files.example/a/b.whl"),
            ("http://files.example:80/b.whl", "http/files.example/b.whl"),
            ("http://files.example:443/b.whl", "http/files.example:443/b.whl"),
            ("https://files.example:8443/a/b%2Bc.whl?x=1", "https/files.example:8443/a/b+c.whl%3Fx=1"),
            ("https://files.example/a%7eb/c%20d.whl", "https/files.example/a~b/c%20d.whl"),
            ("https://files.example/%E2%82%AC.whl", "https/files.example/%E2%82%AC.whl"),
            ("https://files.example/%25.whl", "https/files.example/%25.whl"),
            ("https://[::1]:8080/a.whl", "https/[::1]:8080/a.whl"),
            ("http://127.0.0.1:3141/root/pypi/+f/a1/b.whl", "http/127.0.0.1:3141/root/pypi/+f/a1/b.whl"),
            ("https://files.example/a//b.whl", "https/files.example/a/%EE%80%80/b.whl"),
            ("https://files.example///b.whl", "https/files.example/%EE%80%80/%EE%80%80/b.whl"),
            ("https://files.example/a/", "https/files.example/a/%EE%80%80"),
            ("https://files.example/a/?x=1", "https/files.example/a/%3Fx=1"),
        ],
    )
    def test_key_follows_from_the_url(self, url: str, key: str) -> None:
        """A key has the URL's scheme, host and path. It has the port only if that is not the scheme's default."""
        assert key_of(url) == key

    def test_spellings_of_one_url_have_one_key(self) -> None:
        """Unnecessary percent-encoding does not change the key. Necessary percent-encoding does."""
        assert key_of("https://files.example/%61.whl") == key_of("https://files.example/a.whl")
        assert key_of("https://files.example/a%3Fb") != key_of("https://files.example/a")

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://files.example/a.whl",
            "file:///etc/passwd",
            "https:///a.whl",
            "https://user:secret@files.example/a.whl",
            "https://files.example",
            "https://files.example/",
            "https://files.example/%EE%80%80/b.whl",
            f"https://files.example/a.whl/sha256-{HEX}.12",
            f"https://files.example/a.whl/md5-{'0' * 32}.7/b.whl",
            "https://files.example/a%EE%80%80.whl",
            "https://files.example/a/../b.whl",
            "https://files.example/a/%2e%2e/b.whl",
            "https://files.example/./b.whl",
            "https://files.example/.;x",
            "https://files.example/a/..;x/b.whl",
            "https://files.example/a%2Fb.whl",
            "https://files.example/a%00.whl",
            "https://files.example/a%0A.whl",
            "https://files.example/%ff.whl",
            "https://files.example:99999/a.whl",
            "https://files.example:x/a.whl",
            "https://fi les.example/a.whl",
            "https://[::1/a.whl",
            f"https://files.example/{'a' * 256}",
            f"https://files.example/{'%E2%82%AC' * 30}",
            f"https://files.example/{'a/' * 1100}b",
        ],
    )
    def test_url_without_a_safe_key_has_none(self, url: str) -> None:
        """A URL has no key if its path could leave the directory. Nor if a file system would refuse it."""
        with pytest.raises(ValueError):  # noqa: PT011 - from several parsers
            key_of(url)

    def test_a_key_is_never_in_the_way_of_another_file(self) -> None:
        """Only the exact name of a stored file is no segment of a key: releases may have names like it."""
        for name in (f"sha256-{HEX}", f"sha256-{HEX}.x", "sha256-12.34", f"v-{HEX}.12"):
            assert key_of(f"https://files.example/a.whl/{name}/b").endswith(f"/{name}/b")

    def test_long_query_is_replaced_by_its_digest(self) -> None:
        """A query that is too long for a file's name stands in the key as its digest, which no short query equals."""
        short, long = (f"https://files.example/a?x={'1' * length}" for length in (200, 300))
        assert key_of(short).endswith("/a%3Fx=" + "1" * 200)
        digest = hashlib.sha256(long.partition("?")[2].encode()).hexdigest()
        assert key_of(long) == f"https/files.example/a%3F%23{digest}"
        assert key_of(f"https://files.example/a?%23{digest}") != key_of(long)
        assert key_of(f"{long}2") != key_of(long)

    def test_query_with_a_slash_is_replaced_by_its_digest(self) -> None:
        """A query may have slashes, as in paths and signatures, though a file's name may not."""
        for query in ("path=/a/b.whl", "sig=ab/cd", "x=..\\y/"):
            digest = hashlib.sha256(as_uri(query).encode()).hexdigest()
            assert key_of(f"https://files.example/get?{query}") == f"https/files.example/get%3F%23{digest}"

    def test_query_after_the_listed_name_is_left_out(self) -> None:
        """A query is left out where the path ends with the name that the page lists. Elsewhere it names the file."""
        for query in ("", "?sig=1", f"?sig={'1' * 3000}"):
            assert stable_key_of(f"https://files.example/a%2Bb.whl{query}", "a+b.whl") == "https/files.example/a+b.whl"
        urls = [f"https://files.example/download?id={number}" for number in (1, 2)]
        assert [stable_key_of(url, "a.whl") for url in urls] == [key_of(url) for url in urls]
        assert stable_key_of("https://files.example/b.whl?x", "a.whl") == "https/files.example/b.whl%3Fx"

    def test_longest_segment_of_file_systems_is_accepted(self) -> None:
        """A segment of 255 bytes, the limit of file systems, is accepted."""
        assert key_of(f"https://files.example/{'a' * 255}").endswith("a" * 255)

    @pytest.mark.parametrize(
        "segments",
        [[], ["https"], ["https", "files.example"], ["ftp", "h", "a"], ["https", "", "a"], ["https", "h/x", "a"],
         ["https", "..", "a"], ["https", "[::1", "a"], ["https", "h", ""], ["https", "h", "a/b"],
         ["https", "h", "a\x7f"]],
    )  # fmt: skip
    def test_segments_that_are_not_a_key(self, segments: list[str]) -> None:
        """A client's path is held to the same rules as upstream's URLs."""
        with pytest.raises(ValueError):  # noqa: PT011 - each says what is wrong
            key_from_segments(segments)

    def test_segments_are_joined_to_a_key(self) -> None:
        """The decoded segments that a route passes on give the key."""
        assert key_from_segments(["https", "files.example", "a+b", "c d.whl"]) == "https/files.example/a+b/c%20d.whl"

    def test_listed_file_has_a_key(self) -> None:
        """A listed file has the key of its URL, unless the page sets another."""
        assert PackageFile("x", "https://files.example/a.whl").key == "https/files.example/a.whl"


class TestAcceptedDigests:
    """A stored file is compared with the file that the index lists now, by their digests."""

    @staticmethod
    def listed(digest: Digest | None = None, *also: Digest) -> PackageFile:
        return PackageFile("k", "https://files.example/a.whl", digest, 5, also=also)

    def test_the_listed_digest_is_accepted(self) -> None:
        """The listed digest is accepted, and any of several ones; without a listed digest, every file."""
        digest, other = Digest("sha256", HEX), Digest("sha256", OTHER)
        assert self.listed(digest).accepts(digest) is True
        assert self.listed(other, digest).accepts(digest) is True
        assert self.listed().accepts(digest) is True

    def test_another_digest_is_not_accepted(self) -> None:
        """Other bytes are not accepted, whatever their size."""
        assert self.listed(Digest("sha256", OTHER)).accepts(Digest("sha256", HEX)) is False

    def test_another_algorithm_tells_nothing(self) -> None:
        """A digest of another algorithm neither proves nor disproves that the file is the listed one."""
        assert self.listed(Digest("md5", "0" * 32)).accepts(Digest("sha256", HEX)) is None


def test_page_name_has_its_parts() -> None:
    """A page's name has its kind, project and version, as far as set."""
    pages = (PageId("root"), PageId("simple", "a"), PageId("json", "a", "1.0"))
    assert [str(page) for page in pages] == ["root", "simple/a", "json/a/1.0"]
