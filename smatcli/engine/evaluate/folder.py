"""The folder of one evaluation, `eval/<adapt>-<protocol>/`: what it was made with, the episodes done so far, and its results.

settings.json  search.json (learning rates that were searched)  parts/<dataset>-<from>-<to>.h5 (while unfinished)  results.h5  summary.csv
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.data.episodes.lists import list_hash
from smatcli.errors import SmatError, UserError
from smatcli.runs.rates import GIVEN, Choice, read_choices, write_choices
from smatcli.runs.results import Records, SummaryRow, as_records, interval, joined, read_records, write_records, write_summary
from smatcli.safe.files import atomic_write_text, clear_drafts, lock
from smatcli.safe.text import read_json

FORMAT = 1


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two nested dictionaries differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [prefix]
    absent = object()
    keys = sorted(old.keys() | new.keys())
    return [d for k in keys for d in differences(old.get(k, absent), new.get(k, absent), f"{prefix}.{k}" if prefix else k)]


class EvalFolder:
    """Episodes of one adaptation under one protocol. `settings` must be equal for everything in it; `datasets` maps names to facts."""

    def __init__(self, path: Path, settings: Mapping[str, Any], datasets: Mapping[str, Mapping[str, Any]]):
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **settings}))
        self.datasets: dict[str, dict[str, Any]] = {name: dict(facts) for name, facts in datasets.items()}
        self.kept: dict[str, list[Records]] = {}
        self.choices: dict[str, Choice] = {}
        self._completed = False

    @property
    def results(self) -> Path:
        return self.path / "results.h5"

    @property
    def summary(self) -> Path:
        return self.path / "summary.csv"

    def check(self) -> None:
        """UserError, naming what differs, when the folder's episodes were made with other settings; writes nothing."""
        known = self._known()
        if known is None:
            return
        self.choices = read_choices(self.path)
        changed = differences(known["settings"], self.settings)
        shared = known["datasets"].keys() & self.datasets.keys()
        changed += [f"dataset {n} ({d})" for n in sorted(shared) for d in differences(known["datasets"][n], self.datasets[n])]
        if changed:
            raise UserError(
                f"{self.path} holds episodes made with other settings ({', '.join(changed)}); move that folder away to evaluate again"
            )
        self.datasets = {**known["datasets"], **self.datasets}

    def _known(self) -> dict[str, Any] | None:
        file = self.path / "settings.json"
        if not file.exists():
            if self.results.exists():
                raise UserError(f"{self.path} has results but no settings.json to compare with; move that folder away to evaluate again")
            return None
        try:
            known = read_json(file)
            return {"settings": dict(known["settings"]), "datasets": dict(known["datasets"])}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged; move its folder away to evaluate again") from None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make or continue the folder, locked against a second process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            for folder in (self.path, self.path / "parts"):
                clear_drafts(folder)
            self.check()
            body = {"settings": self.settings, "datasets": self.datasets}
            atomic_write_text(self.path / "settings.json", json.dumps(body, indent=1))
            self.read()
            yield

    def read(self) -> None:
        """Take what is on disk: the results, and the parts that this or another process of the run has stored."""
        self.kept = {name: [records] for name, records in read_records(self.results).items()} if self.results.exists() else {}
        for part in self._parts():
            for name, records in read_records(part).items():
                self.kept.setdefault(name, []).append(records)

    def complete(self, dataset: str, digest: Callable[[int], np.uint64]) -> None:
        """Give records of before there was a column `plan` the hashes of their episodes."""
        for records in self.kept.get(dataset, []):
            if "plan" not in records:
                records["plan"] = np.array([digest(int(i)) for i in records["index"]], np.uint64)
                self._completed = True

    def choose(self, dataset: str, choice: Choice, write: bool = True) -> None:
        """Keep the learning rate of a dataset."""
        self.choices[dataset] = choice
        if write:
            write_choices(self.path, self.choices)

    def rate(self, dataset: str) -> dict[str, Any]:
        """`lr` of the dataset and on what it was chosen (`search`); empty where the adaptation has none."""
        if dataset in self.choices:
            return {"lr": self.choices[dataset].rate, "search": self.choices[dataset].label}
        lr = self.settings.get("adapt", {}).get("lr")
        return {} if lr is None else {"lr": float(lr), "search": GIVEN}

    def done(self, dataset: str) -> set[int]:
        """Indices of the episodes that are on disk."""
        return {int(i) for records in self.kept.get(dataset, []) for i in records["index"]}

    def add(self, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store some episodes as a part."""
        if rows:
            records = as_records(rows)
            first, last = int(records["index"].min()), int(records["index"].max())
            parts = self.path / "parts"
            parts.mkdir(exist_ok=True)
            write_records(parts / f"{dataset}-{first:06d}-{last:06d}.h5", {dataset: records}, {}, {})
            self.kept.setdefault(dataset, []).append(records)

    def merge(self, row: Mapping[str, Any], top: Mapping[str, Any]) -> None:
        """Join everything into results.h5 and summary.csv, then remove the parts.

        `row` holds the summary's constant columns, `top` the attributes of results.h5.
        """
        groups = {name: joined(self.kept[name]) for name in self.datasets if name in self.kept}
        hashes = {n: list_hash(n, self.datasets[n]["content"], r["plan"]) if "plan" in r else "" for n, r in groups.items()}
        if self._parts() or self._completed or not self.results.exists():
            attributes = {name: {**self.datasets[name], "list_hash": hashes[name], **self.rate(name)} for name in groups}
            write_records(self.results, groups, attributes, {**top, "settings": json.dumps(self.settings)})
        rows = []
        for name, records in groups.items():
            mean, half_width = interval(records["accuracy"])
            facts = self.datasets[name]
            known = {"dataset": name, "domain": facts["domain"], "protocol": facts["protocol"], "mean": mean, "half_width": half_width}
            seconds = round(float(records["seconds"].sum()), 3)
            rows.append(
                SummaryRow(**known, episodes=len(records["index"]), seconds=seconds, list_hash=hashes[name], **self.rate(name), **row)
            )
        write_summary(self.summary, sorted(rows, key=lambda r: r.domain))
        for part in self._parts():
            part.unlink()
        if (self.path / "parts").is_dir():
            (self.path / "parts").rmdir()
        self.kept = {name: [records] for name, records in groups.items()}

    def _parts(self) -> list[Path]:
        return sorted(p for p in (self.path / "parts").glob("*.h5") if not p.name.startswith("."))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """An exclusive lock on a folder; SmatError when another process has it. File systems without locks are taken as they are."""
    with ExitStack() as stack:
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)
        try:
            lock(handle)
        except BlockingIOError:
            raise SmatError(f"{folder} is being written by another smat eval; wait for it to end") from None
        yield
