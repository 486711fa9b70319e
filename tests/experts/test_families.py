"""Structured and fixed masks compared with explicit index vectors and plain loops."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from smatcli.config.methods import MaskConfig
from smatcli.errors import SmatError, UserError
from smatcli.experts.families import Masks
from smatcli.experts.groups import ParameterGroups
from smatcli.experts.mlp import MlpParts
from smatcli.experts.noise import logistic
from smatcli.experts.space import ParameterSpace

M = 3


@pytest.fixture(scope="module")
def space() -> ParameterSpace:
    return ParameterSpace.of(VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=0))


def index_by_hand(space: ParameterSpace, kind: str) -> Tensor:
    """Return the group of every parameter, [P], computed element by element from the written rule."""
    groups: dict[tuple[object, ...], int] = {}
    found = []
    for name, shape in zip(space.names, space.shapes, strict=True):
        module, _, last = name.rpartition(".")
        matrix = last == "weight" and len(shape) > 1
        of_matrix = last == "bias" and f"{module}.weight" in space.names and len(space.shapes[space.names.index(f"{module}.weight")]) > 1
        for place in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist():
            if kind == "output" and (matrix or of_matrix):
                key: tuple[object, ...] = (module, place[0])
            elif matrix:
                key = (name, *place[1:])
            else:
                key = (name, place[-1])
            found.append(groups.setdefault(key, len(groups)))
    return torch.tensor(found)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_groups_are_those_of_the_rule(space: ParameterSpace, kind: str) -> None:
    groups, index = ParameterGroups.of(space, kind), index_by_hand(space, kind)
    assert groups.size == int(index.max()) + 1
    assert torch.equal(groups.expand(torch.arange(groups.size)), index)
    assert torch.equal(groups.members, torch.bincount(index).double())
    values = torch.randn(space.size, dtype=torch.float64)
    by_hand = torch.zeros(groups.size, dtype=torch.float64).index_add_(0, index, values) / torch.bincount(index)
    assert torch.allclose(groups.mean(values), by_hand)


def test_group_sizes_of_a_layer(space: ParameterSpace) -> None:
    """For fc1 of width 8 -> 32, an output has 8 weights and a bias, and an input has 32 weights."""
    start = sum(space.sizes[: space.names.index("blocks.0.mlp.fc1.weight")])
    outputs, inputs = ParameterGroups.of(space, "output"), ParameterGroups.of(space, "input")
    assert outputs.expand(outputs.members)[start] == 9
    assert inputs.expand(inputs.members)[start] == 32


def inputs(space: ParameterSpace, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    pre = torch.randn(space.size, dtype=torch.float64, generator=generator)
    delta = torch.randn(M, space.size, dtype=torch.float64, generator=generator)
    alpha = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return pre, delta if own else delta[0].clone(), alpha


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("group", ["element", "input", "output"])
def test_learned_masks_are_the_definition(space: ParameterSpace, group: Any, own: bool, training: bool) -> None:
    masks = Masks(MaskConfig(group=group), space, own)
    torch.manual_seed(0)
    log_alpha = (masks.initial_log_alpha(M).double() * 4).requires_grad_()
    pre, delta, alpha = inputs(space, own)
    delta.requires_grad_()
    alpha.requires_grad_()
    u = torch.rand(log_alpha.shape, dtype=torch.float64) * 0.9 + 0.05
    found = masks.merge(pre, delta, log_alpha, alpha, training=training, noise=u if training else None)

    index = torch.arange(space.size) if group == "element" else index_by_hand(space, group)
    s = torch.sigmoid((torch.log(u / (1 - u)) + log_alpha) / (2 / 3)) if training else torch.sigmoid(log_alpha)
    z = (1.2 * s - 0.1).clamp(0, 1)[:, index]
    theta = pre + sum(alpha[m] * z[m] * (delta[m] if own else delta) for m in range(M))
    assert torch.allclose(found.theta, theta, rtol=1e-12)
    assert torch.allclose(found.nonzeros, (z > 0).sum(1).double())
    l0 = torch.sigmoid(log_alpha - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1, dtype=torch.float64)))[:, index].mean(1)
    weight, push = torch.randn(space.size, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    leaves = (delta, log_alpha, alpha)
    loss, expected = (found.theta * weight).sum(), (theta * weight).sum()
    if training:
        assert torch.allclose(found.expected_l0, l0)
        assert torch.allclose(masks.expected_l0(log_alpha), l0)
        loss, expected = loss + (found.expected_l0 * push).sum(), expected + (l0 * push).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert torch.allclose(
        torch.stack(list(masks.inference(log_alpha, M, pre))), (1.2 * torch.sigmoid(log_alpha) - 0.1).clamp(0, 1)[:, index]
    )
    zeros = (masks.shape.train_gate(log_alpha)[:, index] == 0).double().mean(1)
    assert torch.allclose(masks.counted(log_alpha, "training"), zeros)


@pytest.mark.parametrize(("group", "own"), [("output", False), ("element", True)])
def test_a_seed_is_the_noise_of_the_mask_entries(space: ParameterSpace, group: Any, own: bool) -> None:
    masks = Masks(MaskConfig(group=group), space, own)
    log_alpha = torch.randn(M, masks.entries, dtype=torch.float64)
    pre, delta, alpha = inputs(space, own)
    u = torch.sigmoid(logistic(9, len(log_alpha), log_alpha.shape[1], log_alpha))
    by_seed = masks.merge(pre, delta, log_alpha, alpha, training=True, noise=9).theta
    assert torch.allclose(by_seed, masks.merge(pre, delta, log_alpha, alpha, training=True, noise=u).theta, atol=1e-9)
    other = masks.merge(pre, delta, log_alpha, alpha, training=True, noise=10).theta
    assert not torch.equal(by_seed, other)
    still = masks.merge(pre, delta, log_alpha, alpha, training=False, noise=9).theta
    assert torch.equal(still, masks.merge(pre, delta, log_alpha, alpha, training=False).theta)


@pytest.mark.parametrize("kind", ["random", "magnitude"])
def test_fixed_masks_have_the_sparsity_and_differ(space: ParameterSpace, kind: Any) -> None:
    torch.manual_seed(0)
    theta = torch.randn(space.size)
    masks = Masks(MaskConfig(kind=kind), space)
    z = masks.draw(M, theta, 0.9)
    assert z is not None
    assert z.dtype == torch.bool
    assert z.sum(1).tolist() == [round(0.1 * space.size)] * M
    assert not torch.equal(z[0], z[1])
    kept, all_ = theta.abs()[z[0]].mean(), theta.abs().mean()
    assert (kept > 1.3 * all_) if kind == "magnitude" else (abs(kept / all_ - 1) < 0.2)
    pre, delta, alpha = inputs(space, False)
    found = masks.merge(pre, delta, z, alpha, training=True)
    assert torch.allclose(found.theta, pre + delta * (alpha @ z.double()), rtol=1e-12)
    assert torch.allclose(found.nonzeros, z.sum(1).double())
    assert not found.expected_l0.any()
    assert torch.allclose(masks.counted(z, "inference"), 1 - z.float().mean(1))


def test_magnitude_masks_of_one_expert_are_the_largest_weights(space: ParameterSpace) -> None:
    theta = torch.randn(space.size, generator=torch.Generator().manual_seed(1))
    z = Masks(MaskConfig(kind="magnitude"), space).draw(1, theta, 0.75)
    largest = theta.abs().topk(round(0.25 * space.size)).indices
    assert z is not None
    assert set(z[0].nonzero().squeeze(1).tolist()) == set(largest.tolist())


def test_magnitude_masks_of_several_experts_are_drawn_in_proportion() -> None:
    """One of three parameters 1, 2 and 5 is kept, with probability 1/8, 2/8 and 5/8."""
    layer = torch.nn.Linear(3, 1, bias=False)
    masks = Masks(MaskConfig(kind="magnitude"), ParameterSpace.of(layer))
    torch.manual_seed(0)
    z = masks.draw(4000, torch.tensor([1.0, -2.0, 5.0]), 2 / 3)
    assert z is not None
    assert torch.allclose(z.float().mean(0), torch.tensor([1, 2, 5]) / 8, atol=0.03)


def test_fixed_structured_masks_keep_whole_groups(space: ParameterSpace) -> None:
    torch.manual_seed(0)
    masks = Masks(MaskConfig(kind="random", group="output"), space)
    z = masks.draw(M, torch.randn(space.size), 0.8)
    assert z is not None
    assert z.shape == (M, masks.entries)
    kept = z[:, index_by_hand(space, "output")].float().mean(1)
    largest = float(ParameterGroups.of(space, "output").members.max()) / space.size
    assert all(0.2 <= share < 0.2 + largest for share in kept.tolist())


def test_dense_parameters_need_the_default_masks(space: ParameterSpace) -> None:
    pre, delta, alpha = inputs(space, False)
    with pytest.raises(SmatError, match="always-dense"):
        Masks(MaskConfig(kind="dense"), space).merge(pre, delta, None, alpha, training=True, dense=space.where(("norm",)))


def test_mlp_parts_cover_the_layers_and_join_again(space: ParameterSpace) -> None:
    parts = MlpParts.of(space)
    vector = torch.arange(space.size, dtype=torch.float64)
    mlp, rest = parts.take(vector)
    assert parts.size == len(mlp) == 2 * (8 * 32 + 32 + 32 * 8 + 8)
    assert len(mlp) + len(rest) == space.size
    assert torch.equal(torch.cat([vector[space.where((n,))] for n in parts.names]), mlp)
    assert torch.equal(parts.join(mlp, rest), vector)
    assert parts.names[:4] == tuple(f"blocks.0.mlp.{n}" for n in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"))
    with pytest.raises(UserError, match="no MLP layers"):
        MlpParts.of(ParameterSpace.of(torch.nn.Linear(2, 2)))
