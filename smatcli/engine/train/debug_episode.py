"""`smat train --debug-episode DATASET:INDEX`: the terms of a training episode's loss, from a checkpoint of the run."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.device import threads
from smatcli.engine.loop.determinism import deterministic
from smatcli.engine.loop.loading import restore
from smatcli.engine.train.meta_batch import noise_of
from smatcli.engine.train.trainer import MetaLearner
from smatcli.errors import UserError
from smatcli.runs.checkpoint import has_checkpoint, kept_checkpoints, load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.seams import Episode


@dataclass
class DebugEpisode:
    """Loss terms, logged numbers and gradient norms (by group) of an episode; `broken` names the tensors that are not finite."""

    episode: Episode
    checkpoint: Path
    step: int
    total: float
    terms: dict[str, float]
    logs: dict[str, float]
    norms: dict[str, float]
    broken: list[str] = field(default_factory=list)


def debug_episode(loaded: Loaded, dataset: str, index: int, reporter: Reporter) -> DebugEpisode:
    """Recompute the training loss of episode `index`, with its noise and augmentation, without writing anything.

    The weights come from `checkpoints/failed` (which exists if the run stopped because of its loss), else from the last checkpoint. If
    these were the run's weights when it trained on the episode, the numbers are the run's own, bit for bit. Raises UserError if the run
    has no checkpoint, or if the episode is not from `dataset`.
    """
    recipe = loaded.recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(f"{loaded.path}: is a {recipe.kind} recipe; --debug-episode needs a train recipe")
    run = RunDir.open(recipe.run)
    folder = run.checkpoints / "failed"
    if not has_checkpoint(folder):
        folder = run.checkpoints / "last"
    saved = load_checkpoint(folder, reporter, others=kept_checkpoints(run.checkpoints))
    with threads(recipe.threads), deterministic(recipe.deterministic):
        learner = MetaLearner(recipe, reporter, "none")
        actual = learner.sampler.dataset(index)
        if dataset != actual:
            raise UserError(f"--debug-episode {dataset}:{index}: episode {index} (seed {recipe.seed}) is from {actual}, not {dataset}")
        learner.check_data(saved.state, run.path)
        restore(learner.method, saved.model, saved.path)
        loader = EpisodeLoader(learner.sampler, [index], learner.device, recipe.train.augment, recipe.backbone.image_size)
        return _measure(learner, next(iter(loader)), saved.path, int(saved.state["step"]))


def _measure(learner: MetaLearner, episode: Episode, checkpoint: Path, step: int) -> DebugEpisode:
    method, groups = learner.method, learner.optimizers.groups
    broken = [name for name, value in method.state_dict().items() if not bool(torch.isfinite(value).all())]
    method.train()
    torch.manual_seed(learner.noise(step))
    noise = torch.Generator(learner.device)
    noise.manual_seed(noise_of(learner.recipe.seed, episode.index))
    losses = method.loss(episode, noise)
    losses.total.backward()
    norms = {}
    for name, params in groups.items():
        grads = [p.grad for p in params if p.grad is not None]
        norms[name] = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        broken += [f"gradient {i} of group {name}" for i, grad in enumerate(grads) if not bool(torch.isfinite(grad).all())]
    broken += ["image"] if not bool(torch.isfinite(episode.query_images).all() and torch.isfinite(episode.support.images).all()) else []
    return DebugEpisode(episode, checkpoint, step, float(losses.total.detach()), dict(losses.terms), dict(losses.logs), norms, broken)
