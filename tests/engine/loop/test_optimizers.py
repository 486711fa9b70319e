import json
import math

import pytest
import torch
from torch import nn

from smatcli.config.schema import GroupConfig
from smatcli.engine.loop.optimizers import NonFinite, build_optimizers, factor
from smatcli.errors import SmatError, UserError


def config(**changes):
    return GroupConfig(**{"lr": 0.1, "schedule": "constant", "warmup": 0.0, **changes})


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(3, 2, generator=generator)), nn.Parameter(torch.randn(4, generator=generator))]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def test_schedules_agree_with_their_formulas():
    cosine = config(schedule="cosine", warmup=0.2)
    rates = [factor(cosine, k, 10) for k in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])
    linear = config(schedule="linear")
    assert [factor(linear, k, 4) for k in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [factor(config(warmup=0.5), k, 4) for k in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert factor(cosine, 12, 10) == pytest.approx(0.0)  # past the end
    assert factor(cosine, 0, 1) == 1.0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_group_moves_like_torch_s_optimizer(name):
    ours, theirs = parameters(), parameters()
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizers = build_optimizers({"g": ours}, {"g": config(optimizer=name, weight_decay=0.1, **options)}, 5)
    rule = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    reference = rule(theirs, lr=0.1, weight_decay=0.1, foreach=False, **options)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizers.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_norms_and_clipping_are_by_group():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    rates = {"optimizer": "sgd", "lr": 1.0}
    optimizers = build_optimizers({"a": [a], "b": [b]}, {"a": config(**rates, clip=1.0), "b": config(**rates)}, 1)
    a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    assert optimizers.step() == pytest.approx({"a": 5.0, "b": 10.0})
    torch.testing.assert_close(a.data, torch.tensor([-0.6, -0.8]))
    torch.testing.assert_close(b.data, torch.tensor([-6.0, -8.0]))


def test_a_group_without_gradients_stays():
    a, b = parameters()
    optimizers = build_optimizers({"a": [a], "b": [b]}, {"a": config(), "b": config()}, 1)
    give_gradients([a], 0)
    before = b.detach().clone()
    assert optimizers.step()["b"] == 0.0
    assert torch.equal(b, before)
    optimizers.zero_grad()
    assert a.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_gradients_change_nothing(value):
    a, b = parameters()
    optimizers = build_optimizers({"a": [a], "b": [b]}, {"a": config(), "b": config()}, 1)
    give_gradients([a, b], 0)
    b.grad[0] = value
    before = a.detach().clone()
    with pytest.raises(NonFinite, match="group 'b'") as error:
        optimizers.step()
    assert error.value.group == "b"
    assert torch.equal(a, before)
    assert optimizers.step_index == 0


def test_parameters_without_decay():
    a, b = parameters()
    before = [a.detach().clone(), b.detach().clone()]
    optimizers = build_optimizers({"g": [a, b]}, {"g": config(optimizer="sgd", weight_decay=0.5)}, 1, no_decay=[b])
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    optimizers.step()
    torch.testing.assert_close(a.data, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(b.data, before[1])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_state_continues_exactly(name):
    """Save the state as JSON and copied tensors, like a checkpoint, in the middle of a schedule."""
    settings = config(optimizer=name, schedule="cosine", warmup=0.3, clip=0.5, **({"momentum": 0.9} if name == "sgd" else {}))
    whole, stopped, resumed = parameters(), parameters(), parameters(1)
    one = build_optimizers({"g": whole}, {"g": settings}, 10)
    two = build_optimizers({"g": stopped}, {"g": settings}, 10)
    for step in range(10):
        give_gradients(whole, step)
        one.step()
    for step in range(4):
        give_gradients(stopped, step)
        two.step()
    tensors, state = two.state_dict()
    three = build_optimizers({"g": resumed}, {"g": settings}, 10)
    three.load_state_dict({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(state)))
    for param, value in zip(resumed, stopped, strict=True):
        param.data.copy_(value.data)
    for step in range(4, 10):
        give_gradients(resumed, step)
        three.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert three.rates() == one.rates()


def test_a_state_of_other_groups_is_refused():
    a, b = parameters()
    tensors, state = build_optimizers({"g": [a]}, {"g": config()}, 1).state_dict()
    with pytest.raises(SmatError, match="optimizer groups"):
        build_optimizers({"h": [b]}, {"h": config()}, 1).load_state_dict(tensors, state)


def test_settings_that_do_not_apply_are_refused():
    a, b = parameters()
    groups = {"backbone": [a], "masks": [b]}
    with pytest.raises(UserError, match=r"train\.groups\.mask: no such optimizer group; did you mean 'masks'"):
        build_optimizers(groups, {"backbone": config(), "masks": config(), "mask": config()}, 1)
    with pytest.raises(UserError, match=r"train\.groups\.masks is missing"):
        build_optimizers(groups, {"backbone": config()}, 1)
    with pytest.raises(UserError, match=r"train\.groups\.masks\.momentum: adamw has no momentum"):
        build_optimizers(groups, {"backbone": config()}, 1, defaults={"masks": config(momentum=0.9)})


def test_defaults_fill_in_and_recipes_win():
    a, b = parameters()
    optimizers = build_optimizers({"x": [a], "y": [b]}, {"x": config(lr=0.5)}, 1, defaults={"x": config(lr=0.1), "y": config(lr=0.2)})
    assert optimizers.rates() == {"x": 0.5, "y": 0.2}


def test_set_step_sets_the_rates():
    optimizers = build_optimizers({"g": parameters()}, {"g": config(schedule="linear", lr=1.0)}, 4)
    optimizers.set_step(3)
    assert optimizers.rates() == {"g": 0.25}


def test_no_groups_at_all():
    optimizers = build_optimizers({}, {}, 1)
    assert optimizers.step() == {}
