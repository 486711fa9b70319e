"""`smat pretrain`: supervised training of a backbone with a cosine classifier over all classes of the recipe's stores."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.backbones import create_backbone, save_backbone
from smatcli.config.schema import AugmentConfig, PretrainRecipe
from smatcli.data.augment import augment, mixup, normalise
from smatcli.data.counted import counted_key
from smatcli.data.episodes.loader import BatchLoader
from smatcli.device import Precision, choose_device, choose_precision, threads
from smatcli.engine.loop.distributed import World, create, reserve, world
from smatcli.engine.loop.guard import Guard, bad_terms
from smatcli.engine.loop.optimizers import NonFinite, Optimizers, build_optimizers
from smatcli.engine.loop.speed import deterministic
from smatcli.engine.pretrain.supervised import CosineClassifier, ImageSplit, split_images
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest

if TYPE_CHECKING:
    from smatcli.config import Loaded

LOG_EVERY = 50  # steps between training records
VALID_BATCH = 256


@dataclass
class _Progress:
    """Where the training stands; everything here is plain data and goes into the checkpoint."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "accuracy": 0.0, "steps": 0})
    top1: float = 0.0
    best: float = -1.0
    best_step: int = 0


@dataclass
class _Job:
    """The parts of one pre-training."""

    recipe: PretrainRecipe
    run: RunDir
    reporter: Reporter
    precision: Precision
    data: ImageSplit
    model: CosineClassifier
    optimizers: Optimizers
    train: BatchLoader
    held: BatchLoader
    steps: int
    done: _Progress
    guard: Guard
    world: World

    @property
    def valid_every(self) -> int:
        return self.recipe.pretrain.valid_every * len(self.train)


