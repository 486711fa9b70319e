"""Results as a pandas DataFrame: one row per run, adaptation and dataset."""

import glob
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smatcli.errors import UserError
from smatcli.report.results.frame import EvaluationResult, Frame, read
from smatcli.report.results.runs import Run, shortest_names

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "kind", "run", "path", "method", "adapt", "dataset", "domain", "split", "protocol", "episodes", "metric", "mean", "half_width", "seed",
    "tau", "experts", "backbone", "image_size", "lr", "search", "list_hash", "seconds",
)  # fmt: skip
_SPLIT = re.compile(r"-(train|valid|test|all)$")
INTEGERS = ("episodes", "seed", "experts", "image_size")


def results(runs: str | Path | Sequence[str | Path]) -> "pd.DataFrame":
    """Implement `smatcli.results`, which documents the columns."""
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    frame = read([path for each in given for path in _expanded(each)])
    if frame.skipped:
        warnings.warn(f"{frame.skipped} results skipped; see .attrs['lines']", stacklevel=3)
    names = shortest_names([run.path for run in _runs(frame)])
    table = results_table(frame, {run.path: name for run, name in zip(_runs(frame), names, strict=True)})
    table.attrs["lines"] = frame.lines
    return table.drop(columns="evaluation")


def results_table(frame: Frame, names: dict[Path, str] | None = None) -> "pd.DataFrame":
    """Return the rows of a frame. The column `evaluation` is the index of an evaluation in the frame, -1 for other kinds of runs."""
    import pandas as pd

    table = pd.DataFrame(list(_rows(frame, names or {})), columns=[*COLUMNS, "evaluation"])
    numbers = dict.fromkeys(("mean", "half_width", "tau", "lr", "seconds"), "float64")
    return table.astype(numbers | dict.fromkeys(INTEGERS, "Int64") | {"evaluation": "int64"})


def _expanded(path: str | Path) -> list[Path]:
    if Path(path).exists() or not glob.has_magic(str(path)):
        return [Path(path)]
    paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_dir()]
    if not paths:
        raise UserError(f"{path}: matches no folder; give run directories, or folders of them (runs/*)")
    return paths


def _runs(frame: Frame) -> list[Run]:
    evaluated = {evaluation.run.path: evaluation.run for evaluation in frame.evaluations}
    return [*evaluated.values(), *(item.run for item in frame.tuned), *(item.run for item in frame.segmented)]


def _rows(frame: Frame, names: dict[Path, str]) -> Iterator[dict[str, Any]]:
    def about(run: Run, kind: str) -> dict[str, Any]:
        facts = {"kind": kind, "run": names.get(run.path, run.name), "path": str(run.path), "method": run.method, "seed": run.seed}
        return facts | {"backbone": run.backbone, "image_size": run.image_size, "tau": run.tau, "experts": run.experts}

    for number, evaluation in enumerate(frame.evaluations):
        shared = about(evaluation.run, "train") | {"adapt": evaluation.adapt, "evaluation": number}
        yield from (shared | row for row in _evaluation_rows(evaluation))
    blank = {
        "adapt": "",
        "domain": "",
        "split": "",
        "protocol": "",
        "search": "",
        "list_hash": "",
        "half_width": math.nan,
        "evaluation": -1,
    }
    for tuned in frame.tuned:
        own = {"method": tuned.tuner, "dataset": tuned.dataset, "metric": tuned.metric, "mean": tuned.score, "seed": tuned.seed}
        yield about(tuned.run, "tune") | blank | own
    for segmented in frame.segmented:
        own = {"method": segmented.tuner, "dataset": segmented.dataset, "metric": "miou", "seed": segmented.seed}
        for scale in segmented.folds[0]:
            ious = [measures[scale]["miou"] for measures in segmented.folds.values() if scale in measures]
            yield about(segmented.run, "segment") | blank | own | {"adapt": scale, "mean": math.fsum(ious) / len(ious)}


def _evaluation_rows(evaluation: EvaluationResult) -> Iterator[dict[str, Any]]:
    image_size = evaluation.settings.get("image_size") or evaluation.run.image_size
    for result in evaluation.results:
        protocol, split = split_protocol(result.protocol)
        estimate = {"metric": "accuracy", "mean": result.estimate.mean, "half_width": result.estimate.half_width}
        drawn = {"dataset": result.dataset, "domain": result.domain, "split": split, "protocol": protocol, "episodes": result.episodes}
        chosen = {"lr": result.lr, "search": result.search, "list_hash": result.list_hash, "seconds": result.seconds}
        yield {**drawn, **estimate, **chosen, "image_size": image_size}


def split_protocol(tag: str) -> tuple[str, str]:
    """Split `5w5s10q-test` into (`5w5s10q`, `test`): ID and OOD datasets may use different splits of one protocol."""
    match = _SPLIT.search(tag)
    return (tag[: match.start()], match.group(1)) if match else (tag, "")
