"""Test of a segmentation net: confusion matrices at a single scale and at several (with mirror images), and pictures of predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.config.segment import SegmentRecipe
from smatcli.data.augment import normalise
from smatcli.device import Precision
from smatcli.safe.files import atomic_path
from smatcli.segmentation.data import SegmentSet
from smatcli.segmentation.masks import IGNORE
from smatcli.segmentation.metrics import confusion
from smatcli.segmentation.net import SegmentNet

COLOURS = np.array([(30, 30, 30), (230, 97, 64), (76, 155, 232), (120, 200, 110), (240, 200, 70), (170, 110, 220)], np.uint8)


def sizes_of(scales: Sequence[float], size: int, patch: int) -> list[int]:
    """Return the image sides of the scales: the nearest multiples of the patch size, without duplicates."""
    return list(dict.fromkeys(max(patch, round(scale * size / patch) * patch) for scale in scales))


@dataclass(frozen=True)
class Tested:
    """A net to test, the test images, and its device and precision."""

    net: SegmentNet
    images: SegmentSet
    device: torch.device
    precision: Precision

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray, target: tuple[int, int], mirror: bool = False) -> Tensor:
        """Return class probabilities [C, *target] of an image uint8 [S, S, 3]; `mirror` averages them with those of its mirror image."""
        pixels = normalise(torch.from_numpy(np.array(image)).unsqueeze(0).to(self.device))
        if mirror:
            pixels = torch.cat([pixels, pixels.flip(-1)])
        with self.precision.autocast():
            logits = self.net(pixels)
        logits = F.interpolate(logits.float(), target, mode="bilinear", align_corners=False)
        shares = logits.softmax(1)
        return (shares[0] + shares[1].flip(-1)) / 2 if mirror else shares[0]


def confusions(tested: Tested, rows: np.ndarray, recipe: SegmentRecipe, progress: Callable[[int], None] | None = None) -> dict[str, Tensor]:
    """Return confusion matrices [C, C] over the rows: `single` scale and, if the recipe sets scales, `multi`.

    `progress` is called with the number of images done.
    """
    net, images = tested.net.eval(), tested.images
    scales = sizes_of(recipe.eval.scales, images.size, net.patch)
    names = ["single", *(["multi"] if scales else [])]
    sums = {name: torch.zeros(images.data.number, images.data.number, dtype=torch.int64) for name in names}
    for done, row in enumerate(rows.tolist(), 1):
        truth = torch.from_numpy(np.array(images.mask_at(row, recipe.eval.size == "mask")))
        target = (truth.shape[0], truth.shape[1])
        for name in names:
            if name == "single":
                shares = tested.probabilities(images.image_at(row, images.size), target)
            else:
                shares = torch.stack([tested.probabilities(images.image_at(row, size), target, mirror=True) for size in scales]).mean(0)
            sums[name] += confusion(truth, shares.argmax(0).cpu(), images.data.number)
        if progress is not None:
            progress(done)
    return sums


def draw_pictures(tested: Tested, rows: np.ndarray, path: Path) -> None:
    """Write a PNG with a row per image: the image, its mask, the prediction (ignored pixels are white)."""
    from PIL import Image

    tested.net.eval()
    images, strips = tested.images, []
    for row in rows.tolist():
        image, truth = images.image_at(row, images.size), images.mask_at(row, whole=False)
        predicted = tested.probabilities(image, (images.size, images.size)).argmax(0).cpu().numpy()
        strips.append(np.concatenate([image, _coloured(truth), _coloured(predicted)], 1))
    with atomic_path(path) as draft:
        Image.fromarray(np.concatenate(strips)).save(draft, format="PNG")


def _coloured(classes: np.ndarray) -> np.ndarray:
    colours: np.ndarray = COLOURS[classes % len(COLOURS)]
    colours[classes == IGNORE] = 255
    return colours
