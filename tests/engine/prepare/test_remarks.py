"""Doubtful data is named in one line each: equal images, classes that look alike, empty folders."""

import unicodedata

import pytest

from smatcli.data.stores.draft import Draft
from smatcli.engine.prepare.duplicates import Duplicates
from smatcli.engine.prepare.preparation import folder_jobs, prepare
from smatcli.runs.reporter import SilentReporter
from tests.data.imagefiles import picture, write_folder

NFD = unicodedata.normalize("NFD", "café")


def lines_of(tmp_path, files, empty=(), **options):
    root = write_folder(tmp_path / "pets", files)
    for name in empty:
        (root / name).mkdir(parents=True)
    reporter = SilentReporter()
    prepare(folder_jobs([root]), tmp_path / "out", reporter=reporter, workers=2, size=8, **options)
    return [line for line in reporter.lines if "too few" not in line]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_equal_images_in_several_classes(tmp_path, encoding):
    files = {f"{c}/{i}.png": picture(10 * n + i) for n, c in enumerate("abcd") for i in range(3)}
    assert lines_of(tmp_path / "0", files, encoding=encoding) == []
    assert lines_of(tmp_path / "1", {**files, "a/9.png": files["a/0.png"]}, encoding=encoding) == []  # within a class
    [line] = lines_of(tmp_path / "2", {**files, "b/x.png": files["a/0.png"], "c/x.png": files["a/1.png"]}, encoding=encoding)
    assert line == "pets: 2 images in several classes: 'a' and 'b' (1), 'a' and 'c' (1); check their labels"


def test_equal_images_before_and_after_an_interruption(tmp_path):
    """A continued draft gives the same hashes as one that is written at once."""
    images = [b"one", b"two!", b"three", b"one", b"four"]
    draft = Draft(tmp_path / "d", records=True)
    for data in images:
        draft.append(data)
    draft.flush()
    at_once, continued = Duplicates(), Duplicates()
    for data, index in zip(images, [0, 0, 2, 2, 2], strict=True):
        at_once.add(data, index)
    continued.add_stored(draft, [2, 0, 3], None)
    assert (continued.hashes, continued.classes) == (at_once.hashes, at_once.classes)
    assert continued.line(["a", "b", "c"]) == "1 image in several classes: 'a' and 'c' (1); check their labels"
    draft.close()


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("Cat", "cat", "dog"), "'Cat', 'cat'"),
        (("café", NFD, "dog"), f"{NFD!r}, 'café'"),
        (("sea  lion", "sea lion", "dog"), "'sea  lion', 'sea lion'"),
        (("cat", "cat ", "dog"), "'cat', 'cat '"),
        (("Straße", "STRASSE", "dog"), "'STRASSE', 'Straße'"),
        (("cat", "cats", "dog"), None),
    ],
)
def test_classes_that_look_alike(tmp_path, names, alike):
    files = {f"{c}/{i}.png": picture(10 * n + i) for n, c in enumerate(names) for i in range(2)}
    said = [] if alike is None else [f"pets: the classes {alike} differ only by case, Unicode form or blanks"]
    assert lines_of(tmp_path, files) == said


def test_an_empty_class_folder(tmp_path):
    files = {f"{c}/{i}.png": picture(10 * n + i) for n, c in enumerate("ab") for i in range(2)}
    assert lines_of(tmp_path, files, ["c"]) == ["pets: the class folder c is empty; skipped"]


def test_the_stated_split_is_in_the_store(tmp_path):
    from smatcli.data.stores.store import Store

    parts = {"train": "abcde", "Val": "fg", "TEST": "hij"}
    files = {f"{p}/{c}/{i}.png": picture(10 * ord(c) + i) for p, names in parts.items() for c in names for i in range(2)}
    lines = lines_of(tmp_path, files)
    assert lines == ["pets: the folders train, TEST, Val are the split: 5 train, 2 valid, 3 test classes"]
    store = Store.open(tmp_path / "out" / "pets.h5")
    assert {split: [store.class_names[i] for i in store.classes(split)] for split in ("train", "valid", "test")} == {
        "train": list("abcde"),
        "valid": list("fg"),
        "test": list("hij"),
    }
