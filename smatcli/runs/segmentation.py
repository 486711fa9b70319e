"""The results of a segmentation run on disk: confusion matrices in RUN/segment/fold<k>.json, the source of truth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.safe.text import read_json

FORMAT = 1  # version of the layout of fold<k>.json
FOLDER = "segment"
MEASURES = ("miou", "dice", "accuracy")


@dataclass(frozen=True)
class Measures:
    """Measures of a segmentation, as fractions; `ious` [C] is NaN for classes that occur neither in the truth nor in the prediction."""

    miou: float
    accuracy: float
    dice: float
    ious: list[float]


def measures(matrix: np.ndarray) -> Measures:
    """Compute the measures of a confusion matrix [C, C], in pixels; rows are true classes.

    IoU_c = TP / (TP + FP + FN) and Dice_c = 2 TP / (2 TP + FP + FN), averaged over the classes that occur; accuracy is over all pixels.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = true + predicted - hits
    occurs = union > 0
    if not occurs.any():
        return Measures(float("nan"), float("nan"), float("nan"), [float("nan")] * len(matrix))
    ious = np.where(occurs, hits / np.maximum(union, 1), np.nan)
    dices = 2 * hits[occurs] / (true + predicted)[occurs]
    return Measures(float(ious[occurs].mean()), float(hits.sum() / matrix.sum()), float(dices.mean()), ious.tolist())


def fold_file(run: Path, fold: int) -> Path:
    """Return the file of a fold's results."""
    return run / FOLDER / f"fold{fold}.json"


def read_fold_file(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the facts in a fold<k>.json and its confusion matrices int64 [C, C] by scale (`single`, `multi`).

    Raises OSError or ValueError if the file is missing, damaged or of a later version.
    """
    body = read_json(path)
    if not isinstance(body, dict) or not isinstance(body.get("confusion"), dict):
        raise ValueError("has no confusion matrices")
    if body.get("format") != FORMAT:
        raise ValueError(f"has format {body.get('format')}, this smat reads {FORMAT}")
    matrices = {str(name): _matrix(rows) for name, rows in body.pop("confusion").items()}
    if len({len(matrix) for matrix in matrices.values()}) != 1:
        raise ValueError("its confusion matrices have different numbers of classes")
    return body, matrices


def _matrix(rows: object) -> np.ndarray:
    try:
        matrix = np.array(rows, np.int64)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a confusion matrix has invalid entries ({error})") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or (matrix < 0).any():
        raise ValueError("a confusion matrix is not a square of pixel counts")
    return matrix
