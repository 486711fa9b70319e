"""Tables of segmentation runs: a row a tuner; mIoU single and multi-scale, Dice and pixel accuracy over folds and seeds."""

import math
from collections.abc import Sequence

from smatcli.report.results.segment_runs import SCALES, Segmented
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.report.tables.tuning_pairs import Trial, pairs_table
from smatcli.runs.statistics import UNKNOWN, Estimate

COLUMNS = {
    ("single", "miou"): "mIoU, single scale",
    ("multi", "miou"): "mIoU, multi-scale",
    ("single", "dice"): "Dice",
    ("single", "accuracy"): "Pixel accuracy",
}


def segment_tables(found: Sequence[Segmented], baselines: Sequence[str] = (), digits: int = 1) -> list[Table]:
    """A table of each set and way of splitting it, and the paired differences of its rows where there are several."""
    groups: dict[str, list[Segmented]] = {}
    for one in found:
        groups.setdefault(one.conditions, []).append(one)
    tables = []
    for own in groups.values():
        tables.append(_table(own, digits))
        for column in SCALES:
            tables += [pairs] if (pairs := _pairs(own, column, baselines, digits)) else []
    return tables


def _table(own: Sequence[Segmented], digits: int) -> Table:
    labels = list(dict.fromkeys(one.label for one in own))
    members = {label: [one for one in own if one.label == label] for label in labels}
    columns = [c for c in COLUMNS if any(c[0] in scales for one in own for scales in one.folds.values())]
    values = {(label, c): _spread(_values(members[label], c)) for label in labels for c in columns}
    best = {c: max((values[label, c].mean for label in labels if values[label, c].known), default=math.nan) for c in columns}
    rows = []
    for label in labels:
        counts = members[label][0].parameters
        cells = [Cell(text=_millions(sum(v for k, v in counts.items() if k != "head"))), Cell(text=_millions(counts.get("head", 0)))]
        cells += [Cell(e, e.mean == best[c] and len(labels) > 1) for c in columns for e in [values[label, c]]]
        rows.append(Row(label, cells))
    first, dataset = own[0], own[0].dataset
    folds, seeds = len(first.folds), sorted({len(found) for found in members.values()})
    over = [f"{folds} folds"] if folds > 1 else []
    over += [f"{'-'.join(map(str, seeds))} seeds"] if seeds[-1] > 1 else []
    spread = f" ± standard deviation over {' and '.join(over)}" if over else ""
    caption = f"Segmentation of {dataset} (%){spread}, {_tested(own)}. From one confusion matrix over the pixels of all test images"
    caption += (" of a fold" if folds > 1 else "") + ", means over the classes that occur. "
    caption += "Bold: the highest mean (no test). Parameters in millions, trained: of the tuner, and of the SETR-PUP head."
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
    labels = {one.label for one in own}
    trials = [
        Trial(one.label, one.tuner, one.dataset, (one.seed, fold), scales[scale]["miou"], one.images)
        for one in own
        for fold, scales in one.folds.items()
        if scale in scales
    ]
    first, wanted = own[0], [name for name in baselines if name in labels]
    what, stem, titles = f"{scale}-scale mIoU", _stem(f"segmentation-pairs-{scale}", first), {first.dataset: first.dataset}
    folds = "Pairs are folds; these share training images, so that their differences are not independent: the intervals are too narrow."
    notes = [folds] if len(first.folds) > 1 else []
    return pairs_table(stem, f"Paired differences, {what}: {_heading(first)}", what, trials, wanted, titles, "", digits, notes)


def _values(members: Sequence[Segmented], column: tuple[str, str]) -> list[float]:
    scale, measure = column
    return [scales[scale][measure] for one in members for scales in one.folds.values() if scale in scales]


def _spread(values: Sequence[float]) -> Estimate:
    """Mean and standard deviation (n - 1)."""
    if not values:
        return UNKNOWN
    mean = math.fsum(values) / len(values)
    return Estimate(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan)


def _millions(count: int) -> str:
    return f"{count / 1e6:.3f}"


def _heading(one: Segmented) -> str:
    return f"{one.dataset}, {len(one.folds)}-fold cross-validation" if len(one.folds) > 1 else one.dataset


def _stem(kind: str, one: Segmented) -> str:
    return f"{kind}-{one.dataset}" + (f"-{len(one.folds)}folds" if len(one.folds) > 1 else "")


def _tested(own: Sequence[Segmented]) -> str:
    counts = sorted({one.images for one in own})
    return f"{' to '.join(map(str, counts[:: len(counts) - 1] if len(counts) > 1 else counts))} test images"


def _notes(own: Sequence[Segmented]) -> list[str]:
    notes = []
    if len({one.seed for one in own}) > 1:
        notes.append("A set without a published split is split by the seed: the spread over seeds is also one over splits.")
    if str(own[0].run.recipe.get("data", {}).get("layout")) == "synthetic":
        notes.append("Drawn images (discs, squares, triangles), no benchmark.")
    return notes
