"""Stores: round trip, and a one-line error for any damage."""

import errno
import hashlib
import json
import os
import pickle

import h5py
import numpy as np
import pytest

from smatcli.data.stores import writer as store_writer
from smatcli.data.stores.opening import all_stores, find_store, open_stores
from smatcli.data.stores.store import Store, write_store
from smatcli.data.stores.verify import verify_store
from smatcli.errors import SmatError, UserError

SIZE = 6
SEAL = 56  # bytes behind the HDF5 data


def pixels(count, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


CLASSES = [("zebra", 0, 3), ("été", 2, 1), ("鳥", 1, 4), ("ant", 0, 2)]


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "birds.h5"
    classes = ((name, code, pixels(count, seed)) for seed, (name, code, count) in enumerate(CLASSES))
    return write_store(path, "birds", SIZE, classes, "folder birds", "CC0", facts={"fit": "crop", "unreadable": 3})


def expected():
    return np.concatenate([pixels(count, seed) for seed, (_, _, count) in enumerate(CLASSES)])


def test_round_trip(made):
    store = Store.open(made)
    assert store.class_names == ["zebra", "été", "鳥", "ant"]
    assert store.counts.tolist() == [3, 1, 4, 2]
    assert len(store) == 10
    assert store.class_offsets.dtype == np.int64
    assert store.class_split.dtype == np.uint8
    assert [store.classes(s).tolist() for s in ("train", "valid", "test", "all")] == [[0, 3], [2], [1], [0, 1, 2, 3]]
    assert isinstance(store.images, np.memmap)
    assert not store.images.flags.writeable
    np.testing.assert_array_equal(store.images, expected())
    assert (store.name, store.source, store.licence, store.facts["unreadable"]) == ("birds", "folder birds", "CC0", 3)
    with pytest.raises(UserError, match="did you mean 'valid'"):
        store.classes("val")


def test_h5py_reads_the_same(made):
    with h5py.File(made) as file:
        np.testing.assert_array_equal(file["images"][()], expected())
        assert file["images"].chunks is None
        assert file["images"].id.get_offset() % 4096 == 0
        assert file["class_names"].asstr()[2] == "鳥"
        assert file.attrs["format_version"] == 2


def test_content_hash_is_what_the_description_says(made):
    head = json.dumps([SIZE, ["zebra", "été", "鳥", "ant"], [0, 3, 4, 8, 10], [0, 2, 1, 0]], separators=(",", ":"))
    image_digest = hashlib.sha256(expected().tobytes()).digest()
    assert Store.open(made).content_hash == hashlib.sha256(head.encode() + b"\n" + image_digest).hexdigest()


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 3), (37, 2), (84, 1)])
def test_any_size(tmp_path, size, count):
    path = write_store(tmp_path / "s.h5", "s", size, [("k", 0, pixels(count, 1, size))])
    np.testing.assert_array_equal(Store.open(path).images, pixels(count, 1, size))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["images"][()], pixels(count, 1, size))


def test_many_classes_by_iterators_of_images_and_blocks(tmp_path):
    one, blocks = pixels(2000, 5), pixels(12, 6)
    classes = [(f"class {i:04d} " + "x" * 200, i % 3, iter(one[2 * i : 2 * i + 2])) for i in range(1000)]
    path = write_store(tmp_path / "m.h5", "m", SIZE, [*classes, ("blocks", 0, iter([blocks[:5], blocks[5:]]))])
    store = Store.open(path)
    np.testing.assert_array_equal(store.images, np.concatenate([one, blocks]))
    assert len(store.class_names) == 1001
    assert store.counts[-1] == 12


def test_pickles_without_its_images(made):
    store = Store.open(made)
    store.images[0]
    data = pickle.dumps(store)
    assert len(data) < 3000
    np.testing.assert_array_equal(pickle.loads(data).images, expected())


def test_an_existing_store_is_kept_unless_replaced(made):
    before = made.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write_store(made, "birds", SIZE, [("a", 0, pixels(1))])
    assert made.read_bytes() == before
    write_store(made, "birds", SIZE, [("a", 0, pixels(1))], replace=True)
    assert Store.open(made).class_names == ["a"]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([], "no class"),
        ([("a", 0, pixels(2)), ("a", 1, pixels(1))], "given twice"),
        ([("a", 0, pixels(0))], "no image"),
        ([("a", 3, pixels(1))], "split 3"),
        ([("a", 0, pixels(1, size=7))], r"uint8 \[1, 7, 7, 3\]"),
        ([("a", 0, pixels(1).astype(np.float32))], "float32"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, classes, said):
    with pytest.raises(UserError, match=said):
        write_store(tmp_path / "a.h5", "a", SIZE, classes)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["images", "structure"])
def test_no_space_left(tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_writer, "_append" if where == "images" else "_copy_around", full)
    with pytest.raises(SmatError, match=r"a\.h5: no space left") as caught:
        write_store(tmp_path / "a.h5", "a", 64, [("k", 0, pixels(4, size=64))])
    assert caught.value.exit_code == 1
    assert os.listdir(tmp_path) == []


