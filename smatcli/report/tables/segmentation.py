"""Tables of segmentation runs, one row per tuner: mIoU (single- and multi-scale), Dice and pixel accuracy over folds and seeds."""

import math
from collections.abc import Sequence

from smatcli.report.results.segment_runs import SCALES, Segmented
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.report.tables.tuning_pairs import PairedComparison, Trial, differences_table, mean_and_deviation

COLUMNS = {
    ("single", "miou"): "mIoU, single scale",
    ("multi", "miou"): "mIoU, multi-scale",
    ("single", "dice"): "Dice",
    ("single", "accuracy"): "Pixel accuracy",
}


def segment_tables(segmented: Sequence[Segmented], baselines: Sequence[str] = (), digits: int = 1) -> list[Table]:
    """Return a table for each dataset and split, with the paired differences of its rows if there are several."""
    groups: dict[str, list[Segmented]] = {}
    for result in segmented:
        groups.setdefault(result.conditions, []).append(result)
    tables = []
    for own in groups.values():
        tables.append(_table(own, digits))
        for column in SCALES:
            tables += [pairs] if (pairs := _pairs(own, column, baselines, digits)) else []
    return tables


def _table(own: Sequence[Segmented], digits: int) -> Table:
    labels = list(dict.fromkeys(result.label for result in own))
    members = {label: [result for result in own if result.label == label] for label in labels}
    columns = [c for c in COLUMNS if any(c[0] in scales for result in own for scales in result.folds.values())]
    values = {(label, c): mean_and_deviation(_values(members[label], c)) for label in labels for c in columns}
    best = {c: max((values[label, c].mean for label in labels if values[label, c].known), default=math.nan) for c in columns}
    rows = []
    for label in labels:
        counts = members[label][0].parameters
        cells = [Cell(text=_millions(sum(v for k, v in counts.items() if k != "head"))), Cell(text=_millions(counts.get("head", 0)))]
        cells += [Cell(e, e.mean == best[c] and len(labels) > 1) for c in columns for e in [values[label, c]]]
        rows.append(Row(label, cells))
    first, dataset = own[0], own[0].dataset
    folds, seeds = len(first.folds), sorted({len(results) for results in members.values()})
    over = [f"{folds} folds"] if folds > 1 else []
    over += [f"{'-'.join(map(str, seeds))} seeds"] if seeds[-1] > 1 else []
    spread = f" ± standard deviation over {' and '.join(over)}" if over else ""
    caption = f"Segmentation of {dataset} (%){spread}, {_tested(own)}. From one confusion matrix over the pixels of all test images"
    caption += (" of a fold" if folds > 1 else "") + ", as means over the classes that occur. "
    caption += "Bold: the highest mean (not tested). Trained parameters in millions, of the tuner and of the SETR-PUP head."
    heads = ["Tuner (M)", "Head (M)", *(COLUMNS[c] for c in columns)]
    return Table(
        _stem("segmentation", first),
        f"Segmentation: {_heading(first)}",
        caption,
        "Tuner",
        heads,
        [Block("", rows)],
        [],
        digits,
        _notes(own),
        spread="deviation",
    )


def _pairs(own: Sequence[Segmented], scale: str, baselines: Sequence[str], digits: int) -> Table | None:
    labels = {result.label for result in own}
    trials = [
        Trial(result.label, result.tuner, result.dataset, (result.seed, fold), scales[scale]["miou"], result.images)
        for result in own
        for fold, scales in result.folds.items()
        if scale in scales
    ]
    first, base = own[0], [name for name in baselines if name in labels]
    what, stem, titles = f"{scale}-scale mIoU", _stem(f"segmentation-pairs-{scale}", first), {first.dataset: first.dataset}
    folds = "Pairs are folds, which share training images: their differences are not independent, and the intervals are too narrow."
    notes = [folds] if len(first.folds) > 1 else []
    comparison = PairedComparison(stem, f"Paired differences, {what}: {_heading(first)}", what, titles, notes=notes)
    return differences_table(comparison, trials, base, digits)


def _values(members: Sequence[Segmented], column: tuple[str, str]) -> list[float]:
    scale, measure = column
    return [scales[scale][measure] for result in members for scales in result.folds.values() if scale in scales]


def _millions(count: int) -> str:
    return f"{count / 1e6:.3f}"


def _heading(result: Segmented) -> str:
    return f"{result.dataset}, {len(result.folds)}-fold cross-validation" if len(result.folds) > 1 else result.dataset


def _stem(kind: str, result: Segmented) -> str:
    return f"{kind}-{result.dataset}" + (f"-{len(result.folds)}folds" if len(result.folds) > 1 else "")


def _tested(own: Sequence[Segmented]) -> str:
    counts = sorted({result.images for result in own})
    return f"{' to '.join(map(str, counts[:: len(counts) - 1] if len(counts) > 1 else counts))} test images"


def _notes(own: Sequence[Segmented]) -> list[str]:
    notes = []
    if len({result.seed for result in own}) > 1:
        notes.append("A dataset without a published split is split by the seed; the deviation over seeds includes this split.")
    if str(own[0].run.recipe.get("data", {}).get("layout")) == "synthetic":
        notes.append("Synthetic images (discs, squares, triangles), not a benchmark.")
    return notes
