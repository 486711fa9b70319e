"""The loss on augmented copies: matches its definition, uses the same copies for all states, draws only the task's noise, has no graph."""

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from smatcli.adaptation.exhaustive import Exhaustive
from smatcli.adaptation.flip import Flip
from smatcli.config.schema import ExhaustiveConfig, FlipConfig
from smatcli.seams import Task
from tests.adaptation.tasks import make_support, make_task

AUGMENTED = {"loss": "augmented", "copies": 3}


class Recorded:
    """Compute embed(images, theta) = pixels * theta, and record the arguments."""

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, Tensor]] = []

    def __call__(self, images: Tensor, theta: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.given.append((images.clone(), theta.clone()))
        return images.flatten(1) * theta


def searched(seed: int, noise: int = 5, **settings: object) -> tuple[dict, Recorded, Task]:
    embed = Recorded()
    task = dataclasses.replace(make_task(seed)[0], embed=embed, seed=noise)
    return Flip(FlipConfig.model_validate(AUGMENTED | settings)).adapt(task, make_support(seed)).info, embed, task


@pytest.mark.parametrize("seed", range(4))
def test_loss_by_its_definition_on_the_same_copies_for_every_state(seed: int) -> None:
    info, embed, _ = searched(seed)
    support = make_support(seed)
    size = len(support.labels)
    first = embed.given[0][0]
    assert len(first) == 4 * size
    assert torch.equal(first[:size], support.images)
    assert not torch.equal(first[size : 2 * size], first[2 * size : 3 * size])
    assert info["passes"] == len(embed.given) == len(info["trace"])
    for (images, theta), (_, loss) in zip(embed.given, info["trace"], strict=True):
        assert torch.equal(images, first)
        features = (images.flatten(1) * theta).double()
        total = 0.0
        for k, x in enumerate(features[size:]):
            cosines = []
            for c in range(support.ways):
                centre = features[:size][support.labels == c].mean(0)
                cosines.append(10 * (x @ centre) / (x.norm() * centre.norm()))
            total -= float(torch.stack(cosines).log_softmax(0)[support.labels[k % size]])
        assert loss == pytest.approx(total / (3 * size), abs=1e-5)
    assert info["loss"] == min(loss for _, loss in info["trace"])


def test_noise_is_the_tasks_own() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, first, _ = searched(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other, second, _ = searched(0)
    assert one["trace"] == other["trace"]
    assert torch.equal(first.given[0][0], second.given[0][0])
    assert not torch.equal(first.given[0][0], searched(0, noise=6)[1].given[0][0])


def test_exhaustive_measures_the_same_copies() -> None:
    for seed in range(3):
        info, embed, task = searched(seed)
        other = Exhaustive(ExhaustiveConfig.model_validate(AUGMENTED)).adapt(task, make_support(seed)).info
        assert all(torch.equal(images, embed.given[0][0]) for images, _ in embed.given)
        assert other["loss_start"] == info["loss_start"]
        assert other["flip_bits"] == info["bits"]
        assert other["flip_gap"] == pytest.approx(info["loss"] - other["loss"], abs=1e-6)


def test_copies_without_augmentation_are_refused() -> None:
    with pytest.raises(ValidationError, match="copies has no effect with loss support"):
        FlipConfig.model_validate({"copies": 2})
