"""`smat predict`: learn classes from folders of images, and tabulate the predictions for other images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from smatcli.data.episodes.loader import prefetched
from smatcli.data.images import Fit, Unreadable, decode_image
from smatcli.deploy.classifier import BATCH, SUFFIX, FewShotClassifier, check_target, read_classifier, refuse_existing
from smatcli.deploy.model import FewShotModel, adapt_settings, run_recipe
from smatcli.deploy.pictures import PictureSet, query_pictures, read_all, support_pictures, unreadable
from smatcli.deploy.predictions import PredictionRow, PredictionTable, as_rows
from smatcli.device import threads
from smatcli.errors import UserError
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.safe.files import atomic_path, atomic_write_text

FARTHEST = 2.0
TABLES, SHEETS = (".csv", ".json"), (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Outputs:
    """Files to write: the table (.csv or .json), a contact sheet, the classifier (.smat)."""

    table: Path | None = None
    sheet: Path | None = None
    save: Path | None = None
    replace: bool = False

    def check(self) -> None:
        """Raise `UserError` if a file has a wrong suffix, or exists and `replace` is false."""
        for path, suffixes in ((self.table, TABLES), (self.sheet, SHEETS)):
            if path is not None:
                if path.suffix.lower() not in suffixes:
                    raise UserError(f"{path}: give a file name that ends in {' or '.join(suffixes)}")
                refuse_existing(path, self.replace)
        if self.save is not None:
            check_target(self.save, SUFFIX, self.replace)


@dataclass(frozen=True)
class ModelSource:
    """A run and its checkpoint (`which`: best or last), or a saved classifier; and the device (None: that of the recipe)."""

    path: Path
    which: str = "best"
    device: str | None = None


@dataclass(frozen=True)
class Fitting:
    """How a classifier is fitted: class folders, adaptation and its settings, treatment of non-square and unreadable images."""

    support: Path | None = None
    adapt: str | None = None
    overrides: tuple[str, ...] = ()
    fit: Fit | None = None
    skip: bool = False

    def refuse_for(self, file: Path) -> None:
        """Raise `UserError` if a setting is given that a saved classifier does not use."""
        given = {"--support": self.support, "--adapt": self.adapt, "--fit": self.fit, "a setting": self.overrides or None}
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name}: {file} is a saved classifier, whose classes are fixed; remove {name}, or give a run")


def predict_folder(
    source: ModelSource,
    fitting: Fitting,
    images: Path | None = None,
    outputs: Outputs | None = None,
    reject: float | Literal["auto"] | None = None,
    reporter: Reporter | None = None,
) -> PredictionTable | None:
    """Learn the classes of `fitting.support` with a run, or use a saved classifier, and classify `images` (a folder, ZIP or file).

    `reject` is the cosine distance from every prototype beyond which an image gets no class; "auto" chooses the distance within which 95 %
    of the support images lie (leave-one-out). With `fitting.skip`, unreadable images are listed instead of raising an error. Returns the
    table, or None without `images`. Files are written only after all results are computed. Raises `UserError` for invalid input.
    """
    model, outputs, reporter = source.path, outputs or Outputs(), reporter or SilentReporter()
    _check(source, fitting, images, outputs, reject)
    recipe = None if model.is_file() else run_recipe(model)
    if recipe is not None:
        adapt_settings(recipe, fitting.adapt or "proto", fitting.overrides)
    queries = query_pictures(images) if images is not None else None
    for remark in queries.remarks if queries else ():
        reporter.line(remark)
    with threads(recipe.threads if recipe is not None else None):
        classifier = read_classifier(model, source.device) if recipe is None else fit_folder(source, fitting, reporter)
        limit = _limit(classifier, reject, reporter)
        table = None if queries is None else _classify(classifier, queries, limit, str(model), fitting.skip, reporter)
        if outputs.save is not None:
            classifier.save(outputs.save, outputs.replace)
    if table is not None and queries is not None:
        _write(table, queries, outputs, classifier.facts.fit)
    return table


def fit_folder(source: ModelSource, fitting: Fitting, reporter: Reporter) -> FewShotClassifier:
    """Fit a classifier to the class folders in `fitting.support`. The images are read before the run is loaded."""
    assert fitting.support is not None
    support, adapt, fit = fitting.support, fitting.adapt or "proto", fitting.fit or "crop"
    pictures = support_pictures(support)
    for remark in pictures.remarks:
        reporter.line(remark)
    pixels, labels, bad = read_all(pictures, run_recipe(source.path).backbone.image_size, fit, fitting.skip)
    for line in bad:
        reporter.line(f"{support}: skipped {line}")
    counts = [labels.count(name) for name in dict.fromkeys(labels)]
    reporter.line(f"{support}: {len(counts)} classes, {len(labels)} images ({min(counts)} to {max(counts)} per class), adaptation {adapt}")
    model = FewShotModel.open(source.path, source.which, source.device, reporter)
    return model.adapt(pixels, labels, adapt, overrides=fitting.overrides, fit=fit)


def _check(source: ModelSource, fitting: Fitting, images: Path | None, outputs: Outputs, reject: float | str | None) -> None:
    model = source.path
    if not model.exists():
        raise UserError(f"--model {model}: no such run or saved classifier")
    if model.is_file():
        fitting.refuse_for(model)
        if source.which != "best" or outputs.save is not None:
            raise UserError(f"{'--save' if outputs.save else '--which'}: is only for runs, and {model} is a saved classifier; remove it")
    elif fitting.support is None:
        raise UserError(f"--support is missing: {model} is a run; give a folder of class folders, or a saved classifier as --model")
    if images is None and outputs.save is None:
        raise UserError("nothing to do: give --images to classify images, or --save to save the classifier")
    if images is None and (outputs.table or outputs.sheet or reject is not None):
        raise UserError("--out, --sheet and --reject need --images")
    if isinstance(reject, float | int) and not 0 < reject < FARTHEST:
        raise UserError(f"--reject {reject:g}: give a cosine distance between 0 and {FARTHEST:g}, or auto")
    outputs.check()


def _limit(classifier: FewShotClassifier, reject: float | Literal["auto"] | None, reporter: Reporter) -> float | None:
    if reject != "auto":
        return reject
    usual = classifier.usual_distance
    if usual is None:
        raise UserError("--reject auto needs a class with two or more support images; give a distance, e.g. --reject 0.5")
    reporter.line(f"rejecting images beyond distance {usual:.4g}, within which 95 % of the support images lie (leave-one-out)")
    return usual


def _classify(
    classifier: FewShotClassifier, queries: PictureSet, limit: float | None, model: str, skip: bool, reporter: Reporter
) -> PredictionTable:
    bad: dict[str, str] = {}
    good: list[str] = []
    size, fit = classifier.image_size, classifier.facts.fit

    def decode(name: str) -> np.ndarray | str:
        try:
            return decode_image(queries.read(name), size, fit)
        except Unreadable as reason:
            return str(reason)

    def readable() -> Iterator[np.ndarray]:
        for name, pixels in zip(queries.names, prefetched(decode, queries.names, 2, 2 * BATCH), strict=True):
            if isinstance(pixels, str):
                bad[name] = pixels
            else:
                good.append(name)
                yield pixels
            reporter.update(len(good) + len(bad))

    reporter.start(len(queries.names), "images", unit="images")
    try:
        predictions = classifier.classify(readable())
    finally:
        reporter.finish()
    if bad and (not skip or not good):
        raise unreadable(queries, [f"{name} ({reason})" for name, reason in bad.items()])
    rows = {row.file: row for row in as_rows(good, predictions, limit)} | {
        name: PredictionRow(name, problem=reason) for name, reason in bad.items()
    }
    facts = {
        "model": model,
        "method": classifier.facts.method,
        "adapt": classifier.facts.adapt,
        "classes": list(classifier.classes),
        "reject": limit,
        "support_distance_95": classifier.usual_distance,
    }
    return PredictionTable(tuple(rows[name] for name in queries.names), facts)


def _write(table: PredictionTable, queries: PictureSet, outputs: Outputs, fit: Fit) -> None:
    if outputs.table is not None:
        atomic_write_text(outputs.table, table.json() if outputs.table.suffix.lower() == ".json" else table.csv())
    if outputs.sheet is not None:
        from smatcli.deploy.sheet import prediction_sheet

        picture = prediction_sheet(table, queries, fit)
        with atomic_path(outputs.sheet) as draft:
            picture.save(draft)
