"""Rows by the name that a recipe gives: `synthetic`, a prepared folder, a file or a folder of files. Also writes prepared folders."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smatcli.data.counted import counted_rng
from smatcli.errors import UserError
from smatcli.llm.data.rows import Counts, Example, read_rows
from smatcli.llm.data.synthetic import synthetic_examples
from smatcli.safe.files import atomic_write_text

SYNTHETIC = "synthetic"
FORMAT = 1  # of a prepared folder: rows.jsonl and data.json


def read_source(name: str, part: str, per_category: int = 1) -> list[Example]:
    """Return the rows of `name`; for `synthetic`, `per_category` examples of the categories of `part` (`train` or `heldout`)."""
    if name == SYNTHETIC:
        return list(synthetic_examples(part, per_category))
    path = Path(name)
    if not path.exists():
        raise UserError(f"{path}: does not exist; give a prepared folder, a .jsonl file, a folder of task files, or `{SYNTHETIC}`")
    if (path / "data.json").is_file():
        path = path / "rows.jsonl"
    return list(read_rows(path))


def write_prepared(paths: Sequence[Path], out: Path) -> tuple[list[Example], Counts]:
    """Read rows, check them, and write them to the new folder `out`: rows.jsonl, and data.json with the counts and a hash."""
    if out.exists():
        raise UserError(f"{out} exists; choose another folder for --out")
    counts = Counts()
    examples = [example for path in paths for example in read_rows(path, counts)]
    if not examples:
        raise UserError(f"{', '.join(map(str, paths))}: no row is left ({_reasons(counts)})")
    text = "".join(json.dumps(example.record(), ensure_ascii=False) + "\n" for example in examples)
    out.mkdir(parents=True)
    atomic_write_text(out / "rows.jsonl", text)
    categories: dict[str, int] = {}
    for example in examples:
        categories[example.category] = categories.get(example.category, 0) + 1
    facts: dict[str, Any] = {
        "format": FORMAT,
        "read": counts.read,
        "kept": counts.kept,
        "dropped": dict(counts.dropped),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "categories": categories,
        "sources": [str(path) for path in paths],
    }
    atomic_write_text(out / "data.json", json.dumps(facts, indent=1))  # last: a folder without it is incomplete
    return examples, counts


def split_rows(examples: Sequence[Example], valid: int, limit: int | None, seed: int) -> tuple[list[Example], list[Example]]:
    """Return training and validation rows: at most `limit` rows drawn by the seed, with `valid` rows set aside."""
    order = counted_rng("llm-split", seed).permutation(len(examples))[:limit]
    if len(order) <= valid:
        raise UserError(f"data.valid: {valid} rows cannot be set aside from {len(order)}; lower data.valid or use more rows")
    return [examples[i] for i in order[valid:]], [examples[i] for i in order[:valid]]


def rows_hash(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of rows, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.record(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _reasons(counts: Counts) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.dropped.items()) or "there are none"
