"""The source `domainnet`: the folder of a domain and its two list files."""

import pytest

from smatcli.data.images import Unreadable
from smatcli.data.sources.domainnet import DomainNetSource
from smatcli.errors import UserError
from tests.data.imagefiles import LFS, picture, write_folder, write_zip

CLASSES = ["aircraft_carrier", "The_Eiffel_Tower", "t-shirt"]  # labels 0, 1, 2: not the order of the names


def image_name(label, number):
    return f"sketch/{CLASSES[label]}/sketch_{label + 1:03d}_{number:06d}.jpg"


IMAGES = {image_name(label, number): picture(10 * label + number) for label in range(3) for number in range(1, 5)}


def lists(train=(1, 3), test=(2,)):
    def lines(numbers):
        return "".join(f"{image_name(label, n)} {label}\n" for label in range(3) for n in numbers).encode()

    return {"sketch_train.txt": lines(train), "sketch_test.txt": lines(test)}


def write(root, files):
    return write_folder(root / "DomainNet", files)


def test_both_lists_together_in_label_order(tmp_path):
    source = DomainNetSource(write(tmp_path, {**IMAGES, **lists()}), "sketch")
    assert [(c.name, c.split, c.image_splits) for c in source.classes()] == [(name, None, None) for name in CLASSES]
    assert list(source.classes()[2].images) == [f"t-shirt/sketch_003_{n:06d}.jpg" for n in (1, 2, 3)]
    assert source.read("t-shirt/sketch_003_000002.jpg") == IMAGES[image_name(2, 2)]
    assert len(source.remarks) == 1
    assert source.remarks[0].startswith("3 images that are not in a list file skipped: 'The_Eiffel_Tower/")
    assert (source.kind, source.name) == ("domainnet", "domainnet_sketch")


@pytest.mark.parametrize("layout", ["zip beside", "zip itself", "folder itself", "lists in splits"])
def test_other_places(tmp_path, layout):
    root = tmp_path / "d"
    write_folder(root / "splits" if layout == "lists in splits" else root, lists((1, 2, 3, 4), ()))
    if layout.startswith("zip"):
        write_zip(root / "sketch.zip", IMAGES)
    else:
        write_folder(root, IMAGES)
    source = DomainNetSource({"zip itself": root / "sketch.zip", "folder itself": root / "sketch"}.get(layout, root), "sketch")
    assert [len(c.images) for c in source.classes()] == [4, 4, 4]
    assert source.remarks == []
    assert source.read(source.classes()[0].images[0]) == IMAGES[image_name(0, 1)]
    source.close()


def test_without_lists_the_folder_counts(tmp_path):
    source = DomainNetSource(write(tmp_path, {**IMAGES, "sketch/t-shirt/.DS_Store": b"x", "sketch/README.txt": b"x"}), "sketch")
    assert [(c.name, len(c.images)) for c in source.classes()] == [(name, 4) for name in sorted(CLASSES)]
    assert "no list files" in source.remarks[0]


def test_one_list_alone_is_remarked(tmp_path):
    files = lists((1, 2, 3, 4))
    del files["sketch_test.txt"]
    source = DomainNetSource(write(tmp_path, {**IMAGES, **files}), "sketch")
    assert source.remarks == ["only sketch_train.txt found; the other list file of sketch is missing"]


def test_a_listed_image_that_is_missing_is_unreadable(tmp_path):
    files = {**IMAGES, **lists()}
    del files[image_name(1, 3)]
    source = DomainNetSource(write(tmp_path, files), "sketch")
    assert len(source.classes()[1].images) == 3
    with pytest.raises(Unreadable, match="missing"):
        source.read(source.classes()[1].images[2])


def test_fingerprint_follows_images_and_lists(tmp_path):
    root = write(tmp_path, {**IMAGES, **lists()})
    first = DomainNetSource(root, "sketch").fingerprint
    assert first == DomainNetSource(root, "sketch").fingerprint
    write(tmp_path, lists((1,)))
    second = DomainNetSource(root, "sketch").fingerprint
    write(tmp_path, {image_name(0, 1): b"longer than before" * 100})
    assert len({first, second, DomainNetSource(root, "sketch").fingerprint}) == 3


TRAIN = lists()["sketch_train.txt"]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (TRAIN + b"sketch/t-shirt/x.jpg\n", r"line 7: .* has one column, expected two"),
        (TRAIN + b"sketch/t-shirt/x.jpg one\n", "line 7: 'one' is not a number"),
        (TRAIN + b"sketch/t-shirt/x.jpg 1\n", "line 7: label 1 for the class 't-shirt' contradicts"),
        (TRAIN + b"sketch/pants/x.jpg 1\n", "line 7: label 1 for the class 'pants' contradicts"),
        (TRAIN + b"sketch/t-shirt/../../x.jpg 2\n", "line 7: refused.*path traversal"),
        (TRAIN + b"/sketch/t-shirt/x.jpg 2\n", "line 7: refused"),
        (TRAIN + b"clipart/t-shirt/x.jpg 2\n", "line 7: .* is not sketch/<class>/<image>"),
        (TRAIN + TRAIN, "line 7: .* is listed twice"),
        (b"\xff\xfe", "not a text file"),
        (LFS, "git-lfs pointer"),
    ],
)
def test_damaged_lists(tmp_path, train, said):
    with pytest.raises(UserError, match=rf"sketch_train\.txt.*{said}"):
        DomainNetSource(write(tmp_path, {**IMAGES, **lists(), "sketch_train.txt": train}), "sketch")


def test_no_source(tmp_path):
    with pytest.raises(UserError, match=r"domain 'sketches': DomainNet has .*did you mean 'sketch'"):
        DomainNetSource(tmp_path, "sketches")
    with pytest.raises(UserError, match="folder does not exist"):
        DomainNetSource(tmp_path / "x", "sketch")
    with pytest.raises(UserError, match=r"has no real/ or real.zip \(available: sketch\)"):
        DomainNetSource(write(tmp_path, IMAGES), "real")
    with pytest.raises(UserError, match="has none of the 9 images"):
        DomainNetSource(write_folder(tmp_path / "other", {**lists(), "sketch/a/b.jpg": b"x"}), "sketch")
    with pytest.raises(UserError, match="lists no image"):
        DomainNetSource(write_folder(tmp_path / "empty", {"sketch/a/b.jpg": b"x", "sketch_train.txt": b"\n"}), "sketch")
