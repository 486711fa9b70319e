"""Sparse meta-tuning of vision transformers for few-shot learning."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from smatcli.deploy.classifier import FewShotClassifier
    from smatcli.deploy.model import FewShotModel

from smatcli import moved
from smatcli.version import __version__

__all__ = ["__version__", "load", "load_classifier", "results"]

moved.install()


def load(run: str | Path, which: str = "best", device: str | None = None) -> "FewShotModel":
    """A trained run, ready for `.adapt(images, labels).predict(images)`; `which` is its checkpoint (best or last)."""
    from smatcli.deploy.model import FewShotModel

    return FewShotModel.open(run, which, device)


def load_classifier(file: str | Path, device: str | None = None) -> "FewShotClassifier":
    """A classifier that `.save(file)` wrote, ready for `.predict(images)`."""
    from smatcli.deploy.classifier import read_classifier

    return read_classifier(file, device)


def results(runs: str | Path | Sequence[str | Path]) -> "pd.DataFrame":
    """Return the results of runs, one row per run, adaptation and dataset.

    `runs` is a run directory, a folder of runs or a pattern such as `runs/*`, or several of these. Results of `smat eval`, `smat tune` and
    `smat segment` are read from results.h5, tune.json and segment/fold<k>.json. Invalid results are skipped with a warning;
    `.attrs["lines"]` names them. Raises `UserError` if a path does not exist or there are no results.

    Columns (empty text or a missing value where one does not apply):

    - `kind` (train, tune or segment), `run` (shortest unique name), `path`, `method` (or tuner), `seed`, `tau`, `experts`, `backbone`,
      `image_size` (pixels)
    - `adapt` (adaptation; for segmentation the scale, single or multi), `dataset`, `domain` (ID or OOD)
    - `protocol`, `split` (of the classes), `episodes` (number), `list_hash` (equal for equal lists of episodes)
    - `metric` (accuracy, miou, ...), `mean` and `half_width` of its 95 % interval over episodes (fractions in [0, 1]; `mean` over folds
      for segmentation)
    - `lr` (learning rate) and `search` (what it was chosen on), `seconds` (total of the dataset)
    """
    from smatcli.report.results.table import results as read_table

    return read_table(runs)
