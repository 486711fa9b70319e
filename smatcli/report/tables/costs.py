"""Costs of methods: parameters and bytes, seconds per task, and memory and energy if they were recorded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.report.results.groups import Column, ResultGroup
from smatcli.report.results.runs import Run, number
from smatcli.report.tables.table import Block, Cell, Row, Table
from smatcli.safe.tensors import UnsafeWeights, safetensors_header

VALUE, POSITION = 4, 4  # bytes of a float32 value and an int32 position in compressed experts


@dataclass(frozen=True)
class Size:
    """Sizes of a run's best checkpoint.

    `backbone`: parameters P; `dense`: all stored values; `experts`: M * P mask entries; `nonzero`: non-zero entries, by the logged
    sparsity; `disk`: bytes of the file.
    """

    backbone: int
    dense: int
    disk: int
    experts: int | None = None
    nonzero: int | None = None

    @property
    def compressed(self) -> int | None:
        """Bytes of the masks in exports and when merging: values and positions, or all values if more than half are non-zero."""
        if self.nonzero is None or self.experts is None:
            return None
        return min(self.nonzero * (VALUE + POSITION), self.experts * VALUE)


def size_of(run: Run) -> Size | None:
    """Read the sizes of a run from the header of its checkpoint, without reading weights; None without a checkpoint."""
    for which in ("best", "last"):
        path = run.path / "checkpoints" / which / "model.safetensors"
        shapes = tensor_shapes(path)
        if shapes:
            counts = {name: math.prod(shape) for name, shape in shapes.items()}
            masks = shapes.get("log_alpha")
            experts = counts["log_alpha"] if masks and len(masks) == 2 else None
            sparsity = run.sparsity if experts else None
            nonzero = None if sparsity is None or experts is None else round((1 - sparsity) * experts)
            return Size(counts.get("theta_pre", 0), sum(counts.values()), path.stat().st_size, experts, nonzero)
    return None


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the names and shapes in a safetensors file; empty if it cannot be read."""
    try:
        return {name: list(tensor["shape"]) for name, tensor in safetensors_header(path).items()}  # type: ignore[call-overload]
    except (OSError, UnsafeWeights):
        return {}


def parameter_table(group: ResultGroup) -> Table | None:
    """Parameter counts of the runs in a group; None without any checkpoint."""
    rows = []
    for column in _first_columns(group.columns):
        members = column.evaluation.members
        size = size_of(members[0].run if members else column.evaluation.run)
        if size is not None:
            counts = [size.backbone, size.dense, size.experts, size.nonzero, size.compressed, size.disk]
            rows.append(Row(column.label.partition(" + ")[0], [Cell(text="" if n is None else f"{n:,}") for n in counts]))
    if not rows:
        return None
    caption = (
        "Parameters of the evaluated checkpoints. Dense: all stored values, including the frozen backbone. Mask entries: the number of "
        "experts times the parameters of the backbone; non-zero: by the sparsity logged at validation (inference gate). Compressed: "
        f"bytes of the non-zero entries as float32 value and int32 position ({VALUE + POSITION} bytes each); one dense difference is "
        "stored in addition."
    )
    heads = ["Backbone", "Dense", "Mask entries", "Non-zero", "Compressed (bytes)", "On disk (bytes)"]
    return Table(f"parameters-{group.tag}", f"Parameter counts ({group.brief})", caption, "Method", heads, [Block("", rows)])


def _first_columns(columns: Sequence[Column]) -> list[Column]:
    """Return one column per run, its first."""
    return list({c.evaluation.run.path: c for c in reversed(columns)}.values())[::-1]


# Optional per-episode records of costs: head, factor, digits, reduction over episodes.
_RECORDED: dict[str, tuple[str, float, int, Callable[[np.ndarray], Any]]] = {
    "passes": ("Passes / task", 1.0, 1, np.mean),
    "peak_memory": ("Peak memory (GiB)", 2.0**-30, 2, np.max),
    "energy": ("Energy / task (J)", 1.0, 1, np.mean),
}


def cost_table(group: ResultGroup) -> Table:
    """Seconds per task and per training update, with passes, peak memory and energy if they were recorded."""
    table: list[tuple[str, list[str]]] = []
    for column in group.columns:
        results = [r for r in column.evaluation.results if any(k.dataset == r.dataset for k in column.estimates)]
        seconds = sum(r.seconds for r in results) / sum(r.episodes for r in results)
        members = column.evaluation.members or [column.evaluation]
        recorded = [m.extra(*_RECORDED) for m in members]
        texts = ["" if math.isnan(seconds) else f"{seconds:.3g}"]
        for key, (_, factor, digits, join) in _RECORDED.items():
            parts = [own[key][np.isfinite(own[key])] for own in recorded if key in own]
            parts = [part for part in parts if len(part)]
            texts.append(f"{factor * float(join(np.concatenate(parts))):.{digits}f}" if parts else "")
        updates = [_update_seconds(m.run) for m in members]
        measured = [s for s in updates if s is not None]
        table.append((column.label, [*texts, f"{sum(measured) / len(measured):.3g}" if measured else ""]))
    heads = ["Seconds / task", *(head for head, *_ in _RECORDED.values()), "Training: seconds / update"]
    shown = [i for i in range(len(heads)) if any(texts[i] for _, texts in table)]
    rows = [Row(label, [Cell(text=texts[i]) for i in shown]) for label, texts in table]
    caption = (
        f"Cost, {group.about}. Seconds: wall time on the machine of the run, which may have been shared; the time of a task includes "
        "computing its parameters, adaptation and prediction. Training: up to the last validation, including validations."
    )
    return Table(f"cost-{group.tag}", f"Cost ({group.brief})", caption, "Method", [heads[i] for i in shown], [Block("", rows)])


def _update_seconds(run: Run) -> float | None:
    last = next((r for r in reversed(run.valid) if r["step"] > 0), None)
    seconds = number(last.get("time")) if last else None
    return seconds / last["step"] if last and seconds else None
