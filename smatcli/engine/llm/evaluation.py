"""`smat llm eval`: likelihood of the right answers and, if asked for, generated answers, by task and category.

Writes RUN/eval/NAME/: results.json (the source of truth), tasks.csv (exported from it) and answers.jsonl.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smatcli.data.counted import counted_rng
from smatcli.engine.llm.generation import generate
from smatcli.engine.llm.loading import LanguageRun, load_language_run, open_language_run
from smatcli.errors import UserError
from smatcli.llm.data.batches import TokenSet, rows_of, tokenise
from smatcli.llm.data.rows import Example
from smatcli.llm.data.sources import SYNTHETIC, read_source, rows_hash
from smatcli.llm.features import PromptFeatures
from smatcli.llm.loss import answer_nll
from smatcli.llm.metrics import exact_match, require_rouge, rouge_l
from smatcli.runs.reporter import Reporter
from smatcli.runs.results import LANGUAGE_RESULTS
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import write_csv

FORMAT = 1  # of results.json
METRICS = ("nll", "exact", "rouge")
RESAMPLES = 10_000


@dataclass(frozen=True)
class LlmEvalOptions:
    """`data`: rows instead of data.heldout; `examples`, `generate`, `device`: instead of the recipe's values."""

    data: str | None = None
    examples: int | None = None
    generate: bool | None = None
    which: str = "best"
    device: str | None = None


@dataclass(frozen=True)
class LlmEvaluation:
    """The results of a run: `body` is results.json, `folder` where it was written."""

    folder: Path
    body: dict[str, Any]

    def means(self, metric: str) -> dict[str, float]:
        """Return the values of the tasks."""
        return {task["task"]: task[metric] for task in self.body["tasks"] if task.get(metric) is not None}


def evaluate(path: str, options: LlmEvalOptions, reporter: Reporter) -> LlmEvaluation:
    """Measure a run on held-out rows and write RUN/eval/NAME; NAME is `heldout`, or the name of the rows that `options` give.

    Raises UserError for a run without rows to measure on, and if ROUGE-L is wanted but cannot be computed.
    """
    recipe: Any = open_language_run(path).recipe
    source = options.data or recipe.data.heldout
    if source is None:
        raise UserError(f"{path}: its recipe has no data.heldout; give rows with --data")
    generates = recipe.eval.generate if options.generate is None else options.generate
    if generates:
        require_rouge()
    limit = options.examples or recipe.eval.examples
    examples = limited(read_source(source, "heldout", limit), limit)
    run = load_language_run(path, options.which, options.device, reporter)
    data = tokenise(examples, run.renderer, run.base.longest or recipe.data.context, recipe.data.too_long)
    for reason, count in data.dropped.items():
        reporter.line(f"{path}: {count} rows dropped ({reason})")
    nlls = measure_nll(run, data)
    answers = None
    if generates:
        reporter.start(len(data), "generating", unit="answers")
        try:
            answers = generate(run, data.examples, recipe.eval.tokens, recipe.eval.batch, progress=reporter.update)
        finally:
            reporter.finish()
    body = {
        "format": FORMAT,
        "checkpoint": run.checkpoint,
        "step": run.step,
        "method": recipe.method.name,
        "rows": source,
        "rows_sha256": rows_hash(data.examples),
        "settings": {"examples": limit, "tokens": recipe.eval.tokens if generates else None, "precision": run.precision.name},
        "tasks": (tasks := by_task(data, nlls, answers)),
        "categories": (categories := averages(tasks, "category")),
        "macro": {metric: _mean([category[metric] for category in categories]) for metric in METRICS},
    }
    folder = run.path / "eval" / ("heldout" if options.data is None else Path(source).stem or SYNTHETIC)
    write(folder, body, data.examples, answers)
    return LlmEvaluation(folder, body)


def limited(examples: Sequence[Example], most: int) -> list[Example]:
    """Return the first `most` examples of each task, in their order."""
    seen: dict[str, int] = {}
    chosen = []
    for example in examples:
        seen[example.task] = seen.get(example.task, 0) + 1
        if seen[example.task] <= most:
            chosen.append(example)
    return chosen


