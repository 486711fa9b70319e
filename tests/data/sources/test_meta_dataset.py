"""The source `meta-dataset`: the official layout, from a fixture and generated, and invalid files."""

import gc
import io
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from smatcli.data.sources.meta_dataset import MetaDatasetSource, Record
from smatcli.errors import UserError
from tests.data.imagefiles import LFS, picture
from tests.data.mdfiles import FIXTURE, bilevel, dag, example, flat, masked, record, records, write_records, write_spec

TOY = FIXTURE / "tfrecord" / "toy_shapes"
SPEC = flat((1, 0, 1), [3, 2])
IMAGES = {0: [picture(i) for i in range(3)], 1: [picture(10 + i) for i in range(2)]}


@pytest.fixture
def toy(tmp_path):
    """A valid dataset with two classes of 3 and 2 images, for tests that damage it."""
    return write_records(tmp_path / "toy", SPEC, IMAGES)


def content(source):
    return {c.name: [source.read(image) for image in c.images] for c in source.classes()}


def test_fixture():
    """The fixture was written by another program; the pixels of its JPEGs are in the other fixture, see test_pmf_h5."""
    source = MetaDatasetSource(TOY)
    assert (source.kind, source.name, source.remarks, source.ontology) == ("meta-dataset", "toy_shapes", [], None)
    assert [(c.name, c.split, len(c.images)) for c in source.classes()] == [
        ("disc", "train", 12),
        ("square", "train", 12),
        ("triangle", "test", 12),
    ]
    for images in content(source).values():
        assert {Image.open(io.BytesIO(image)).format for image in images} == {"JPEG"}
        assert len(set(images)) == 12


def test_images_in_the_order_of_records(toy):
    source = MetaDatasetSource(toy)
    assert content(source) == {"class 0": IMAGES[0], "class 1": IMAGES[1]}
    images = source.classes()[0].images
    second = len(record(example(image=IMAGES[0][0], label=0)))
    assert images[1] == Record(0, second)
    assert source.describe(images[1]) == f"0.tfrecords, byte {second}"
    assert list(images) == [images[i] for i in (0, 1, 2)] == images[:]
    assert images[-1] == images[2]
    assert images[::-2] == [images[2], images[0]]
    with pytest.raises(IndexError):
        images[3]


