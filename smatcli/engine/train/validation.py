"""Validation during meta-training: fixed episodes from the validation classes of each dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from smatcli.config.schema import EpisodeConfig, TrainRecipe
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store
from smatcli.engine.loop.distributed import ALONE, World
from smatcli.errors import UserError
from smatcli.methods.prototypes import accuracy, cosine_logits, prototypes
from smatcli.seams import Episode, Method


@dataclass(frozen=True)
class Validation:
    """Accuracies as fractions: `datasets` by name, their `mean`, and the `half_width` of its 95 % confidence interval."""

    mean: float
    half_width: float
    datasets: dict[str, float]

    def record(self) -> dict[str, object]:
        """Return the fields of a `metrics.jsonl` record."""
        return {"mean": self.mean, "half_width": self.half_width, "datasets": self.datasets}


class Validator:
    """Validates on the same episodes every time, drawn with one sampler per dataset."""

    def __init__(self, stores: dict[str, Store], recipe: TrainRecipe, device: torch.device, world: World = ALONE):
        self.world = world
        self.device, self.count = device, recipe.train.valid_episodes
        self.image_size = recipe.backbone.image_size
        self.samplers = {n: EpisodeSampler({n: s}, "valid", recipe.episode, seed=0) for n, s in stores.items()}

    def run(self, method: Method) -> Validation:
        """Return the prototype accuracy of `method` on the fixed episodes."""
        means: dict[str, float] = {}
        variances = []
        for name, sampler in self.samplers.items():
            mine = [i for i in range(self.count) if self.world.owns(i)]
            loader = EpisodeLoader(sampler, mine, self.device, image_size=self.image_size)
            rows = self.world.gather_rows(self.count, mine, [[score(method, episode)] for episode in loader])
            scores = [row[0] for row in rows]
            means[name] = float(np.mean(scores))
            variances.append(float(np.var(scores)) / len(scores))
        half_width = 1.96 * float(np.sqrt(np.sum(variances))) / len(means) if means else 0.0
        return Validation(float(np.mean(list(means.values()))), half_width, means)


@torch.no_grad()
def score(method: Method, episode: Episode) -> float:
    """Return the query accuracy with the method's task parameters, without adaptation."""
    task, support = method.task(episode.support), episode.support
    features = task.embed(torch.cat([support.images, episode.query_images]), task.theta)
    support_features, query_features = features.split([len(support.images), len(episode.query_images)])
    logits = cosine_logits(query_features, prototypes(support_features, support.labels, support.ways), task.scale)
    return accuracy(logits, episode.query_labels)


def validation_names(recipe: TrainRecipe, stores: dict[str, Store]) -> list[str]:
    """Return the datasets to validate on: data.valid, or the training datasets with enough validation classes.

    Raises UserError if no training dataset has enough.
    """
    if recipe.data.valid is not None:
        return list(recipe.data.valid)
    need = fewest_ways(recipe.episode)
    names = [n for n in recipe.data.train if len(stores[n].classes("valid")) >= need]
    if not names:
        sizes = ", ".join(f"{n} {len(stores[n].classes('valid'))}" for n in recipe.data.train)
        raise UserError(f"data.valid: no training dataset has the {need} validation classes that an episode needs ({sizes})")
    return names


def fewest_ways(episode: EpisodeConfig) -> int:
    """Return the number of classes that a split needs for any episode of this configuration."""
    if episode.kind != "fixed":
        return episode.min_ways
    return max(episode.ways) if isinstance(episode.ways, Sequence) else episode.ways
