"""Pairs of images and masks, all kinds of masks, splits, and metrics compared with plain loops."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smatcli.config.segment import SegmentData
from smatcli.data.images import Unreadable
from smatcli.errors import UserError
from smatcli.runs.reporter import SilentReporter
from smatcli.segmentation.augment import augmented
from smatcli.segmentation.data import SegmentSet, splits
from smatcli.segmentation.lists import list_pairs
from smatcli.segmentation.masks import decode_mask
from smatcli.segmentation.metrics import confusion, measures

RNG = np.random.default_rng(0)


def picture(path: Path, size=(12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)


def mask(path: Path, values: np.ndarray | None = None, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 3, (10, 12)).astype(np.uint8) if values is None else values
    made = Image.fromarray(values)
    if mode == "P":
        made.putpalette([9, 9, 9, 250, 0, 0, 0, 250, 0] + [0] * 753)
    made.save(path)


def masks(root: Path, values: Callable[[], np.ndarray]) -> None:
    for i in range(10):
        mask(root / f"masks/{i}.png", values())


def black_and_white() -> np.ndarray:
    return np.uint8(255) * RNG.integers(0, 2, (10, 12), np.uint8)


def folders(tmp_path: Path, count: int = 10) -> SegmentData:
    for i in range(count):
        picture(tmp_path / f"images/{i}.png")
        mask(tmp_path / f"masks/{i}.png")
    return SegmentData(root=str(tmp_path), classes=3)


def opened(data: SegmentData, size: int = 8) -> SegmentSet:
    return SegmentSet(data, size, 0, SilentReporter())


def test_pairs_by_name(tmp_path):
    data = folders(tmp_path, 3)
    (tmp_path / "images/.DS_Store").write_text("x")
    (tmp_path / "images/readme.txt").write_text("x")
    assert [(p.name, p.image.name, p.mask.name, p.part) for p in list_pairs(data)] == [
        (str(i), f"{i}.png", f"{i}.png", "") for i in range(3)
    ]


def test_subfolders_named_like_splits_are_splits(tmp_path):
    for part in ("train", "val", "test"):
        picture(tmp_path / f"images/{part}/a.jpg")
        mask(tmp_path / f"masks/{part}/a.png")
    found = list_pairs(SegmentData(root=str(tmp_path), classes=3))
    assert [(p.name, p.part) for p in found] == [("test/a", "test"), ("train/a", "train"), ("val/a", "valid")]


def test_kvasir(tmp_path):
    for i in range(2):
        picture(tmp_path / f"Kvasir-SEG/images/k{i}.jpg")
        mask(tmp_path / f"Kvasir-SEG/masks/k{i}.jpg", np.repeat([[0], [255]], [5, 5], 0).repeat(12, 1).astype(np.uint8))
    found = opened(SegmentData(layout="kvasir", root=str(tmp_path)), size=12)
    assert found.pixels.tolist() == [2 * 72, 2 * 72], "JPEG noise is not a class"


def test_isic(tmp_path):
    for part, count in (("Training", 4), ("Validation", 2), ("Test", 2)):
        for i in range(count):
            picture(tmp_path / f"ISIC2018_Task1-2_{part}_Input/ISIC_{i}.jpg")
            mask(
                tmp_path / f"ISIC2018_Task1_{part}_GroundTruth/ISIC_{i}_segmentation.png",
                black_and_white(),
            )
        (tmp_path / f"ISIC2018_Task1-2_{part}_Input/ATTRIBUTION.txt").write_text("x")
        picture(tmp_path / f"ISIC2018_Task1-2_{part}_Input/ISIC_0_superpixels.png")
    found = opened(SegmentData(layout="isic", root=str(tmp_path)))
    (split,) = splits(found, 0, 0)
    assert [len(split.train), len(split.valid), len(split.test)] == [4, 2, 2]


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path):
    for part, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            picture(tmp_path / f"ADEChallengeData2016/images/{part}/ADE_{i}.jpg")
            values = np.array([[0, 1, 150]] * 10).repeat(4, 1).astype(np.uint8)
            mask(tmp_path / f"ADEChallengeData2016/annotations/{part}/ADE_{i}.png", values)
    found = opened(SegmentData(layout="ade20k", root=str(tmp_path)), size=12)
    assert sorted(np.unique(found.mask_at(0, True))) == [0, 149, 255]
    assert found.data.number == 150
    assert found.pixels.nonzero()[0].tolist() == [0, 149]
    (split,) = splits(found, 0, 0)
    assert len(split.test) == 2, "tested on the published validation images"
    assert len(split.train) + len(split.valid) == 3, "tested on the published validation images"


@pytest.mark.parametrize("breakage, said", [
    (lambda r: (r / "masks/1.png").unlink(), "images: 1.png has no mask in"),
    (lambda r: (r / "images/2.png").unlink(), "masks: 2.png has no image in"),
    (lambda r: picture(r / "images/1.jpg"), "1.png: has the same name as 1.jpg"),
    (lambda r: mask(r / "masks/1.png", np.zeros((5, 5), np.uint8)), "the mask has 5 x 5 pixels, its image 12 x 10"),
    (lambda r: mask(r / "masks/1.png", np.full((10, 12), 7, np.uint8)), "masks/1.png: label 7, but the classes are 0 to 2"),
    (lambda r: (r / "images/1.png").write_bytes(b"nothing"), "images/1.png: not an image"),
    (lambda r: (r / "masks").rename(r / "mask"), "has no folder masks; did you mean 'mask'"),
    (lambda r: masks(r, black_and_white), "set data.values=binary"),
    (lambda r: masks(r, lambda: np.zeros((10, 12), np.uint8)), "belong to one class"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, breakage, said):
    data = folders(tmp_path)
    breakage(tmp_path)
    with pytest.raises(UserError) as error:
        opened(data)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_suffix(tmp_path):
    picture(tmp_path / "i/a.jpg")
    mask(tmp_path / "m/a_seg.png")
    data = SegmentData(root=str(tmp_path), images="i", masks="m", suffix="_seg", classes=3)
    assert list_pairs(data)[0].mask.name == "a_seg.png"
    mask(tmp_path / "m/b.png")
    with pytest.raises(UserError, match="must end in '_seg'"):
        list_pairs(data)


VALUES = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def saved(image: Image.Image, path: Path) -> bytes:
    image.save(path)
    return path.read_bytes()


def test_index_masks_of_every_mode(tmp_path):
    palette = Image.fromarray(VALUES, "P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [0] * 759)
    images = {
        "L": Image.fromarray(VALUES),
        "P": palette,
        "I;16": Image.fromarray(VALUES.astype(np.uint16)),
        "LA": Image.merge("LA", [Image.fromarray(VALUES)] * 2),
        "RGB": Image.merge("RGB", [Image.fromarray(VALUES)] * 3),
    }
    for mode, image in images.items():
        assert image.mode == mode
        assert decode_mask(saved(image, tmp_path / "m.png"), "index", 3).tolist() == VALUES.tolist(), mode
    ignored = np.array([[0, 255]], np.uint16)
    assert decode_mask(saved(Image.fromarray(ignored), tmp_path / "m.png"), "index", 2).tolist() == [[0, 255]]
    for wrong, said in ((np.array([[300]], np.uint16), "label 300"), (np.array([[65535]], np.uint16), "label 65535")):
        with pytest.raises(Unreadable, match=said):
            decode_mask(saved(Image.fromarray(wrong), tmp_path / "m.png"), "index", 3)
    with pytest.raises(Unreadable, match="coloured mask"):
        decode_mask(saved(Image.fromarray(RNG.integers(0, 9, (4, 4, 3), np.uint8)), tmp_path / "m.png"), "index", 3)


def test_binary_masks_of_every_mode(tmp_path):
    truth = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    red = Image.fromarray(truth, "P")
    red.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)  # red is dark: the index counts, not the brightness
    images = [
        Image.fromarray(truth), Image.fromarray(255 * truth), Image.fromarray(truth.astype(bool)), red,
        Image.fromarray(truth.astype(np.uint16)), Image.fromarray(255 * truth.astype(np.uint16)),
        Image.fromarray(65535 * truth.astype(np.uint16)), Image.merge("RGB", [Image.fromarray(255 * truth)] * 3),
        Image.fromarray(np.where(truth, 240, 9).astype(np.uint8)),
    ]  # fmt: skip
    for image in images:
        assert decode_mask(saved(image, tmp_path / "m.png"), "binary", 2).tolist() == truth.tolist(), image.mode


def test_folds_are_a_partition_and_equal_for_equal_seeds(tmp_path):
    found = opened(folders(tmp_path, 13))
    made = splits(found, 5, seed=3)
    assert sorted(np.concatenate([s.test for s in made])) == list(range(13))
    for split in made:
        assert sorted(np.concatenate([split.train, split.valid, split.test])) == list(range(13))
    again = splits(found, 5, seed=3)
    assert all((a.train == b.train).all() for a, b in zip(made, again, strict=True))
    with pytest.raises(UserError, match="too few"):
        splits(opened(folders(tmp_path / "few", 2)), 2, 0)


def test_what_is_larger_than_memory_is_read_again(tmp_path, monkeypatch):
    data = folders(tmp_path, 3)
    kept = opened(data)
    monkeypatch.setattr("smatcli.segmentation.data.KEPT_BYTES", 0)
    read = opened(data)
    rows = np.array([2, 0])
    for a, b in zip(kept.read(rows), read.read(rows), strict=True):
        assert (a == b).all()
    assert (kept.image_at(1, 8) == read.image_at(1, 8)).all()
    assert (kept.mask_at(1, True) == read.mask_at(1, True)).all()


def test_confusion_is_the_plain_loop():
    truth, said = torch.randint(0, 4, (3, 9, 7)), torch.randint(0, 4, (3, 9, 7))
    truth[0, :3] = 255
    want = torch.zeros(4, 4, dtype=torch.int64)
    for t, p in zip(truth.flatten().tolist(), said.flatten().tolist(), strict=True):
        if t != 255:
            want[t, p] += 1
    assert (confusion(truth.to(torch.uint8), said, 4) == want).all()
    found = measures(want)
    for c in range(4):
        hit, wrong, missed = want[c, c], want[:, c].sum() - want[c, c], want[c].sum() - want[c, c]
        assert found.ious[c] == pytest.approx(float(hit / (hit + wrong + missed)))
    assert found.miou == pytest.approx(sum(found.ious) / 4)
    assert found.accuracy == pytest.approx(float(want.trace() / want.sum()))


def test_measures_in_closed_form():
    perfect = measures(torch.diag(torch.tensor([5, 3, 0])))
    assert (perfect.miou, perfect.accuracy, perfect.dice) == (1, 1, 1)
    assert np.isnan(perfect.ious[2])
    half = measures(torch.tensor([[0, 0], [5, 5]]))  # half of the only class is found
    assert half.ious == [0, 0.5]
    assert half.accuracy == 0.5
    shifted = measures(torch.tensor([[80, 5], [5, 5]]))  # two squares of 10 pixels that share 5
    assert shifted.ious[1] == pytest.approx(1 / 3)
    assert shifted.dice == pytest.approx((160 / 170 + 0.5) / 2)
    assert np.isnan(measures(torch.zeros(2, 2)).miou)


def test_image_and_mask_move_together():
    masks = torch.randint(0, 2, (6, 8, 8), dtype=torch.uint8)
    masks[:, :, 0] = 255
    images = (masks == 1).to(torch.uint8).mul(255).unsqueeze(-1).expand(-1, -1, -1, 3)
    pixels, classes = augmented(images, masks, 1.0, (1.0, 1.0), torch.Generator().manual_seed(0))
    assert (classes == masks.flip(-1)).all()
    assert ((pixels[:, 0] > 0) == (classes == 1)).all()
    pixels, classes = augmented(images, masks, 0.0, (0.4, 0.5), torch.Generator().manual_seed(0))
    assert set(classes.unique().tolist()) == {0, 1, 255}
    outside = (pixels == 0).all(1)
    assert outside.float().mean() > 0.5
    assert (classes[outside] == 255).all()
    again = augmented(images, masks, 0.5, (0.5, 2.0), torch.Generator().manual_seed(7))
    assert (again[0] == augmented(images, masks, 0.5, (0.5, 2.0), torch.Generator().manual_seed(7))[0]).all()
