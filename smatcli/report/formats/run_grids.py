"""Tables of text about the runs of a report: environments, differences between recipes, evaluation protocols."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smatcli.report.results.frame import EvaluationResult, Frame
from smatcli.report.results.runs import Run
from smatcli.safe.text import read_object
from smatcli.safe.tree import MISSING, differing_values


@dataclass(frozen=True)
class Grid:
    """A plain table of text."""

    heads: list[str]
    rows: list[list[str]]


def environment(runs: Sequence[tuple[str, Run]]) -> Grid:
    """Status, device, precision, versions, times and command of each run, from `run.json`; cells are empty if it cannot be read."""
    heads = ["run", "folder", "status", "device", "precision", "versions", "started", "finished", "command"]
    rows = []
    for label, run in runs:
        info = read_object(run.path / "run.json") or {}
        versions = info.get("versions")
        shown = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
        command = info.get("command")
        line = " ".join(map(str, command)) if isinstance(command, list) else ""
        plain = [str(info.get(key, "")) for key in ("status", "device", "precision")]
        rows.append([label, str(run.path), *plain, shown, str(info.get("started", "")), str(info.get("finished", "")), line])
    return Grid(heads, rows)


def differences(runs: Sequence[tuple[str, Run]]) -> Grid:
    """Recipe keys whose values differ between runs: one row per key, one column per run."""
    values = differing_values([run.recipe for _, run in runs])
    rows = [[key, *(_text(value) for value in of_runs)] for key, of_runs in values.items()]
    return Grid(["key", *(label for label, _ in runs)], rows)


def _text(value: Any) -> str:
    return "" if value is MISSING else value if isinstance(value, str) else json.dumps(value, default=str)


def protocols(frame: Frame) -> Grid:
    """The protocol of each evaluation: episodes and the hash of their list, seed, image size, precision, adaptation, search, weights."""
    heads = ["run", "adaptation", "datasets", "protocol", "episodes", "list hash", "seed", "image size", "precision", "search", "weights"]
    return Grid(heads, [_protocol(e) for evaluation in frame.evaluations for e in evaluation.members or [evaluation]])


def _protocol(evaluation: EvaluationResult) -> list[str]:
    settings, results = evaluation.settings, evaluation.results
    hashes = "; ".join(dict.fromkeys(f"{r.dataset} {r.list_hash[:12]}" for r in results if r.list_hash))
    return [
        evaluation.run.name,
        evaluation.adapt,
        ", ".join(r.dataset for r in results),
        ", ".join(dict.fromkeys(r.protocol for r in results)),
        ", ".join(dict.fromkeys(str(r.episodes) for r in results)),
        hashes,
        *(str(settings.get(key, "")) for key in ("seed", "image_size", "precision")),
        ", ".join(dict.fromkeys(f"{r.search} (rate {r.lr:g})" if r.lr is not None else r.search for r in results if r.search)),
        str(settings.get("weights", ""))[:12],
    ]
