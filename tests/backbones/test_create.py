from typing import Any

import pytest
import timm
import torch

from smatcli.backbones import create_backbone
from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError

ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def config(**changes):
    return BackboneConfig(**{"name": "vit_tiny_patch16_224", "args": ARGS, "image_size": 16, "weights": "none", **changes})


def test_images_become_features():
    model = create_backbone(config())
    assert model.num_features == 32
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 32)
    assert not [name for name, _ in model.named_parameters() if name.startswith("head")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_tiny_patch16_225"}, "no model 'vit_tiny_patch16_225'; did you mean 'vit_tiny_patch16_224'"),
        ({"args": {**ARGS, "embed_dimm": 3}}, "embed_dimm"),
        ({"args": {**ARGS, "num_heads": 5}}, "backbone.args"),
        ({"args": {**ARGS, "img_size": 32}}, "set backbone.image_size"),
        ({"args": {**ARGS, "num_classes": 3}}, "num_classes"),
        ({"image_size": 20}, "not a multiple of the patch size 8; use 16 or 24"),
        ({"image_size": 4}, "use 8"),
        ({"weights": "nowhere.safetensors"}, "no such file or run: nowhere.safetensors"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        create_backbone(config(**changes))
    assert "\n" not in str(error.value)


def test_a_model_without_timm_weights(monkeypatch):
    monkeypatch.setattr(timm, "is_model_pretrained", lambda name: False)
    with pytest.raises(UserError, match="timm has no weights for vit_tiny_patch16_224"):
        create_backbone(config(weights="timm"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ConnectionError("no route to host"), r"could not be downloaded \(no route to host\); download them elsewhere"),
        (RuntimeError("Error(s) in loading state_dict:\n size mismatch for pos_embed"), "do not fit"),
    ],
)
def test_no_network_or_other_arguments(monkeypatch, raised, message):
    create = timm.create_model

    def failing(name, pretrained=False, **arguments):
        if pretrained:
            raise raised
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(UserError, match=message):
        create_backbone(config(weights="timm"))


def test_timm_weights_are_resized_for_the_image_size(monkeypatch, tmp_path):
    """Load through timm, with its file replaced by a local one: weights for 24 px in a model for 16 px."""
    from safetensors.torch import save_file

    source = timm.create_model("vit_tiny_patch16_224", img_size=24, num_classes=0, **ARGS)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    create = timm.create_model

    def local(name, pretrained=False, **arguments):
        overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 0} if pretrained else None
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments)

    monkeypatch.setattr(timm, "create_model", local)
    model = create_backbone(config(weights="timm"))
    mine = create_backbone(config(weights=str(tmp_path / "w.safetensors")))
    assert model.pos_embed.shape == (1, 5, 32)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, rtol=0, atol=0)