def pretrain(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Train a backbone as the recipe says and leave backbone.safetensors and backbone.json in its run directory.

    Each random number is counted by (seed, step), so a resumed run continues exactly. Raises UserError before anything is written
    when recipe or data cannot be used, SmatError when pretrain.spike.in_a_row steps had to be left out because of their loss, Interrupted
    on SIGINT, SIGTERM and SIGUSR1.
    """
    recipe = loaded.recipe
    if not isinstance(recipe, PretrainRecipe):
        raise UserError(f"{loaded.path}: kind is {recipe.kind!r}; `smat pretrain` needs a recipe of kind 'pretrain'")
    here = world(recipe.device)
    reporter = here.reporter(reporter)
    run = reserve(loaded, reporter, resume, here)
    if run is not None and run.finished:
        return run
    with threads(recipe.threads), deterministic(recipe.deterministic):
        device = choose_device(recipe.device)
        data = split_images(recipe.data, recipe.seed)
        model = _model(recipe, len(data.names)).to(device)
        precision = choose_precision(recipe.precision, device, int(model.backbone.num_features))  # type: ignore[arg-type]
        precision.apply(model)
        train, held = _loaders(recipe, data, device)
        steps = max(1, round(recipe.pretrain.epochs * len(train)))
        optimizers = build_optimizers(
            {"optimizer": list(model.parameters())},
            {"optimizer": recipe.pretrain.optimizer},
            steps,
            no_decay=model.undecayed(),
            where="pretrain",
        )
        run = run or create(loaded, here)
        job = _Job(
            recipe, run, reporter, precision, data, model, optimizers, train, held, steps, _Progress(), Guard(recipe.pretrain.spike), here
        )
        with run.active(), StopRequest() as stop:
            run.note(device=str(device), precision=precision.name, data=data.hashes)
            _describe(job)
            _restore(job)
            _train(job, stop)
    return run


def _model(recipe: PretrainRecipe, classes: int) -> CosineClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("model", recipe.seed) % 2**63)
        return CosineClassifier(create_backbone(recipe.backbone), classes, recipe.pretrain.scale)


def _loaders(recipe: PretrainRecipe, data: ImageSplit, device: torch.device) -> tuple[BatchLoader, BatchLoader]:
    images = [store.images for store in data.stores]
    size, batch = recipe.backbone.image_size, recipe.pretrain.batch_size
    train = BatchLoader(images, data.train_rows, data.train_labels, batch, recipe.seed, image_size=size, device=device)
    held = BatchLoader(images, data.held_rows, data.held_labels, VALID_BATCH, shuffle=False, image_size=size, device=device)
    return train, held


def _describe(job: _Job) -> None:
    parameters = sum(p.numel() for p in job.model.backbone.parameters())
    job.reporter.line(str(job.precision))
    job.reporter.line(
        f"{job.recipe.backbone.name}, {parameters / 1e6:.2f} M parameters, {job.recipe.backbone.image_size} px; "
        f"{len(job.data.names)} classes, {job.train.samples} training and {job.held.samples} held-out images; "
        f"{job.steps} steps of {min(job.train.batch_size, job.train.samples)} images"
    )
    if job.data.single:
        job.reporter.line(f"{job.data.single} classes have a single image: it is trained on, and none is held out")


def _restore(job: _Job) -> None:
    last = job.run.checkpoints / "last"
    if not has_checkpoint(last):
        job.run.truncate(-1)
        return
    saved = load_checkpoint(last, job.reporter)
    if saved.state["data"] != job.data.hashes:
        changed = [n for n, h in job.data.hashes.items() if saved.state["data"].get(n) != h]
        raise UserError(f"the stores {', '.join(changed) or '(removed ones)'} changed since run {job.run.path} began; choose another run=")
    job.model.load_state_dict(saved.model)
    job.optimizers.load_state_dict(saved.optim, saved.state["optim"])
    job.done = _Progress(**saved.state["progress"])
    if "guard" in saved.state:
        job.guard.restore(saved.state["guard"])
    job.run.truncate(job.done.step)
    job.reporter.line(f"continuing {job.run.path} at step {job.done.step} of {job.steps}")


def _save(job: _Job, best: bool = False) -> None:
    tensors, optim = job.optimizers.state_dict()
    state: dict[str, Any] = {
        "progress": dict(job.done.__dict__), "optim": optim, "data": job.data.hashes, "guard": job.guard.state(),
    }  # fmt: skip
    model = job.model.state_dict()
    if broken := job.optimizers.broken():
        raise SmatError(_diverged(job, broken))
    with job.world.fail_together():
        if not job.world.is_main:
            return
        job.run.sync()
        if best:
            save_checkpoint(job.run.checkpoints / "best", model, state)
        save_checkpoint(job.run.checkpoints / "last", model, state, tensors, keep_before=True)
        metrics = {"step": job.done.step, "top1": job.done.top1, "best_top1": max(job.done.best, 0.0), "best_step": job.done.best_step}
        save_backbone(job.run.path, job.model.backbone, job.recipe.backbone, metrics)


def _train(job: _Job, stop: StopRequest) -> None:
    batch = min(job.train.batch_size, job.train.samples)
    job.reporter.start(job.steps * batch, "pretrain", done=job.done.step * batch, unit="images")
    try:
        while job.done.step < job.steps:
            epoch, start = divmod(job.done.step, len(job.train))
            for images, labels in job.train.epoch(epoch, start):
                _step(job, images, labels, epoch, batch)
                if stop.agreed(job.world.all_max(stop.signum or 0)):
                    _save(job)
                    raise stop.interrupted(f"step {job.done.step} of {job.steps}")
                if job.done.step >= job.steps:
                    break
        job.reporter.finish()
        job.reporter.line(
            f"top-1 of held-out images {job.done.top1:.3f} (best {job.done.best:.3f} at step {job.done.best_step}); "
            f"backbone in {job.run.path}"
        )
    finally:
        job.reporter.finish()


def _step(job: _Job, images: Tensor, labels: Tensor, epoch: int, batch: int) -> None:
    done, rate = job.done, job.optimizers.rates()["optimizer"]
    job.guard.remember(job.model)
    loss, accuracy, problem = _update(job, images, labels)
    done.step += 1
    if problem is not None:
        _leave_out(job, problem)
    else:
        job.guard.made(loss)
        done.sums = {"loss": done.sums["loss"] + loss, "accuracy": done.sums["accuracy"] + accuracy, "steps": done.sums["steps"] + 1}
    shown = {"loss": loss, "top1": done.top1} if done.best >= 0 else {"loss": loss}
    job.reporter.update(done.step * batch, epoch=epoch + 1, **shown)
    if done.step % LOG_EVERY == 0 or done.step == job.steps:
        means = {k: done.sums[k] / max(1.0, done.sums["steps"]) for k in ("loss", "accuracy")}
        job.run.log({"kind": "train", "step": done.step, "epoch": done.step / len(job.train), **means, "lr": rate})
        done.sums = dict.fromkeys(done.sums, 0.0)
    if done.step % job.valid_every == 0 or done.step == job.steps:
        _validate(job)


def _update(job: _Job, images: Tensor, labels: Tensor) -> tuple[float, float, str | None]:
    """One optimizer update; loss, training accuracy (of the heavier half of each mixed image), and why it was not made, if so."""
    settings, step = job.recipe.pretrain, job.done.step
    noise = counted_key("pretrain", job.recipe.seed, step) % 2**63
    generator = torch.Generator().manual_seed(noise)
    torch.manual_seed(noise)  # drop-path and dropout read the global generator
    inputs, targets = _augmented(images, labels, settings.augment, len(job.data.names), generator, job.recipe.backbone.image_size)
    # The whole batch is drawn, augmented and mixed everywhere, as one process would; each then learns from its share of it.
    share, total = job.world.share(len(inputs)), len(inputs)
    inputs, targets = inputs[share.start : share.stop], targets[share.start : share.stop]
    job.model.train()
    with job.precision.autocast():
        logits = job.model(inputs)
    loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing) * (len(share) / total)
    truth = targets if targets.ndim == 1 else targets.argmax(1)
    right = (logits.argmax(1) == truth).sum().item()
    value, right = (sum(column) for column in zip(*job.world.gather([loss.item(), right]), strict=True))
    if problem := bad_terms(value, {}) or job.guard.spike(value):
        return value, 0.0, problem
    job.optimizers.zero_grad()
    loss.backward()
    job.world.sum_gradients(list(job.model.parameters()))
    try:
        job.optimizers.step()
    except NonFinite as error:
        return value, 0.0, str(error)
    return value, right / total, None


def _leave_out(job: _Job, problem: str) -> None:
    """Undo and count a step that is not made; after too many in a row, stop."""
    job.guard.forget()
    job.optimizers.set_step(job.done.step)
    if job.guard.left_out():
        job.done.step -= 1
        raise SmatError(_diverged(job, problem))
    job.run.log({"kind": "skip", "step": job.done.step, "reason": problem, "skipped": job.guard.skipped})
    job.reporter.line(f"step {job.done.step} is left out: {problem}; {job.guard.skipped} so far")


def _augmented(
    images: Tensor, labels: Tensor, config: AugmentConfig, classes: int, generator: torch.Generator, size: int
) -> tuple[Tensor, Tensor]:
    if config == AugmentConfig():
        return normalise(images, size), labels
    inputs = augment(images, config, generator, size)
    return mixup(inputs, labels, classes, config.mixup, generator) if config.mixup > 0 else (inputs, labels)


def _diverged(job: _Job, what: str) -> str:
    last = job.run.checkpoints / "last"
    kept = f"the last good checkpoint is kept in {last}" if has_checkpoint(last) else "no checkpoint was written yet"
    row = f" (step {job.guard.row} in a row that had to be left out)" if job.guard.row > 1 else ""
    return (
        f"pre-training step {job.done.step}: {what}{row}; {kept}; lower pretrain.optimizer.lr or set pretrain.optimizer.clip in a new run"
    )


def _validate(job: _Job) -> None:
    """Top-1 accuracy of the held-out images, a record of it, and the checkpoints."""
    job.model.eval()
    right, total, losses = 0, 0, 0.0
    with torch.inference_mode():
        for index, (images, labels) in enumerate(job.held.epoch()):
            if not job.world.owns(index):
                continue
            with job.precision.autocast():
                logits = cast(Tensor, job.model(normalise(images, job.recipe.backbone.image_size)))
            right += int((logits.argmax(1) == labels).sum())
            losses += float(F.cross_entropy(logits, labels, reduction="sum"))
            total += len(labels)
    right, total, losses = (sum(column) for column in zip(*job.world.gather([right, total, losses]), strict=True))
    done = job.done
    done.top1 = right / total
    better = done.top1 > done.best
    if better:
        done.best, done.best_step = done.top1, done.step
    job.run.log({"kind": "valid", "step": done.step, "epoch": done.step / len(job.train), "mean": done.top1, "loss": losses / total})
    job.reporter.line(f"epoch {done.step / len(job.train):g}: held-out top-1 {done.top1:.4f}, loss {losses / total:.4f}")
    _save(job, better)
