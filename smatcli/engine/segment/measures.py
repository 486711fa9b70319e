"""The measures of a segmentation net on test images: single scale, multi-scale with mirror images, and pictures of what it says."""

from collections.abc import Callable, Sequence
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
    """Image sides of the scales: the nearest multiples of the patch size, without repetition."""
    return list(dict.fromkeys(max(patch, round(scale * size / patch) * patch) for scale in scales))


@torch.inference_mode()
def probabilities(
    net: SegmentNet, images: np.ndarray, target: tuple[int, int], device: torch.device, precision: Precision, mirror: bool
) -> Tensor:
    """Class probabilities [C, *target] of an image uint8 [S, S, 3]; with `mirror` the mean with its mirror image's."""
    pixels = normalise(torch.from_numpy(np.array(images)).unsqueeze(0).to(device))
    if mirror:
        pixels = torch.cat([pixels, pixels.flip(-1)])
    with precision.autocast():
        logits = net(pixels)
    logits = F.interpolate(logits.float(), target, mode="bilinear", align_corners=False)
    shares = logits.softmax(1)
    return (shares[0] + shares[1].flip(-1)) / 2 if mirror else shares[0]


def confusions(
    net: SegmentNet,
    found: SegmentSet,
    rows: np.ndarray,
    recipe: SegmentRecipe,
    device: torch.device,
    precision: Precision,
    step: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Confusion matrices [C, C] over the rows, `single` scale and, where scales are given, `multi`."""  # fmt: skip
    net.eval()
    several = sizes_of(recipe.eval.scales, found.size, net.patch)
    names = ["single", *(["multi"] if several else [])]
    sums = {name: torch.zeros(found.data.number, found.data.number, dtype=torch.int64) for name in names}
    for done, row in enumerate(rows.tolist()):
        truth = torch.from_numpy(np.array(found.mask_at(row, recipe.eval.size == "mask")))
        target = (truth.shape[0], truth.shape[1])
        for name in names:
            if name == "single":
                shares = probabilities(net, found.image_at(row, found.size), target, device, precision, False)
            else:
                parts = [probabilities(net, found.image_at(row, size), target, device, precision, True) for size in several]
                shares = torch.stack(parts).mean(0)
            sums[name] += confusion(truth, shares.argmax(0).cpu(), found.data.number)
        step(done + 1)
    return sums


def draw_pictures(net: SegmentNet, found: SegmentSet, rows: np.ndarray, device: torch.device, precision: Precision, path: Path) -> None:
    """A PNG with a row for each image: the image, its mask, the prediction (ignored pixels white)."""
    from PIL import Image

    net.eval()
    lines = []
    for row in rows.tolist():
        image, truth = found.image_at(row, found.size), found.mask_at(row, False)
        said = probabilities(net, image, (found.size, found.size), device, precision, False).argmax(0).cpu().numpy()
        lines.append(np.concatenate([image, _coloured(truth), _coloured(said)], 1))
    with atomic_path(path) as draft:
        Image.fromarray(np.concatenate(lines)).save(draft, format="PNG")


def _coloured(classes: np.ndarray) -> np.ndarray:
    colours = COLOURS[classes % len(COLOURS)]
    colours[classes == IGNORE] = 255
    return colours
