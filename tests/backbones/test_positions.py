"""Position embeddings that are stretched at every call."""

import copy
from typing import Any

import pytest
import timm
import torch

from smatcli.backbones import create_backbone
from smatcli.backbones.positions import settled, stretch
from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace, call

ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def config(**more):
    args = {**ARGS, **more.pop("args", {})}
    return BackboneConfig(name="vit_tiny_patch16_224", args=args, weights="none", **{"image_size": 24, "position_size": 40, **more})


def test_it_keeps_its_size_and_settles_into_a_plain_model():
    model, images = create_backbone(config()).eval(), torch.randn(2, 3, 24, 24)
    assert model.pos_embed.shape == (1, 26, 32)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=24, **ARGS).eval()
    plain.load_state_dict(settled(model.state_dict(), model), strict=True)
    torch.testing.assert_close(model(images), plain(images))
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    assert settled(plain.state_dict(), plain)["pos_embed"].shape == (1, 10, 32)


def test_a_flat_vector_carries_the_unstretched_embedding():
    model, images = create_backbone(config()).eval(), torch.randn(2, 3, 24, 24)
    space = ParameterSpace.of(model)
    theta = space.flatten(model).requires_grad_()
    (call(model, space, theta, images) * torch.arange(32.0)).sum().backward()  # a plain sum is constant behind a layer norm
    assert theta.grad is not None
    gradient = space.unflatten(theta.grad)["pos_embed"]
    assert gradient.shape == (1, 26, 32)
    assert (gradient != 0).any(-1).all()


def test_a_constant_stays_and_an_equal_grid_is_untouched():
    embedding = torch.cat([torch.full((1, 1, 4), 7.0), torch.full((1, 25, 4), 3.0)], 1)
    found = stretch(embedding, (3, 8))
    assert found.shape == (1, 25, 4)
    assert torch.allclose(found[:, 1:], torch.tensor(3.0))
    assert (found[:, 0] == 7).all()
    assert stretch(embedding, (5, 5)) is embedding
    assert type(create_backbone(config(position_size=24))) is type(timm.create_model("vit_tiny_patch16_224", num_classes=0))


@pytest.mark.parametrize("args", [{"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}])
def test_other_models_are_refused(args):
    with pytest.raises(UserError, match=r"backbone\.position_size: .* not a plain ViT"):
        create_backbone(config(args=args))


def test_sizes_must_fit_the_patches():
    sizes: dict[str, Any]
    for sizes in ({"image_size": 20}, {"position_size": 20}):
        with pytest.raises(UserError, match="not a multiple of the patch size 8"):
            create_backbone(config(**sizes))
