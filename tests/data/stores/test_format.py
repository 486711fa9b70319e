"""Encoded images, splits by image, ontologies, and format versions of stores."""

import io
import os
import pickle
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.loader import BatchLoader, EpisodeLoader, gather
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.images import decode_image
from smatcli.data.pictures import contact_sheet
from smatcli.data.stores.ontology import Node, Ontology
from smatcli.data.stores.store import Store, write_store
from smatcli.data.stores.verify import verify_store
from smatcli.errors import UserError

SIZE = 12
COUNTS = [4, 6, 5]


def files(kind="JPEG"):
    """Encoded images of different sizes, class by class."""
    rng, made = np.random.default_rng(0), []
    for i in range(sum(COUNTS)):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9 + i, 14, 3), dtype=np.uint8)).save(out, kind if i % 4 else "PNG")
        made.append(out.getvalue())
    return made


def write(path, **more):
    data, stops = files(), np.cumsum(COUNTS)
    blocks = [(f"c{i}", i % 3, iter(data[stop - count : stop])) for i, (count, stop) in enumerate(zip(COUNTS, stops, strict=True))]
    return write_store(path, "toy", SIZE, blocks, encoding="jpeg", facts={"fit": "squash"}, **more)


@pytest.fixture
def made(tmp_path):
    return write(tmp_path / "toy.h5")


def pixels():
    """Decoded and squashed by Pillow itself."""
    images = (Image.open(io.BytesIO(data)).convert("RGB") for data in files())
    return np.stack([np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images])


@pytest.mark.parametrize(("version", "said"), [(1, "prepare it again$"), (3, "prepare it again or update smat$")])
def test_other_formats_are_refused(tmp_path, monkeypatch, version, said):
    monkeypatch.setattr("smatcli.data.stores.writer.FORMAT_VERSION", version)
    path = write_store(tmp_path / "a.h5", "a", SIZE, [("a", 0, np.zeros((2, SIZE, SIZE, 3), np.uint8))])
    with pytest.raises(UserError, match=rf"a\.h5: store format {version}, this smat reads format 2; {said}"):
        Store.open(path)


def test_encoded_images_are_decoded_on_the_fly(made):
    store, expected = Store.open(made), pixels()
    images = store.images
    assert images.shape == (15, SIZE, SIZE, 3)
    assert len(images) == len(store) == 15
    assert images.dtype == np.uint8
    for rows in (np.array([14, 3, 3, 0]), np.array([], np.int64), slice(2, 9), np.arange(15) % 2 == 0, 7, np.int64(-1)):
        np.testing.assert_array_equal(images[rows], expected[rows])
    with pytest.raises(IndexError):
        images[np.array([15])]
    with h5py.File(made) as file:
        assert file.attrs["encoding"] == "jpeg"
        assert file.attrs["format_version"] == 2
        assert "images" not in file
        offsets = file["image_offsets"][()]
        assert [file["jpeg"][a:b].tobytes() for a, b in pairwise(offsets)] == files()
    assert verify_store(made) is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).images[1:3], expected[1:3])
    assert contact_sheet(store, 3, 2).height > 3 * SIZE


def test_all_readers_take_both_encodings(tmp_path, made):
    stops = np.cumsum(COUNTS)
    blocks = [(f"c{i}", i % 3, pixels()[stop - n : stop]) for i, (n, stop) in enumerate(zip(COUNTS, stops, strict=True))]
    stores = [Store.open(made), Store.open(write_store(tmp_path / "raw.h5", "raw", SIZE, blocks))]
    config = EpisodeConfig(ways=3, shots=2, queries=1)
    episodes = [list(EpisodeLoader(EpisodeSampler({"toy": store}, "all", config, 0), range(3), workers=2)) for store in stores]
    for one, two in zip(*episodes, strict=True):
        assert torch.equal(one.support.images, two.support.images)
        assert torch.equal(one.query_images, two.query_images)
    batches = [list(BatchLoader([store], [np.arange(15)], [np.arange(15)], 4, workers=2).epoch(1)) for store in stores]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(*batches, strict=True))
    rows, places, out = np.array([9, 0, 9]), np.array([2, 0, 1]), np.zeros((2, 3, SIZE, SIZE, 3), np.uint8)
    for store, target in zip(stores, out, strict=True):
        gather(store.images, rows, target, places)
    np.testing.assert_array_equal(out[0], pixels()[[0, 9, 9]])
    np.testing.assert_array_equal(out[1], out[0])


def test_rows_outside_a_raw_store_are_no_other_bytes_of_the_file(tmp_path):
    store = Store.open(write_store(tmp_path / "raw.h5", "raw", SIZE, [("a", 0, pixels())]))
    for rows in ([-1], [15]):
        with pytest.raises(IndexError):
            gather(store.images, np.array(rows), np.empty((1, SIZE, SIZE, 3), np.uint8))


def test_a_store_that_shrinks_after_it_was_opened(tmp_path, made):
    stores = [Store.open(made), Store.open(write_store(tmp_path / "raw.h5", "raw", SIZE, [("a", 0, pixels())]))]
    for store in stores:
        images, target = store.images, np.empty((1, SIZE, SIZE, 3), np.uint8)
        os.truncate(store.path, store.offset + 500)
        with pytest.raises(UserError, match="truncated after it was opened"):
            gather(images, np.array([14]), target)


