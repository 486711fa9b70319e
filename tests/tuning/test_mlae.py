"""Masked LoRA experts compared with loops over experts, closed forms of the masks, and MLAE's patterns."""

from typing import Any

import pytest
import torch

from smatcli.config.tuning import MlaeConfig
from smatcli.errors import UserError
from smatcli.tuning.lora import LoraTuner
from smatcli.tuning.mlae import MaskedExperts, Mlae
from smatcli.tuning.patterns import counts, experts_of, rates_of
from tests.tuning.world import DEPTH, IMAGES, config, make, shake

X = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(2)).double()


def layer(experts=4, cell=1, p=0.0):
    torch.manual_seed(0)
    made = MaskedExperts(torch.nn.Linear(6, 9).double(), experts, cell, 0.5, p)
    for parameter in (made.a, made.b, made.coefficients):
        torch.nn.init.normal_(parameter)
    return made


def mlae(**settings: Any) -> Mlae:
    made = make(name="mlae", **settings)
    assert isinstance(made, Mlae)
    return made


def mlae_config(**settings: Any) -> MlaeConfig:
    made = config(name="mlae", **settings)
    assert isinstance(made, MlaeConfig)
    return made


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_one_product_is_the_sum_over_experts(cell):
    made = layer(3, cell).eval()
    want = made.base(X)
    for i in range(3):
        part = slice(i * cell, (i + 1) * cell)
        change = made.coefficients[i] * made.b[:, part] @ made.a[part]
        assert torch.linalg.matrix_rank(change) == cell
        want = want + X @ change.T
    torch.testing.assert_close(made(X), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.merged()(X), want, rtol=1e-12, atol=1e-12)


def test_a_training_pass_uses_whole_experts_rescaled():
    made, base = layer(p=0.25).train(), layer(p=0.0).eval()
    parts = torch.stack([base.coefficients[i] * X @ torch.outer(base.b[:, i], base.a[i]).T for i in range(4)])
    plain, seen = base.base(X), set()
    for seed in range(40):
        torch.manual_seed(seed)
        found = made(X) - plain
        torch.manual_seed(seed)
        kept = torch.nn.functional.dropout(torch.ones(4, dtype=torch.double), 0.25) > 0
        torch.testing.assert_close(found, (parts[kept] / 0.75).sum(0), rtol=1e-9, atol=1e-9)
        seen.add(tuple(kept.tolist()))
    assert len(seen) > 8


def test_the_share_of_kept_experts_is_one_minus_p():
    made = layer(p=0.7).train()
    torch.manual_seed(0)
    kept = torch.stack([made.weights() != 0 for _ in range(2500)]).double()
    assert abs(float(kept.mean()) - 0.3) < 4 * (0.7 * 0.3 / 10_000) ** 0.5


def test_a_left_out_expert_learns_nothing():
    made = layer(p=0.5).train()
    torch.manual_seed(4)
    made(X).sum().backward()
    off = made.b.grad.abs().sum(0) == 0
    assert 0 < int(off.sum()) < 4
    assert torch.equal(off, made.a.grad.abs().sum(1) == 0)
    assert torch.equal(off, made.coefficients.grad == 0)


def test_starting_values():
    made = mlae(rank=8, init=0.25)
    for part in made.parts().values():
        assert torch.equal(part.coefficients, torch.full((8,), 0.25))
        assert not part.b.any()
        assert part.a.abs().max() <= 1 / 4
        assert part.a.std() > 0.9 / 4 / 3**0.5  # Kaiming uniform of 16 inputs: 1 / sqrt(16)


def test_the_papers_patterns():
    rising = [2, 2, 2, 6, 6, 6, 10, 10, 10, 14, 14, 14]
    assert counts("incremental", 8, 12) == rising
    assert counts("decremental", 8, 12) == rising[::-1]
    assert counts("uniform", 8, 12) == [8] * 12
    around, within = counts("hourglass", 8, 12), counts("protruding", 8, 12)
    assert sorted(around) == sorted(within) == rising
    assert around.index(min(around)) in (5, 6)
    assert within.index(max(within)) in (5, 6)
    assert around[:7] == sorted(around[:7], reverse=True)
    assert around[7:] == sorted(around[7:])


