"""Load a trained run as a few-shot learner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smatcli.adaptation import build_adaptation, check_adaptation, needs_experts
from smatcli.config import build_recipe
from smatcli.config.llm import LlmRecipe
from smatcli.config.loader import verb
from smatcli.config.schema import AdaptConfig, PretrainRecipe, TrainRecipe
from smatcli.config.segment import SegmentRecipe
from smatcli.config.tune import TuneRecipe
from smatcli.data.augment import normalise
from smatcli.data.images import Fit
from smatcli.deploy.classifier import SUFFIX, ClassifierFacts, FewShotClassifier
from smatcli.deploy.pictures import as_list, as_pixels
from smatcli.deploy.predictions import Label
from smatcli.deploy.rate import with_rate
from smatcli.engine.loop.loading import load_method, prepare_method
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.seams import Support, Task


def run_recipe(run: str | Path) -> TrainRecipe:
    """Return the recipe of a run. For a pre-training run, the method is `pretrained`. Raises `UserError` if `run` is not a run."""
    path = Path(run)
    if path.is_file():
        hint = "a saved classifier: load it with smatcli.load_classifier" if path.suffix == SUFFIX else "a file"
        raise UserError(f"{path}: is {hint}, not a run directory")
    recipe = RunDir.open(path).recipe
    if isinstance(recipe, TuneRecipe | SegmentRecipe | LlmRecipe):
        more = "; tune.merged=true in its recipe writes the tuned network as a file" if recipe.kind == "tune" else ""
        what = f"a run of smat {verb(recipe.kind)}, not a few-shot model"
        raise UserError(f"{path}: is {what}; give one of `smat train` or `smat pretrain`{more}")
    if not isinstance(recipe, PretrainRecipe):
        return recipe
    common = recipe.model_dump(mode="json", include={"run", "seed", "device", "precision", "threads", "backbone"})
    data = {"root": recipe.data.root, "train": recipe.data.datasets}
    given = {**common, "kind": "train", "data": data, "method": {"name": "pretrained"}, "train": {"steps": 0}}
    return TrainRecipe.model_validate(given)


def adapt_settings(recipe: TrainRecipe, adapt: str, overrides: Sequence[str] = ()) -> AdaptConfig:
    """Return the settings of the adaptation `adapt` with `overrides` (only `adapt.*`).

    Raises `UserError` if the method does not support the adaptation, or if an override has no effect.
    """
    check_adaptation(adapt)
    if needs_experts(adapt) and getattr(recipe.method, "experts", None) is None:
        raise UserError(f"{adapt} needs a method with experts, and {recipe.run} is {recipe.method.name}; use --adapt proto")
    for text in overrides:
        key = text.partition("=")[0].strip()
        if not key.startswith("adapt."):
            raise UserError(f"{key}: cannot be changed here; give settings of the adaptation: adapt.{adapt}.<name>=<value>")
        part = key.split(".")[1]
        if part not in (adapt, "search", "group") and part in AdaptConfig.model_fields:
            raise UserError(f"{key}: has no effect on {adapt}; remove it, or use --adapt {part}")
    given = recipe.model_dump(mode="json")
    given["eval"]["adapt"] = [adapt]  # so that the settings of a plugin adaptation are valid keys too
    built = build_recipe(given, Path(recipe.run) / "recipe.yaml", overrides, kind="train").recipe
    assert isinstance(built, TrainRecipe)
    searched = getattr(getattr(built.adapt, adapt, None), "lr", 0.0) is None
    if not searched and (unread := [text for text in overrides if text.strip().startswith(("adapt.search.", "adapt.group="))]):
        raise UserError(f"{unread[0]}: has no effect, because no learning rate of {adapt} is searched; remove it")
    return built.adapt


class FewShotModel:
    """The method and recipe of a run. `adapt(images, labels)` returns a classifier and does not change the model."""

    def __init__(self, method: FlatMethod, recipe: TrainRecipe, source: str, reporter: Reporter):
        self.method, self.recipe, self.source, self.reporter = method, recipe, source, reporter
        self.device = method.theta_pre.device

    @classmethod
    def open(cls, run: str | Path, which: str = "best", device: str | None = None, reporter: Reporter | None = None) -> "FewShotModel":
        """Load the checkpoint `which` (best or last) of a run on `device`. Raises `UserError` if there is no run or no checkpoint."""
        reporter = reporter or SilentReporter()
        if which not in ("best", "last"):
            raise UserError(f"which={which}: use best or last")
        recipe, opened = run_recipe(run), RunDir.open(run)
        if not opened.finished:
            reporter.line(f"{run} is not finished ({opened.info.get('status')}): using its current {which} checkpoint")
        if isinstance(opened.recipe, PretrainRecipe):
            method = prepare_method(recipe.model_copy(update={"device": device or recipe.device}), str(run)).eval()
        else:
            method, _ = load_method(run, which, reporter, device)
        reporter.line(f"{run} ({recipe.method.name}): {method.precision}")
        return cls(method, recipe, Path(run).resolve().name, reporter)

    @property
    def image_size(self) -> int:
        """Side of the input images in pixels."""
        return self.recipe.backbone.image_size

    def adapt(
        self, images: Any, labels: Any, adapt: str = "proto", *, overrides: Sequence[str] = (), fit: Fit = "crop"
    ) -> FewShotClassifier:
        """Learn the classes in `labels` (names or numbers, one per image) from `images`, given as for `FewShotClassifier.predict`.

        `adapt` is the name of the adaptation and `overrides` are its settings (`adapt.flip.rounds=3`). If the adaptation needs a learning
        rate and none is given, it is chosen by cross-validation on halves of the support set. `fit` is the resizing of non-square images:
        crop to the centre, or squash. Raises `UserError` for invalid labels, fewer than two classes, an unreadable image, or an adaptation
        that the method does not support.
        """
        settings = adapt_settings(self.recipe, adapt, overrides)
        items, named = as_list(images, "support images"), _labels(labels)
        if len(items) != len(named):
            raise UserError(f"support: {len(items)} images, but {len(named)} labels; give one label per image")
        classes = sorted(set(named))
        if len(classes) < 2:
            raise UserError(f"support: has one class only ({classes[0]}); give images of two or more classes")
        pixels = [as_pixels(image, self.image_size, fit, f"support image {i}") for i, image in enumerate(items)]
        support = self.support(pixels, [classes.index(label) for label in named], len(classes))
        adaptation, choice = with_rate(adapt, build_adaptation(adapt, settings), settings, self.method, support)
        if choice is not None:
            self.reporter.line(f"{adapt}: {choice}")
        task = self.task(support)
        head = adaptation.adapt(task, support)
        facts = ClassifierFacts(self.recipe.method.name, adapt, self.recipe.backbone, self.recipe.precision, fit, self.source)
        return FewShotClassifier(head, classes, facts, self.device, task.scale, self.method, support)

    def support(self, pixels: Sequence[np.ndarray], labels: Sequence[int], ways: int) -> Support:
        """Return the support set of uint8 images [image_size, image_size, 3]."""
        images = normalise(torch.from_numpy(np.stack(pixels)).to(self.device))
        return Support(images, torch.tensor(labels, dtype=torch.int64, device=self.device), ways)

    @torch.no_grad()
    def task(self, support: Support) -> Task:
        """Return the task (theta_i) of a support set."""
        return self.method.task(support)


def _labels(labels: Any) -> list[Label]:
    if isinstance(labels, str | bytes):
        raise UserError("support: give a list of labels, one per image")
    items = list(labels.tolist() if hasattr(labels, "tolist") else labels)
    items = [label.item() if hasattr(label, "item") else label for label in items]
    kinds = {type(label) for label in items}
    if not kinds <= {str} and not kinds <= {int}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"support: labels must be all names (str) or all numbers (int), not {names}")
    return items
