"""Make the table of a sweep from the evaluations of its points."""

import math
from collections.abc import Sequence
from pathlib import Path

from smatcli.adaptation import variant
from smatcli.config.schema import TrainRecipe
from smatcli.launch.points import Point
from smatcli.runs.results import read_results, result_files
from smatcli.runs.statistics import Estimate, average
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import parse_json, read_json, write_csv

# Names under which methods log the sparsity; the most relevant for a meta-test comes first.
SPARSITY = ("sparsity_inference", "sparsity", "sparsity_expected")


def read_rows(point: Point) -> list[dict[str, str]]:
    """Return a row per adaptation and protocol with which the point was evaluated on the datasets of its recipe.

    Means over datasets and their half-widths are fractions in [0, 1].
    """
    recipe = point.loaded.recipe
    assert isinstance(recipe, TrainRecipe)
    adapts = [variant(name, recipe.adapt) for name in recipe.eval.adapt]
    sparsity = measured_sparsity(point.run)
    rows = []
    for file in result_files(point.run):
        results = [r for r in read_results(file).rows if r.adapt in adapts and r.dataset in (*recipe.data.id, *recipe.data.ood)]
        if not results:
            continue
        protocol = "+".join(sorted({r.protocol.rsplit("-", 1)[0] for r in results}))
        row = {"point": point.name, **point.values, "method": results[0].method, "adapt": results[0].adapt, "protocol": protocol}
        for domain in ("ID", "OOD"):
            mean = average([Estimate(r.mean, r.half_width) for r in results if r.domain == domain])
            row |= {f"{domain.lower()}_mean": _text(mean.mean), f"{domain.lower()}_half_width": _text(mean.half_width)}
        rows.append({**row, "episodes": str(min(r.episodes for r in results)), "sparsity": _text(sparsity), "run": str(point.run)})
    return sorted(rows, key=lambda row: adapts.index(row["adapt"]))


def measured_sparsity(run: Path) -> float | None:
    """Return the share of zeros in the experts at the evaluated checkpoint (best, else last); None if it was not logged."""
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
    """Write the rows atomically as CSV, with the columns of the first row."""
    columns = list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, write_csv([columns, *([row.get(column, "") for column in columns] for row in rows)]))


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
