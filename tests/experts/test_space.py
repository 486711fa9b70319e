from itertools import pairwise
from math import prod

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smatcli.errors import SmatError
from smatcli.experts.space import ParameterSpace, call, layer_type


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0).eval()


def test_names_shapes_and_size_are_the_modules(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    assert list(zip(space.names, space.shapes, strict=True)) == [(n, p.shape) for n, p in vit.named_parameters()]
    assert space.size == sum(p.numel() for p in vit.parameters())


def test_flatten_and_unflatten_are_inverse(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    vector = space.flatten(vit)
    assert torch.equal(vector, nn.utils.parameters_to_vector(vit.parameters()))
    views = space.unflatten(vector)
    assert all(torch.equal(views[name], p) for name, p in vit.named_parameters())
    assert torch.equal(space.flatten(views), vector)
    assert all(p.requires_grad for p in vit.parameters())
    assert not space.flatten(vit).requires_grad


def test_unflatten_is_one_split(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    vector = space.flatten(vit).requires_grad_()
    parents = {view.grad_fn.next_functions[0][0] for view in space.unflatten(vector).values()}  # type: ignore[union-attr]
    assert {type(parent).__name__ for parent in parents} == {"SplitWithSizesBackward0"}
    assert len(parents) == 1


def test_call_gives_the_modules_features_and_gradients(vit: VisionTransformer) -> None:
    space, images = ParameterSpace.of(vit), torch.randn(3, 3, 16, 16)
    theta = space.flatten(vit).requires_grad_()
    features = call(vit, space, theta, images)
    assert torch.equal(features, vit(images))
    (grad,) = torch.autograd.grad(features.square().sum(), theta)
    expected = torch.autograd.grad(vit(images).square().sum(), list(vit.parameters()))
    assert torch.allclose(grad, nn.utils.parameters_to_vector(expected), atol=1e-6)


def test_features_are_fp32_under_autocast(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(vit, space, space.flatten(vit), torch.randn(1, 3, 16, 16)).dtype == torch.float32


def test_segments_cover_the_vector_and_split_qkv(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    edges = [(s.slice.start, s.slice.stop) for s in space.segments]
    assert edges[0][0] == 0
    assert edges[-1][1] == space.size
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    vector, tensors = space.flatten(vit), dict(vit.named_parameters())
    for name in ("blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias"):
        parts = {s.layer: vector[s.slice] for s in space.segments if s.name == name}
        for kind, third in zip("qkv", tensors[name].chunk(3), strict=True):
            assert torch.equal(parts[kind], third.flatten())
    kinds = {s.layer for s in space.segments}
    assert kinds == {"cls_token", "pos_embed", "patch_embed", "norm", "q", "k", "v", "proj", "fc1", "fc2"}
    assert {s.depth for s in space.segments} == {None, 0, 1}
    assert {s.layer for s in space.segments if s.depth is None} == {"cls_token", "pos_embed", "patch_embed", "norm"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.3.norm1.weight", "norm"),
        ("blocks.3.attn.q_norm.weight", "norm"),
        ("patch_embed.proj.weight", "patch_embed"),
        ("blocks.3.attn.proj.bias", "proj"),
        ("blocks.3.ls1.gamma", "layer_scale"),
        ("encoder.layer.4.attention.attention.query.weight", "q"),
        ("encoder.layer.4.attention.output.dense.weight", "proj"),
        ("encoder.layer.4.output.dense.weight", "fc2"),
        ("head.weight", "head"),
        ("something.else", "other"),
    ],
)
def test_layer_types(name: str, kind: str) -> None:
    assert layer_type(name) == kind


def test_buffers_and_whole_numbers_are_not_parameters() -> None:
    module = nn.BatchNorm1d(4)
    assert ParameterSpace.of(module).names == ("weight", "bias")
    with pytest.raises(SmatError, match="no floating-point parameters"):
        ParameterSpace.of(nn.ReLU())


def test_errors_name_the_parameter(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    views = space.unflatten(space.flatten(vit))
    with pytest.raises(SmatError, match=r"1 of \d+ parameters are missing, first 'norm.bias'"):
        space.flatten({k: v for k, v in views.items() if k != "norm.bias"})
    with pytest.raises(SmatError, match=r"'norm\.bias' has shape"):
        space.flatten({**views, "norm.bias": torch.zeros(3)})
    with pytest.raises(SmatError, match="parameter vector must have shape"):
        space.unflatten(torch.zeros(prod((2, 3))))


def test_where_marks_prefixes(vit: VisionTransformer) -> None:
    space = ParameterSpace.of(vit)
    assert int(space.where(("norm.",)).sum()) == 32
    assert int(space.where(("nothing",)).sum()) == 0
