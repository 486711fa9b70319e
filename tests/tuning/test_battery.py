"""Requirements on every tuner: parameter counts, start at the pre-trained model, merging, saving, and frozen weights."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smatcli.engine.tune.weights import frozen_digest, load_trained, trained
from smatcli.tuning import TUNERS
from tests.tuning.world import CLASSES, DEPTH, DIM, IMAGES, make, shake, vit

D, L = DIM, DEPTH
BLOCK = 12 * D * D + 13 * D  # qkv 3D^2 + 3D, proj D^2 + D, fc1 4D^2 + 4D, fc2 4D^2 + D, two norms 4D
WHOLE = 3 * 8 * 8 * D + D + D + 5 * D + L * BLOCK + 2 * D  # patches, class token, positions, blocks, norm


@dataclass
class Row:
    """Settings, number of the tuner's parameters, whether it starts at the pre-trained model (`zero` settings), and whether it merges."""

    settings: dict[str, Any]
    count: int
    zero: dict[str, Any] | None = field(default_factory=dict)
    merges: bool = True


ROWS = {
    "linear": Row({"name": "linear"}, 0),
    "full": Row({"name": "full"}, WHOLE),
    "bias": Row({"name": "bias"}, L * 11 * D + 2 * D),
    "lora": Row({"name": "lora", "rank": 3}, L * 3 * (D + 3 * D)),
    "lora, all layers": Row({"name": "lora", "rank": 2, "layers": ["*"]}, L * 2 * (4 * D + 2 * D + 5 * D + 5 * D)),
    "adapter": Row({"name": "adapter", "hidden": 6}, L * (2 * D * 6 + 6 + D), merges=False),
    "adaptformer": Row({"name": "adaptformer", "hidden": 5}, L * (2 * D * 5 + 5 + D), merges=False),
    "vpt-shallow": Row({"name": "vpt-shallow", "prompts": 3}, 3 * D, None, False),
    "vpt-deep": Row({"name": "vpt-deep", "prompts": 3}, L * 3 * D, None, False),
    "vpt-deep, 2 layers": Row({"name": "vpt-deep", "prompts": 3, "layers": 2}, 2 * 3 * D, None, False),
    "gapt": Row({"name": "gapt", "prompts": 3}, 3 * D + L - 1, None, False),
    "ssf": Row({"name": "ssf"}, 2 * (D + L * 11 * D + D), {"init_std": 0.0}),
    "mlae": Row({"name": "mlae", "rank": 4}, L * (4 * (D + 3 * D) + 4)),
    "mlae, rank-two cells": Row({"name": "mlae", "rank": 4, "cell": 2}, L * (4 * 4 * D + 2)),
    "mlae, fixed": Row({"name": "mlae", "rank": 4, "mask": "fixed"}, (1 + 3 + 5 + 7) * (4 * D + 1)),
    "mlae, mixed in mlp": Row(
        {"name": "mlae", "rank": 2, "mask": "mixed", "pattern": [1, 0, 2, 3], "layers": ["blocks.*.mlp.fc?"]}, 6 * (2 * 5 * D + 2)
    ),
}  # fmt: skip


@pytest.fixture(params=ROWS)
def row(request):
    return ROWS[request.param]


def test_every_tuner_has_a_row():
    assert {row.settings["name"] for row in ROWS.values()} == set(TUNERS) - {"pmoe"}  # pmoe: test_pmoe*.py


def test_count(row):
    groups = make(**row.settings).trainable()
    assert sum(p.numel() for p in groups["tuner"]) == row.count
    assert sum(p.numel() for p in groups["head"]) == D * CLASSES + CLASSES


def test_groups_are_what_requires_a_gradient_once(row):
    tuner = make(**row.settings)
    listed = [id(p) for params in tuner.trainable().values() for p in params]
    assert len(set(listed)) == len(listed)
    assert set(listed) == {id(p) for p in tuner.parameters() if p.requires_grad}


def test_starts_at_the_pretrained_model(row):
    if row.zero is None:
        pytest.skip("prompts change the features from the start; see test_prompts.py")
    tuner, plain = make(**row.settings | row.zero), vit()
    for mode in (True, False):
        assert torch.equal(tuner.train(mode).features(IMAGES), plain(IMAGES))


def test_merged_equals_unmerged(row):
    tuner = shake(make(**row.settings)).eval()
    merged = tuner.merge()
    if not row.merges:
        assert merged is None
        return
    assert merged is not None
    with torch.no_grad():
        torch.testing.assert_close(merged(IMAGES), tuner(IMAGES), rtol=1e-5, atol=1e-5)
    plain = vit(qkv_bias=True)
    plain.reset_classifier(CLASSES)
    assert {n: t.shape for n, t in merged.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert {type(m) for m in merged.modules()} <= {type(m) for m in plain.modules()}


def test_merging_leaves_the_tuner_alone(row):
    tuner = shake(make(**row.settings)).eval()
    before = copy.deepcopy(tuner.state_dict())
    tuner.merge()
    after = tuner.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_saved_and_loaded_is_the_same(row, tmp_path):
    one, two = shake(make(**row.settings)).eval(), make(**row.settings).eval()
    assert row.count == 0 or not torch.equal(one(IMAGES), two(IMAGES))
    load_trained(two, {k: v.detach().clone() for k, v in trained(one).items()}, tmp_path)
    assert torch.equal(one(IMAGES), two(IMAGES))


def test_only_the_declared_parameters_move(row):
    tuner = shake(make(**row.settings)).train()
    before, frozen = copy.deepcopy(tuner.state_dict()), frozen_digest(tuner)
    moving = {id(p) for params in tuner.trainable().values() for p in params}
    optimizer = torch.optim.AdamW([p for params in tuner.trainable().values() for p in params], lr=0.1)
    torch.manual_seed(2)
    for _ in range(3):
        F.cross_entropy(tuner(IMAGES), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    for name, parameter in tuner.named_parameters():
        assert torch.equal(before[name], parameter) == (id(parameter) not in moving), name
    assert frozen_digest(tuner) == frozen


def test_frozen_prefix(row):
    tuner = shake(make(**row.settings)).eval()
    prefix = tuner.frozen_prefix(IMAGES)
    if prefix is not None:
        assert not prefix.requires_grad
        torch.testing.assert_close(tuner.from_prefix(prefix), tuner(IMAGES))
    assert (prefix is not None) == (row.settings["name"] in ("linear", "vpt-shallow", "vpt-deep", "gapt"))


def test_under_bf16(row):
    tuner = shake(make(**row.settings)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = tuner(IMAGES)
    F.cross_entropy(logits.float(), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for params in tuner.trainable().values() for p in params)
