"""Tests of reading the metadata out of a few parts of a wheel (PEP 427, PEP 658)."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mypypi.byte_range import ByteRange
from mypypi.ecosystems.wheels import metadata_in
from mypypi.errors import NoMetadata
from tests.rig.packages import incompressible, make_wheel

WHEEL = "holy_grail-1.0-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.2\nName: holy-grail\nVersion: 1.0\nRequires-Dist: rabbit\n"
MEMBER = "holy_grail-1.0.dist-info/METADATA"
KIB = 1024
#: What is read of a wheel first: its last bytes.
END = 32 * KIB
#: The compressions that wheels have, and all that Python reads.
USUAL = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
COMPRESSIONS = [*USUAL, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
#: Where fields are in an entry of the list of members (APPNOTE.TXT, section 4.3.12), and how they are packed.
FLAGS, METHOD, CRC, SIZE = (8, "<H"), (10, "<H"), (16, "<L"), (24, "<L")

Parts = list[tuple[int, bytes]]


def pack(files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def small_wheel(compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    return pack(
        {"holy_grail.py": b"quest = True\n", MEMBER: METADATA, "holy_grail-1.0.dist-info/RECORD": b""}, compression
    )


def patched(wheel: bytes, member: str, field: tuple[int, str], value: int, *, also: int = 0) -> bytes:
    """Return the wheel with another value in a member's entry in the list, and `also` in its header, at that offset."""
    entry = wheel.index(member.encode(), wheel.index(b"PK\x01\x02")) - 46
    changed = bytearray(wheel)
    struct.pack_into(field[1], changed, entry + field[0], value)
    if also:
        (header,) = struct.unpack_from("<L", wheel, entry + 42)
        struct.pack_into(field[1], changed, header + also, value)
    return bytes(changed)


def whole(data: bytes) -> Parts:
    return [(0, data)]


def end_of(data: bytes, size: int = END) -> Parts:
    start = max(0, len(data) - size)
    return [(start, data[start:])]


def missing_bytes(asked: ByteRange, total: int, parts: Parts) -> int:
    """Return how many bytes of a range are in none of the parts. The range must lie inside the file."""
    assert asked.first is not None
    assert asked.last is not None
    assert 0 <= asked.first <= asked.last < total
    covered = set()
    for start, data in parts:
        covered |= set(range(max(start, asked.first), min(start + len(data), asked.last + 1)))
    return asked.last + 1 - asked.first - len(covered)


def read(data: bytes, filename: str = WHEEL, most: int = 3) -> tuple[bytes, list[ByteRange]]:
    """Read the metadata as a server does: first the end, then exactly what is asked for, in `most` reads at most."""
    parts, asked = end_of(data), []
    while isinstance(found := metadata_in(filename, len(data), parts), ByteRange):
        assert missing_bytes(found, len(data), parts) > 0
        start, stop = found.within(len(data))
        parts.append((start, data[start:stop]))
        asked.append(found)
        assert len(parts) <= most, asked
    return found, asked


class TestSmallWheel:
    """Wheels that are in the first part as a whole."""

    @pytest.mark.parametrize("compression", USUAL)
    def test_metadata_is_read_out_of_the_whole_wheel(self, compression: int) -> None:
        """The metadata is returned as it was packed, stored or deflated."""
        assert metadata_in(WHEEL, len(data := small_wheel(compression)), whole(data)) == METADATA

    def test_wheels_of_the_rig_are_read(self) -> None:
        """A wheel as build tools make it has the metadata that its index serves."""
        wheel = make_wheel("Some.Tool", "2.0", requires=["leaf"], modules={"some_tool.py": ""})
        assert metadata_in(wheel.filename, wheel.size, whole(wheel.content)) == wheel.metadata

    def test_parts_may_come_in_any_order(self) -> None:
        """Parts may be in any order, overlap, and repeat each other."""
        data = small_wheel()
        parts = [(100, data[100:]), (0, data[:150]), (20, data[20:30]), (100, data[100:])]
        assert metadata_in(WHEEL, len(data), parts) == METADATA

    def test_empty_metadata_is_metadata(self) -> None:
        """An empty METADATA is no failure here: clients judge it."""
        data = pack({MEMBER: b""})
        assert metadata_in(WHEEL, len(data), whole(data)) == b""

    def test_bytes_in_front_of_the_archive_are_skipped(self) -> None:
        """A zip may have other bytes in front, as Python reads it."""
        data = b"#!/usr/bin/env python\n" + small_wheel()
        assert metadata_in(WHEEL, len(data), whole(data)) == METADATA


