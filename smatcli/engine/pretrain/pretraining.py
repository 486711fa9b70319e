"""Supervised pre-training of a backbone: a cosine classifier over all classes of the recipe's stores."""

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.backbones import create_backbone, save_backbone
from smatcli.config.schema import AugmentConfig, PretrainRecipe
from smatcli.data.augment import augment, mixup, normalise
from smatcli.data.counted import counted_key
from smatcli.data.episodes.loader import BatchLoader
from smatcli.device import choose_device, choose_precision
from smatcli.engine.loop.distributed import World
from smatcli.engine.loop.guard import Problem, nonfinite
from smatcli.engine.loop.learner import Learner, Schedule, Score, TrainingProgress
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.engine.loop.session import Prepared, Session, Setup, run_session
from smatcli.engine.pretrain.supervised import CosineClassifier, split_images
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter

if TYPE_CHECKING:
    from smatcli.config import Loaded

LOG_EVERY = 50  # steps per training record
VALID_BATCH = 256
Batch = tuple[Tensor, Tensor]  # images uint8 [B, H, W, 3] and labels int64 [B]


def pretrain(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Train a backbone as specified by the recipe, and write backbone.safetensors and backbone.json into the run directory.

    All random numbers are derived from (seed, step), so a resumed run gives the same result. Raises UserError for errors in recipe or data
    before the run directory is created, SmatError after pretrain.spike.in_a_row skipped steps in a row, Interrupted on SIGINT, SIGTERM and
    SIGUSR1.
    """
    return run_session(loaded, PretrainRecipe, reporter, resume, _prepare, distributed=True)


def _prepare(recipe: PretrainRecipe, setup: Setup) -> Prepared:
    learner = PretrainLearner(recipe, setup.world)

    def work(session: Session) -> None:
        for line in learner.description():
            session.reporter.line(line)
        learner.folder = session.run.path
        end = session.train(learner)
        best = f"(best {end.best:.3f} at step {end.best_step})"
        session.reporter.line(f"top-1 of held-out images {end.score or 0.0:.3f} {best}; backbone in {session.run.path}")

    return {"device": str(learner.device), "precision": learner.precision.name, "data": learner.data}, work


class PretrainLearner(Learner[Batch]):
    """Learner of a cosine classifier with cross-entropy on the images of the recipe's stores; the score is held-out top-1 accuracy."""

    name, unit = "pre-training", "images"
    folder: Path  # folder for the backbone

    def __init__(self, recipe: PretrainRecipe, world: World) -> None:
        self.recipe, self.world, settings = recipe, world, recipe.pretrain
        self.device = choose_device(recipe.device)
        self.split = split_images(recipe.data, recipe.seed)
        self.data = self.split.hashes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counted_key("model", recipe.seed) % 2**63)
            self.classifier = CosineClassifier(create_backbone(recipe.backbone), len(self.split.names), settings.scale)
        self.model = self.classifier.to(self.device)
        self.precision = choose_precision(recipe.precision, self.device, int(self.classifier.backbone.num_features))  # type: ignore[arg-type]
        self.precision.apply(self.model)
        images, size = [store.images for store in self.split.stores], recipe.backbone.image_size
        self.train = BatchLoader(
            images, self.split.train_rows, self.split.train_labels, settings.batch_size, recipe.seed, image_size=size, device=self.device
        )
        self.held = BatchLoader(
            images, self.split.held_rows, self.split.held_labels, VALID_BATCH, shuffle=False, image_size=size, device=self.device
        )
        self.per_step = min(self.train.batch_size, self.train.samples)
        steps, every = max(1, round(settings.epochs * len(self.train))), settings.valid_every * len(self.train)
        self.schedule = Schedule(steps, every, every, settings.spike, log_every=LOG_EVERY)
        groups, no_decay = {"optimizer": list(self.model.parameters())}, self.classifier.undecayed()
        self.optimizers = build_optimizers(groups, {"optimizer": settings.optimizer}, steps, no_decay=no_decay, where="pretrain")

    def description(self) -> list[str]:
        """Return the lines to print before training: precision, model and data."""
        parameters = sum(p.numel() for p in self.classifier.backbone.parameters())
        lines = [
            str(self.precision),
            f"{self.recipe.backbone.name}, {parameters / 1e6:.2f} M parameters, {self.recipe.backbone.image_size} px; "
            f"{len(self.split.names)} classes, {self.train.samples} training and {self.held.samples} held-out images; "
            f"{self.schedule.steps} steps of {self.per_step} images",
        ]
        if self.split.single:
            lines.append(f"{self.split.single} classes have a single image, which is used for training; they have no held-out image")
        return lines

    def noise(self, step: int) -> int:
        """Return the seed of augmentation, drop-path and dropout."""
        return counted_key("pretrain", self.recipe.seed, step) % 2**63

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield shuffled batches, epoch by epoch."""
        while True:
            epoch, start = divmod(step, len(self.train))
            yield from self.train.epoch(epoch, start)
            step = (epoch + 1) * len(self.train)

    def backward(self, batch: Batch, step: int) -> dict[str, float] | Problem:
        """Compute the cross-entropy of the augmented batch, and the accuracy (with mixup, of the class with the larger share)."""
        inputs, targets = augmented(batch, self.recipe, len(self.split.names), torch.Generator().manual_seed(self.noise(step)))
        # Every process draws, augments and mixes the whole batch, as a single process would, and trains on its share.
        share, total = self.world.share(len(inputs)), len(inputs)
        inputs, targets = inputs[share.start : share.stop], targets[share.start : share.stop]
        with self.precision.autocast():
            logits = self.model(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.pretrain.label_smoothing) * (len(share) / total)
        truth = targets if targets.ndim == 1 else targets.argmax(1)
        right = (logits.argmax(1) == truth).sum().item()
        value, right = (sum(column) for column in zip(*self.world.gather([loss.item(), right]), strict=True))
        if bad := nonfinite(value):
            return Problem(bad)
        loss.backward()
        return {"loss": value, "accuracy": right / total}

    @torch.inference_mode()
    def validate(self, step: int) -> Score:
        """Measure the top-1 accuracy of the held-out images."""
        right, total, losses = 0, 0, 0.0
        for index, (images, labels) in enumerate(self.held.epoch()):
            if not self.world.owns(index):
                continue
            with self.precision.autocast():
                logits = cast(Tensor, self.model(normalise(images, self.recipe.backbone.image_size)))
            right += int((logits.argmax(1) == labels).sum())
            losses += float(F.cross_entropy(logits, labels, reduction="sum"))
            total += len(labels)
        right, total, losses = (sum(column) for column in zip(*self.world.gather([right, total, losses]), strict=True))
        top1, loss = right / total, losses / total
        line = f"epoch {step / len(self.train):g}: held-out top-1 {top1:.4f}, loss {loss:.4f}"
        return Score(top1, {"mean": top1, "loss": loss}, line)

    def position(self, step: int) -> dict[str, Any]:
        """Return the number of epochs done."""
        return {"epoch": step / len(self.train)}

    def train_record(self, means: dict[str, float], norms: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """Return the means over steps, and the learning rate."""
        return {**means, "lr": rates["optimizer"]}

    def shown(self, numbers: dict[str, float], progress: TrainingProgress) -> dict[str, float | int]:
        """Return the epoch, the loss and the last top-1 accuracy."""
        top1 = {} if progress.score is None else {"top1": progress.score}
        return {"epoch": (progress.step - 1) // len(self.train) + 1, "loss": numbers["loss"], **top1}

    def advice(self, problem: Problem | None) -> str:
        """Name the settings that make training more stable."""
        return "lower pretrain.optimizer.lr or set pretrain.optimizer.clip in a new run"

    def export(self, progress: TrainingProgress) -> None:
        """Write backbone.safetensors and backbone.json."""
        best = {"best_top1": max(progress.best, 0.0), "best_step": max(progress.best_step, 0)}
        metrics = {"step": progress.step, "top1": progress.score or 0.0, **best}
        save_backbone(self.folder, self.classifier.backbone, self.recipe.backbone, metrics)


def augmented(batch: Batch, recipe: PretrainRecipe, classes: int, generator: torch.Generator) -> Batch:
    """Return normalised, augmented images [B, 3, S, S] and labels [B], or class shares [B, C] with mixup."""
    (images, labels), config, size = batch, recipe.pretrain.augment, recipe.backbone.image_size
    if config == AugmentConfig():
        return normalise(images, size), labels
    inputs = augment(images, config, generator, size)
    return mixup(inputs, labels, classes, config.mixup, generator) if config.mixup > 0 else (inputs, labels)
