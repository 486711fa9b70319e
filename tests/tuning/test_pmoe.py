"""`pmoe` as a tuner: equal to vpt-deep and gapt with one expert; its prefix, groups, saving and loading."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from smatcli.config.pmoe import DispatcherConfig, PmoeConfig
from smatcli.config.schema import BackboneConfig
from smatcli.config.tuning import GaptConfig, VptDeepConfig
from smatcli.errors import UserError
from smatcli.tuning import build_tuner
from smatcli.tuning.prompts import Prompted
from tests.tuning.test_pmoe_experts import vit

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OTHER = BackboneConfig(weights="none")


def pmoe(*vits, classes=4, **options):
    config = PmoeConfig(experts=[OTHER] * (len(vits) - 1), prompts=2, **options)
    made = build_tuner(config, vits, classes)
    for p in made.trainable()["tuner"]:
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    return made.eval()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_one_expert_is_vpt_deep(layers):
    ours = pmoe(vit(0), layers=layers)
    theirs = build_tuner(VptDeepConfig(prompts=2, layers=layers), [vit(0)], 4).eval()
    assert isinstance(theirs, Prompted)
    with torch.no_grad():
        theirs.prompts.copy_(ours.experts.prompts[:, 0])
        theirs.head.load_state_dict(ours.head.state_dict())
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


def test_one_gated_expert_with_shallow_prompts_is_gapt():
    ours = pmoe(vit(0), layers=1, gated=True)
    theirs = build_tuner(GaptConfig(prompts=2), [vit(0)], 4).eval()
    assert isinstance(theirs, Prompted)
    assert theirs.gates is not None
    with torch.no_grad():
        theirs.prompts.copy_(ours.experts.prompts[:, 0])
        theirs.gates.copy_(ours.experts.gates[:, 0])
        theirs.head.load_state_dict(ours.head.state_dict())
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


def test_without_a_dispatcher_it_is_the_mean_of_vpts():
    ours = pmoe(vit(0), vit(1), dispatcher=DispatcherConfig(kind="none"))
    features = []
    for k in range(2):
        one = build_tuner(VptDeepConfig(prompts=2), [vit(k)], 4).eval()
        assert isinstance(one, Prompted)
        with torch.no_grad():
            one.prompts.copy_(ours.experts.prompts[:, k])
            features.append(one.features(IMAGES))
    with torch.no_grad():
        torch.testing.assert_close(ours.features(IMAGES), (features[0] + features[1]) / 2)


def test_the_prefix_of_experts_with_different_tokens():
    made = pmoe(vit(0), vit(1, dim=12, reg_tokens=2), vit(2, class_token=False, global_pool="avg"))
    prefix = made.frozen_prefix(IMAGES)
    assert prefix.shape == (3, 5 * 8 + 7 * 12 + 4 * 8)
    with torch.no_grad():
        torch.testing.assert_close(made.from_prefix(prefix), made(IMAGES))
        torch.testing.assert_close(made.from_prefix(prefix[1:2]), made(IMAGES)[1:2])
    assert made.merge() is None


def test_groups_hold_every_trained_parameter_once_and_only_they_move():
    made = pmoe(vit(0), vit(1, dim=12), gated=True, dispatcher=DispatcherConfig(kind="moe")).train()
    groups = made.trainable()
    listed = [p for params in groups.values() for p in params]
    assert len({id(p) for p in listed}) == len(listed)
    assert {id(p) for p in listed} == {id(p) for p in made.parameters() if p.requires_grad}
    before = {n: p.clone() for n, p in made.state_dict().items()}
    optimizer = torch.optim.AdamW(listed, lr=0.1)
    torch.nn.functional.cross_entropy(made(IMAGES), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    moved = {n for n, p in made.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in made.named_parameters() if p.requires_grad}


def test_save_and_load(tmp_path):
    made = pmoe(vit(0), vit(1), dispatcher=DispatcherConfig(kind="moe", mlps="separate"))
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, tmp_path / "m.safetensors")
    fresh = build_tuner(PmoeConfig(experts=[OTHER], prompts=2, dispatcher=made_config()), [vit(3), vit(4)], 4).eval()
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(fresh(IMAGES), made(IMAGES))


def made_config() -> DispatcherConfig:
    return DispatcherConfig(kind="moe", mlps="separate")


def test_training_lowers_the_loss_and_the_dispatcher_learns():
    torch.manual_seed(0)
    made = pmoe(vit(0), vit(1)).train()
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.AdamW([p for params in made.trainable().values() for p in params], lr=0.05)
    losses, before = [], made.paths(IMAGES)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(made(IMAGES), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (made.paths(IMAGES) - before).abs().max() > 0.01


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_autocast(precision):
    made = pmoe(vit(0), vit(1), gated=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=precision):
        found = made(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(found.float(), made(IMAGES), rtol=0.1, atol=0.1)


def test_the_number_of_backbones_must_fit():
    with pytest.raises(UserError, match="1 experts beside"):
        build_tuner(PmoeConfig(experts=[OTHER]), [vit(0)], 4)


@pytest.mark.parametrize("options, said", [
    ({"kind": "mlp", "count": 6}, "count has no effect"), ({"kind": "average", "hidden": 8}, "hidden has no effect"),
    ({"kind": "none", "mlps": "separate"}, "mlps has no effect"),
])  # fmt: skip
def test_options_that_nothing_reads_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DispatcherConfig(**options)
