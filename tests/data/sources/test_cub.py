"""The source `cub`: the three lists of CUB_200_2011 and its images."""

import json

import pytest

from smatcli.data.images import Unreadable
from smatcli.data.sources.cub import CubSource
from smatcli.data.stores.splits import match_splits, read_splits
from smatcli.errors import UserError
from tests.data.imagefiles import LFS, picture, write_folder

NAMES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "105.Whip_poor_Will"]
PHOTOS = [(f"{name}/{name.split('.')[1]}_{n:04d}_{7 * n}.jpg", label) for label, name in enumerate(NAMES, 1) for n in (46, 3, 12)]


def archive(top="CUB_200_2011/", **changes):
    texts = {
        "classes.txt": "".join(f"{i} {name}\n" for i, name in enumerate(NAMES, 1)),
        "images.txt": "".join(f"{i} {path}\n" for i, (path, _) in enumerate(PHOTOS, 1)),
        "image_class_labels.txt": "".join(f"{i} {label}\n" for i, (_, label) in enumerate(PHOTOS, 1)),
        "train_test_split.txt": "".join(f"{i} {i % 2}\n" for i in range(1, len(PHOTOS) + 1)),
        "bounding_boxes.txt": "".join(f"{i} 60.0 27.0 325.0 304.0\n" for i in range(1, len(PHOTOS) + 1)),
        "README": "Caltech-UCSD Birds-200-2011",
    }
    files = {name: text.encode() for name, text in texts.items()}
    files.update({name.replace("_txt", ".txt"): text for name, text in changes.items()})
    files.update({f"images/{path}": picture(i) for i, (path, _) in enumerate(PHOTOS)})
    return {"attributes.txt": b"1 has_bill_shape::curved", **{top + name: data for name, data in files.items() if data is not None}}


def test_classes_and_images_as_listed(tmp_path):
    source = CubSource(write_folder(tmp_path, archive()) / "CUB_200_2011")
    assert [c.name for c in source.classes()] == NAMES
    assert list(source.classes()[1].images) == [path for path, label in PHOTOS if label == 2]
    assert source.read(PHOTOS[4][0]) == picture(4)
    assert source.remarks == []
    assert (source.kind, source.name) == ("cub", "cu_birds")
    assert all(c.split is None for c in source.classes())


def test_the_folder_around_it_and_extra_files(tmp_path):
    source = CubSource(write_folder(tmp_path, {**archive(), "CUB_200_2011/images/new/x.jpg": b"", "CUB_200_2011/images/.DS_Store": b""}))
    assert len(source.classes()) == 3
    assert source.remarks == ["1 files not in images.txt skipped: 'new/x.jpg'"]


def test_a_listed_image_that_is_missing_is_unreadable(tmp_path):
    root = write_folder(tmp_path, archive())
    (root / "CUB_200_2011/images" / PHOTOS[0][0]).unlink()
    source = CubSource(root)
    with pytest.raises(Unreadable, match="missing"):
        source.read(source.classes()[0].images[0])


def test_meta_datasets_splits_fit(tmp_path):
    (tmp_path / "cu_birds_splits.json").write_text(json.dumps({"train": [NAMES[2]], "test": [NAMES[0]], "valid": [NAMES[1]]}))
    source = CubSource(write_folder(tmp_path, archive()))
    splits = read_splits(tmp_path / "cu_birds_splits.json", source.name)
    found = match_splits([c.name for c in source.classes()], splits, "cu_birds_splits.json")
    assert found == {NAMES[0]: "test", NAMES[1]: "valid", NAMES[2]: "train"}


def test_fingerprint_follows_lists_and_images(tmp_path):
    root = write_folder(tmp_path, archive())
    first = CubSource(root).fingerprint
    assert first == CubSource(root).fingerprint
    (root / "CUB_200_2011/images" / PHOTOS[0][0]).write_bytes(b"another")
    assert CubSource(root).fingerprint != first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_class_labels_txt": b"1 1\n"}, r"image_class_labels\.txt: no class for '001.*and 3 more"),
        ({"image_class_labels_txt": b"1 4\n"}, r"image 1 has the class 4, which is not in classes\.txt"),
        ({"image_class_labels_txt": b"99 1\n"}, r"image 99 is not in images\.txt"),
        ({"image_class_labels_txt": b"1 2\n"}, "image 1 has the class '002.Laysan_Albatross', but is in the folder '001"),
        ({"image_class_labels_txt": b"1 1\n1 1\n"}, r"labels\.txt, line 2: duplicate number 1"),
        ({"image_class_labels_txt": b"1\n"}, r"labels\.txt, line 1: '1' has one column"),
        ({"classes_txt": b"one 001.A\n"}, r"classes\.txt, line 1: 'one' is not a number"),
        ({"classes_txt": b"1 A\n2 A\n"}, r"classes\.txt: duplicate class name"),
        ({"classes_txt": b"\n"}, r"classes\.txt: is empty"),
        ({"classes_txt": None}, r"classes\.txt is missing; unpack"),
        ({"classes_txt": LFS}, r"classes\.txt: is a git-lfs pointer"),
        ({"images_txt": b"1 ../../x.jpg\n", "image_class_labels_txt": b"1 1\n"}, r"images\.txt: refused.*path traversal"),
        ({"images_txt": b"1 001.Black_footed_Albatross/x.jpg\n", "image_class_labels_txt": b"1 1\n"}, "has none of the 1 images"),
    ],
)  # fmt: skip
def test_damaged_lists(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        CubSource(write_folder(tmp_path, archive(**changes)))


def test_no_source(tmp_path):
    with pytest.raises(UserError, match=r"no images\.txt and images/ here; give the folder CUB_200_2011"):
        CubSource(tmp_path)
    with pytest.raises(UserError, match="folder does not exist"):
        CubSource(tmp_path / "x")
