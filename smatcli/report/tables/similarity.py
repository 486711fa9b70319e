"""Table of the similarity of experts in tuned runs, from the analyses `similarity`."""

import math
from collections.abc import Sequence

import numpy as np

from smatcli.errors import UserError
from smatcli.report.results.tuning_runs import Tuned
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.runs.analysis import FOLDER, read_analysis

DIGITS = 3
COLUMNS = ("cosine", "|cosine|", "|cosine| of b", "|cosine| of a")


def similarity_tables(tuned: Sequence[Tuned]) -> list[Table]:
    """Return a table with one row per tuner: for each dataset, the mean cosine and |cosine| over all pairs of experts of a layer.

    The last two columns are the |cosine| of the experts' factors. Empty without an analysis `similarity`.
    """
    by_row: dict[tuple[str, str], list[np.ndarray]] = {}
    for result in tuned:
        path = result.run.path / FOLDER / "similarity.h5"
        try:
            arrays = read_analysis(path).groups["all"] if path.is_file() else None
            values = None if arrays is None else np.concatenate([arrays["model"], arrays["factors"]])
        except (UserError, KeyError):
            continue  # read_analyses has reported it
        if values is not None and np.shape(values) == (4,) and np.isfinite(values).all():
            by_row.setdefault((result.label, result.dataset), []).append(np.asarray(values, np.float64))
    if not by_row:
        return []
    labels = list(dict.fromkeys(r.label for r in tuned if any(label == r.label for label, _ in by_row)))
    datasets = sorted({dataset for _, dataset in by_row})
    rows = [Row(label, [cell for d in datasets for cell in _cells(by_row.get((label, d), []))]) for label in labels]
    named = len(datasets) > 1
    heads = [f"{d}: {what}" if named else what for d in datasets for what in COLUMNS]
    counts = sorted({len(values) for values in by_row.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' if counts[0] > 1 else ''}"
    caption = (
        "Mean cosine and mean |cosine| between the weight changes of two experts of a layer (LoRA: of its rank-one parts), over all pairs "
        "in all layers, and |cosine| between their factors alone (change = b a); "
        f"mean{' ± standard deviation' if counts[0] > 1 else ''} of {seeds}. 0: the experts are orthogonal."
    )
    return [Table("tuning-similarity", "Similarity of experts", caption, "Tuner", heads, [Block("", rows)])]


def _cells(values: Sequence[np.ndarray]) -> list[Cell]:
    if not values:
        return [Cell(text="")] * len(COLUMNS)
    every = np.stack(values)
    spread = every.std(0, ddof=1) if len(every) > 1 else np.full(len(COLUMNS), math.nan)
    return [
        Cell(text=f"{m + 0.0:.{DIGITS}f}" + (f" ± {s:.{DIGITS}f}" if math.isfinite(s) else ""))
        for m, s in zip(every.mean(0), spread, strict=True)
    ]
