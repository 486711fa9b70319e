"""The source `pmf-h5`: its fixture compared with the original TFRecords, and invalid files."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from PIL import Image

from smatcli.data.images import Unreadable
from smatcli.data.sources.meta_dataset import MetaDatasetSource
from smatcli.data.sources.pmf_h5 import ImageGroup, PmfH5Source
from smatcli.errors import UserError
from tests.data.imagefiles import LFS
from tests.data.mdfiles import FIXTURE, flat, write_pmf, write_spec

TOY = FIXTURE / "pmf_h5" / "toy_shapes"
RNG = np.random.default_rng(0)
PIXELS = {c: [RNG.integers(0, 256, (5 + i, 7, 3), dtype=np.uint8) for i in range(n)] for c, n in ((0, 3), (1, 2))}
SPEC = flat((1, 0, 1), [3, 2])


@pytest.fixture
def toy(tmp_path):
    """A valid dataset whose groups are not in the order of the records."""
    return write_pmf(tmp_path / "toy", SPEC, PIXELS, {0: [500, 0, 200], 1: [0, 90]})


def content(source):
    return [[source.read(image) for image in c.images] for c in source.classes()]


def test_fixture_is_the_tfrecords_image_by_image():
    """Both readers return the same images in the same order, although the groups are shuffled: `id` is the offset of the record."""
    ours, theirs = PmfH5Source(TOY), MetaDatasetSource(FIXTURE / "tfrecord" / "toy_shapes")
    assert (ours.kind, ours.name, ours.ontology) == ("pmf-h5", "toy_shapes", None)
    assert [(c.name, c.split, len(c.images)) for c in ours.classes()] == [(c.name, c.split, len(c.images)) for c in theirs.classes()]
    shuffled = 0
    for mine, other in zip(ours.classes(), theirs.classes(), strict=True):
        shuffled += [image.group for image in mine.images] != list(range(12))
        for image, record in zip(mine.images, other.images, strict=True):
            jpeg = np.asarray(Image.open(io.BytesIO(theirs.read(record))).convert("RGB"))
            pixels = ours.read(image)
            assert pixels.shape == jpeg.shape
            assert np.abs(pixels.astype(int) - jpeg).max() <= 3  # other versions of libjpeg may round differently
            with h5py.File(TOY / f"{image.class_id}.h5", locking=False) as file:
                assert int(np.ravel(file[f"{image.group}/id"][()])[0]) == record.offset
    assert shuffled


def test_images_in_the_order_of_records(toy):
    source = PmfH5Source(toy)
    images = source.classes()[0].images
    assert list(images) == [ImageGroup(0, 1), ImageGroup(0, 2), ImageGroup(0, 0)] == images[:]
    assert images[-1] == ImageGroup(0, 0)
    assert source.describe(images[0]) == "0.h5, group 1"
    assert [pixels.tobytes() for pixels in content(source)[0]] == [PIXELS[0][g].tobytes() for g in (1, 2, 0)]


@pytest.mark.parametrize("ids", [None, [7, 7, 3]])
def test_without_record_numbers_images_are_in_group_order(toy, ids):
    with h5py.File(toy / "0.h5", "r+") as file:
        for g in range(3):
            del file[f"{g}/id"]
            if ids:
                file[f"{g}/id"] = np.array([ids[g]])
    assert [image.group for image in PmfH5Source(toy).classes()[0].images] == [0, 1, 2]


def test_many_threads_and_more_classes_than_open_files(tmp_path):
    pixels = {c: [RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(2)] for c in range(12)}
    source = PmfH5Source(write_pmf(tmp_path / "wide", flat((12, 0, 0), [2] * 12), pixels))
    keys = [(c, j) for j in range(2) for c in range(12)]
    classes = source.classes()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda key: source.read(classes[key[0]].images[key[1]]), keys))
    assert all((a == pixels[c][j]).all() for a, (c, j) in zip(found, keys, strict=True))
    source.close()


def edited(**fields):
    """Return a change that replaces fields of group 1 of class 0; None removes a field."""

    def change(folder):
        with h5py.File(folder / "0.h5", "r+") as file:
            for name, value in fields.items():
                del file[f"1/{name}"]
                if value is not None:
                    file[f"1/{name}"] = value

    return change


def h5(action):
    def change(folder):
        with h5py.File(folder / "0.h5", "r+") as file:
            action(file)

    return change


def move(file):
    file.move("2", "7")


def nest(file):
    del file["1"]
    file["1"] = np.zeros(3)


def outside(file):
    del file["1/image"]
    file["1/image"] = h5py.ExternalLink("../secret.h5", "/image")


def elsewhere(file):
    del file["1/image"]
    file["1"].create_dataset("image", (4, 4, 3), np.uint8, external=[("/etc/hostname", 0, 48)])


def virtual(file):
    del file["1/image"]
    layout = h5py.VirtualLayout((4, 4, 3), np.uint8)
    layout[:] = h5py.VirtualSource("secret.h5", "image", (4, 4, 3))
    file["1"].create_virtual_dataset("image", layout)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited(image=None), r"0\.h5, group 1: has no field 'image'"),
        (edited(label=None), r"0\.h5, group 1: has no field 'label'"),
        (edited(label=np.array([2])), r"0\.h5, group 1: label 2 in the file of class 0; dataset_spec\.json has classes 0 to 1"),
        (edited(label=np.array([1])), r"0\.h5, group 1: label 1 in the file of class 0; the file was renamed"),
        (edited(label=np.array([0.0])), r"0\.h5, group 1: the field 'label' is not a single whole number"),
        (edited(label=np.array([0, 0])), r"0\.h5, group 1: the field 'label' is not a single whole number"),
        (h5(lambda file: file.create_group("3")), r"0\.h5: has 4 groups, but dataset_spec\.json has 3 images"),
        (h5(lambda file: file.__delitem__("2")), r"0\.h5: has 2 groups, but dataset_spec\.json has 3 images"),
        (h5(move), r"0\.h5: has 3 groups, but no group 2; they must be 0 to 2"),
        (h5(nest), r"0\.h5, group 1: .*damaged HDF5 file"),
        (h5(outside), r"0\.h5, group 1: refused, '1/image' is a link"),
        (h5(elsewhere), r"0\.h5, group 1: refused, 'image' is in another file"),
        (h5(virtual), r"0\.h5, group 1: refused, 'image' is in another file"),
        (lambda f: (f / "0.h5").write_bytes((f / "0.h5").read_bytes()[:3000]), r"0\.h5: truncated or damaged HDF5 file"),
        (lambda f: (f / "0.h5").write_bytes(b"x" * 3000), r"0\.h5, byte 0: is not an HDF5 file"),
    ],
)
def test_damaged_files(toy, change, said):
    change(toy)
    source = PmfH5Source(toy)
    assert source.read(source.classes()[1].images[0]).tobytes() == PIXELS[1][0].tobytes()
    with pytest.raises(UserError, match=said) as error:
        content(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "1.h5").unlink(), r"toy/1\.h5: missing, the file of class 1"),
        (lambda f: (f / "1.h5").write_bytes(LFS), r"toy/1\.h5, byte 0: is a git-lfs pointer"),
        (lambda f: (f / "1.h5").write_bytes(b""), r"toy/1\.h5, byte 0: the file is empty"),
        (
            lambda f: shutil.copy(f / "1.h5", f / "2.h5"),
            r"toy/2\.h5: dataset_spec\.json has classes 0 to 1, but 1 more class file exists",
        ),
        (lambda f: write_spec(f, flat((1, 0, 1), [3, 2], class_names={"0": "a", "1": "a"})), "0 and 1 have the same name 'a'"),
        (lambda f: (f / "dataset_spec.json").unlink(), r"dataset_spec\.json: does not exist"),
    ],
)
def test_files_that_do_not_match_the_spec(toy, change, said):
    change(toy)
    with pytest.raises(UserError, match=said):
        PmfH5Source(toy)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4), np.uint8), r"an array uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), r"an array float32 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"an array uint8 \[0, 4, 3\]"),
    ],
)
def test_one_bad_image_is_unreadable(toy, image, said):
    edited(image=image)(toy)
    with pytest.raises(Unreadable, match=said):
        PmfH5Source(toy).read(ImageGroup(0, 1))


def test_an_image_of_a_billion_pixels_is_not_read(toy):
    with h5py.File(toy / "0.h5", "r+") as file:
        del file["1/image"]
        file["1"].create_dataset("image", (40_000, 40_000, 3), np.uint8, chunks=(64, 64, 3))
    with pytest.raises(Unreadable, match="decompression bomb: 40000 x 40000 pixels"):
        PmfH5Source(toy).read(ImageGroup(0, 1))
