"""The folder of an evaluation, `eval/<adapt>-<protocol>/`: its settings, the finished episodes, and the results.

settings.json  search.json (learning rates that were searched)  parts/<dataset>-<from>-<to>.h5 (while unfinished)  results.h5  summary.csv
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from smatcli.data.episodes.lists import list_hash
from smatcli.errors import SmatError, UserError
from smatcli.runs.rates import GIVEN, Choice, read_choices, write_choices
from smatcli.runs.results import (
    RESULTS,
    SUMMARY,
    Records,
    as_records,
    joined,
    read_records,
    read_results,
    write_records,
    write_results,
    write_summary,
)
from smatcli.safe.files import atomic_write_text, clear_drafts, lock
from smatcli.safe.text import read_json
from smatcli.safe.tree import differing_keys

FORMAT = 1


class EvalFolder:
    """Episodes of one adaptation under one protocol, with equal `settings`; `datasets` maps names to facts."""

    def __init__(self, path: Path, settings: Mapping[str, Any], datasets: Mapping[str, Mapping[str, Any]]):
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **settings}))
        self.datasets: dict[str, dict[str, Any]] = {name: dict(facts) for name, facts in datasets.items()}
        self.kept: dict[str, list[Records]] = {}
        self.choices: dict[str, Choice] = {}

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    @property
    def summary(self) -> Path:
        return self.path / SUMMARY

    def check(self) -> None:
        """Raise UserError, naming the differences, if the folder's episodes have other settings. Nothing is written."""
        earlier = self._earlier()
        if earlier is None:
            return
        self.choices = read_choices(self.path)
        changed = differing_keys(earlier["settings"], self.settings)
        shared = earlier["datasets"].keys() & self.datasets.keys()
        changed += [f"dataset {n} ({d})" for n in sorted(shared) for d in differing_keys(earlier["datasets"][n], self.datasets[n])]
        if changed:
            raise UserError(
                f"{self.path} contains episodes with other settings ({', '.join(changed)}); move that folder away to evaluate again"
            )
        self.datasets = {**earlier["datasets"], **self.datasets}

    def _earlier(self) -> dict[str, Any] | None:
        file = self.path / "settings.json"
        if not file.exists():
            if self.results.exists():
                raise UserError(f"{self.path} has results but no settings.json to compare with; move that folder away to evaluate again")
            return None
        try:
            body = read_json(file)
            return {"settings": dict(body["settings"]), "datasets": dict(body["datasets"])}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file} is damaged; move its folder away to evaluate again") from None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Create or reopen the folder, and lock it against other processes within the context."""
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
        """Read the episodes on disk, from the results and from the parts that processes of the run have stored."""
        self.kept = {}
        for file in [*([self.results] if self.results.exists() else []), *self._parts()]:
            for name, records in read_records(file).items():
                if "plan" not in records:
                    raise UserError(f"{file}: has no hashes of its episodes; move its folder away and evaluate again")
                self.kept.setdefault(name, []).append(records)

    def choose(self, dataset: str, choice: Choice, write: bool = True) -> None:
        """Store the learning rate of a dataset."""
        self.choices[dataset] = choice
        if write:
            write_choices(self.path, self.choices)

    def rate(self, dataset: str) -> dict[str, Any]:
        """Return the dataset's `lr` and the data that it was chosen on (`search`); empty if the adaptation has no rate."""
        if dataset in self.choices:
            return {"lr": self.choices[dataset].rate, "search": self.choices[dataset].label}
        lr = self.settings.get("adapt", {}).get("lr")
        return {} if lr is None else {"lr": float(lr), "search": GIVEN}

    def done(self, dataset: str) -> set[int]:
        """Return the indices of the episodes on disk."""
        return {int(i) for records in self.kept.get(dataset, []) for i in records["index"]}

    def add(self, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store the records of some episodes as a part."""
        if rows:
            records = as_records(rows)
            first, last = int(records["index"].min()), int(records["index"].max())
            parts = self.path / "parts"
            parts.mkdir(exist_ok=True)
            write_records(parts / f"{dataset}-{first:06d}-{last:06d}.h5", {dataset: records}, {}, {})
            self.kept.setdefault(dataset, []).append(records)

    def merge(self, facts: Mapping[str, Any]) -> None:
        """Join results and parts into results.h5, export summary.csv, then remove the parts.

        `facts` are the run's name, method, adaptation, tau and number of experts.
        """
        names = sorted((name for name in self.datasets if name in self.kept), key=lambda name: str(self.datasets[name]["domain"]))
        groups = {name: joined(self.kept[name]) for name in names}
        if self._parts() or not self._is_current():
            attributes = {
                name: {**self.datasets[name], "list_hash": self._list_hash(name, records), **self.rate(name)}
                for name, records in groups.items()
            }
            write_results(self.results, groups, attributes, facts, self.settings)
        write_summary(self.summary, read_results(self.results).rows)
        for part in self._parts():
            part.unlink()
        if (self.path / "parts").is_dir():
            (self.path / "parts").rmdir()
        self.kept = {name: [records] for name, records in groups.items()}

    def _list_hash(self, dataset: str, records: Records) -> str:
        return list_hash(dataset, self.datasets[dataset]["content"], records["plan"])

    def _is_current(self) -> bool:
        try:
            read_results(self.results)
        except UserError:
            return False
        return True

    def _parts(self) -> list[Path]:
        return sorted(p for p in (self.path / "parts").glob("*.h5") if not p.name.startswith("."))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder. Raises SmatError if another process has the lock. On file systems without locks, continue without a lock."""
    with ExitStack() as stack:
        handle = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, handle)
        try:
            lock(handle)
        except BlockingIOError:
            raise SmatError(f"{folder} is being written by another smat eval; wait for it to end") from None
        yield
