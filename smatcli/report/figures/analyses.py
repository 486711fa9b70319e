"""Analyses of the runs in a report: `RUN/analysis/*.h5`, as `smat analyze` left them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.errors import UserError
from smatcli.report.results.groups import METHOD_LABELS
from smatcli.report.results.runs import Run
from smatcli.runs.analysis import FOLDER, Analysis, read_analysis


@dataclass(frozen=True)
class Found:
    """One analysis of a run; `label` is the run's, with the adaptation where there is one."""

    label: str
    run: Run
    analysis: Analysis

    @property
    def protocol(self) -> str:
        """How its episodes were drawn, without the split; empty for analyses without."""
        tags = [str(a["protocol"]) for a in self.analysis.attributes.values() if "protocol" in a]
        return tags[0].rsplit("-", 1)[0] if tags else ""

    def domain(self, dataset: str) -> str:
        """ID or OOD."""
        return str(self.analysis.attributes.get(dataset, {}).get("domain", "ID"))


def read_analyses(runs: Sequence[tuple[str, Run]], lines: list[str]) -> list[Found]:
    """All analyses of labelled runs, by method and then with no adaptation first; what cannot be read is skipped, and named in `lines`."""
    found, methods = [], list(METHOD_LABELS)
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
            found.append(Found(label if adapt == "proto" else f"{label} + {adapt}", run, analysis))
    return sorted(found, key=lambda f: (position[f.run.path], str(f.analysis.facts.get("adapt", "proto")) != "proto"))


def sets(found: Sequence[Found], points: set[Path]) -> Iterator[tuple[str, str, list[Found]]]:
    """(ending of a file's stem, of a heading, analyses): those of ordinary runs together, those of each sweep's `points` together."""
    ordinary = [f for f in found if f.run.path not in points]
    if ordinary:
        yield "", "", ordinary
    sweeps = dict.fromkeys(f.run.path.parent for f in found if f.run.path in points)
    for sweep in sweeps:
        yield f"-{sweep.name}", f": {sweep.name}", [f for f in found if f.run.path in points and f.run.path.parent == sweep]