class TestLargeWheel:
    """Wheels of which only some ranges are read."""

    @pytest.mark.parametrize("compression", USUAL)
    @pytest.mark.parametrize("size", [len(METADATA), 500 * KIB])
    @pytest.mark.parametrize("at", ["front", "middle", "end"])
    def test_metadata_is_read_in_three_reads_at_most(self, at: str, size: int, compression: int) -> None:
        """The metadata may be anywhere, small or large, and compressed or not."""
        metadata = METADATA + incompressible(size - len(METADATA))
        before, after = {"front": (0, 300), "middle": (300, 300), "end": (300, 0)}[at]
        files = [("a.bin", incompressible(before * KIB)), (MEMBER, metadata), ("b.bin", incompressible(after * KIB))]
        assert read(pack(files, compression))[0] == metadata

    def test_end_suffices_where_the_metadata_is_there(self) -> None:
        """With the dist-info at the end, as PEP 427 recommends, there is one read."""
        found, asked = read(pack({"a.bin": incompressible(300 * KIB), MEMBER: METADATA}))
        assert (found, asked) == (METADATA, [])

    def test_only_the_member_is_asked_for(self) -> None:
        """The range begins with the member, and has little more than it."""
        data = pack({"a.bin": incompressible(100 * KIB), MEMBER: METADATA, "b.bin": incompressible(300 * KIB)})
        found, (asked,) = read(data)
        assert found == METADATA
        assert asked.first == data.index(MEMBER.encode()) - 30
        assert (asked.length or 0) < 2 * KIB

    @pytest.mark.parametrize("names", [600, 20_000])
    def test_long_list_of_members_is_asked_for(self, names: int) -> None:
        """If the list of members is longer than the first part, the rest of it is one read, and the member another."""
        files = {MEMBER: METADATA} | {f"holy_grail/some/directory/module_{n:06}.py": b"" for n in range(names)}
        data = pack(files)
        found, asked = read(data)
        assert found == METADATA
        assert len(asked) == 2

    def test_long_list_may_have_the_metadata_in_the_second_read(self) -> None:
        """What was read with the list is not asked for again."""
        files = {f"holy_grail/some/directory/module_{n:06}.py": b"" for n in range(600)} | {MEMBER: METADATA}
        found, asked = read(pack(files))
        assert found == METADATA
        assert len(asked) <= 2

    def test_long_comment_is_skipped(self) -> None:
        """The end of a zip may be a comment of up to 64 KiB, in front of which the list of members is."""
        buffer = io.BytesIO(pack({MEMBER: METADATA, "a.bin": incompressible(300 * KIB)}))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.comment = b"x" * 0xFFFF
        assert read(buffer.getvalue(), most=6)[0] == METADATA

    def test_list_that_is_too_long_is_not_asked_for(self) -> None:
        """A wheel that claims a list of more than 8 MiB is given up, since that would be held in memory."""
        data = bytearray(pack({"a.bin": bytes(20 * KIB * KIB), MEMBER: METADATA}, zipfile.ZIP_STORED))
        struct.pack_into("<LL", data, len(data) - 22 + 12, 9 * KIB * KIB, 10 * KIB * KIB)
        with pytest.raises(NoMetadata, match="too many members"):
            read(bytes(data))


