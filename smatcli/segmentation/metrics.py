"""Segmentation metrics from one confusion matrix over the pixels of all test images."""

import torch
from torch import Tensor

from smatcli.runs.segmentation import Measures
from smatcli.runs.segmentation import measures as measures_of_counts
from smatcli.segmentation.masks import IGNORE


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count pixels, int64 [C, C]: row = true class, column = predicted class; pixels with truth 255 do not count."""
    counted = truth != IGNORE
    codes = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(codes, minlength=classes * classes).view(classes, classes)


def measures(matrix: Tensor) -> Measures:
    """Compute the measures of a confusion matrix [C, C]."""
    return measures_of_counts(matrix.cpu().numpy())
