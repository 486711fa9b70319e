"""State of each known dataset: whether there is a store, and whether it is right."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smatcli.data.catalogue.datasets import KnownDataset, find_dataset
from smatcli.data.catalogue.expected import compare, identify
from smatcli.data.stores.opening import all_stores
from smatcli.data.stores.store import Store
from smatcli.errors import UserError

State = Literal["present", "wrong", "missing"]


@dataclass(frozen=True)
class Finding:
    """State of one known dataset. `path` and `store` are those of the best store; `problems` are the reasons why it is wrong."""

    dataset: KnownDataset
    state: State
    path: Path | None = None
    store: Store | None = None
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def diagnose(root: str | Path, datasets: tuple[KnownDataset, ...]) -> list[Finding]:
    """Return a finding for each of `datasets`, in their order. Images are not read, and a missing folder is not an error."""
    findings: dict[str, list[Finding]] = {}
    for path in all_stores(root) if Path(root).exists() else []:
        finding = _finding(path, datasets)
        if finding:
            findings.setdefault(finding.dataset.name, []).append(finding)
    return [min(findings.get(dataset.name, [Finding(dataset, "missing")]), key=_badness) for dataset in datasets]


def _finding(path: Path, datasets: tuple[KnownDataset, ...]) -> Finding | None:
    try:
        store = Store.open(path)
        dataset = identify(store)
        if dataset is None or dataset not in datasets:
            return None
        comparison = compare(store, dataset)
    except UserError as error:
        namesake = find_dataset(path.stem, datasets)
        return Finding(namesake, "wrong", path, None, (str(error).removeprefix(f"{path}: "),)) if namesake else None
    problems = tuple(comparison.mismatches)
    return Finding(dataset, "wrong" if problems else "present", path, store, problems, comparison.remarks)


def _badness(finding: Finding) -> tuple[bool, bool, int]:
    return finding.state != "present", finding.store is None, len(finding.problems)