class TestWhichMember:
    """Wheels may have vendored distributions in them."""

    def chosen(self, *names: str, filename: str = WHEEL) -> str:
        """Return the directory whose METADATA is taken, of a wheel that has these ones."""
        data = pack({f"{name}/METADATA": name.encode() for name in names})
        found = metadata_in(filename, len(data), whole(data))
        assert isinstance(found, bytes)
        return found.decode()

    @pytest.mark.parametrize(
        "others", [["rabbit-1.0.dist-info"], ["holy_grail-0.9.dist-info", "holy_grail-1.0.1.dist-info"]]
    )
    def test_own_metadata_is_taken(self, others: list[str]) -> None:
        """Of several distributions, that of the wheel's own project and version is taken, wherever it is."""
        own = "holy_grail-1.0.dist-info"
        assert self.chosen(own, *others) == own
        assert self.chosen(*others, own) == own

    @pytest.mark.parametrize(
        ("filename", "own"),
        [
            ("Holy_Grail-1.0-py3-none-any.whl", "holy_grail-1.0.dist-info"),
            ("holy_grail-1.0-py3-none-any.whl", "Holy.Grail-1.0.dist-info"),
            ("holy.grail-1.0-1-py3-none-any.whl", "holy__grail-1.0.dist-info"),
            ("holy_grail-1.0+cu12.1-py3-none-any.whl", "holy_grail-1.0+cu12.1.dist-info"),
            ("holy_grail-1.0_1-py3-none-any.whl", "holy_grail-1.0-1.dist-info"),
            ("holy_grail-1.0RC1-py3-none-any.whl", "holy_grail-1.0rc1.dist-info"),
        ],
    )
    def test_names_are_compared_normalised(self, filename: str, own: str) -> None:
        """Case, dashes, dots and underscores make no difference, as in the names of projects."""
        assert self.chosen("rabbit-1.0.dist-info", own, "holy_grail-7.dist-info", filename=filename) == own

    def test_only_one_is_taken_whatever_its_name(self) -> None:
        """A wheel whose only metadata has another name was renamed, and clients take it, too."""
        assert self.chosen("grail-1.dist-info") == "grail-1.dist-info"

    def test_metadata_in_a_subdirectory_does_not_count(self) -> None:
        """A vendored distribution further down is not the wheel's."""
        own = "grail-1.dist-info"
        assert self.chosen("holy_grail/_vendor/holy_grail-1.0.dist-info", own) == own

    @pytest.mark.parametrize(
        "names",
        [
            [],
            ["rabbit-1.0.dist-info", "knight-2.0.dist-info"],
            ["holy_grail/_vendor/holy_grail-1.0.dist-info"],
            ["holy_grail-1.0.dist-info/x", "holy_grail-1.0.dist-info.old", "holy_grail-1.0.egg-info"],
        ],
    )
    def test_none_of_its_own_is_an_error(self, names: list[str]) -> None:
        """Without metadata, or with several of other names, it is not known which one is meant."""
        with pytest.raises(NoMetadata, match="no metadata of its own"):
            self.chosen(*names)


