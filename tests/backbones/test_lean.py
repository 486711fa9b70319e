"""The CLS-only network: equal to the plain one in float64, in features and gradients."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from smatcli.backbones.lean import lean
from smatcli.experts.space import ParameterSpace

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}


def made(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(**{**SMALL, **settings}).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def run(net: nn.Module, space: ParameterSpace, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    theta = theta.clone().requires_grad_()
    features = functional_call(net, space.unflatten(theta), (images,))
    weights = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(1))
    return features.detach(), torch.autograd.grad((features * weights).sum(), [theta])[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"init_values": 0.5},
        {"reg_tokens": 3},
        {"depth": 1},
        {"no_embed_class": True},
        {"num_classes": 5},
    ],
)
def test_features_and_gradients_are_those_of_the_plain_network(settings: dict[str, Any], several: bool, fused: bool) -> None:
    net = made(**settings)
    for block in net.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = fused
    space, images = ParameterSpace.of(net), torch.randn(5, 3, 32, 32, dtype=torch.float64)
    small = lean(net, several)
    assert small is not None
    assert [n for n, _ in small.named_parameters()] == list(space.names)
    theta = space.flatten(net)
    assert not sum(p.numel() for p in small.parameters())
    for one, other in zip(run(small, space, theta, images), run(net, space, theta, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert torch.equal(theta, space.flatten(net))


def test_it_computes_less_and_batches_by_vmap() -> None:
    net = made()
    space, images = ParameterSpace.of(net), torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    small = lean(net, True)
    assert small is not None
    tokens: list[int] = []
    small.blocks[-1].mlp.register_forward_hook(lambda module, given, out: tokens.append(out.shape[1]))  # type: ignore[index,union-attr]
    thetas = space.flatten(net).expand(2, -1) + torch.randn(2, space.size, dtype=torch.float64) / 10
    found = vmap(lambda theta, x: functional_call(small, space.unflatten(theta), (x,)))(thetas, images)
    assert tokens == [1]
    for one, theta, x in zip(found, thetas, images, strict=True):
        torch.testing.assert_close(one, functional_call(net, space.unflatten(theta), (x,)), rtol=1e-10, atol=1e-12)


def test_of_what_is_not_known_to_be_equal_there_is_none() -> None:
    assert lean(nn.Linear(3, 3)) is None
    assert lean(made(global_pool="avg")) is None
    assert lean(made(global_pool="map")) is None
    assert lean(made(class_token=False, global_pool="avg")) is None
    assert lean(timm.create_model("resnet18", num_classes=0)) is None
    watched = made()
    watched.blocks[0].register_forward_hook(lambda *a: None)  # type: ignore[index,union-attr]
    assert lean(watched) is None
