"""Grouping of evaluations that can be compared: same protocol, same number of episodes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smatcli import plugins
from smatcli.errors import UserError, nearest
from smatcli.report.results.frame import EvaluationResult, Frame
from smatcli.report.results.runs import Run
from smatcli.report.results.table import results_table
from smatcli.runs.statistics import Estimate, average

METHOD_LABELS = {"pretrained": "Pre-trained", "pmf": "PMF", "softmerge": "SoftMerge", "mlp_experts": "MLP experts", "smat": "SMAT"}
ADAPT_FAMILIES = {"proto": "Without fine-tuning", "flip": "Gradient-free", "exhaustive": "Gradient-free"}
GRADIENT_BASED = "Gradient-based"
DOMAINS = {"ID": "In-domain", "OOD": "Out-of-domain"}


@dataclass(frozen=True)
class Key:
    """A row of a table: a dataset, and the split of its classes that episodes were drawn from (empty if the protocol has no split)."""

    domain: str
    dataset: str
    split: str


@dataclass
class Column:
    """An evaluation within a group."""

    label: str
    evaluation: EvaluationResult
    estimates: dict[Key, Estimate]

    @property
    def family(self) -> str:
        """The block of Table 1 to which this kind of adaptation belongs."""
        return ADAPT_FAMILIES.get(self.evaluation.adapt.split("-")[0], GRADIENT_BASED)

    def average(self, keys: Sequence[Key]) -> Estimate:
        """Average over `keys`. Unknown if one is missing, because averages over different datasets cannot be compared."""
        return average([self.estimates[key] for key in keys]) if all(key in self.estimates for key in keys) else average([])


@dataclass
class ResultGroup:
    """Evaluations under one protocol: `columns` of the main table, and the points of each sweep by the sweep's folder."""

    protocol: str
    episodes: int
    columns: list[Column] = field(default_factory=list)
    sweeps: dict[Path, list[Column]] = field(default_factory=dict)

    @property
    def everything(self) -> list[Column]:
        return self.columns + [column for points in self.sweeps.values() for column in points]

    @property
    def about(self) -> str:
        """Description of the episodes for a caption."""
        return f"{self.episodes} episodes per dataset, protocol {self.protocol}"

    @property
    def brief(self) -> str:
        """Description of the episodes for a heading."""
        return f"{self.protocol}, {self.episodes} episodes"

    @property
    def tag(self) -> str:
        """Name of the group in file names, such as 5w5s10q-200."""
        return f"{self.protocol}-{self.episodes}"

    def keys(self, domain: str, columns: Sequence[Column] | None = None) -> list[Key]:
        """Return the rows of a domain, in order of appearance."""
        keys = {key: None for c in (self.columns if columns is None else columns) for key in c.estimates if key.domain == domain}
        return list(keys)

    def row_label(self, key: Key) -> str:
        """Return the dataset's name, with its split if the group has several."""
        splits = {k.split for c in self.everything for k in c.estimates if k.dataset == key.dataset}
        return f"{key.dataset} ({key.split})" if len(splits) > 1 and key.split else key.dataset


def make_groups(frame: Frame, names: Mapping[str, str]) -> list[ResultGroup]:
    """Return groups by protocol and number of episodes, the largest first. `names` maps a run's name to its column label.

    Raises `UserError` for a name that matches no run.
    """
    groups = []
    points = sweep_points(frame)
    table: Any = results_table(frame)  # pandas-stubs do not know the types of columns
    for (protocol, episodes), rows in table[table.evaluation >= 0].groupby(["protocol", "episodes"], sort=False):
        group = ResultGroup(protocol, int(episodes))
        for number, own in rows.groupby("evaluation", sort=False):
            evaluation = frame.evaluations[number]
            estimates = {Key(r.domain, r.dataset, r.split): Estimate(r.mean, r.half_width) for r in own.itertuples()}
            column = Column("", evaluation, estimates)
            sweep = evaluation.run.sweep
            if sweep is not None and evaluation.run.path in points:
                group.sweeps.setdefault(sweep, []).append(column)
            else:
                group.columns.append(column)
        groups.append(group)
    joint = [e.run for e in frame.evaluations if e.members]
    chosen = _chosen_names([*frame.runs, *joint], names)
    for group in groups:
        group.columns.sort(key=_order)
        _label(group, chosen)
    return sorted(groups, key=lambda g: (-sum(len(c.estimates) for c in g.everything), g.protocol, g.episodes))


def sweep_points(frame: Frame) -> set[Path]:
    """Return the evaluated runs of sweeps with at least two evaluated points; a single point counts as an ordinary run."""
    paths = {evaluation.run.path for evaluation in frame.evaluations if evaluation.run.sweep is not None}
    sizes = Counter(path.parent for path in paths)
    return {path for path in paths if sizes[path.parent] > 1}


def _order(column: Column) -> tuple[object, ...]:
    families, methods = [*dict.fromkeys(ADAPT_FAMILIES.values()), GRADIENT_BASED], list(METHOD_LABELS)
    method, adapt = column.evaluation.run.method, column.evaluation.adapt
    place = methods.index(method) if method in methods else len(methods)
    return families.index(column.family), place, method, column.evaluation.run.name, adapt


def _chosen_names(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, str]:
    names_of = {key: run.name for run in runs for key in (run.path.name, str(run.path), run.name)}
    chosen = {}
    for key, label in names.items():
        text = f"{key}={label}"  # names of sweep points and labels may contain "=": use the longest name that matches
        fitting = max((name for name in names_of if text.startswith(f"{name}=")), key=len, default=None)
        if fitting is None:
            raise UserError(f"--names {key}: no such run in this report{nearest(key, list(names_of))}")
        chosen[names_of[fitting]] = text[len(fitting) + 1 :]
    return chosen


def _method_label(method: str) -> str:
    """Return the heading of a method's columns, which a plugin may define."""
    if method in METHOD_LABELS or method not in plugins.names("methods"):
        return METHOD_LABELS.get(method, method)
    plugin = plugins.loaded("methods").get(method)
    return (plugin and plugin.label) or method


def _label(group: ResultGroup, chosen: Mapping[str, str]) -> None:
    """Give columns unique labels: the method (the run, if several runs share the method), and ` + adaptation` unless it is proto."""
    runs_of: dict[str, set[str]] = {}
    for column in group.columns:
        runs_of.setdefault(column.evaluation.run.method, set()).add(column.evaluation.run.name)
    for column in group.columns:
        run, adapt = column.evaluation.run, column.evaluation.adapt
        alone = _method_label(run.method) if len(runs_of[run.method]) == 1 else ""
        column.label = chosen.get(run.name) or alone or run.name
        column.label += "" if adapt == "proto" else f" + {adapt}"
    for points in group.sweeps.values():
        for column in points:
            run, adapt = column.evaluation.run, column.evaluation.adapt
            column.label = (chosen.get(run.name) or run.path.name) + ("" if adapt == "proto" else f" + {adapt}")
    for columns in (group.columns, *group.sweeps.values()):
        labels = [c.label for c in columns]
        for column in columns:
            if labels.count(column.label) > 1:
                column.label += f" ({column.evaluation.run.name}, {column.evaluation.folder.name})"
