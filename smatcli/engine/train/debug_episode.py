"""`smat train --debug-episode DATASET:INDEX`: the loss of one training episode in all its parts, from a checkpoint of the run."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.device import threads
from smatcli.engine.loop.loading import restore
from smatcli.engine.loop.speed import deterministic
from smatcli.engine.train.trainer import Trainer, kept, noise_of, same_data
from smatcli.errors import UserError
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.seams import Episode


@dataclass
class DebugEpisode:
    """Loss terms, readings and gradient norms (by optimizer group) of one episode; `broken` names tensors that are not finite."""

    episode: Episode
    checkpoint: Path
    step: int
    total: float
    terms: dict[str, float]
    logs: dict[str, float]
    norms: dict[str, float]
    broken: list[str] = field(default_factory=list)


def debug_episode(loaded: Loaded, dataset: str, index: int, reporter: Reporter) -> DebugEpisode:
    """Compute the training loss of episode `index` again, with its noise and augmentation; nothing is written.

    The weights are those of `checkpoints/failed` (left by a run that stopped because of its loss), or else of the last checkpoint: the
    numbers are then the run's own, bit for bit, when it made that update from that checkpoint. Raises UserError when the run has no
    checkpoint, or episode `index` is not of `dataset`.
    """
    recipe = loaded.recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(f"{loaded.path}: is a {recipe.kind} recipe; --debug-episode needs a train recipe")
    run = RunDir.open(recipe.run)
    folder = run.checkpoints / "failed"
    if not has_checkpoint(folder):
        folder = run.checkpoints / "last"
    found = load_checkpoint(folder, reporter, others=kept(run))
    with threads(recipe.threads), deterministic(recipe.deterministic):
        trainer = Trainer(recipe, reporter, "none")
        actual = trainer.sampler.dataset(index)
        if dataset != actual:
            raise UserError(f"--debug-episode {dataset}:{index}: episode {index} of seed {recipe.seed} is of {actual}, not of {dataset}")
        same_data(run, found.state.get("data", trainer.data), trainer.data)
        restore(trainer.method, found.model, found.path)
        loader = EpisodeLoader(trainer.sampler, [index], trainer.device, recipe.train.augment, recipe.backbone.image_size)
        return _measure(trainer, next(iter(loader)), found.path, int(found.state["step"]))


def _measure(trainer: Trainer, episode: Episode, checkpoint: Path, step: int) -> DebugEpisode:
    method, groups = trainer.method, trainer.optimizers.groups
    broken = [name for name, value in method.state_dict().items() if not bool(torch.isfinite(value).all())]
    method.train()
    torch.manual_seed(noise_of(trainer.recipe.seed, step * trainer.recipe.train.meta_batch))
    noise = torch.Generator(trainer.device)
    noise.manual_seed(noise_of(trainer.recipe.seed, episode.index))
    losses = method.loss(episode, noise)
    losses.total.backward()  # type: ignore[no-untyped-call]
    norms = {}
    for name, params in groups.items():
        grads = [p.grad for p in params if p.grad is not None]
        norms[name] = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        broken += [f"gradient {i} of group {name}" for i, grad in enumerate(grads) if not bool(torch.isfinite(grad).all())]
    broken += ["image"] if not bool(torch.isfinite(episode.query_images).all() and torch.isfinite(episode.support.images).all()) else []
    return DebugEpisode(episode, checkpoint, step, float(losses.total.detach()), dict(losses.terms), dict(losses.logs), norms, broken)
