"""The source `fungi`: both annotation files of FGVCx Fungi 2018 combined."""

import json

import pytest

from smatcli.data.images import Unreadable
from smatcli.data.sources.fungi import FungiSource
from smatcli.errors import UserError
from tests.data.imagefiles import picture, write_folder

# Two species with the same name, and a name that ends with a space: both occur in the published files.
CATEGORIES = {0: "Abortiporus biennis", 1: "Amanita phalloides var. phalloides ", 2: "Xylaria sp", 3: "Xylaria sp"}


def part(start, labels, **changes):
    numbers = range(start, start + len(labels))
    return {
        "info": {"description": "FGVCx Fungi 2018", "year": 2018},
        "licenses": [{"id": 0, "name": "x", "url": "y"}],
        "images": [{"id": n, "file_name": f"images/{n % 3}/svampe_{n}.JPG", "width": 8, "height": 8, "license": 0} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "category_id": label} for n, label in zip(numbers, labels, strict=True)],
        "categories": [{"id": n, "name": name, "supercategory": "fungi"} for n, name in CATEGORIES.items()],
        **changes,
    }


TRAIN, VAL = part(100, [3, 0, 0, 1, 3, 2]), part(7, [0, 1, 2])


def write(root, train=TRAIN, val=VAL, missing=()):
    listed = [image["file_name"] for file in (TRAIN, VAL) for image in file["images"]]
    files = {name: picture(int(name.split("_")[1][:-4])) for name in listed if name not in missing}
    return write_folder(root / "fungi", {**files, "train.json": json.dumps(train).encode(), "val.json": json.dumps(val).encode()})


def test_train_and_val_together_by_category(tmp_path):
    source = FungiSource(write(tmp_path))
    assert [c.name for c in source.classes()] == [f"{n:04d}.{name}" for n, name in CATEGORIES.items()]
    assert list(source.classes()[0].images) == ["images/2/svampe_101.JPG", "images/0/svampe_102.JPG", "images/1/svampe_7.JPG"]
    assert source.read("images/1/svampe_7.JPG") == picture(7)
    assert source.remarks == []
    assert (source.kind, source.name) == ("fungi", "fungi")


def test_categories_without_images_and_files_without_annotation(tmp_path):
    root = write(tmp_path, part(100, [3, 0]), part(7, [0, 1]))
    source = FungiSource(root)
    assert [c.name for c in source.classes()] == [f"{n:04d}.{CATEGORIES[n]}" for n in (0, 1, 3)]
    assert source.remarks[0].startswith("5 files without annotations skipped: '")
    assert source.remarks[1] == "1 categories without images skipped: '0002.Xylaria sp'"


def test_a_missing_image_is_unreadable(tmp_path):
    source = FungiSource(write(tmp_path, missing=["images/1/svampe_7.JPG"]))
    with pytest.raises(Unreadable, match="missing"):
        source.read("images/1/svampe_7.JPG")


def test_fingerprint_follows_annotations(tmp_path):
    root = write(tmp_path)
    first = FungiSource(root).fingerprint
    assert first == FungiSource(root).fingerprint
    assert FungiSource(write(tmp_path, part(100, [3, 0]))).fingerprint != first


@pytest.mark.parametrize(
    ("val", "said"),
    [
        (part(7, [0], categories=[{"id": 0, "name": "other"}]), r"val\.json: its categories differ from those of train\.json"),
        (part(100, [0]), r"val\.json: the image id 100 is in train\.json too"),
        (part(7, [0, 9]), r"val\.json: image 8 has the category 9, which is not in the file"),
        (part(7, [0], annotations=[]), r"val\.json: no annotation for image 7"),
        (part(7, [0], images=[]), r"val\.json: an annotation is for image 7, which is not in the file"),
        (part(7, [0], annotations=[{"image_id": 7}]), r"val\.json, annotations\[0\]: category_id is missing"),
        (part(7, [0], annotations=[{"image_id": "7", "category_id": 0}]), r"annotations\[0\]: image_id is not of type int: '7'"),
        (part(7, [0], annotations=[4]), r"annotations\[0\]: image_id is missing"),
        (part(7, [0, 1], annotations=[{"image_id": 7, "category_id": 0}] * 2), r"annotations\[1\]: duplicate id 7"),
        (part(7, [0], images=[{"id": 7, "file_name": "images/../../x"}]), r"images\[0\]: refused.*path traversal"),
        ({"images": []}, r"val\.json: has no list 'annotations'"),
    ],
)
def test_annotations_that_contradict(tmp_path, val, said):
    with pytest.raises(UserError, match=said):
        FungiSource(write(tmp_path, val=val))


def test_truncated_and_missing_files(tmp_path):
    root = write(tmp_path)
    (root / "val.json").write_bytes((root / "val.json").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"val\.json: truncated \(at categories\[3\]"):
        FungiSource(root)
    (root / "val.json").unlink()
    with pytest.raises(UserError, match=r"val\.json is missing; unpack"):
        FungiSource(root)
    with pytest.raises(UserError, match="the folder images is missing"):
        FungiSource(write_folder(tmp_path / "b", {"train.json": b"{}", "val.json": b"{}"}))
