"""Of each known dataset: is there a store, is it right, and if not, how to get it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smatcli.data.catalogue.expected import Comparison, compare, identify
from smatcli.data.catalogue.known import Known
from smatcli.data.catalogue.suites import by_name
from smatcli.data.stores.opening import all_stores
from smatcli.data.stores.store import Store
from smatcli.errors import UserError

State = Literal["present", "wrong", "missing"]


@dataclass(frozen=True)
class Finding:
    """One known dataset. `path` and `store` are those of the best store found; `problems` says why it is wrong."""

    known: Known
    state: State
    path: Path | None = None
    store: Store | None = None
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def diagnose(root: str | Path, datasets: tuple[Known, ...]) -> list[Finding]:
    """A finding for each of `datasets`, in their order; stores are opened, their images not read. A missing folder is no error."""
    found: dict[str, list[Finding]] = {}
    for path in all_stores(root) if Path(root).exists() else []:
        finding = _finding(path, datasets)
        if finding:
            found.setdefault(finding.known.name, []).append(finding)
    return [min(found.get(known.name, [Finding(known, "missing")]), key=_badness) for known in datasets]


def _finding(path: Path, datasets: tuple[Known, ...]) -> Finding | None:
    try:
        store = Store.open(path)
        known = identify(store)
        if known is None or known not in datasets:
            return None
        comparison = compare(store, known)
    except UserError as error:
        named = by_name(path.stem, datasets)
        return Finding(named, "wrong", path, None, (str(error).removeprefix(f"{path}: "),)) if named else None
    return _judged(known, path, store, comparison)


def _judged(known: Known, path: Path, store: Store, comparison: Comparison) -> Finding:
    problems = tuple(comparison.mismatches)
    return Finding(known, "wrong" if problems else "present", path, store, problems, comparison.remarks)


def _badness(finding: Finding) -> tuple[bool, bool, int]:
    return finding.state != "present", finding.store is None, len(finding.problems)