def test_many_records_in_any_order(tmp_path):
    """The file has more records than are indexed at once."""
    tiny = [bytes([i % 256, i // 256]) for i in range(2500)]
    source = MetaDatasetSource(write_records(tmp_path / "many", flat((1, 0, 0), [2500]), {0: tiny}))
    images = source.classes()[0].images
    assert [source.read(images[i]) for i in (2499, 0, 1023, 1024, 1025)] == [tiny[i] for i in (2499, 0, 1023, 1024, 1025)]
    assert list(images) == [images[i] for i in range(2500)]


def test_bilevel_and_dag(tmp_path):
    two = write_records(tmp_path / "two", bilevel((1, 0, 1), [2, 1]), {i: [picture(i), picture(i + 5)] for i in range(3)})
    graphs = {"TRAIN": {"top": ["b", "a"], "a": [], "b": []}, "VALID": {}, "TEST": {"up": ["c"], "c": []}}
    graph = write_records(tmp_path / "graph", dag(graphs, ["b", "a", "c"]), {i: [picture(i), picture(i + 5)] for i in range(3)})
    first, second = MetaDatasetSource(two), MetaDatasetSource(graph)
    assert first.ontology
    assert second.ontology
    assert first.ontology.kind == "bilevel"
    assert [n.leaves for n in first.ontology.nodes["train"]] == [(0, 1)]
    assert second.ontology.kind == "dag"
    assert [n.leaves for n in second.ontology.nodes["train"]] == [(1, 0)]
    assert [(c.name, c.split) for c in second.classes()] == [("b", "train"), ("a", "train"), ("c", "test")]
    assert list(content(first).values()) == list(content(second).values())


def test_fingerprint_follows_files_and_spec(toy):
    first = MetaDatasetSource(toy).fingerprint
    assert MetaDatasetSource(toy / "dataset_spec.json").fingerprint == first
    os.utime(toy / "0.tfrecords", (1, 1))
    second = MetaDatasetSource(toy).fingerprint
    write_spec(toy, flat((1, 0, 1), [3, 2], class_names={"0": "ant", "1": "bee"}))
    assert len({first, second, MetaDatasetSource(toy).fingerprint}) == 3


def test_many_threads_and_more_classes_than_open_files(tmp_path):
    images = {i: [picture(50 * i + j) for j in range(4)] for i in range(30)}
    source = MetaDatasetSource(write_records(tmp_path / "wide", flat((30, 0, 0), [4] * 30), images))
    keys = [image for j in range(4) for c in source.classes() for image in [c.images[j]]]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, keys)) == [images[i][j] for j in range(4) for i in range(30)]
    gc.collect()
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 8
    source.close()


def damage(folder, at=None, cut=None, name="0.tfrecords"):
    data = bytearray((folder / name).read_bytes())
    if at is not None:
        data[at] ^= 1
    (folder / name).write_bytes(data[:cut])


SECOND = len(record(example(image=IMAGES[0][0], label=0)))
END = len(records(IMAGES[0], 0))


@pytest.mark.parametrize(
    ("at", "cut", "said"),
    [
        (SECOND + 50, None, rf"byte {SECOND}: wrong CRC-32C of the record's \d+ bytes"),
        (SECOND + 1, None, f"byte {SECOND}: wrong CRC-32C of the record's length"),
        (END - 1, None, r"wrong CRC-32C of the record's \d+ bytes"),
        (None, SECOND + 5, f"byte {SECOND}: truncated: the file ends after 5 of the 12 bytes of a record's header"),
        (None, SECOND + 60, rf"byte {SECOND}: truncated: the record needs \d+ bytes, the file has 60 more"),
        (None, SECOND, f"byte {SECOND}: the file ends after 1 records, but dataset_spec.json has 3"),
    ],
)
def test_damaged_records(toy, at, cut, said):
    damage(toy, at, cut)
    source = MetaDatasetSource(toy)
    assert source.read(source.classes()[1].images[0]) == IMAGES[1][0]
    with pytest.raises(UserError, match=rf"toy/0\.tfrecords, {said}" if said.startswith("byte") else said):
        content(source)
    images = source.classes()[0].images
    with pytest.raises(UserError, match=said):
        [source.read(images[i]) for i in range(3)]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (example(label=0), r"has no field 'image' \(its fields: 'label'\)"),
        (example(image=b"x"), r"has no field 'label' \(its fields: 'image'\)"),
        (b"", r"has no field 'image' \(its fields: none\)"),
        (example(image=7, label=0), "the field 'image' is not a single byte string"),
        (example(image=[b"a", b"b"], label=0), "the field 'image' is not a single byte string"),
        (example(image=b"x", label=b"0"), "the field 'label' is not a single whole number"),
        (example(image=b"x", label=0.0), "the field 'label' is not a single whole number"),
        (example(image=b"x", label=2), "label 2 in the file of class 0; dataset_spec.json has classes 0 to 1"),
        (example(image=b"x", label=-1), "label -1 in the file of class 0; dataset_spec.json has classes 0 to 1"),
        (example(image=b"x", label=1), "label 1 in the file of class 0; the file was renamed, or belongs to another dataset"),
        (b"\xff\xff", rf"not a tf\.train\.Example \(an unterminated number, at byte {SECOND + 12}\)"),
    ],
)
def test_wrong_fields(toy, payload, said):
    """The second record has valid framing, but an invalid payload."""
    whole = [record(example(image=image, label=0)) for image in IMAGES[0]]
    (toy / "0.tfrecords").write_bytes(whole[0] + record(payload) + whole[2])
    source = MetaDatasetSource(toy)
    with pytest.raises(UserError, match=rf"toy/0\.tfrecords, byte {SECOND}: .*{said}"):
        content(source)


