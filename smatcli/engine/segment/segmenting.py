"""Tuning of vision transformers for segmentation: one split or a cross-validation, with measures per fold."""

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.backbones import create_backbone
from smatcli.config.pmoe import PmoeConfig
from smatcli.config.schema import GroupConfig
from smatcli.config.segment import SegmentRecipe
from smatcli.data.augment import normalise
from smatcli.data.counted import counted_key, counted_rng
from smatcli.data.episodes.loader import prefetched
from smatcli.device import choose_device, choose_precision
from smatcli.engine.loop.guard import Problem, nonfinite
from smatcli.engine.loop.learner import Learner, Schedule, Score, TrainingProgress
from smatcli.engine.loop.optimizers import Optimizers, build_optimizers
from smatcli.engine.loop.session import Prepared, Session, Setup, run_session
from smatcli.engine.segment.measures import Tested, confusions, draw_pictures
from smatcli.engine.segment.results import read_fold, write_fold, write_summary
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.segmentation import FOLDER, fold_file
from smatcli.segmentation.augment import augmented
from smatcli.segmentation.data import SegmentSet, Split, splits
from smatcli.segmentation.masks import IGNORE
from smatcli.segmentation.metrics import confusion, measures
from smatcli.segmentation.net import SegmentNet, build_net

if TYPE_CHECKING:
    from smatcli.config import Loaded

DEFAULTS = {
    "tuner": GroupConfig(lr=1e-4, weight_decay=1e-5),
    "backbone": GroupConfig(lr=1e-5, weight_decay=1e-5, clip=1.0),
    "head": GroupConfig(lr=1e-3, weight_decay=1e-5),
}
LOG_EVERY = 10  # steps per training record
Batch = tuple[Tensor, Tensor]  # images uint8 [B, S, S, 3], masks uint8 [B, S, S]