@pytest.mark.parametrize("pattern", ["incremental", "decremental", "hourglass", "protruding", "random"])
@pytest.mark.parametrize("depth", [1, 2, 5, 6, 12, 24])
@pytest.mark.parametrize("mean", [1, 2, 8])
def test_every_pattern_has_its_mean(pattern, depth, mean):
    found = counts(pattern, mean, depth)
    assert len(found) == depth
    assert sum(found) == mean * depth
    assert min(found) >= 0


def test_random_patterns_follow_their_seed():
    assert counts("random", 8, 12, 1) == counts("random", 8, 12, 1) != counts("random", 8, 12, 2)


def test_rates():
    assert rates_of(mlae_config(mask="fixed"), 12) == [0.0] * 12
    assert rates_of(mlae_config(p=0.3), 12) == [0.3] * 12
    rising = rates_of(mlae_config(p=0.5, pattern="incremental"), 12)
    assert rising[0] == pytest.approx(1 - 0.5 * 2 / 8)
    assert rising[-1] == pytest.approx(1 - 0.5 * 14 / 8)
    assert sum(rising) / 12 == pytest.approx(0.5)
    assert rates_of(mlae_config(p=[0.1, 0.2]), 2) == [0.1, 0.2]
    mixed = mlae_config(mask="mixed", p=0.1, pattern=[1, 2, 3, 4])
    assert rates_of(mixed, 4) == [0.1] * 4
    assert experts_of(mixed, 4) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"p": 0.1, "pattern": "incremental", "rank": 8}, "set p to 0.429 or more"),
        ({"p": [0.1, 0.2]}, "has 2 values, but the backbone has 4 blocks"),
        ({"mask": "fixed", "pattern": [1, 2]}, "give 4 numbers of experts"),
        ({"layers": ["blocks.*.attn.q"]}, r"no linear layer matches .blocks.\*.attn.q.; use blocks.\*.attn.qkv, blocks.\*.attn.proj"),
    ],
)
def test_what_does_not_fit_the_backbone(settings, words):
    with pytest.raises(UserError, match=words):
        make(name="mlae", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "greater than 0"),
        ({"p": 1.0}, "p is 1; give a probability below 1"),
        ({"p": [0.5, 1.0]}, "less than 1"),
        ({"rank": 3, "cell": 2}, "rank 3 is not a multiple of cell 2"),
        ({"mask": "fixed", "p": 0.3}, "p has no effect with mask fixed"),
        ({"mask": "none", "pattern": "random"}, "pattern has no effect with mask none"),
        ({"pattern_seed": 3}, "pattern_seed has no effect without pattern random"),
    ],
)
def test_settings_that_contradict_each_other(settings, words):
    with pytest.raises(ValueError, match=words):
        config(name="mlae", **settings)


def test_rank_one_experts_with_unit_coefficients_are_lora():
    """With all experts on and lambda = 1, the layer equals LoRA of the same rank with scale 1."""
    ours, theirs = shake(mlae(rank=4, mask="none")), make(name="lora", rank=4, alpha=4)
    assert isinstance(theirs, LoraTuner)
    theirs.head.load_state_dict(ours.head.state_dict())
    with torch.no_grad():
        for name, part in ours.parts().items():
            part.coefficients.fill_(1.0)
            peft: Any = theirs.backbone.get_submodule(name)
            peft.lora_A["default"].weight.copy_(part.a)
            peft.lora_B["default"].weight.copy_(part.b)
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))
    for a, b in zip(ours.experts().values(), theirs.experts().values(), strict=True):
        for (left, right), (other_left, other_right) in zip(a, b, strict=True):
            torch.testing.assert_close(left @ right, other_left @ other_right)


def test_a_fixed_pattern_without_an_expert_leaves_the_layer_plain():
    tuner = mlae(mask="fixed", rank=2, pattern=[0, 1, 2, 5])
    assert [len(part.coefficients) for part in tuner.parts().values()] == [1, 2, 5]
    assert len(tuner.parts()) == DEPTH - 1
