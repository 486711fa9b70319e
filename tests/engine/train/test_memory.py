"""The predicted peak memory of a training step compared with the bytes that are allocated."""

from pathlib import Path

import pytest
import torch

from smatcli.config.schema import EpisodeConfig, TrainRecipe
from smatcli.engine.loop.loading import prepare_method
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.engine.loop.speed import speed_up
from smatcli.engine.train import memory as module
from smatcli.engine.train.memory import LiveBytes, largest, predict_memory
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load

SIZE = [
    "backbone.image_size=32",
    "backbone.args={patch_size: 8, embed_dim: 64, depth: 3, num_heads: 2}",
    "episode={kind: fixed, ways: 5, shots: 8, queries: 16}",
    "method.experts=2",
]


def measured(recipe: TrainRecipe) -> int:
    """Return the peak bytes of tensors in the second of two steps: states, gradients and images, without parameters."""
    method = prepare_method(recipe, "none")
    speed_up(method, recipe.train, SilentReporter())
    optimizers = build_optimizers(method.groups(), {}, 1, method.default_groups())
    ways, support, query = largest(recipe.episode)
    with LiveBytes() as tracker:
        batch = [module._random_episode(ways, support, query, 32, torch.device("cpu"), k) for k in range(2)]
        for _ in range(2):
            tracker.mark()
            module._step(method, optimizers, batch)
        return tracker.mark()


def test_the_peak_is_predicted_within_a_fifth(tmp_path: Path) -> None:
    """With chunks, the network's memory does not grow with the episode; activation checkpoints reduce it."""
    found = []
    for options in ([], ["train.checkpoint_activations=true"], ["train.chunk=24"]):
        recipe = load(tmp_path, *SIZE, *options).recipe
        assert isinstance(recipe, TrainRecipe)
        report = predict_memory(recipe)
        found.append(measured(recipe))
        assert (report.peak - report.before) / module.HOLES == pytest.approx(found[-1], rel=0.2), options
        assert (report.support, report.query, report.meta_batch) == (40, 80, 2)
        assert "largest episode: 40 support and 80 query images" in report.lines()[0]
        assert "predicted peak" in report.lines()[-1]
    assert found[1] < 0.75 * found[0]
    assert found[2] < 0.6 * found[0]


def test_the_largest_episode_of_each_kind() -> None:
    assert largest(EpisodeConfig(ways=(3, 7), shots=(1, 4), queries=6)) == (7, 28, 42)
    assert largest(EpisodeConfig(kind="meta-dataset")) == (50, 500, 500)
    assert largest(EpisodeConfig(queries="auto")) == (5, 25, 50)


def test_live_bytes_are_those_that_live() -> None:
    with LiveBytes() as tracker:
        first = torch.zeros(1000)
        second = first + 1
        view = second[10:]
        assert tracker.live == 8000
        del first
        assert (tracker.live, tracker.mark()) == (4000, 8000)
        del second
        assert (tracker.live, tracker.mark()) == (4000, 4000)
        del view
        assert tracker.live == 0
