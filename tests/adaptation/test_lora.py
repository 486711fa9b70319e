"""LoRA: the parameters that it changes, and its merged weights compared with peft's merging."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smatcli.adaptation.lora import LoraAdaptation, LoraNetwork
from smatcli.config.finetune import LoraAdaptConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from tests.adaptation.nets import backbone, make_method, make_support


def config(**settings) -> LoraAdaptConfig:
    return LoraAdaptConfig.model_validate({"lr": 1e-2, "steps": 3, **settings})


def test_only_q_and_v_move_and_by_low_rank() -> None:
    method, support = make_method(), make_support()
    task = method.task(support)
    moved = LoraAdaptation(config(rank=2)).adapt(task, support).theta - task.theta
    for segment in method.space.segments:
        change = moved[segment.slice]
        if segment.layer in ("q", "v") and segment.name.endswith("weight"):
            values = torch.linalg.svdvals(change.view(32, 32).double())
            assert values[1] > 1e-5 * values[0] > 0
            assert float(values[2]) < 1e-5 * float(values[0])
        else:
            assert not change.any(), (segment.name, segment.layer)
    assert {s.layer for s in method.space.segments} >= {"q", "k", "v"}


def test_merged_is_unmerged_and_what_peft_merges() -> None:
    method, support = make_method(), make_support()
    theta, images = method.task(support).theta, support.images
    net = LoraNetwork(method.backbone, method.space, config(rank=4, alpha=6.0))
    branches = 0.3 * torch.randn(net.space.size, generator=torch.Generator().manual_seed(2))
    net.module.eval()
    with torch.no_grad():
        unmerged = method.run(net.module, net.tensors(theta, branches), images)
        merged = method.embed(images, net.merged(theta, branches))
        torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)
        assert (merged - method.embed(images, theta)).abs().max() > 0.1
    # peft's merging, on separate weights
    for name, value in net.tensors(theta, branches).items():
        owner, kind = name.rpartition(".")[::2]
        setattr(net.module.get_submodule(owner) if owner else net.module, kind, nn.Parameter(value.clone()))
    found = method.space.unflatten(net.merged(theta, branches))
    for block in range(2):
        split: Any = net.module.get_submodule(f"blocks.{block}.attn.qkv")
        for layer in (split.q, split.v):
            layer.merge()
        weights = torch.cat([split.q.base_layer.weight, split.k.weight, split.v.base_layer.weight])
        torch.testing.assert_close(found[f"blocks.{block}.attn.qkv.weight"], weights.detach(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(net.module(images), merged, rtol=1e-5, atol=1e-5)


def test_the_first_branches_change_nothing_and_the_scale_is_alpha_over_rank() -> None:
    method = make_method()
    net = LoraNetwork(method.backbone, method.space, config(rank=4, alpha=10.0))
    assert torch.equal(net.merged(method.theta_pre, net.initial), method.theta_pre)
    assert net.space.size == 2 * 2 * 4 * (32 + 32)
    ones = torch.ones(net.space.size)
    change = net.merged(method.theta_pre, ones) - method.theta_pre
    q = next(s for s in method.space.segments if s.layer == "q" and s.name.endswith("weight"))
    torch.testing.assert_close(change[q.slice], torch.full((1024,), 10 / 4 * 4.0))


def test_dropout_is_drawn_while_training_alone() -> None:
    method, support = make_method(), make_support()
    task = method.task(support)
    settings = {"probability": 0.0}
    without = LoraAdaptation(config(dropout=0.0, **settings)).adapt(task, support)
    dropped = LoraAdaptation(config(dropout=0.5, **settings)).adapt(task, support)
    assert not torch.equal(without.theta, dropped.theta)
    assert torch.equal(dropped.predict(support.images), dropped.predict(support.images))


def test_the_rate_is_multiplied_by_the_factor() -> None:
    method, support = make_method(), make_support()
    task = method.task(support)
    one = LoraAdaptation(config(lr=1e-3, factor=10.0)).adapt(task, support)
    assert torch.equal(one.theta, LoraAdaptation(config(lr=1e-2, factor=1.0)).adapt(task, support).theta)
    assert one.info["rate"] == 1e-3


def test_separate_projections_and_other_networks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q_proj(x) * self.k_proj(x) + self.v_proj(x)

    net = nn.Sequential(Block())
    space = ParameterSpace.of(net)
    theta = space.flatten(net)
    lora = LoraNetwork(net, space, config(rank=1))
    branches = torch.randn(lora.space.size, generator=torch.Generator().manual_seed(0))
    lora.module.eval()
    x = torch.randn(3, 4)
    found = torch.func.functional_call(lora.module, lora.tensors(theta, branches), (x,))
    expected = torch.func.functional_call(net, space.unflatten(lora.merged(theta, branches)), (x,))
    torch.testing.assert_close(found, expected)
    moved = space.unflatten(lora.merged(theta, branches) - theta)
    assert not moved["0.k_proj.weight"].any()
    assert moved["0.q_proj.weight"].any()
    assert moved["0.v_proj.weight"].any()
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"no attention layers.*--adapt full"):
        LoraNetwork(plain, ParameterSpace.of(plain), config())


def test_without_qkv_bias_and_in_bf16() -> None:
    net = backbone(qkv_bias=False)
    assert isinstance(net, VisionTransformer)
    method = make_method(qkv_bias=False)
    support = make_support()
    task = method.task(support)
    assert LoraAdaptation(config()).adapt(task, support).info["steps"] == 3

    class Half:
        def autocast(self):
            return torch.autocast("cpu", dtype=torch.bfloat16)

    method.precision = Half()
    found = LoraAdaptation(config(lr=1e-3)).adapt(method.task(support), support)
    assert found.info["steps"] == 3
    assert found.theta.dtype == torch.float32
