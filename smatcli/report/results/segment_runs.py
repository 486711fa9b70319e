"""Results of segmentation runs, `RUN/segment/fold<k>.json`."""

from dataclasses import dataclass, field
from pathlib import Path

from smatcli.errors import UserError
from smatcli.report.results.runs import Run, section, whole
from smatcli.report.results.tuning_runs import label_of
from smatcli.runs.segmentation import MEASURES, fold_file, measures, read_fold_file

SCALES = ("single", "multi")


@dataclass(frozen=True)
class Segmented:
    """Measures of a run of `smat segment` as fractions, by fold and scale (`single`, `multi`): `miou`, `dice`, `accuracy`.

    `parameters` are the numbers of trained parameters by group (tuner, backbone, head); `label` is the label of its row.
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
        """The seed, which also determines the splits of a dataset without a published split."""
        return self.run.seed or 0

    @property
    def dataset(self) -> str:
        """The folder of the dataset, else the name of its layout."""
        data = section(self.run.recipe, "data")
        return Path(str(data.get("root") or "")).name or str(data.get("layout", "?"))

    @property
    def conditions(self) -> str:
        """The settings that all rows of a table share: the dataset, how it was split and tested, and the image size."""
        data, found = section(self.run.recipe, "data"), section(self.run.recipe, "segment").get("folds", 0)
        size = section(self.run.recipe, "eval").get("size", "mask")
        return repr((sorted((k, repr(v)) for k, v in data.items()), found, size, self.run.image_size if size == "image" else None))


def read_segmented(run: Run) -> Segmented | None:
    """Read the result of a run of `smat segment`, or None if folds are missing. Raises UserError for a damaged fold."""
    folds = max(1, whole(section(run.recipe, "segment").get("folds")) or 0)
    paths = [fold_file(run.path, k) for k in range(folds)]
    if not all(path.exists() for path in paths):
        return None
    shares: dict[int, dict[str, dict[str, float]]] = {}
    facts = []
    for k, path in enumerate(paths):
        try:
            own, matrices = read_fold_file(path)
            if "single" not in matrices:
                raise ValueError("has no single scale")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a result of smat segment ({error}); move it away and use --resume") from None
        found = {name: measures(matrix) for name, matrix in matrices.items()}
        shares[k] = {name: {key: getattr(found[name], key) for key in MEASURES} for name in found}
        facts.append(own)
    counts = {str(k): whole(v) or 0 for k, v in section(facts[0], "trained").items()}
    images = sum(whole(own.get("test_images")) or 0 for own in facts)
    return Segmented(run, label_of(run.recipe), shares, counts, images)