def test_every_truncation_is_noticed(made):
    whole = made.read_bytes()
    for length in [*range(0, len(whole) - SEAL, 97), len(whole) - SEAL - 1]:
        made.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(made)):
            Store.open(made)
    made.write_bytes(whole[:-1])  # the seal alone is incomplete: nothing is lost
    assert verify_store(made) is None


def test_any_flipped_byte_is_noticed(made):
    """Damage outside the images is detected on opening (HDF5 itself can loop forever), inside them by `verify`."""
    whole = made.read_bytes()
    start = Store.open(made).offset
    stop = start + expected().nbytes
    positions = [*range(0, start, 29), *range(start, stop, 397), *range(stop, len(whole) - SEAL, 41)]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        made.write_bytes(damaged)
        assert verify_store(made)
        if start <= position < stop:
            continue
        with pytest.raises(UserError, match=r"damaged|not an HDF5"):
            Store.open(made)


def test_verify_finds_one_flipped_bit(made):
    assert verify_store(made) is None
    offset = Store.open(made).offset
    with made.open("r+b") as file:
        file.seek(offset + 555)
        byte = file.read(1)[0]
        file.seek(offset + 555)
        file.write(bytes([byte ^ 1]))
    assert "content hash" in (verify_store(made) or "")


def test_verify_covers_names_and_splits(made):
    with h5py.File(made, "r+") as file:
        file["class_split"][0] = 1
    assert "content hash" in (verify_store(made) or "")


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace_dataset(name, data):
    def change(file):
        del file[name]
        file[name] = data

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.attrs.update(format_version=99), "format 99"),
        (lambda f: f.attrs.pop("format_version"), "not a store"),
        (lambda f: f.attrs.pop("name"), "damaged"),
        (lambda f: f.attrs.update(image_size=7), "not one contiguous"),
        (replace_dataset("class_offsets", [0, 3, 4, 8, 11]), "do not fit"),
        (replace_dataset("class_offsets", [0, 3, 3, 8, 10]), "do not fit"),
        (replace_dataset("class_offsets", [0, 10]), "do not fit"),
        (replace_dataset("class_split", [0, 1, 2, 3]), "do not fit"),
        (replace_dataset("class_names", ["a", "b", "c", "a"]), "twice"),
        (replace_dataset("class_names", ["a"] * 50), "more classes than images"),
        (replace_dataset("images", np.zeros((10, SIZE, SIZE), np.uint8)), "not one contiguous"),
        (replace_dataset("images", np.zeros((10, SIZE, SIZE, 3), np.float32)), "not one contiguous"),
        (lambda f: f.pop("images"), "not a store"),
        (lambda f: f.pop("class_names"), "damaged"),
    ],
)
def test_inconsistent_files(made, change, said):
    edit(made, change)
    with pytest.raises(UserError, match=said):
        Store.open(made)


def test_compressed_images_are_refused(made):
    def change(file):
        del file["images"]
        file.create_dataset("images", data=expected(), chunks=(1, SIZE, SIZE, 3), compression="gzip")

    edit(made, change)
    with pytest.raises(UserError, match="not one contiguous"):
        Store.open(made)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n", "git lfs pull"),
        (b"PK\x03\x04 something", "not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged"),
        (None, "does not exist"),
    ],
)
def test_no_store_at_all(tmp_path, content, said):
    path = tmp_path / "a.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        Store.open(path)
    with pytest.raises(UserError, match="is a folder"):
        Store.open(tmp_path)


def test_images_truncated_after_opening(made):
    store = Store.open(made)
    os.truncate(made, 4100)
    with pytest.raises(UserError, match="cannot be mapped"):
        store.images[0]


def test_open_stores(tmp_path):
    for name in ("birds", "cars"):
        write_store(tmp_path / f"{name}.h5", name, SIZE, [("a", 0, pixels(2))])
    (tmp_path / ".birds.0000.tmp.h5").write_bytes(b"half")
    assert list(open_stores(tmp_path, ["cars", "birds"])) == ["cars", "birds"]
    with pytest.raises(UserError, match=r"'brids'; did you mean 'birds'\? \(there: birds, cars\)"):
        open_stores(tmp_path, ["cars", "brids"])
    with pytest.raises(UserError, match="does not exist"):
        open_stores(tmp_path / "none", ["cars"])


def test_finding_stores_by_name(tmp_path):
    for place in ("a/birds", "b/birds", "b/cars"):
        write_store(tmp_path / f"{place}.h5", "x", SIZE, [("k", 0, pixels(2))])
    assert [p.stem for p in all_stores(tmp_path)] == ["birds", "birds", "cars"]
    assert find_store("cars", tmp_path) == find_store("b/cars", tmp_path) == tmp_path / "b/cars.h5"
    with pytest.raises(UserError, match="several"):
        find_store("birds", tmp_path)
    with pytest.raises(UserError, match="did you mean 'cars'"):
        find_store("crs", tmp_path)
