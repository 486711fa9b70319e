"""Images in the formats that users have."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smatcli.deploy.pictures import as_list, as_pixels, query_pictures, read_all, support_pictures
from smatcli.errors import UserError
from tests.deploy.world import COLOURS, make_queries, make_support, photo


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path: Path) -> None:
    picture = photo(COLOURS["red"], 1, (16, 16))
    picture.save(tmp_path / "a.png")
    array = np.asarray(picture)
    forms = [
        picture,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        np.dstack([array, np.full((16, 16), 255, np.uint8)]),
    ]
    for form in forms:
        np.testing.assert_array_equal(as_pixels(form, 16, "crop", "x"), array)
    grey = as_pixels(array[..., 0], 16, "crop", "x")
    np.testing.assert_array_equal(grey, np.repeat(array[..., :1], 3, 2))
    assert as_pixels(photo(COLOURS["red"], 1, (300, 40)), 16, "squash", "x").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 7), np.uint8), "[4, 4, 7]"),
        ("missing.png", "missing.png"),
        (b"no image", "not an image"),
    ],
)
def test_what_is_no_image_is_named(image: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        as_pixels(image, 16, "crop", "image 3")
    assert message in str(caught.value)


def test_single_images_and_nothing_are_refused() -> None:
    refused: list[object] = ["a.png", Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), [], 3]
    for wrong in refused:
        with pytest.raises(UserError):
            as_list(wrong)
    assert len(as_list(np.zeros((2, 4, 4, 3), np.uint8))) == 2


def test_support_folder_of_mixed_formats(tmp_path: Path) -> None:
    make_support(tmp_path / "s")
    (tmp_path / "s" / "red" / "notes.txt").write_text("x")
    (tmp_path / "s" / ".hidden").mkdir()
    found = support_pictures(tmp_path / "s")
    assert found.labels == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    assert any("notes.txt" in remark for remark in found.remarks)
    pixels, labels, bad = read_all(found, 16, "crop")
    assert not bad
    for image, label in zip(pixels, labels, strict=True):
        assert np.argmax(image.reshape(-1, 3).mean(0)) == {"red": 0, "green": 1, "blue": 2}[label]


def test_bad_support_folders(tmp_path: Path) -> None:
    one = tmp_path / "one" / "cats"
    one.mkdir(parents=True)
    photo(COLOURS["red"], 1).save(one / "a.png")
    with pytest.raises(UserError, match=r"one class only \(cats, 1 image\)"):
        support_pictures(tmp_path / "one")
    (tmp_path / "one" / "dogs").mkdir()
    (tmp_path / "one" / "dogs" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="dogs contains no images"):
        support_pictures(tmp_path / "one")
    (tmp_path / "one" / "dogs" / "a.png").write_bytes(b"broken")
    found = support_pictures(tmp_path / "one")
    with pytest.raises(UserError, match=r"1 of 2 images cannot be read: dogs/a.png \(not an image\)"):
        read_all(found, 16, "crop")
    with pytest.raises(UserError, match="no image of class dogs"):
        read_all(found, 16, "crop", skip=True)
    with pytest.raises(UserError, match="missing: does not exist"):
        support_pictures(tmp_path / "missing")


@pytest.mark.parametrize("test_classes", [["ant", "bee", "cow"], ["x", "y"], ["unknown"], [""]])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALIDATION", "Test")])
def test_support_from_a_folder_with_parts_is_its_training_part(
    tmp_path: Path, test_classes: list[str], names: tuple[str, str, str]
) -> None:
    """The images of validation and test are never support images, whatever the shape of these parts."""
    train, valid, test = names
    layout = {train: ["ant", "bee", "cow"], valid: test_classes, test: test_classes}
    if test_classes == ["x", "y"]:
        layout[valid] = ["v", "w"]
    for part, classes in layout.items():
        for c in classes:
            (tmp_path / "s" / part / c).mkdir(parents=True, exist_ok=True)
            for k in range(2):
                photo((200, 0, 0), k).save(tmp_path / "s" / part / c / f"{k}.png")
    found = support_pictures(tmp_path / "s")
    assert found.names == [f"{train}/{c}/{k}.png" for c in ("ant", "bee", "cow") for k in range(2)]
    assert found.labels == ["ant", "ant", "bee", "bee", "cow", "cow"]
    assert any("training part" in line or f"only {train} is read" in line for line in found.remarks)
    (tmp_path / "s" / train).rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"training part|images without class folders|belongs to one part"):
        support_pictures(tmp_path / "s")


def test_query_images_of_folder_zip_and_file(tmp_path: Path) -> None:
    folder = make_queries(tmp_path / "q")
    (folder / "list.csv").write_text("x")
    found = query_pictures(folder)
    assert "more/red0.png" in found.names
    assert len(found.names) == 9
    assert any("list.csv" in remark for remark in found.remarks)
    with zipfile.ZipFile(tmp_path / "q.zip", "w") as archive:
        archive.write(folder / "red1.png", "in/red1.png")
    assert query_pictures(tmp_path / "q.zip").names == ["in/red1.png"]
    assert query_pictures(folder / "red1.png").names == ["red1.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        query_pictures(tmp_path / "empty")
