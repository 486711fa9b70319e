"""Results of segmentation runs, `RUN/segment/`, as `smat segment` wrote them."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.report.results.runs import Run, number, section, whole
from smatcli.report.results.tuning_runs import label_of
from smatcli.safe.text import read_json, refuse_special

FOLDER, SUMMARY = "segment", "summary.csv"
FORMAT = 1
SCALES = ("single", "multi")
SHOWN = ("miou", "dice", "accuracy")


@dataclass(frozen=True)
class Segmented:
    """The measures (shares) of one run of smat segment: by fold and scale (`single`, `multi`), each with `miou`, `dice`, `accuracy`.

    `parameters` are those that were trained, by group (tuner, backbone, head); `label` is what its row is called.
    """

    run: Run
    label: str
    folds: dict[int, dict[str, dict[str, float]]] = field(repr=False)
    parameters: dict[str, int] = field(repr=False)
    images: int

    @property
    def tuner(self) -> str:
        """The tuner's name."""
        return str(section(self.run.recipe, "tuner").get("name", "?"))

    @property
    def seed(self) -> int:
        """The seed; it also draws the parts of a set without a published split."""
        return self.run.seed or 0

    @property
    def dataset(self) -> str:
        """The set's folder, or the name of its layout where it has none."""
        data = section(self.run.recipe, "data")
        return Path(str(data.get("root") or "")).name or str(data.get("layout", "?"))

    @property
    def conditions(self) -> str:
        """What must be equal for numbers to stand in one table: the set, how it was split and tested, and the image size."""
        data, found = section(self.run.recipe, "data"), section(self.run.recipe, "segment").get("folds", 0)
        size = section(self.run.recipe, "eval").get("size", "mask")
        return repr((sorted((k, repr(v)) for k, v in data.items()), found, size, self.run.image_size if size == "image" else None))


def read_segmented(run: Run) -> Segmented | None:
    """The result of a run of `smat segment`, None where it is not finished; UserError for a damaged one."""
    path = run.path / FOLDER / SUMMARY
    if not path.is_file():
        return None
    try:
        refuse_special(path)
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        folds: dict[int, dict[str, dict[str, float]]] = {}
        for row in rows:
            if row["fold"].isdecimal():
                folds.setdefault(int(row["fold"]), {})[row["scales"]] = {key: _share(row[key]) for key in SHOWN}
        if not folds or not all("single" in found for found in folds.values()):
            raise ValueError("it has no fold with a single scale")
        facts = [_facts(run.path / FOLDER / f"fold{k}.json") for k in folds]
        counts = {str(k): whole(v) or 0 for k, v in section(facts[0], "trained").items()}
        images = sum(whole(one.get("test_images")) or 0 for one in facts)
        return Segmented(run, label_of(run.recipe), folds, counts, images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as a result of smat segment ({error}); move the run away and make it again") from None


def _facts(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or int(found.get("format", 0)) > FORMAT:
        raise ValueError(f"{path.name} is of another version of smat")
    return found


def _share(text: str) -> float:
    value = number(text)
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"{text!r} is no share in [0, 1]")
    return value
