"""PromptedExperts compared with the loops of pmoe_reference.py, parameter counts, and special cases without a dispatcher."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from smatcli.config.pmoe import DispatcherConfig
from smatcli.errors import UserError
from smatcli.tuning.pmoe_experts import PromptedExperts
from tests.tuning.pmoe_reference import pmoe_features


def vit(seed: int = 0, dim: int = 8, depth: int = 3, size: int = 8, patch: int = 4, **more) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=dim, depth=depth, num_heads=2, num_classes=0, mlp_ratio=2.0, **more
    ).eval()


def experts(*vits, prompts=2, layers=None, gated=False, seed=5, **dispatch) -> PromptedExperts:
    torch.manual_seed(seed)
    made = PromptedExperts(vits, prompts, layers, gated, DispatcherConfig(**dispatch))
    for p in made.own():  # no zeros: every path counts
        torch.nn.init.normal_(p, std=0.5)
    return made.double()


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
CASES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "separate, relu": {"mlps": "separate", "activation": "relu"},
    "moe": {"kind": "moe", "count": 3, "hidden": 5, "activation": "silu"},
    "moe separate": {"kind": "moe", "count": 2, "mlps": "separate"},
    "average": {"kind": "average"},
    "none": {"kind": "none"},
}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_loops(case, layers, gated):
    made = experts(vit(0), vit(1), vit(2), layers=layers, gated=gated, **CASES[case])
    with torch.no_grad():
        found = made.pooled(made.blocks(made.embed(IMAGES)))
        want = pmoe_features(made, IMAGES, CASES[case].get("activation", "gelu"))
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)


def test_other_widths_prefixes_and_poolings_equal_the_loops():
    others = vit(1, dim=12, global_pool="avg", class_token=False, fc_norm=True), vit(2, dim=8, reg_tokens=2, pre_norm=True)
    made = experts(vit(0), *others, gated=True)
    with torch.no_grad():
        found = made.pooled(made.blocks(made.embed(IMAGES)))
        torch.testing.assert_close(found, pmoe_features(made, IMAGES), rtol=1e-10, atol=1e-12)
    assert set(made.reads) == set(made.writes) == {"1"}


def test_one_expert_is_vpt_deep_written_out():
    made = experts(vit(), layers=3)
    own = made.vits[0]
    assert isinstance(own, VisionTransformer)
    with torch.no_grad():
        tokens = own._pos_embed(own.patch_embed(IMAGES))
        for layer, block in enumerate(own.blocks):
            prompts = made.prompts[layer, 0].expand(2, -1, -1)
            tokens = block(torch.cat([tokens[:, :1], prompts, tokens[:, 1 if layer == 0 else 3 :]], 1))
        want = own.norm(tokens)[:, 0]
        torch.testing.assert_close(made.pooled(made.blocks(made.embed(IMAGES))), want)


def test_equal_experts_with_equal_prompts_are_one_expert():
    one = experts(vit(0), layers=2)
    for kind in ("mlp", "moe", "average", "none"):
        many = experts(vit(0), vit(0), vit(0), layers=2, kind=kind)
        with torch.no_grad():
            many.prompts.copy_(one.prompts.expand(-1, 3, -1, -1))
            a, b = (e.pooled(e.blocks(e.embed(IMAGES))) for e in (one, many))
        torch.testing.assert_close(a, b)


def test_a_new_dispatcher_averages():
    torch.manual_seed(0)
    made = PromptedExperts([vit(0), vit(1)], 2, None, False, DispatcherConfig()).double()
    torch.testing.assert_close(made.paths(IMAGES), torch.full((3, 2, 2, 2, 2), 0.5).double())


def test_paths_are_weights_of_every_layer_expert_and_prompt():
    made = experts(vit(0), vit(1), layers=2)
    paths = made.paths(IMAGES)
    assert paths.shape == (2, 2, 2, 2, 2)
    torch.testing.assert_close(paths.sum(-1), torch.ones(2, 2, 2, 2).double())
    assert (paths[:, 0] - paths[:, 1]).abs().max() > 1e-6, "dispatch depends on the image"
    own = experts(vit(0), vit(1), kind="none").paths(IMAGES)
    torch.testing.assert_close(own, torch.eye(2).view(1, 1, 2, 1, 2).expand(3, 2, 2, 2, 2))


def test_images_are_independent():
    made = experts(vit(0), vit(1))
    with torch.no_grad():
        both, first = (made.pooled(made.blocks(made.embed(i))) for i in (IMAGES, IMAGES[:1]))
    torch.testing.assert_close(both[:1], first)


def test_hand_counted_parameters():
    def count(*vits, **options):
        return sum(p.numel() for p in experts(*vits, **options).own())

    prompts = 3 * 2 * 2 * 8  # layers, experts, tokens, width
    mlp = 8 * 2 + 2 + 2 * 2 + 2  # hidden = 8 // 4
    assert count(vit(0), vit(1), kind="none") == count(vit(0), vit(1), kind="average") == prompts
    assert count(vit(0), vit(1)) == prompts + 3 * mlp
    assert count(vit(0), vit(1), mlps="separate") == prompts + 3 * 3 * mlp
    assert count(vit(0), vit(1), kind="moe", count=6) == prompts + 3 * (6 * mlp + 8 * 6 + 6)
    assert count(vit(0), vit(1), layers=1, gated=True) == 2 * 2 * 8 + mlp + 2 * 2
    assert count(vit(0), vit(1, dim=12)) == prompts + 3 * mlp + (12 * 8 + 8) + (8 * 12 + 12)
    assert count(vit(0)) == 3 * 2 * 8, "one expert needs no dispatcher"


def test_frozen_experts_stay_in_inference_mode_and_get_no_gradient():
    made = experts(vit(0), vit(1, drop_path_rate=0.5)).train()
    assert not any(m.training for m in made.vits.modules())
    made.pooled(made.blocks(made.embed(IMAGES)))[:, 0].sum().backward()  # (a norm makes the whole sum constant)
    assert all(p.grad is None for p in made.vits.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.own())


@pytest.mark.parametrize("others, options, said", [
    ([vit(1, depth=2)], {}, "tuner.experts[0]: has 2 blocks"),
    ([vit(1), vit(2, patch=2)], {}, "tuner.experts[1]: has a patch grid of 4x4"),
    ([vit(1, size=16, patch=8)], {}, "tuner.experts[0]: takes images of 16 px"),
    ([torch.nn.Linear(2, 2)], {}, "tuner.experts[0]: Linear is not a plain timm ViT"),
    ([], {"layers": 4}, "tuner.layers: 4 prompt layers, but the backbones have 3 blocks"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(others, options, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[").replace("]", r"\]")):
        PromptedExperts([vit(0), *others], 2, **options)
