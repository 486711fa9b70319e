"""The sources `vtab` and `fgvc`: lists that split images instead of classes."""

import json
import shutil

import pytest

from smatcli.data.images import Unreadable
from smatcli.data.sources.fgvc import FgvcSource
from smatcli.data.sources.vtab import VtabSource
from smatcli.errors import UserError
from tests.data.imagefiles import LFS, picture, write_folder
from tests.data.listfiles import write_birds, write_task


def listing(source):
    return {c.name: list(zip(c.images, c.image_splits, strict=True)) for c in source.classes()}


@pytest.fixture(params=[True, False], ids=["copies", "shared"])
def task(request, tmp_path):
    return write_task(tmp_path / "cifar", request.param)


def test_a_vtab_task_has_the_images_of_the_three_lists(task):
    source = VtabSource(task)
    assert (source.kind, source.name, source.ontology) == ("vtab", "vtab_cifar", None)
    assert listing(source) == {
        "0": [
            ("images/train800/000001.jpg", "train"),
            ("images/train800/000003.jpg", "train"),
            ("images/val200/000001.jpg", "valid"),
            ("images/test/000000.jpg", "test"),
        ],
        "1": [
            ("images/train800/000002.jpg", "train"),
            ("images/train800/000005.jpg", "train"),
            ("images/val200/000000.jpg", "valid"),
            ("images/test/000003.jpg", "test"),
        ],
        "2": [
            ("images/train800/000000.jpg", "train"),
            ("images/train800/000004.jpg", "train"),
            ("images/val200/000002.jpg", "valid"),
            ("images/test/000001.jpg", "test"),
            ("images/test/000002.jpg", "test"),
        ],
    }
    assert all(c.split is None for c in source.classes())
    assert source.read("images/val200/000002.jpg") == picture(102, kind="JPEG")
    assert source.remarks == ["train800.txt lists 6 images, not 800", "val200.txt lists 3 images, not 200"]


def test_the_official_numbers_of_images_cause_no_remark(tmp_path):
    for name, count in (("train800", 800), ("val200", 200), ("test", 10)):
        (tmp_path / f"{name}.txt").write_text("".join(f"images/{name}/{i:06d}.jpg {i % 5}\n" for i in range(count)))
    write_folder(tmp_path, {"images/test/000000.jpg": picture()})
    (tmp_path / "train800val200.txt").write_text("".join((tmp_path / f"{name}.txt").read_text() for name in ("val200", "train800")))
    source = VtabSource(tmp_path)
    assert source.remarks == []
    assert [len(c.images) for c in source.classes()] == [202] * 5


def test_labels_are_in_the_order_of_numbers_and_paths_may_hold_spaces(tmp_path):
    for number, name in enumerate(("train800", "val200", "test")):
        (tmp_path / f"{name}.txt").write_text(f"my images/{name}.png {[10, 9, 2][number]}\r\n\n")
    write_folder(tmp_path, {"my images/test.png": picture()})
    source = VtabSource(tmp_path)
    assert list(listing(source)) == ["2", "9", "10"]
    assert source.read("my images/test.png") == picture()
    assert source.remarks[-1] == "train800val200.txt does not exist, so the two shorter lists are not checked against it"


def test_the_long_list_alone_gives_training_images(task):
    for name in ("train800.txt", "val200.txt"):
        (task / name).unlink()
    source = VtabSource(task)
    assert [c.image_splits for c in source.classes()] == [["train"] * 3 + ["test"], ["train"] * 3 + ["test"], ["train"] * 3 + ["test"] * 2]
    assert source.remarks[-1] == "train800.txt and val200.txt do not exist: there are no validation images"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "change, counts",
    [
        (lambda t: edit(t / "train800val200.txt", "000002.jpg 1", "000002.jpg 2"), (1, 1)),  # another label
        (lambda t: edit(t / "train800.txt", "images/train800/000002.jpg 1\n", ""), (0, 1)),
        (lambda t: (t / "train800val200.txt").write_text("".join((t / "train800.txt").read_text())), (3, 0)),
    ],
)
def test_the_long_list_must_be_the_union_of_the_short_ones(task, change, counts):
    change(task)
    with pytest.raises(UserError, match=r"is not the union of train800.txt and val200.txt") as error:
        VtabSource(task)
    assert f"{counts[0]} of their images" in str(error.value)
    assert f"{counts[1]} are in neither of them" in str(error.value)
    assert "\n" not in str(error.value)
    assert ".txt, line " in str(error.value)


