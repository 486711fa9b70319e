"""A batch of points that are launched together, and their outcomes."""

from dataclasses import dataclass, field
from pathlib import Path

from smatcli.launch.points import Point
from smatcli.launch.state import job_files
from smatcli.launch.table import write_table
from smatcli.runs.reporter import Reporter


@dataclass
class Batch:
    """Points that share a folder.

    `failed` maps the names of failed points to their error lines, and `submitted` those of submitted points to their Slurm jobs.
    """

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
        """Read the available results and, if there are any, write the table."""
        self.rows = self.read_results()
        if self.rows:
            write_table(self.table, self.rows)

    def fail(self, point: Point, line: str, reporter: Reporter) -> None:
        """Record the failure of a point."""
        self.failed[point.name] = line
        job_files(self.folder, point.name).note_state("failed", line)
        reporter.line(f"{point.name} failed: {line}")
