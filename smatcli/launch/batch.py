"""A batch: points that are launched together, and their outcomes."""

from dataclasses import dataclass, field
from pathlib import Path

from smatcli.launch.points import Point
from smatcli.launch.state import job_files
from smatcli.launch.table import write_table
from smatcli.runs.reporter import Reporter


@dataclass
class Batch:
    """Points in a common folder; by name, the error line of the failed ones and the Slurm job of the submitted ones."""

    folder: Path
    points: list[Point]
    rows: list[dict[str, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    submitted: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        """The CSV file of the results."""
        raise NotImplementedError

    def read_results(self) -> list[dict[str, str]]:
        """Return the rows of all points that have results."""
        raise NotImplementedError

    def collect(self) -> None:
        """Read the results so far and write the table, if it has a row."""
        self.rows = self.read_results()
        if self.rows:
            write_table(self.table, self.rows)

    def fail(self, point: Point, line: str, reporter: Reporter) -> None:
        """Record the failure of a point."""
        self.failed[point.name] = line
        job_files(self.folder, point.name).note_state("failed", line)
        reporter.line(f"{point.name} failed: {line}")
