"""Folders train, val and test around class folders: never classes, always the split or one line."""

import itertools
import zipfile

import pytest

from smatcli.data.sources import FolderSource
from smatcli.errors import UserError
from tests.data.imagefiles import picture, write_folder, write_zip

PNG = picture()
NAMES = {
    "train": ["train", "Train", "TRAINING"],
    "valid": ["val", "Valid", "validation", "VALIDATION"],
    "test": ["test", "Test", "testing"],
}


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Open a source from a mapping of folder to classes (None: images without class folders)."""

    def opened(layout, depth=1, top="", more=()):
        files = {f"{top}{part}/{c}{'/' if c else ''}{i}.png": PNG for part, names in layout.items() for c in names or [""] for i in (1, 2)}
        files |= dict.fromkeys(more, PNG)
        if request.param == "folder":
            return FolderSource(write_folder(tmp_path / "pets", files), depth)
        return FolderSource(write_zip(tmp_path / "pets.zip", files), depth)

    return opened


def splits(source):
    return {c.name: c.split for c in source.classes()}


@pytest.mark.parametrize("top", ["", "mini/", "a/b/"])
@pytest.mark.parametrize("names", list(itertools.zip_longest(*NAMES.values(), fillvalue="VALID"))[:3])
def test_parts_with_classes_of_their_own_are_the_split(make, top, names):
    train, valid, test = names
    source = make({train: "abcde", valid: "fg", test: "hij"}, top=top)
    expected = dict.fromkeys("abcde", "train") | dict.fromkeys("fg", "valid") | dict.fromkeys("hij", "test")
    assert splits(source) == expected
    assert all(len(c.images) == 2 and c.image_splits is None for c in source.classes())
    assert source.remarks == [
        f"the folders {train}, {test}, {valid} are the split: 5 train, 2 valid, 3 test classes"
    ] or source.remarks == [f"the folders {train}, {valid}, {test} are the split: 5 train, 2 valid, 3 test classes"]


@pytest.mark.parametrize("absent", ["train", "valid", "test"])
def test_one_part_may_be_absent(make, absent):
    layout = {part: names for part, names in {"train": "ab", "valid": "cd", "test": "ef"}.items() if part != absent}
    assert splits(make(layout)) == {name: part for part, names in layout.items() for name in names}


def test_groups_inside_the_parts_need_depth(make):
    source = make({"train": ["greek/a", "greek/b", "latin/a"], "test": ["tamil/a", "tamil/b"]}, depth=2)
    assert splits(source) == {"greek/a": "train", "greek/b": "train", "latin/a": "train", "tamil/a": "test", "tamil/b": "test"}


@pytest.mark.parametrize(
    ("layout", "skipped"),
    [
        ({"train": "abc", "test": None}, "skipped test: 2 images without class folders"),
        ({"train": "abc", "test": ["unknown"]}, "skipped test: 2 images in the single folder unknown, which is not in train"),
        ({"train": "abc", "Test": ["images"], "VAL": None}, "skipped VAL: 2 images without class folders"),
        ({"train": "abc", "test": None, "preview": None}, "skipped preview: 2 images in a folder beside the parts"),
    ],
)
def test_the_training_part_is_read_and_the_rest_is_named(make, layout, skipped):
    source = make(layout, more=["sample_submission.csv"])
    assert splits(source) == dict.fromkeys("abc")
    assert skipped in source.remarks
    assert "only train is read" in source.remarks
    assert all(image.startswith("train/") for c in source.classes() for image in c.images)


def test_parts_with_the_same_classes_beside_a_part_without(make):
    source = make({"train": "abc", "valid": "abc", "test": None, "preview": None})
    assert {c.name: c.image_splits for c in source.classes()} == {c: ["train", "train", "valid", "valid"] for c in "abc"}
    assert [line.split(":")[0] for line in source.remarks] == ["skipped preview", "skipped test"]


@pytest.mark.parametrize(
    ("layout", "depth", "said"),
    [
        ({"train": "abc", "test": "abx"}, 1, r"train shares some classes with test, which has others too \(x\); give .*/train alone"),
        ({"train": "abc", "test": ["A", "x"]}, 1, "train shares some classes with test"),
        ({"train": "abc", "val": "ab", "test": "xy"}, 1, "has the classes of val, but test has classes of its own"),
        ({"train": "abc", "val": "xy", "test": "yz"}, 1, "the class y is in"),
        ({"train": ["images"], "test": ["images"]}, 1, r"train has a single folder \(images\), expected a folder per class"),
        ({"train": None, "test": "ab"}, 1, "test has class folders, but there is no training part"),
        ({"train": None, "test": None}, 1, "the folders test, train hold images without class folders"),
        ({"train": "ab", "plane": "cd"}, 1, "the folder train has the name of a part and holds folders, beside the folders plane"),
        ({"test": "ab", "plane": None, "bus": None}, 1, "beside the folders bus, plane"),
        ({"train": "ab", "test": "cd"}, 2, "are the split, and test has no classes at depth 2"),
        ({"ant": ["train", "test"], "bee": ["train", "test"]}, 1, "the parts test, train lie inside"),
        ({"ant": ["train", "test"], "bee": ["train", "test"]}, 2, "the parts test, train lie inside"),
        ({"ant": ["Val", "train"], "bee": None}, 1, "the parts Val, train lie inside ant"),
    ],
)
def test_parts_that_are_no_split_are_refused(make, layout, depth, said):
    with pytest.raises(UserError, match=said) as error:
        make(layout, depth)
    assert "--depth 2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_no_layout_makes_classes_of_parts(make, tmp_path):
    """Every combination of three parts that are absent, flat, or have one of four sets of classes."""
    number = 0
    for forms in itertools.product([(), None, "abc", "ab", "xy", ["unknown"]], repeat=3):
        layout = {part: form for part, form in zip(("train", "val", "test"), forms, strict=True) if form != ()}
        if not layout:
            continue
        number += 1
        files = {f"p/{part}/{c}/{i}.png": PNG for part, names in layout.items() for c in names or [""] for i in (1, 2)}
        try:
            source = FolderSource(write_zip(tmp_path / f"{number}.zip", files))
        except UserError:
            continue
        assert {c.name.lower() for c in source.classes()}.isdisjoint({"train", "val", "test"})
        for c in source.classes():
            folders = [image.split("/")[1] for image in c.images]
            if c.split is not None:
                assert {"val": "valid"}.get(folders[0], folders[0]) == c.split
                assert len(set(folders)) == 1
            elif c.image_splits is not None:
                assert [{"val": "valid"}.get(f, f) for f in folders] == list(c.image_splits)
            else:
                assert len(set(folders)) == 1
                assert set(layout) == set(folders) or folders[0] == "train"


def test_a_class_called_train(make):
    assert splits(make({"train": None, "plane": None, "bus": None})) == dict.fromkeys(["bus", "plane", "train"])


def test_the_stated_split_changes_the_fingerprint(tmp_path):
    """A store that was prepared when train and test were classes is not kept."""
    files = {f"train/{c}/1.png": PNG for c in "ab"} | {"test/1.png": PNG}
    one = FolderSource(write_zip(tmp_path / "a.zip", files))
    two = FolderSource(write_zip(tmp_path / "b.zip", {**files, "test/x/1.png": PNG, "test/y/1.png": PNG}))
    assert one.fingerprint != two.fingerprint


def test_empty_class_folders_are_named(tmp_path):
    root = write_folder(tmp_path / "pets", {f"{c}/1.png": PNG for c in "ab"})
    (root / "c").mkdir()
    (root / ".git").mkdir()
    (root / "a" / "inner").mkdir()
    assert FolderSource(root).remarks == ["the class folder c is empty; skipped"]
    path = write_zip(tmp_path / "a.zip", {f"{c}/1.png": PNG for c in "ab"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("a")
        archive.mkdir("c")
    assert FolderSource(path).remarks == ["the class folder c is empty; skipped"]