def test_a_copy_with_other_bytes_is_another_image(tmp_path):
    task = write_task(tmp_path / "dtd")
    (task / "images/train800val200/000004.jpg").write_bytes(picture(77, kind="JPEG"))
    with pytest.raises(UserError, match=r"1 of their images .* are missing, 1 are in neither of them"):
        VtabSource(task)
    (task / "images/train800val200/000004.jpg").unlink()
    with pytest.raises(UserError, match=r"train800val200.txt, line 5: .* cannot be compared with the other lists \(vanished\)"):
        VtabSource(task)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: (t / "val200.txt").unlink(), "val200.txt: does not exist; the folder of a task contains"),
        (lambda t: (t / "test.txt").write_text("\n"), "test.txt: lists no image"),
        (lambda t: (t / "test.txt").write_bytes(LFS), "git-lfs pointer"),
        (lambda t: (t / "test.txt").write_bytes(b"images/\xff.jpg 1\n"), "byte 7 is not UTF-8"),
        (lambda t: edit(t / "test.txt", "000001.jpg 2", "000001.jpg"), "test.txt, line 2: expected a path and a label"),
        (lambda t: edit(t / "test.txt", "000001.jpg 2", "000001.jpg -1"), "test.txt, line 2: expected a path and a label"),
        (lambda t: edit(t / "test.txt", "images/test/000001.jpg", "/etc/passwd"), "test.txt, line 2: refused"),
        (lambda t: edit(t / "val200.txt", "images/val200/000001.jpg", "images/../../x.jpg"), "val200.txt, line 2: refused"),
        (
            lambda t: edit(t / "test.txt", "test/000001.jpg", "train800/000003.jpg"),
            r"test.txt, line 2: .* \(first: .*train800.txt, line 4\)",
        ),
        (lambda t: shutil.rmtree(t / "images"), "none of the 13 listed images exists"),
        (shutil.rmtree, "folder does not exist"),
    ],
)
def test_damaged_vtab_tasks(task, change, message):
    change(task)
    with pytest.raises(UserError, match=message) as error:
        VtabSource(task)
    assert "\n" not in str(error.value)


def test_fingerprint_and_unreadable_images(tmp_path):
    task = write_task(tmp_path / "svhn")
    first = VtabSource(task).fingerprint
    assert VtabSource(task).fingerprint == first
    (task / "images/test/000003.jpg").unlink()
    source = VtabSource(task)
    assert source.fingerprint != first
    with pytest.raises(Unreadable, match="vanished"):
        source.read("images/test/000003.jpg")


@pytest.mark.parametrize("folder", ["images", "Images", ""])
def test_fgvc_lists_in_the_three_folders_of_vpt(folder, tmp_path):
    source = FgvcSource(write_birds(tmp_path / "CUB_200_2011", folder))
    assert (source.kind, source.name, source.ontology, source.remarks) == ("fgvc", "fgvc_CUB_200_2011", None, [])
    prefix = f"{folder}/" if folder else ""
    assert list(listing(source)) == ["001.bird_1", "002.bird_2", "010.bird_10"]
    assert listing(source)["010.bird_10"] == [
        (f"{prefix}010.bird_10/{part}_{i}.jpg", split)
        for part, split in (("train", "train"), ("val", "valid"), ("test", "test"))
        for i in (0, 1)
    ]
    assert source.read(f"{prefix}010.bird_10/val_1.jpg") == picture(10, kind="JPEG")


def test_classes_without_folders_of_their_own_are_numbers(tmp_path):
    source = FgvcSource(write_birds(tmp_path / "flowers", "", "jpg/image_{split}_{label}_{i}.jpg"))
    assert list(listing(source)) == ["1", "2", "10"]


def test_numbers_may_be_written_as_text_and_untrained_classes_are_named(tmp_path):
    root = write_birds(tmp_path / "cars")
    rows = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps({path: str(label) for path, label in rows.items() if label != 2}))
    source = FgvcSource(root)
    assert [len(c.images) for c in source.classes()] == [6, 4, 6]
    assert source.remarks == ["1 of 3 classes have no training image: 002.bird_2"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: (r / "val.json").unlink(), "val.json: does not exist; put VPT's lists"),
        (lambda r: (r / "val.json").write_text("{"), "val.json: cannot be read as JSON"),
        (lambda r: (r / "val.json").write_text("[]"), "val.json: expected .* found list"),
        (lambda r: (r / "val.json").write_text("{}"), "val.json: expected .* found nothing"),
        (lambda r: (r / "val.json").write_text('{"a.jpg": true}'), "'a.jpg' has the class 'True'"),
        (lambda r: (r / "val.json").write_text('{"a.jpg": 1, "a.jpg": 2}'), "'a.jpg' is listed twice"),
        (lambda r: (r / "val.json").write_text('{"../a.jpg": 1}'), "val.json: refused"),
        (lambda r: shutil.copy(r / "train.json", r / "test.json"), r"test.json: .* listed twice \(first: .*train.json\)"),
        (lambda r: shutil.rmtree(r / "images"), "the listed images do not exist"),
        (shutil.rmtree, "folder does not exist"),
    ],
)
def test_damaged_fgvc_lists(tmp_path, change, message):
    root = write_birds(tmp_path / "nabirds")
    change(root)
    with pytest.raises(UserError, match=message) as error:
        FgvcSource(root)
    assert "\n" not in str(error.value)
    assert str(root) in str(error.value)
