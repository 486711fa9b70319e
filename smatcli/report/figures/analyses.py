"""Analyses of the runs in a report: `RUN/analysis/*.h5`, written by `smat analyze`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.errors import UserError
from smatcli.report.results.groups import METHOD_LABELS
from smatcli.report.results.runs import Run
from smatcli.runs.analysis import FOLDER, Analysis, read_analysis


@dataclass(frozen=True)
class RunAnalysis:
    """An analysis with its run; `label` is the run's label, with the adaptation if there is one."""

    label: str
    run: Run
    analysis: Analysis

    @property
    def protocol(self) -> str:
        """The protocol of its episodes, without the split; empty for an analysis without episodes."""
        tags = [str(a["protocol"]) for a in self.analysis.attributes.values() if "protocol" in a]
        return tags[0].rsplit("-", 1)[0] if tags else ""

    def domain(self, dataset: str) -> str:
        """Return the domain of a dataset, ID or OOD."""
        return str(self.analysis.attributes.get(dataset, {}).get("domain", "ID"))


def read_analyses(runs: Sequence[tuple[str, Run]], lines: list[str]) -> list[RunAnalysis]:
    """Read all analyses of labelled runs, sorted by method, with those without fine-tuning first; add a line for each unreadable file."""
    analyses, methods = [], list(METHOD_LABELS)
    position: dict[Path, int] = {}
    for label, run in sorted(runs, key=lambda pair: methods.index(pair[1].method) if pair[1].method in methods else len(methods)):
        for path in sorted((run.path / FOLDER).glob("*.h5")):
            try:
                analysis = read_analysis(path)
            except UserError as error:
                lines.append(f"skipped: {error}")
                continue
            adapt = str(analysis.facts.get("adapt", "proto"))
            position.setdefault(run.path, len(position))
            analyses.append(RunAnalysis(label if adapt == "proto" else f"{label} + {adapt}", run, analysis))
    return sorted(analyses, key=lambda a: (position[a.run.path], str(a.analysis.facts.get("adapt", "proto")) != "proto"))


def sets(analyses: Sequence[RunAnalysis], points: set[Path]) -> Iterator[tuple[str, str, list[RunAnalysis]]]:
    """Yield (suffix of file stems, suffix of headings, analyses): first for ordinary runs, then for the `points` of each sweep."""
    ordinary = [a for a in analyses if a.run.path not in points]
    if ordinary:
        yield "", "", ordinary
    sweeps = dict.fromkeys(a.run.path.parent for a in analyses if a.run.path in points)
    for sweep in sweeps:
        yield f"-{sweep.name}", f": {sweep.name}", [a for a in analyses if a.run.path in points and a.run.path.parent == sweep]