def test_a_damaged_image_is_named_with_its_place(made):
    store = Store.open(made)
    with h5py.File(made) as file:
        begin = int(file["image_offsets"][6])
    with made.open("r+b") as file:
        file.seek(store.offset + begin)
        file.write(bytes(40))
    damaged = Store.open(made)
    np.testing.assert_array_equal(damaged.images[5], pixels()[5])
    with pytest.raises(UserError, match=rf"toy\.h5: image 6, at byte {store.offset + begin:,}: not an image; prepare the store again"):
        damaged.images[np.arange(15)]
    sampler = EpisodeSampler({"toy": damaged}, "all", EpisodeConfig(ways=3, shots=2, queries=2), 0)
    with pytest.raises(UserError, match=r"^toy episode \d+ \(seed 0\): .*toy\.h5: image 6, at byte"):
        list(EpisodeLoader(sampler, range(20)))
    assert "content hash" in (verify_store(made) or "")


def test_any_flipped_byte_of_an_encoded_store_is_noticed(made):
    whole, store = made.read_bytes(), Store.open(made)
    for position in [*range(0, store.offset, 211), *range(store.offset, len(whole) - 56, 499)]:
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        made.write_bytes(damaged)
        assert verify_store(made)


def change(path, name, value):
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("image_offsets", np.arange(16), "do not fit together"),
        ("image_offsets", np.arange(16, dtype=np.int32), "not one contiguous int64"),
        ("image_offsets", None, "damaged"),
        ("jpeg", np.zeros(9, np.uint8), "do not fit together"),
        ("jpeg", np.zeros((9, 2), np.uint8), "not one contiguous"),
        ("image_split", np.zeros(3, np.uint8), "splits of the images"),
        ("image_split", np.full(15, 3, np.uint8), "splits of the images"),
    ],
)
def test_inconsistent_encoded_stores(made, name, value, said):
    change(made, name, value)
    with pytest.raises(UserError, match=said):
        Store.open(made)


def test_places_outside_the_images_are_refused(made):
    with h5py.File(made, "r+") as file:
        file["image_offsets"][3] = 2**60
    for row in (2, 3):
        with pytest.raises(UserError, match=f"image {row} has an invalid position"):
            Store.open(made).images[row]


def test_an_unknown_encoding_and_a_wrong_ontology(made):
    change(made, "ontology", "{}")
    with pytest.raises(UserError, match=r"toy\.h5: the ontology"):
        _ = Store.open(made).ontology
    with h5py.File(made, "r+") as file:
        file.attrs["encoding"] = "webp"
    with pytest.raises(UserError, match="'webp', which this smat cannot read"):
        Store.open(made)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_split_by_image_and_an_ontology(tmp_path, encoding):
    ontology = Ontology("bilevel", {"train": (Node("s", "a group", (0, 2)),)})
    codes = np.arange(15) % 3
    if encoding == "jpeg":
        path = write(tmp_path / "a.h5", image_split=codes, ontology=ontology.to_json())
    else:
        blocks = [("a", 0, pixels()[:9]), ("b", 0, iter(pixels()[9:12])), ("c", 0, pixels()[12:])]
        path = write_store(tmp_path / "a.h5", "a", SIZE, blocks, image_split=codes, ontology=ontology.to_json())
    store = Store.open(path)
    assert store.image_split is not None
    assert store.image_split.tolist() == codes.tolist()
    assert store.ontology == ontology
    assert [store.image_rows(split).tolist() for split in ("valid", "all")] == [list(range(1, 15, 3)), list(range(15))]
    assert verify_store(path) is None
    assert sorted(os.listdir(tmp_path)) == ["a.h5"]
    for name in ("image_split", "ontology"):
        before = path.read_bytes()
        with h5py.File(path, "r+") as file:
            file[name][()] = np.zeros(15, np.uint8) if name == "image_split" else ontology.to_json().replace("group", "croup")
        assert "content hash" in (verify_store(path) or "")
        path.write_bytes(before)


def test_rows_of_a_split_by_class(made):
    store = Store.open(made)
    assert [store.image_rows(s).tolist() for s in ("train", "valid", "test")] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    with pytest.raises(UserError, match="unknown split 'tset'"):
        store.image_rows("tset")


@pytest.mark.parametrize(
    ("more", "said"), [({"image_split": [0, 1]}, "2 split codes for 15"), ({"image_split": [0] * 16}, "16 split codes for 15")]
)
def test_split_codes_that_do_not_fit_leave_nothing(tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        write(tmp_path / "a.h5", **more)
    assert os.listdir(tmp_path) == []


def test_an_image_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="not an encoded file"):
        write_store(tmp_path / "a.h5", "a", SIZE, [("c", 0, [np.zeros((SIZE, SIZE, 3), np.uint8)])], encoding="jpeg")
    assert decode_image(files()[1], SIZE, "squash").tolist() == pixels()[1].tolist()