def segment(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Train and test as specified by the recipe; write checkpoints, and the measures of every fold into `segment/` of the run directory.

    All random numbers are derived from (seed, fold, step), so a resumed run gives the same result. Raises UserError for errors in recipe
    or data before the run directory is created, SmatError after segment.spike.in_a_row skipped steps in a row, Interrupted on SIGINT,
    SIGTERM and SIGUSR1.
    """
    return run_session(loaded, SegmentRecipe, reporter, resume, _prepare)


def _prepare(recipe: SegmentRecipe, setup: Setup) -> Prepared:
    device = choose_device(recipe.device)
    first = make_net(recipe, 0, pretrained=not setup.resumed)  # before reading images: a wrong backbone fails at once
    make_optimizers(recipe, first, 1)
    images = SegmentSet(recipe.data, recipe.backbone.image_size, recipe.seed, setup.reporter)
    parts = splits(images, recipe.segment.folds, recipe.seed)
    precision = choose_precision(recipe.precision, device, first.tokens.width)
    data = {recipe.data.root or recipe.data.layout: images.content_hash()}

    def work(session: Session) -> None:
        session.reporter.line(str(precision))
        for k, split in enumerate(parts):
            if not fold_file(session.run.path, k).exists():
                net = (first if k == 0 else make_net(recipe, k)).to(device)
                precision.apply(net)
                learner = SegmentLearner(recipe, Tested(net, images, device, precision), k, split, data)
                learner.pretrained = k > 0 or not setup.resumed
                _fold(learner, session)
        write_summary(session.run.path, [read_fold(session.run.path, k) for k in range(len(parts))], session.reporter)

    return {"device": str(device), "precision": precision.name, "images": len(images), "data": data}, work


def make_net(recipe: SegmentRecipe, fold: int, pretrained: bool = True) -> SegmentNet:
    """Build the net of a fold; its new parameters are initialised from (seed, fold). A resumed run needs no `pretrained` weights."""
    configs = [recipe.backbone, *(recipe.tuner.experts if isinstance(recipe.tuner, PmoeConfig) else [])]
    if not pretrained:
        configs = [c.model_copy(update={"weights": "none"}) for c in configs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("segment-model", recipe.seed, fold) % 2**63)
        return build_net(recipe, [create_backbone(config) for config in configs])


def make_optimizers(recipe: SegmentRecipe, net: SegmentNet, steps: int) -> Optimizers:
    """Build the optimizers of the net's groups; scalars, biases and norms get no weight decay."""
    groups = net.groups()
    no_decay = [p for p in net.parameters() if p.ndim <= 1]
    return build_optimizers(groups, recipe.segment.groups, steps, {name: DEFAULTS[name] for name in groups}, no_decay, "segment.groups")


def _fold(learner: "SegmentLearner", session: Session) -> None:
    """Train on a split, test the best weights, and write the fold's results."""
    recipe, fold, split, tested = learner.recipe, learner.fold, learner.split, learner.tested
    which = f"fold {fold + 1} of {recipe.segment.folds}: " if recipe.segment.folds else ""
    sizes = ", ".join(f"{len(getattr(split, part))} {part}" for part in ("train", "valid", "test"))
    counts = {name: sum(p.numel() for p in params) for name, params in tested.net.groups().items()}
    trained = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    session.reporter.line(f"{which}{recipe.tuner.name}, {sizes} images; trained: {trained} parameters")
    end = session.train(learner, first_step=fold * learner.schedule.steps)
    learner.load(*session.weights(learner.best_name))
    with session.testing(len(split.test)) as progress:
        matrices = confusions(tested, split.test, recipe, progress)
    folder = session.run.path / FOLDER
    folder.mkdir(exist_ok=True)
    if recipe.eval.pictures:
        draw_pictures(tested, split.test[: recipe.eval.pictures], folder / f"pictures{fold}.png")
    facts = {"best_step": end.best_step, "valid_miou": end.best, "trained": counts, "test_images": len(split.test)}
    write_fold(session.run.path, fold, matrices, facts)


class SegmentLearner(Learner[Batch]):
    """Learner of a net on one split: pixel-wise cross-entropy; the score is the mean intersection over union of the validation images."""

    name, data_kind = "segmentation", "the images or masks in"
    pretrained = True  # whether the net was built with its initial weights

    def __init__(self, recipe: SegmentRecipe, tested: Tested, fold: int, split: Split, data: dict[str, str]) -> None:
        self.recipe, self.tested, self.fold, self.split, self.data = recipe, tested, fold, split, data
        self.model = tested.net
        settings = recipe.segment
        self.per_epoch = max(1, len(split.train) // settings.batch_size)
        steps, every = settings.epochs * self.per_epoch, settings.valid_every * self.per_epoch
        self.schedule = Schedule(steps, every, every, settings.spike, log_every=LOG_EVERY)
        self.optimizers = make_optimizers(recipe, tested.net, steps)
        self.best_name = f"fold{fold}" if settings.folds else "best"

    def noise(self, step: int) -> int:
        """Return the seed of augmentation and dropout."""
        return counted_key("segment-noise", self.recipe.seed, self.fold, step) % 2**63

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield shuffled batches, epoch by epoch."""
        size, device = self.recipe.segment.batch_size, self.tested.device
        while True:
            epoch, start = divmod(step, self.per_epoch)
            order = counted_rng("segment-batches", self.recipe.seed, self.fold, epoch).permutation(self.split.train)
            chunks = (order[i * size : (i + 1) * size] for i in range(start, self.per_epoch))
            for images, masks in prefetched(self.tested.images.read, chunks, 2, 2):
                yield torch.from_numpy(images).to(device), torch.from_numpy(masks).to(device)
            step = (epoch + 1) * self.per_epoch

    def backward(self, batch: Batch, step: int) -> dict[str, float] | Problem:
        """Compute the cross-entropy over the pixels that are not ignored."""
        settings = self.recipe.segment
        pixels, classes = augmented(*batch, settings.flip, settings.zoom, torch.Generator().manual_seed(self.noise(step)))
        with self.tested.precision.autocast():
            logits = self.model(pixels)
        pixel_count = (classes != IGNORE).sum().clamp(min=1)  # all pixels of a batch may be ignored
        loss = F.cross_entropy(logits.float(), classes, ignore_index=IGNORE, reduction="sum") / pixel_count
        value = float(loss.detach())
        if bad := nonfinite(value):
            return Problem(bad)
        loss.backward()
        return {"loss": value}

    @torch.inference_mode()
    def validate(self, step: int) -> Score:
        """Measure the mIoU of the validation images at the training size."""
        classes, rows = self.recipe.data.number, self.split.valid
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        for chunk in np.array_split(rows, -(-len(rows) // self.recipe.segment.batch_size)):
            images, masks = self.tested.images.read(chunk)
            with self.tested.precision.autocast():
                logits = self.model(normalise(torch.from_numpy(images).to(self.tested.device)))
            matrix += confusion(torch.from_numpy(masks), logits.float().argmax(1).cpu(), classes)
        result = measures(matrix)
        miou = 0.0 if math.isnan(result.miou) else result.miou
        line = f"epoch {step / self.per_epoch:g}: validation mIoU {100 * miou:.2f} %"
        return Score(miou, {"mean": miou, "pixel_accuracy": result.accuracy}, line)

    def start(self) -> None:
        """Load the initial weights if the net was built without them."""
        if not self.pretrained:
            self.model.load_state_dict(make_net(self.recipe, self.fold).state_dict())

    def position(self, step: int) -> dict[str, Any]:
        """Return the fold."""
        return {"fold": self.fold}

    def shown(self, numbers: dict[str, float], progress: TrainingProgress) -> dict[str, float | int]:
        """Return the loss and the best validation mIoU."""
        best = {} if progress.score is None else {"valid_miou": progress.best}
        return {"loss": numbers["loss"], **best}

    def advice(self, problem: Problem | None) -> str:
        """Name the settings that make training more stable."""
        return "lower the learning rates in segment.groups, or set their clip, in a new run"
