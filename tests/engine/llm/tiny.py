"""Tiny runs of `smat llm train` for tests: a Llama of a few thousand parameters on rows of two tasks."""

import json
from pathlib import Path
from typing import Any

from smatcli.config import load_recipe
from smatcli.engine.llm.training import train
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter

RECIPE = """
kind: llm
run: ROOT/run
device: cpu
threads: 1
precision: fp32
model: {hidden: 16, layers: 2, heads: 2}
data: {train: ROOT/train.jsonl, heldout: ROOT/heldout.jsonl, valid: 4, context: 40}
method: {name: METHOD}
train: {steps: 4, batch: 6, row: 80, valid_every: 2, checkpoint_every: 2, groups: {delta: {lr: 0.02}}}
eval: {examples: 3, tokens: 4, batch: 2}
"""
METHODS = ("simoe", "full", "lora", "upcycle", "softmerge")


def rows(count: int, task: str) -> list[dict[str, Any]]:
    return [{"prompt": f"{task} {n}", "answer": str(n * 7 % 13), "task": f"{task}{n % 2}", "category": task} for n in range(count)]


def write_rows(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def recipe_of(root: Path, method: str = "simoe") -> Path:
    write_rows(root / "train.jsonl", *rows(12, "mul"), *rows(12, "red"))
    write_rows(root / "heldout.jsonl", *rows(6, "add"), *rows(6, "sub"))
    path = root / "recipe.yaml"
    path.write_text(RECIPE.replace("ROOT", str(root)).replace("METHOD", method), encoding="utf-8")
    return path


def run(root: Path, method: str = "simoe", *overrides: str, reporter: Reporter | None = None, resume: bool = False) -> RunDir:
    loaded = load_recipe(recipe_of(root, method), [f"run={root / method}", *overrides], kind="llm")
    return train(loaded, reporter or SilentReporter(), resume)
