"""The table of a sweep, from the summaries that the evaluations of its points wrote."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from smatcli.adaptation import variant
from smatcli.config.schema import TrainRecipe
from smatcli.launch.grid import Point
from smatcli.runs.results import average, read_summary
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import parse_json, read_json

# Of the names that methods log, the one that says most about what runs at test time.
SPARSITY = ("sparsity_inference", "sparsity", "sparsity_expected")


def read_rows(point: Point) -> list[dict[str, str]]:
    """One row per adaptation and protocol that the point was evaluated with, over the recipe's datasets; empty if it was not yet.

    Means over datasets and their half-widths are shares in [0, 1].
    """
    recipe = point.loaded.recipe
    assert isinstance(recipe, TrainRecipe)
    adapts = [variant(name, recipe.adapt) for name in recipe.eval.adapt]
    sparsity = measured_sparsity(point.run)
    rows = []
    for summary in sorted(point.run.glob("eval/*/summary.csv")):
        found = [r for r in read_summary(summary) if r.adapt in adapts and r.dataset in (*recipe.data.id, *recipe.data.ood)]
        if not found:
            continue
        protocol = "+".join(sorted({r.protocol.rsplit("-", 1)[0] for r in found}))
        row = {"point": point.name, **point.values, "method": found[0].method, "adapt": found[0].adapt, "protocol": protocol}
        for domain in ("ID", "OOD"):
            mean, half = average([(r.mean, r.half_width) for r in found if r.domain == domain])
            row |= {f"{domain.lower()}_mean": _text(mean), f"{domain.lower()}_half_width": _text(half)}
        rows.append({**row, "episodes": str(min(r.episodes for r in found)), "sparsity": _text(sparsity), "run": str(point.run)})
    return sorted(rows, key=lambda row: adapts.index(row["adapt"]))


def measured_sparsity(run: Path) -> float | None:
    """Share of zeros in the experts at the checkpoint that is evaluated (best, else last); None where the log has none."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [record for record in map(parse_json, lines) if record["kind"] == "valid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        best = read_json(run / "checkpoints/best/state.json")["state"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        best = None
    used = next((r for r in records if r["step"] == best), records[-1] if records else {})
    return next((float(used[key]) for key in SPARSITY if used.get(key) is not None), None)


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the rows as CSV, whole or not at all; columns in the order of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text.getvalue())


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