@torch.no_grad()
def measure_nll(run: LanguageRun, data: TokenSet) -> list[tuple[float, int]]:
    """Return the summed negative log-likelihood and the number of the answer tokens of each example."""
    features = PromptFeatures(run.method, data, run.base.pad, run.device, run.precision)
    row_size = max(run.recipe.train.row, max(len(tokens.ids) for tokens in data.tokens))
    sums = [(0.0, 0)] * len(data)
    for row in rows_of(data, range(len(data)), row_size, packed=False, pad=run.base.pad):
        own = features.of(row.examples)
        with run.precision.autocast():
            scores = None if own is None else run.method.condition(own)
            logits = run.method.logits(row.ids.to(run.device), scores, row.pieces, **row.inputs(run.device))
        for place, example in enumerate(row.examples):
            total, count = answer_nll(logits[place : place + 1], row.labels[place : place + 1].to(run.device))
            sums[example] = (float(total), count)
    return sums


def by_task(data: TokenSet, nlls: Sequence[tuple[float, int]], answers: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return a record per task: its category, examples and answer tokens, NLL per answer token, exact match and ROUGE-L (shares)."""
    tasks: dict[tuple[str, str], list[int]] = {}
    for i, example in enumerate(data.examples):
        tasks.setdefault((example.category, example.task or example.category or "all"), []).append(i)
    records = []
    for (category, task), chosen in tasks.items():
        tokens = sum(nlls[i][1] for i in chosen)
        record: dict[str, Any] = {"task": task, "category": category, "examples": len(chosen), "tokens": tokens}
        record["nll"] = sum(nlls[i][0] for i in chosen) / tokens
        for name, score in (("exact", exact_match), ("rouge", rouge_l)):
            texts = [] if answers is None else [(answers[i], accepted(data.examples[i])) for i in chosen]
            record[name] = _mean([score(answer, references) for answer, references in texts])
        records.append(record)
    return records


def accepted(example: Example) -> tuple[str, ...]:
    """Return the accepted answers of an example."""
    return example.references or (example.answer,)


def averages(tasks: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return a record per category: the unweighted means of its tasks."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        groups.setdefault(task[key], []).append(task)
    return [
        {key: name, "tasks": len(members), **{metric: _mean([member[metric] for member in members]) for metric in METRICS}}
        for name, members in groups.items()
    ]


def compare(first: LlmEvaluation, second: LlmEvaluation, metric: str) -> dict[str, float]:
    """Return the difference first - second of the means over tasks, with a 95 % interval: a paired bootstrap over tasks.

    Raises UserError if the two were measured on different rows.
    """
    if first.body["rows_sha256"] != second.body["rows_sha256"]:
        raise UserError(f"{first.folder} and {second.folder} were measured on different rows; use the same --data and --examples")
    one, two = first.means(metric), second.means(metric)
    differences = np.array([one[task] - two[task] for task in one])
    rng = counted_rng("llm-bootstrap", metric)
    drawn = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"difference": float(differences.mean()), "low": float(low), "high": float(high), "tasks": float(len(differences))}


def write(folder: Path, body: dict[str, Any], examples: Sequence[Example], answers: Sequence[str] | None) -> None:
    """Write results.json, tasks.csv and, with generated answers, answers.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("task", "category", "examples", "tokens", *METRICS)
    lines = [list(columns)] + [[_cell(task[column]) for column in columns] for task in body["tasks"]]
    atomic_write_text(folder / "tasks.csv", write_csv(lines))
    if answers is not None:
        records = [
            {"task": e.task, "prompt": e.messages[-2].content, "answer": a, "references": list(accepted(e))}
            for e, a in zip(examples, answers, strict=True)
        ]
        atomic_write_text(folder / "answers.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    atomic_write_text(folder / LANGUAGE_RESULTS, json.dumps(body, indent=1))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