def test_more_records_than_the_spec_says(toy):
    (toy / "0.tfrecords").write_bytes(records([*IMAGES[0], picture(99)], 0))
    said = rf"0\.tfrecords, byte {END}: more records than the 3 of dataset_spec\.json"
    with pytest.raises(UserError, match=said):
        content(MetaDatasetSource(toy))
    with pytest.raises(UserError, match=said):
        MetaDatasetSource(toy).classes()[0].images[2]


def replaced_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"x")


def swap(folder):
    (folder / "0.tfrecords").rename(folder / "x")
    (folder / "1.tfrecords").rename(folder / "0.tfrecords")
    (folder / "x").rename(folder / "1.tfrecords")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "1.tfrecords").unlink(), r"toy/1\.tfrecords: missing, the file of class 1 \(class 1\)$"),
        (lambda f: [(f / f"{i}.tfrecords").unlink() for i in (0, 1)], r"toy/0\.tfrecords: missing.*; 2 of 2 class files are missing"),
        (lambda f: (f / "1.tfrecords").write_bytes(LFS), r"toy/1\.tfrecords, byte 0: is a git-lfs pointer, not the data; fetch it first"),
        (lambda f: (f / "1.tfrecords").write_bytes(b""), r"toy/1\.tfrecords, byte 0: the file is empty, but should have 2 images"),
        (
            lambda f: (f / "2.tfrecords").write_bytes(b"x"),
            r"toy/2\.tfrecords: dataset_spec\.json has classes 0 to 1, but 1 more class file exists",
        ),
        (lambda f: (f / "dataset_spec.json").write_bytes(LFS), r"dataset_spec\.json, byte 0: is a git-lfs pointer"),
        (lambda f: (f / "dataset_spec.json").unlink(), r"dataset_spec\.json: does not exist"),
        (lambda f: write_spec(f, flat((0, 0, 0), [])), r"dataset_spec\.json: has no class"),
        (lambda f: write_spec(f, flat((1, 0, 1), [3, 2], class_names={"0": "a", "1": "a"})), "0 and 1 have the same name 'a'"),
        (lambda f: write_spec(f, flat((1, 0, 0), [3])), r"toy/1\.tfrecords: dataset_spec\.json has classes 0 to 0, but 1 more"),
        (lambda f: shutil.rmtree(f), r"toy: folder does not exist"),
        (replaced_by_a_file, r"toy: is a file, not a folder"),
    ],
)
def test_files_that_do_not_match_the_spec(toy, change, said):
    """The error is raised at once, before any image is read."""
    change(toy)
    with pytest.raises(UserError, match=said) as error:
        MetaDatasetSource(toy)
    assert "\n" not in str(error.value)


def test_swapped_files(toy):
    swap(toy)
    with pytest.raises(UserError, match=r"0\.tfrecords, byte 0: label 1 in the file of class 0; the file was renamed"):
        MetaDatasetSource(toy).read(Record(0, 0))


def test_a_class_without_images_needs_no_file(tmp_path):
    source = MetaDatasetSource(write_records(tmp_path / "toy", flat((2, 0, 0), [2, 0]), {0: IMAGES[1]}))
    assert [len(list(c.images)) for c in source.classes()] == [2, 0]


def test_the_folder_names_what_the_spec_cannot(tmp_path):
    for name in ("../evil", ".hidden"):
        folder = write_records(tmp_path / "folder", flat((1, 0, 0), [2], name=name), {0: IMAGES[1]})
        assert MetaDatasetSource(folder).name == "folder"


def test_a_length_that_leads_back(toy):
    """2^64 - 16 + 12 + 4 wraps to 0 in 64 bits, which must not cause an infinite loop."""
    length = struct.pack("<Q", 2**64 - 16)
    (toy / "0.tfrecords").write_bytes(length + masked(length) + bytes(100))
    with pytest.raises(UserError, match="byte 0: truncated"):
        content(MetaDatasetSource(toy))
