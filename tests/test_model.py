"""Digests, keys, and what files and pages are called."""

from __future__ import annotations

import hashlib

import pytest

from mypypi.keys import key_from_segments, key_of
from mypypi.model import Digest, PackageFile, PageId, StoredFile, new_hasher

HEX = hashlib.sha256(b"").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class TestDigest:
    """An algorithm and a value that can be one of its."""

    def test_text_is_read_back(self) -> None:
        """``str`` and ``parse`` are each other's inverse."""
        for algorithm in ("sha512", "sha384", "sha256", "sha224", "sha1", "md5"):
            digest = Digest(algorithm, new_hasher(algorithm).hexdigest())
            assert Digest.parse(str(digest)) == digest

    @pytest.mark.parametrize(
        "text",
        ["", "sha256", "sha256-", f"sha256-{HEX[1:]}", f"sha256-{HEX.upper()}", f"crc32-{HEX}", f"md5-{HEX}", HEX],
    )
    def test_other_text_is_no_digest(self, text: str) -> None:
        """A wrong length, upper case, an algorithm that promises nothing."""
        with pytest.raises(ValueError, match="not a digest"):
            Digest.parse(text)

    def test_strongest_of_several_counts(self) -> None:
        """In any case of letters; what is no digest of its algorithm is passed over."""
        md5 = hashlib.md5(b"", usedforsecurity=False).hexdigest()
        assert Digest.strongest({"md5": md5, "sha256": HEX.upper(), "sha512": "short"}) == Digest("sha256", HEX)
        assert Digest.strongest({"md5": md5, "crc32": "00000000"}) == Digest("md5", md5)
        assert Digest.strongest({"sha256": 5, "md4": "x"}) is None

    def test_hasher_is_of_its_algorithm(self) -> None:
        """And starts empty."""
        assert Digest("sha256", OTHER).hasher().hexdigest() == HEX


class TestKey:
    """Where a file lies: told by its URL alone, the same for every spelling, and always a safe path."""

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
        ],
    )
    def test_key_is_told_by_the_url(self, url: str, key: str) -> None:
        """Scheme, host, port where it is not the scheme's own, and the path."""
        assert key_of(url) == key

    def test_spellings_of_one_url_have_one_key(self) -> None:
        """Percent-encoding of what need not be encoded makes no difference; of what must, it does."""
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
            "https://files.example/a/",
            "https://files.example/a//b.whl",
            "https://files.example/a/../b.whl",
            "https://files.example/a/%2e%2e/b.whl",
            "https://files.example/./b.whl",
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
        """Nothing that would leave its directory, or that a file system does not take."""
        with pytest.raises(ValueError):  # noqa: PT011 - from several parsers
            key_of(url)

    def test_longest_segment_that_file_systems_take_is_taken(self) -> None:
        """255 bytes, as the file system counts."""
        assert key_of(f"https://files.example/{'a' * 255}").endswith("a" * 255)

    @pytest.mark.parametrize(
        "segments",
        [[], ["https"], ["https", "files.example"], ["ftp", "h", "a"], ["https", "", "a"], ["https", "h/x", "a"],
         ["https", "..", "a"], ["https", "[::1", "a"], ["https", "h", ""], ["https", "h", "a/b"],
         ["https", "h", "a\x7f"]],
    )  # fmt: skip
    def test_segments_that_are_no_key(self, segments: list[str]) -> None:
        """What a client asks for is held to the same rules as what upstream lists."""
        with pytest.raises(ValueError):  # noqa: PT011 - each says what is wrong
            key_from_segments(segments)

    def test_segments_of_a_key_are_that_key(self) -> None:
        """As a route hands them over."""
        assert key_from_segments(["https", "files.example", "a+b", "c d.whl"]) == "https/files.example/a+b/c%20d.whl"

    def test_listed_file_knows_its_key(self) -> None:
        """From the URL, where the page does not say otherwise."""
        assert PackageFile("x", "https://files.example/a.whl").key == "https/files.example/a.whl"


class TestStoredFile:
    """Whether what is stored is what the index lists now."""

    stored = StoredFile("k", 5, Digest("sha256", HEX))

    def listed(self, digest: Digest | None = None, size: int | None = None) -> PackageFile:
        return PackageFile("k", "https://files.example/a.whl", digest, size)

    def test_it_agrees_with_what_says_the_same(self) -> None:
        """The digest where both are of one algorithm; the size; nothing at all."""
        assert self.stored.matches(self.listed(Digest("sha256", HEX), 5))
        assert self.stored.matches(self.listed(None, 5))
        assert self.stored.matches(self.listed())
        assert self.stored.matches(self.listed(Digest("md5", "0" * 32), 5))

    def test_it_does_not_agree_with_other_bytes(self) -> None:
        """Another digest; another size where that is all that can be compared."""
        assert not self.stored.matches(self.listed(Digest("sha256", OTHER), 5))
        assert not self.stored.matches(self.listed(None, 6))
        assert not self.stored.matches(self.listed(Digest("md5", "0" * 32), 6))


def test_page_is_named_by_what_it_has() -> None:
    """Kind, project and version, as far as there are any."""
    pages = (PageId("root"), PageId("simple", "a"), PageId("json", "a", "1.0"))
    assert [str(page) for page in pages] == ["root", "simple/a", "json/a/1.0"]
