"""Lazy views of a flat vector, created when a block runs: equal results, unchanged parameters, and few gradient tensors."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.errors import SmatError
from smatcli.experts.space import ParameterSpace, call
from smatcli.methods.running.execution import Execution
from smatcli.methods.running.lazy_views import LazyViews


def made() -> tuple[VisionTransformer, ParameterSpace, Tensor, Tensor]:
    torch.manual_seed(0)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=0).eval()
    space = ParameterSpace.of(net)
    return net, space, space.flatten(net), torch.randn(4, 3, 16, 16)


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"recompute": "cheap"}, {"chunk": 3}], ids=str)
def test_the_same_bits_and_the_network_as_it_was(options: dict[str, object]) -> None:
    net, space, theta, images = made()
    before = {name: (id(p), p.detach().clone()) for name, p in net.named_parameters()}
    run = Execution(net, **options)  # type: ignore[arg-type]
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    for into, embed in (
        (found, lambda values: run(run.views(space, values), images)),
        (wanted, lambda values: call(net, space, values, images)),
    ):
        values = (theta + 0.01).requires_grad_()
        features = embed(values)
        # Twice, as the teacher and the loss go through one graph.
        into += [features, *(torch.autograd.grad(features.square().sum(), values, retain_graph=True)[0] for _ in range(2))]
    chunked = "chunk" in options  # sums of two parts
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) if chunked else torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert isinstance(run.views(space, theta.clone().requires_grad_()), LazyViews)
    after = dict(net.named_parameters())
    assert all(id(after[name]) == one and torch.equal(after[name], value) for name, (one, value) in before.items())
    assert not any(block._forward_pre_hooks for block in net.blocks)


def test_the_weights_of_a_block_wait_no_longer_than_its_backward() -> None:
    """The gradient of a block is joined into one tensor before autograd continues with the block below."""
    net, space, theta, images = made()
    order: list[str] = []

    views = LazyViews(space, theta.requires_grad_(), {f"blocks.{i}": block for i, block in enumerate(net.blocks)})
    for _, prefix, own, _part in views._blocks:
        real = own.unflatten

        def unflatten(vector: Tensor, real: Any = real, prefix: str = prefix) -> dict[str, Tensor]:
            vector = vector.view_as(vector)
            vector.register_hook(lambda grad: order.append(prefix))
            return real(vector)  # type: ignore[no-any-return]

        object.__setattr__(own, "unflatten", unflatten)
    for i, block in enumerate(net.blocks):
        block.register_full_backward_pre_hook(lambda *a, i=i: order.append(f"into {i}"))
    Execution(net)(views, images).square().sum().backward()
    assert order == ["into 2", "blocks.2", "into 1", "blocks.1", "into 0", "blocks.0"]


def test_without_graph_or_blocks_there_are_plain_views() -> None:
    net, space, theta, _ = made()
    run = Execution(net)
    assert isinstance(run.views(space, theta), dict)
    with torch.no_grad():
        assert isinstance(run.views(space, theta.requires_grad_()), dict)
    plain = nn.Linear(3, 2)
    small = ParameterSpace.of(plain)
    assert isinstance(Execution(plain).views(small, small.flatten(plain).requires_grad_()), dict)


def test_an_error_inside_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    net, space, theta, images = made()
    run = Execution(net)
    monkeypatch.setattr(net.blocks[1].mlp, "forward", lambda x: 1 / 0)  # type: ignore[union-attr]
    before = {name: id(p) for name, p in net.named_parameters()}
    with pytest.raises(ZeroDivisionError):
        run(run.views(space, theta.requires_grad_()), images)
    assert {name: id(p) for name, p in net.named_parameters()} == before
    assert not any(block._forward_pre_hooks for block in net.blocks)


def test_a_vector_of_another_space_is_refused() -> None:
    net, space, theta, _ = made()
    with pytest.raises(SmatError, match="must have shape"):
        Execution(net).views(space, torch.cat([theta, theta[:1]]).requires_grad_())
