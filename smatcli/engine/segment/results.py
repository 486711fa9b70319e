"""Results of a segmentation run: RUN/segment/fold<k>.json (confusion matrices) and summary.csv (measures per fold, means)."""

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.runs.reporter import Reporter
from smatcli.runs.segmentation import FOLDER, FORMAT, MEASURES, fold_file, read_fold_file
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import write_csv
from smatcli.segmentation.metrics import measures


def write_fold(run: Path, fold: int, matrices: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write the confusion matrices (`single`, `multi`) of a fold. A fold with this file is finished."""
    body = {"format": FORMAT, "fold": fold, **facts, "confusion": {name: matrix.tolist() for name, matrix in matrices.items()}}
    atomic_write_text(fold_file(run, fold), json.dumps(body))


def read_fold(run: Path, fold: int) -> dict[str, Any]:
    """Return the results of a finished fold. Raises UserError if the file is damaged."""
    path = fold_file(run, fold)
    try:
        facts, matrices = read_fold_file(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it and continue with --resume") from None
    return {**facts, "confusion": {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}}


def write_summary(run: Path, folds: list[dict[str, Any]], reporter: Reporter) -> None:
    """Write summary.csv (a row per fold and scale, then mean and standard deviation over folds), and print the means of each scale."""
    classes = len(folds[0]["confusion"]["single"])
    lines: list[list[Any]] = [["fold", "scales", *MEASURES, *(f"iou_{c}" for c in range(classes))]]
    for name in folds[0]["confusion"]:
        rows = [measures(fold["confusion"][name]) for fold in folds]
        values = [[getattr(row, key) for key in MEASURES] + row.ious for row in rows]
        lines += [[fold["fold"], name, *map(_text, value)] for fold, value in zip(folds, values, strict=True)]
        means = [_mean(column) for column in zip(*values, strict=True)]
        lines.append(["mean", name, *map(_text, means)])
        if len(folds) > 1:
            lines.append(["deviation", name, *(_text(_deviation(column)) for column in zip(*values, strict=True))])
        spread = f" +- {100 * _deviation([row.miou for row in rows]):.2f} over {len(rows)} folds" if len(rows) > 1 else ""
        reporter.line(f"{name} scale: mIoU {100 * means[0]:.2f}{spread}, Dice {100 * means[1]:.2f}, pixel accuracy {100 * means[2]:.2f} %")
    atomic_write_text(run / FOLDER / "summary.csv", write_csv([[str(cell) for cell in line] for line in lines]))


def _numbers(values: Any) -> list[float]:
    return [v for v in values if v == v]


def _mean(values: Any) -> float:
    numbers = _numbers(values)
    return statistics.fmean(numbers) if numbers else float("nan")


def _deviation(values: Any) -> float:
    numbers = _numbers(values)
    return statistics.stdev(numbers) if len(numbers) > 1 else float("nan")


def _text(value: float) -> str:
    return "" if value != value else f"{value:.6f}"
