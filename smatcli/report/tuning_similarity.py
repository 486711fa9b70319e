"""The table of how alike experts are (MLAE, Figs. 4 and 5), from the analyses `similarity` of tuned runs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from smatcli.engine.analyze_file import FOLDER, read_analysis
from smatcli.errors import UserError
from smatcli.report.tables import Block, Cell, Row, Table

if TYPE_CHECKING:
    from smatcli.report.tuning_runs import Tuned

DIGITS = 3
COLUMNS = ("cosine", "|cosine|", "|cosine| of b", "|cosine| of a")


def similarity_table(tuned: Sequence["Tuned"]) -> Table | None:
    """A row a tuner, for each dataset the mean cosine and |cosine| of all pairs within the layers, and |cosine| of their factors.

    None without an analysis.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for one in tuned:
        path = one.run.path / FOLDER / "similarity.h5"
        try:
            arrays = read_analysis(path).groups["all"] if path.is_file() else None
            values = None if arrays is None else np.concatenate([arrays["model"], arrays["factors"]])
        except (UserError, KeyError):
            continue  # the figures' reader names it
        if values is not None and np.shape(values) == (4,) and np.isfinite(values).all():
            found.setdefault((one.label, one.dataset), []).append(np.asarray(values, np.float64))
    if not found:
        return None
    labels = list(dict.fromkeys(one.label for one in tuned if any(label == one.label for label, _ in found)))
    datasets = sorted({dataset for _, dataset in found})
    rows = [Row(label, [cell for d in datasets for cell in _cells(found.get((label, d), []))]) for label in labels]
    named = len(datasets) > 1
    heads = [f"{d}: {what}" if named else what for d in datasets for what in COLUMNS]
    counts = sorted({len(values) for values in found.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seed{'s' if counts[0] > 1 else ''}"
    caption = (
        "Mean cosine, and mean |cosine|, of the weight changes of two experts of a layer (LoRA: of its rank-one parts) over all pairs of "
        "all layers, and |cosine| of their factors alone (change = b a); "
        f"mean{' ± standard deviation' if counts[0] > 1 else ''} of {seeds}. 0: the experts are orthogonal."
    )
    return Table("tuning-similarity", "Similarity of experts", caption, "Tuner", heads, [Block("", rows)])


def _cells(values: Sequence[np.ndarray]) -> list[Cell]:
    if not values:
        return [Cell(text="")] * len(COLUMNS)
    every = np.stack(values)
    spread = every.std(0, ddof=1) if len(every) > 1 else np.full(len(COLUMNS), math.nan)
    return [
        Cell(text=f"{m + 0.0:.{DIGITS}f}" + (f" ± {s:.{DIGITS}f}" if math.isfinite(s) else ""))
        for m, s in zip(every.mean(0), spread, strict=True)
    ]
