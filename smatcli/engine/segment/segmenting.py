"""`smat segment`: tune ViTs for segmentation, one split or a cross-validation, with checkpoints, resume and measures per fold."""

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.backbones import create_backbone
from smatcli.config.pmoe import PmoeConfig
from smatcli.config.schema import GroupConfig
from smatcli.config.segment import SegmentRecipe
from smatcli.data.counted import counted_key, counted_rng
from smatcli.data.episodes.loader import prefetched
from smatcli.device import Precision, choose_device, choose_precision, threads
from smatcli.engine.loop.optimizers import NonFinite, Optimizers, build_optimizers
from smatcli.engine.segment.measures import confusions, draw_pictures
from smatcli.engine.segment.results import FOLDER, fold_file, read_fold, write_fold, write_summary
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest
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
LOG_EVERY = 10


@dataclass
class _Progress:
    """Where a fold's training stands; plain data that goes into the checkpoint."""

    fold: int = 0
    step: int = 0
    best: float = -1.0
    best_step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "steps": 0})


@dataclass
class _Fold:
    """One training on one split."""

    recipe: SegmentRecipe
    run: RunDir
    reporter: Reporter
    device: torch.device
    precision: Precision
    found: SegmentSet
    split: Split
    net: SegmentNet
    optimizers: Optimizers
    steps: int
    done: _Progress

    @property
    def per_epoch(self) -> int:
        return max(1, len(self.split.train) // self.recipe.segment.batch_size)

    @property
    def offset(self) -> int:
        """Steps of the folds before, so that the records of all folds are one sequence."""
        return self.done.fold * self.steps

    @property
    def best(self) -> str:
        return f"fold{self.done.fold}" if self.recipe.segment.folds else "best"


def segment(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Train and test as the recipe says; the run directory holds checkpoints, and `segment/` the measures of every fold.

    Everything that can be refused (files, masks, backbones, groups) is refused before the run directory is made. Each random number is
    counted by (seed, fold, step), so a resumed run continues exactly. SmatError on a loss that is not finite, Interrupted on signals.
    """
    recipe = loaded.recipe
    if not isinstance(recipe, SegmentRecipe):
        raise UserError(f"{loaded.path}: kind is {recipe.kind!r}; `smat segment` needs a recipe of kind 'segment'")
    run = RunDir.reserve(loaded, reporter, resume)
    if run is not None and run.finished:
        return run
    with threads(recipe.threads):
        device = choose_device(recipe.device)
        begun = run is not None and has_checkpoint(run.checkpoints / "last")
        first = _net(recipe, 0, begun)  # before the images are read: a wrong backbone is told at once
        _optimizers(recipe, first, 1)
        found = SegmentSet(recipe.data, recipe.backbone.image_size, recipe.seed, reporter)
        parts = splits(found, recipe.segment.folds, recipe.seed)
        precision = choose_precision(recipe.precision, device, first.tokens.width)
        run = run or RunDir.create(recipe.run, recipe, loaded.origins)
        with run.active(), StopRequest() as stop:
            run.note(device=str(device), precision=precision.name, images=len(found))
            reporter.line(str(precision))
            saved = run.checkpoints / "last"
            if not has_checkpoint(saved):
                run.truncate(-1)
            for k, split in enumerate(parts):
                if fold_file(run.path, k).exists():
                    continue
                net = (first if k == 0 else _net(recipe, k, False)).to(device)
                precision.apply(net)
                steps = recipe.segment.epochs * max(1, len(split.train) // recipe.segment.batch_size)
                optimizers = _optimizers(recipe, net, steps)
                job = _Fold(recipe, run, reporter, device, precision, found, split, net, optimizers, steps, _Progress(k))
                _fold(job, stop)
            write_summary(run.path, [read_fold(run.path, k) for k in range(len(parts))], reporter)
    return run


def _net(recipe: SegmentRecipe, fold: int, begun: bool) -> SegmentNet:
    """The net of a fold, its new parameters counted by (seed, fold). A begun run takes its weights from its checkpoint."""
    configs = [recipe.backbone, *(recipe.tuner.experts if isinstance(recipe.tuner, PmoeConfig) else [])]
    if begun and fold == 0:
        configs = [c.model_copy(update={"weights": "none"}) for c in configs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("segment-model", recipe.seed, fold) % 2**63)
        return build_net(recipe, [create_backbone(config) for config in configs])


def _optimizers(recipe: SegmentRecipe, net: SegmentNet, steps: int) -> Optimizers:
    groups = net.groups()
    defaults = {name: DEFAULTS[name] for name in groups}
    bare = [p for p in net.parameters() if p.ndim <= 1]
    return build_optimizers(groups, recipe.segment.groups, steps, defaults, bare, "segment.groups")


def _fold(job: _Fold, stop: StopRequest) -> None:
    recipe, done = job.recipe, job.done
    which = f"fold {done.fold + 1} of {recipe.segment.folds}: " if recipe.segment.folds else ""
    sizes = ", ".join(f"{len(getattr(job.split, part))} {part}" for part in ("train", "valid", "test"))
    moving = {name: sum(p.numel() for p in params) for name, params in job.net.groups().items()}
    counts = ", ".join(f"{name} {count:,}" for name, count in moving.items())
    job.reporter.line(f"{which}{recipe.tuner.name}, {sizes} images; trained: {counts} parameters")
    _restore(job)
    _train(job, stop)
    job.net.load_state_dict(load_checkpoint(job.run.checkpoints / job.best, job.reporter).model)
    job.reporter.start(len(job.split.test), "testing", unit="images")

    def tested(count: int) -> None:
        job.reporter.update(count)
        if stop:
            raise stop.interrupted(f"test image {count} of {len(job.split.test)}")

    matrices = confusions(job.net, job.found, job.split.test, recipe, job.device, job.precision, tested)
    job.reporter.finish()
    folder = job.run.path / FOLDER
    folder.mkdir(exist_ok=True)
    if recipe.eval.pictures:
        rows = job.split.test[: recipe.eval.pictures]
        draw_pictures(job.net, job.found, rows, job.device, job.precision, folder / f"pictures{done.fold}.png")
    facts = {"best_step": done.best_step, "valid_miou": done.best, "trained": moving, "test_images": len(job.split.test)}
    write_fold(job.run.path, done.fold, matrices, facts)


def _restore(job: _Fold) -> None:
    last = job.run.checkpoints / "last"
    if not has_checkpoint(last):
        return
    saved = load_checkpoint(last, job.reporter)
    progress = _Progress(**saved.state["progress"])
    if saved.state["images"] != len(job.found):
        root, before = job.recipe.data.root, saved.state["images"]
        raise UserError(f"{root}: holds {len(job.found)} images, but run {job.run.path} began with {before}; choose another run=")
    if progress.fold != job.done.fold:
        return
    job.net.load_state_dict(saved.model)
    job.optimizers.load_state_dict(saved.optim, saved.state["optim"])
    job.done = progress
    job.run.truncate(job.offset + progress.step)
    job.reporter.line(f"continuing {job.run.path} at step {progress.step} of {job.steps}")


def _save(job: _Fold, name: str) -> None:
    tensors, optim = job.optimizers.state_dict()
    state: dict[str, Any] = {"progress": asdict(job.done), "optim": optim, "images": len(job.found)}
    save_checkpoint(job.run.checkpoints / name, job.net.state_dict(), state, tensors if name == "last" else None)


def _train(job: _Fold, stop: StopRequest) -> None:
    done, every = job.done, job.recipe.segment.valid_every * job.per_epoch
    job.reporter.start(job.steps, "segmentation", done=done.step)
    try:
        while done.step < job.steps:
            epoch, start = divmod(done.step, job.per_epoch)
            for images, masks in _batches(job, epoch, start):
                _step(job, images, masks)
                if done.step % every == 0 or done.step == job.steps:
                    _validate(job)
                if stop:
                    _save(job, "last")
                    raise stop.interrupted(f"step {done.step} of {job.steps}")
    finally:
        job.reporter.finish()


def _batches(job: _Fold, epoch: int, start: int):  # type: ignore[no-untyped-def]
    rows, size = job.split.train, job.recipe.segment.batch_size
    order = counted_rng("segment-batches", job.recipe.seed, job.done.fold, epoch).permutation(rows)
    chunks = (order[i * size : (i + 1) * size] for i in range(start, job.per_epoch))
    loaded = prefetched(job.found.read, chunks, 2, 2)
    try:
        for images, masks in loaded:
            yield torch.from_numpy(images).to(job.device), torch.from_numpy(masks).to(job.device)
    finally:
        loaded.close()  # type: ignore[attr-defined]


def _step(job: _Fold, images: Tensor, masks: Tensor) -> None:
    done, settings = job.done, job.recipe.segment
    noise = counted_key("segment-noise", job.recipe.seed, done.fold, done.step) % 2**63
    torch.manual_seed(noise)
    pixels, classes = augmented(images, masks, settings.flip, settings.zoom, torch.Generator().manual_seed(noise))
    job.net.train()
    with job.precision.autocast():
        logits = job.net(pixels)
    counted = (classes != IGNORE).sum().clamp(min=1)  # a batch may hold ignored pixels alone
    loss = F.cross_entropy(logits.float(), classes, ignore_index=IGNORE, reduction="sum") / counted
    job.optimizers.zero_grad()
    loss.backward()
    value = float(loss.detach())
    try:
        if not math.isfinite(value):
            raise NonFinite("loss", value)
        job.optimizers.step()
    except NonFinite as error:
        kept = "the checkpoint before it is kept: lower the learning rates in a new run"
        raise SmatError(f"segmentation step {done.step}: loss {value} ({error}); {kept}") from None
    done.step += 1
    done.sums = {"loss": done.sums["loss"] + value, "steps": done.sums["steps"] + 1}
    shown = {"valid_miou": done.best} if done.best >= 0 else {}
    job.reporter.update(done.step, loss=value, **shown)
    if done.step % LOG_EVERY == 0 or done.step == job.steps:
        job.run.log({"kind": "train", "step": job.offset + done.step, "fold": done.fold, "loss": done.sums["loss"] / done.sums["steps"]})
        done.sums = {"loss": 0.0, "steps": 0}


@torch.inference_mode()
def _validate(job: _Fold) -> None:
    """mIoU of the validation images at image_size, the checkpoints."""
    from smatcli.data.augment import normalise

    job.net.eval()
    classes, done = job.recipe.data.number, job.done
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for rows in np.array_split(job.split.valid, -(-len(job.split.valid) // job.recipe.segment.batch_size)):
        images, masks = job.found.read(rows)
        with job.precision.autocast():
            logits = job.net(normalise(torch.from_numpy(images).to(job.device)))
        matrix += confusion(torch.from_numpy(masks), logits.float().argmax(1).cpu(), classes)
    found = measures(matrix)
    value = 0.0 if math.isnan(found.miou) else found.miou
    job.run.log({"kind": "valid", "step": job.offset + done.step, "fold": done.fold, "mean": value, "pixel_accuracy": found.accuracy})
    job.reporter.line(f"epoch {done.step / job.per_epoch:g}: validation mIoU {100 * value:.2f} %")
    if value > done.best:
        done.best, done.best_step = value, done.step
        _save(job, job.best)
    _save(job, "last")
