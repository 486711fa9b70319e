"""Prompt tuners compared with the timm model, run by hand."""

from typing import Any

import pytest
import torch

from smatcli.errors import UserError
from smatcli.tuning.prompts import Prompted
from tests.tuning.world import DEPTH, IMAGES, make, shake, vit


def prompted(**settings: Any) -> Prompted:
    made = make(**settings)
    assert isinstance(made, Prompted)
    return made


def by_hand(tuner, layers):
    """Run the plain ViT with hooks that insert prompts between the class token and the patches of the blocks `layers`."""
    plain, prompts = vit(), tuner.prompts.detach()

    def insert(layer):
        def hook(block, inputs):
            tokens = inputs[0]
            new = prompts[layer % len(prompts)].expand(len(tokens), -1, -1)
            rest = tokens[:, 1:] if layer == 0 else tokens[:, 1 + prompts.shape[1] :]
            return (torch.cat([tokens[:, :1], new, rest], 1),)

        return hook

    for layer in layers:
        plain.blocks[layer].register_forward_pre_hook(insert(layer))
    return plain(IMAGES)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"name": "vpt-shallow", "prompts": 3}, [0]),
        ({"name": "vpt-deep", "prompts": 2}, range(DEPTH)),
        ({"name": "vpt-deep", "prompts": 2, "layers": 2}, range(2)),
    ],
)
def test_equals_the_plain_model_with_hooks(settings, layers):
    tuner = shake(make(**settings)).eval()
    torch.testing.assert_close(tuner.features(IMAGES), by_hand(tuner, layers))


def test_open_gates_are_shallow_and_closed_gates_repeat_the_prompts():
    tuner = shake(prompted(name="gapt", prompts=2)).eval()
    assert tuner.gates is not None
    with torch.no_grad():
        tuner.gates.fill_(100.0)
        torch.testing.assert_close(tuner.features(IMAGES), by_hand(tuner, [0]))
        tuner.gates.fill_(-100.0)
        torch.testing.assert_close(tuner.features(IMAGES), by_hand(tuner, range(DEPTH)))


def test_the_gates_start_as_set():
    gates = prompted(name="gapt", gate=2.0).gates
    assert gates is not None
    assert torch.equal(gates, torch.full((DEPTH - 1,), 2.0))


def test_prompts_start_in_the_range_of_the_patch_embedding():
    prompts = prompted(name="vpt-deep", prompts=50).prompts.detach()
    bound = (6 / (3 * 8 * 8 + 16)) ** 0.5
    assert prompts.abs().max() <= bound
    assert prompts.abs().max() > 0.97 * bound
    assert abs(float(prompts.mean())) < 0.01


def test_more_prompt_layers_than_blocks():
    with pytest.raises(UserError, match=r"tuner.layers: 9 prompt layers, but the backbone has 4 blocks; give at most 4"):
        make(name="vpt-deep", layers=9)


def test_other_architectures_are_refused():
    from smatcli.tuning import build_tuner
    from tests.tuning.world import config

    with pytest.raises(UserError, match="is not a plain timm ViT"):
        build_tuner(config(name="vpt-shallow"), [torch.nn.Linear(2, 2)], 3)
