"""Options of `smat analyze`, for runs of `smat train` and of `smat tune`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.runs.analysis import known_settings
from smatcli.runs.reporter import Reporter
from smatcli.safe.tree import differing_keys


@dataclass(frozen=True)
class AnalysisOptions:
    """Which analyses to compute, and on which data.

    `only`: names of analyses, by default all that apply to the run's method (or tuner).
    `adapts`, `datasets`, `overrides`: as in `evaluate`; for a run of `smat tune`, `datasets` are other stores in data.root.
    `episodes`: episodes per dataset, with a default per analysis; `index`: the episode that `features` shows.
    `which`: checkpoint, `best` or `last`; `replace`: replace existing analyses that have other settings; `device`: by default the recipe's.
    """

    only: Sequence[str] = ()
    adapts: Sequence[str] | None = None
    datasets: Sequence[str] | None = None
    episodes: int | None = None
    index: int = 0
    overrides: Sequence[str] = ()
    which: str = "best"
    replace: bool = False
    device: str | None = None

    def must_compute(self, path: Path, settings: Mapping[str, Any], reporter: Reporter) -> bool:
        """Return whether to compute the analysis at `path`: it is missing, or has other settings and is replaced.

        Raises UserError if it has other settings and `replace` is False.
        """
        existing = known_settings(path)
        if existing == settings:
            reporter.line(f"{path}: exists already")
            return False
        if existing is not None and not self.replace:
            raise UserError(f"{path} exists with other settings ({', '.join(differing_keys(existing, settings))}); add --replace")
        return True
