"""TFRecord framing, checksums and tf.train.Example, compared with their published descriptions, and invalid input."""

import os
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smatcli.data.metadataset.crc32c import crc32c, masked_crc32c
from smatcli.data.metadataset.tfexample import BadExample, parse_example
from smatcli.data.metadataset.tfrecord import TFRecordError, TFRecordFile
from tests.data.imagefiles import LFS
from tests.data.mdfiles import FIXTURE, crc32c_by_bits, example, field, masked, record, varint

# RFC 3720, B.4, and the usual check value
VECTORS = [
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.fixture
def file(tmp_path):
    """Factory that writes a file and opens it."""

    def write(data):
        (tmp_path / "7.tfrecords").write_bytes(data)
        return TFRecordFile(tmp_path / "7.tfrecords")

    return write


@pytest.mark.parametrize(("data", "crc"), VECTORS)
def test_crc_of_the_published_vectors(data, crc):
    assert crc32c(data) == crc == crc32c_by_bits(data)


@pytest.mark.parametrize("size", [0, 1, 16, 17, 255, 256, 257, 5000, 65535, 65536, 65537, 65539, 65540, 131075])
def test_crc_of_every_way_of_cutting(size):
    data = bytes(i * 7 + i // 256 & 255 for i in range(size))
    assert crc32c(data) == crc32c_by_bits(data)


@given(st.binary(max_size=600), st.data())
@settings(deadline=None, max_examples=60)
def test_crc_depends_on_every_bit(data, draw):
    assert crc32c(data) == crc32c_by_bits(data) == crc32c(memoryview(bytearray(data)))
    if data:
        at = draw.draw(st.integers(0, 8 * len(data) - 1))
        other = bytearray(data)
        other[at // 8] ^= 1 << at % 8
        assert crc32c(other) != crc32c(data)


def test_offsets_and_fields_of_the_fixture():
    """The fixture was written by another program; its offsets are PMF's `id`, see test_pmf_h5."""
    file = TFRecordFile(FIXTURE / "tfrecord" / "toy_shapes" / "1.tfrecords")
    offsets = list(file.offsets())
    assert len(offsets) == 12
    assert offsets[:3] == [0, 1376, 2149]
    for offset in offsets:
        fields = file.example(offset)
        (image,) = fields["image"]
        assert sorted(fields) == ["image", "label"]
        assert fields["label"] == [1]
        assert isinstance(image, bytes)
        assert image[:2] == b"\xff\xd8"


def test_round_trip(file):
    payloads = [b"", b"a", os.urandom(70_000), bytes(300)]
    opened = file(b"".join(map(record, payloads)))
    assert [opened.payload(offset) for offset in opened.offsets()] == payloads
    assert list(file(b"").offsets()) == []


def test_every_flipped_bit_is_detected(file):
    """The error has the byte offset of the damaged record, not of the first one."""
    first, second = record(b"first"), record(b"second one")
    for bit in range(8 * len(second)):
        data = bytearray(first + second)
        data[len(first) + bit // 8] ^= 1 << bit % 8
        opened = file(bytes(data))
        assert opened.payload(0) == b"first"
        with pytest.raises(TFRecordError, match=rf"7\.tfrecords, byte {len(first)}: wrong CRC-32C"):
            opened.payload(len(first))


def test_every_truncation_is_detected(file):
    data = record(b"first") + record(b"second")
    for size in range(len(record(b"first")) + 1, len(data)):
        with pytest.raises(TFRecordError, match=rf"7\.tfrecords, byte {len(record(b'first'))}: truncated"):
            list(file(data[:size]).offsets())


def test_a_length_beyond_all_bounds(file):
    length = struct.pack("<Q", 2**64 - 1)
    with pytest.raises(TFRecordError, match=r"byte 0: truncated: the record needs 18,446,744,073,709,551,631 bytes"):
        file(length + masked(length) + bytes(50)).payload(0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "byte 0: is a git-lfs pointer"),
        (b"\x1f\x8b\x08" + bytes(60), "byte 0: is compressed with gzip"),
        (b"\x89PNG" + bytes(60), "byte 0: wrong CRC-32C .* this is not a TFRecord file"),
    ],
)
def test_no_tfrecords(file, content, said):
    with pytest.raises(TFRecordError, match=said):
        list(file(content).offsets())


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("gone", "does not exist"), ("pipe", "not a regular file"), ("", "not a regular file")):
        with pytest.raises(TFRecordError, match=said):
            TFRecordFile(tmp_path / name)


def test_a_file_that_shrinks_while_it_is_read(file, tmp_path):
    opened = file(record(bytes(1000)))
    os.truncate(tmp_path / "7.tfrecords", 500)
    with pytest.raises(TFRecordError, match="became shorter"):
        opened.payload(0)


@given(st.binary(max_size=300), st.integers(0, 400))
@settings(deadline=None, max_examples=150)
def test_random_files_raise_nothing_else(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "random.tfrecords"
    path.write_bytes(data)
    opened = TFRecordFile(path)
    for use in (lambda: list(opened.offsets()), lambda: opened.payload(start), lambda: opened.example(start)):
        try:
            use()
        except TFRecordError as error:
            assert str(path) in str(error)
            assert ", byte " in str(error)
            assert "\n" not in str(error)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=150)
def test_random_payloads_with_right_checksums_raise_nothing_else(tmp_path_factory, payload):
    path = tmp_path_factory.getbasetemp() / "payload.tfrecords"
    path.write_bytes(record(payload))
    try:
        TFRecordFile(path).example(0)
    except TFRecordError as error:
        assert f"{path}, byte 0: not a tf.train.Example" in str(error)
        assert "\n" not in str(error)


GOOD = example(image=b"\xff\xd8 not really", label=300, weights=[0.5, -2.0], many=[1, -1, 2**63 - 1, -(2**63)], name=[b"a", b""])


def test_fields_of_an_example():
    assert parse_example(GOOD) == {
        "image": [b"\xff\xd8 not really"],
        "label": [300],
        "weights": [0.5, -2.0],
        "many": [1, -1, 2**63 - 1, -(2**63)],
        "name": [b"a", b""],
    }
    assert parse_example(b"") == {}


def entry(name, value):
    return field(1, field(1, name) + field(2, value))


def test_unusual_but_valid_protocol_buffers():
    """Unpacked numbers, entries with the value first, unknown fields of every wire type, and the last of two equal names."""
    loose = field(3, b"".join(varint(1 << 3) + varint(v) for v in (5, 6)))
    swapped = field(1, field(2, field(1, field(1, b"x"))) + field(1, b"image"))
    unknown = varint(9 << 3) + varint(7) + varint(9 << 3 | 1) + bytes(8) + varint(9 << 3 | 5) + bytes(4) + field(9, b"z")
    data = unknown + field(1, unknown + entry(b"label", field(3, field(1, b"\1"))) + entry(b"label", loose) + swapped)
    assert parse_example(data) == {"label": [5, 6], "image": [b"x"]}
    halves = field(1, entry(b"a", field(3, field(1, b"\1")))) + field(1, entry(b"b", field(3, field(1, b"\2"))))
    assert parse_example(halves) == {"a": [1], "b": [2]}


@pytest.mark.parametrize(
    ("data", "at", "said"),
    [
        (b"\x0a\x05abc", 0, "reaches 2 bytes beyond"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0, "beyond its message"),
        (b"\x0b", 0, "invalid wire type 3"),
        (b"\x02\x00", 0, "field number 0"),
        (b"\x80" * 11, 0, "an unterminated number"),
        (b"\x0a", 1, "an unterminated number"),
        (b"\x08\x01", 1, "wire type 0, not 2"),
        (field(1, field(1, field(1, b"\xff\xfe"))), 6, "not UTF-8"),
        (field(1, entry(b"f", field(2, field(1, b"abc")))), 13, "not a multiple of 4"),
    ],
)
def test_invalid_examples(data, at, said):
    with pytest.raises(BadExample, match=said) as error:
        parse_example(data)
    assert error.value.at == at


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_examples_raise_nothing_else(draw):
    data = bytearray(GOOD)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at] = draw.draw(st.integers(0, 255))
    try:
        parse_example(bytes(data[: draw.draw(st.integers(0, len(data)))]))
    except BadExample as error:
        assert 0 <= error.at <= len(data)


def test_checksum_is_not_zlibs_and_is_masked():
    assert crc32c(b"123456789") != zlib.crc32(b"123456789")
    assert masked_crc32c(b"123456789").to_bytes(4, "little") == masked(b"123456789")