class TestDamage:
    """Wheels that are damaged, or made to hurt."""

    @pytest.mark.parametrize("data", [b"", b"PK", b"no zip at all", bytes(100 * KIB), pack({})[:-1]])
    def test_no_zip_is_an_error(self, data: bytes) -> None:
        """A file that is no zip has no metadata."""
        with pytest.raises(NoMetadata):
            metadata_in(WHEEL, len(data), whole(data))

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_every_truncation_is_an_error(self, compression: int) -> None:
        """A wheel without its end has no list of members."""
        data = small_wheel(compression)
        for stop in range(len(data)):
            with pytest.raises(NoMetadata):
                metadata_in(WHEEL, stop, whole(data[:stop]))

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_damaged_member_is_an_error(self, compression: int) -> None:
        """Each wrong byte in the metadata is noticed by its CRC, or by the decoder."""
        data = small_wheel(compression)
        start = data.index(MEMBER.encode()) + len(MEMBER)
        for at in range(start, data.index(b"PK", start)):
            changed = bytearray(data)
            changed[at] ^= 0x55
            try:
                found = metadata_in(WHEEL, len(data), whole(bytes(changed)))
            except NoMetadata:
                continue
            assert found == METADATA  # a bit that the decoder ignores

    def test_wrong_checksum_is_an_error(self) -> None:
        """Metadata whose CRC differs from the one in the list is not served."""
        data = patched(small_wheel(), MEMBER, CRC, 12345)
        with pytest.raises(NoMetadata, match="CRC"):
            metadata_in(WHEEL, len(data), whole(data))

    def test_encrypted_member_is_an_error(self) -> None:
        """There is no password to read it with."""
        data = patched(small_wheel(), MEMBER, FLAGS, 1, also=6)
        with pytest.raises(NoMetadata, match="encrypted"):
            metadata_in(WHEEL, len(data), whole(data))

    @pytest.mark.parametrize("method", [1, 6, 9, 93, 97, 99, 0xFFFF])
    def test_unknown_compression_is_an_error(self, method: int) -> None:
        """Compressions that Python does not read are none that clients read."""
        data = patched(small_wheel(), MEMBER, METHOD, method, also=8)
        with pytest.raises(NoMetadata):
            metadata_in(WHEEL, len(data), whole(data))

    @pytest.mark.parametrize("method", COMPRESSIONS)
    def test_wrong_compression_is_an_error(self, method: int) -> None:
        """A decoder that is given other data fails in its own way, and none of them ends the render process's task."""
        for data in {small_wheel(packed) for packed in COMPRESSIONS if packed != method}:
            changed = patched(data, MEMBER, METHOD, method, also=8)
            with pytest.raises(NoMetadata):
                metadata_in(WHEEL, len(changed), whole(changed))

    @pytest.mark.parametrize("claimed", [5 * KIB * KIB, 1 << 30, 0xFFFFFFFE])
    def test_metadata_that_claims_to_be_huge_is_an_error(self, claimed: int) -> None:
        """Metadata of more than 4 MiB is not read."""
        data = patched(small_wheel(), MEMBER, SIZE, claimed)
        with pytest.raises(NoMetadata, match="more than"):
            metadata_in(WHEEL, len(data), whole(data))

    @pytest.mark.parametrize("compression", COMPRESSIONS[1:])
    @pytest.mark.parametrize("claimed", [100_000_000, 4 * KIB * KIB, 1000])
    def test_metadata_that_swells_takes_neither_time_nor_memory(self, claimed: int, compression: int) -> None:
        """A hundred megabytes of zeros are not decompressed, whatever size the list claims."""
        data = patched(pack({MEMBER: bytes(100_000_000)}, compression), MEMBER, SIZE, claimed)
        tracemalloc.start()
        began = time.process_time()
        try:
            with pytest.raises(NoMetadata):
                metadata_in(WHEEL, len(data), whole(data))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert time.process_time() - began < 2
        assert peak < 24 * KIB * KIB


def check_step(total: int, parts: Parts) -> bytes | ByteRange | None:
    """Look into parts of a file. The result is metadata, an error, or a range with which the reader makes progress."""
    try:
        found = metadata_in(WHEEL, total, parts)
    except NoMetadata:
        return None
    if isinstance(found, ByteRange):
        assert missing_bytes(found, total, parts) > 0
    return found


@st.composite
def mutated_wheels(draw: st.DrawFn) -> bytes:
    """Wheels of each compression with some bytes changed, put in, or left out. Most changes hit the list of members."""
    data = bytearray(small_wheel(draw(st.sampled_from(COMPRESSIONS))))
    for _ in range(draw(st.integers(1, 6))):
        near = draw(st.sampled_from([0, 0, data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06"), len(data) - 22]))
        at = draw(st.integers(min(max(0, near), len(data)), len(data)))
        stop = min(len(data), at + draw(st.integers(0, 4)))
        data[at:stop] = draw(st.binary(max_size=4) | st.just(bytes(stop - at)) | st.just(b"\xff" * (stop - at)))
    return bytes(data)


@given(mutated_wheels(), st.integers(0, 900))
def test_any_damage_ends_in_metadata_or_an_error(data: bytes, first: int) -> None:
    """However a wheel is changed, reading it ends with metadata or NoMetadata, or asks for more of it each time."""
    parts = end_of(data, first)
    for _ in range(6):
        found = check_step(len(data), parts)
        if not isinstance(found, ByteRange):
            return
        start, stop = found.within(len(data))
        parts.append((start, data[start:stop]))


@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=300) | st.just(small_wheel())), max_size=5),
)
@example(22, [(0, pack({}))])
@example(0, [])
def test_any_bytes_end_in_metadata_or_an_error(total: int, pieces: Parts) -> None:
    """Parts may have any bytes, at any place in the file."""
    check_step(total, [(at, data[: total - at]) for at, data in pieces if at <= total])
