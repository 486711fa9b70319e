"""Measures of segmentation, all from one confusion matrix over the pixels of all test images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smatcli.segmentation.masks import IGNORE


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Pixels int64 [C, C]: row = true class, column = predicted class; pixels whose truth is 255 do not count."""
    counted = truth != IGNORE
    codes = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(codes, minlength=classes * classes).view(classes, classes)


@dataclass(frozen=True)
class Measures:
    """Shares in [0, 1]; `ious` [C] has NaN for classes that occur neither in truth nor in prediction."""

    miou: float
    accuracy: float
    dice: float
    ious: list[float]


def measures(matrix: Tensor) -> Measures:
    """IoU_c = TP / (TP + FP + FN), Dice_c = 2 TP / (2 TP + FP + FN), means over the classes that occur; accuracy over all pixels."""
    matrix = matrix.double()
    hit, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = true + said - hit
    there = union > 0
    if not there.any():
        return Measures(float("nan"), float("nan"), float("nan"), [float("nan")] * len(matrix))
    ious = torch.where(there, hit / union.clamp(min=1), torch.full_like(hit, float("nan")))
    dices = 2 * hit[there] / (true + said)[there]
    return Measures(float(ious[there].mean()), float(hit.sum() / matrix.sum()), float(dices.mean()), ious.tolist())
