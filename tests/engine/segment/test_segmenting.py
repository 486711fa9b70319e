"""The segmentation network, and whole runs of `smat segment` on synthetic images."""

import csv
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from smatcli.config import load_recipe
from smatcli.config.segment import HeadConfig
from smatcli.engine.segment.measures import sizes_of
from smatcli.engine.segment.results import read_fold
from smatcli.engine.segment.segmenting import segment
from smatcli.errors import UserError
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted
from smatcli.segmentation.metrics import measures
from smatcli.segmentation.net import PlainTokens, SegmentNet, SetrPup, stages_of
from smatcli.tuning.pmoe_vit import embed

RECIPE = """\
kind: segment
run: {run}
threads: 1
precision: fp32
backbone: &vit
  name: vit_tiny_patch16_224
  args: {{patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}
  image_size: 16
  weights: none
data: {{layout: synthetic, count: 12}}
tuner: {{name: pmoe, experts: [*vit], prompts: 2}}
head: {{channels: 4}}
segment: {{epochs: 2, batch_size: 3, folds: 2}}
eval: {{scales: [1.0, 1.5], pictures: 2}}
"""


@pytest.fixture
def recipe(tmp_path):
    def load(*overrides: str, name: str = "run"):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(run=tmp_path / name).replace("&vit", "").replace("[*vit]", f"[{VIT}]"))
        return load_recipe(path, overrides, kind="segment")

    return load


VIT = "{name: vit_tiny_patch16_224, args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}, image_size: 16, weights: none}"


def vit(size: int = 16, **more) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=size, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0, **more).eval()


@pytest.mark.parametrize("more", [{}, {"no_embed_class": True, "reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_other_image_sizes_are_embedded_as_timm_does(more):
    plain, dynamic = vit(**more), vit(dynamic_img_size=True, **more)
    dynamic.load_state_dict(plain.state_dict())
    for size in (16, 24, 12):
        images = torch.randn(2, 3, size, size)
        want = dynamic.norm_pre(dynamic._pos_embed(dynamic.patch_embed(images)))
        torch.testing.assert_close(embed(plain, images), want)


def test_the_head_written_out():
    torch.manual_seed(0)
    head = SetrPup(6, 3, channels=4, stages=2).eval()
    tokens = torch.randn(2, 6, 6)
    maps = F.layer_norm(tokens, (6,), eps=1e-6).reshape(2, 2, 3, 6).permute(0, 3, 1, 2)  # grid of 2 x 3
    for conv in head.convs:
        assert isinstance(conv, torch.nn.Conv2d)
        maps = torch.relu(F.conv2d(maps, conv.weight, padding=1) / math.sqrt(1 + 1e-5))  # batch norm before any statistics
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear")
    assert head.classify.bias is not None
    want = torch.einsum("oc,bchw->bohw", head.classify.weight[..., 0, 0], maps) + head.classify.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(head(tokens, (2, 3), (8, 12)), want, rtol=1e-4, atol=1e-5)
    assert head(tokens, (2, 3), (28, 42)).shape == (2, 3, 28, 42)
    assert [stages_of(p) for p in (16, 14, 8, 4, 1)] == [4, 3, 3, 2, 1]


def test_scales_are_multiples_of_the_patch():
    assert sizes_of([0.5, 1.0, 1.1, 1.6], 64, 16) == [32, 64, 96]
    assert sizes_of([0.01], 64, 16) == [16]


def test_a_linear_net_has_frozen_tokens():
    tokens = PlainTokens(plain := vit(), False)
    net = SegmentNet(tokens, 4, 3, HeadConfig(channels=4)).train()
    assert set(net.groups()) == {"head"}
    assert net.tokens is tokens
    assert tokens.vit is plain
    assert not plain.training
    torch.testing.assert_close(net.tokens(images := torch.randn(1, 3, 16, 16)), plain.forward_features(images)[:, 1:])
    assert set(SegmentNet(PlainTokens(vit(), True), 4, 3, HeadConfig()).groups()) == {"backbone", "head"}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "segment/summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_cross_validation_leaves_measures_of_every_fold(recipe):
    loaded = recipe()
    run = segment(loaded, SilentReporter())
    assert run.info["status"] == "finished"
    table = rows(run.path)
    assert [(r["fold"], r["scales"]) for r in table] == [
        (fold, scales) for scales in ("single", "multi") for fold in ("0", "1", "mean", "deviation")
    ]
    for k in range(2):
        found = read_fold(run.path, k)
        assert found["confusion"]["single"].sum() == 6 * 16 * 16, "every pixel of the fold's six images"
        assert float(table[k]["miou"]) == pytest.approx(measures(found["confusion"]["single"]).miou, abs=1e-6)
        assert (run.path / f"segment/pictures{k}.png").exists()
        assert (run.checkpoints / f"fold{k}").exists()
    assert float(table[2]["miou"]) == pytest.approx((float(table[0]["miou"]) + float(table[1]["miou"])) / 2, abs=1e-5)
    with pytest.raises(UserError, match="exists"):
        segment(loaded, SilentReporter())
    reporter = SilentReporter()
    segment(loaded, reporter, resume=True)
    assert "already finished" in reporter.lines[-1]


class Stopper(SilentReporter):
    """Reporter that sends SIGINT to this process after some training steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def update(self, done: int, **numbers) -> None:
        if "loss" in numbers:
            self.after -= 1
            if self.after == 0:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_run_continues_exactly(recipe, after):
    whole = segment(recipe(name="whole"), SilentReporter())
    loaded = recipe(name="parts")
    with pytest.raises(Interrupted):
        segment(loaded, Stopper(after))
    parts = segment(loaded, SilentReporter(), resume=True)
    for k in range(2):
        a, b = (read_fold(r.path, k)["confusion"] for r in (whole, parts))
        assert all((a[name] == b[name]).all() for name in a)
    strip = [{k: v for k, v in r.items() if k != "time"} for r in parts.records()]
    assert strip == [{k: v for k, v in r.items() if k != "time"} for r in whole.records()]


@pytest.mark.parametrize("name, moving", [
    ("linear", {"head"}), ("full", {"backbone", "head"}), ("vpt-deep", {"tuner", "head"}), ("vpt-shallow", {"tuner", "head"}),
])  # fmt: skip
def test_baselines_run_and_move_only_what_they_declare(recipe, name, moving):
    from safetensors.torch import load_file

    overrides = [
        f"tuner={{name: {name}{', prompts: 2' if 'vpt' in name else ''}}}",
        "segment.folds=0",
        "eval.scales=[]",
        "segment.epochs=1",
    ]
    run = segment(recipe(*overrides), SilentReporter())
    found = json.loads((run.path / "segment/fold0.json").read_text())
    assert set(found["trained"]) == moving
    assert list(found["confusion"]) == ["single"]
    if name.startswith("vpt"):
        assert found["trained"]["tuner"] == (2 if name == "vpt-deep" else 1) * 2 * 16
    from smatcli.engine.segment.segmenting import make_net

    before = make_net(recipe(*overrides).recipe, 0)
    after = load_file(run.checkpoints / "last/model.safetensors")
    trained = {n for n, p in before.named_parameters() if p.requires_grad}
    moved = {n for n, p in before.named_parameters() if not torch.equal(p, after[n])}
    assert moved <= trained
    assert {n for n in trained if "head" in n} <= moved
    assert name == "linear" or any("tokens" in n for n in moved)


@pytest.mark.parametrize("override, said", [
    ("tuner.layers=3", "tuner.layers: 3 prompt layers, but the backbones have 2 blocks"),
    ("tuner.experts.0.args.depth=3", "tuner.experts[0]: has 3 blocks"),
    ("tuner.experts.0.image_size=32", "tuner.experts[0]: takes images of 32 px"),
    ("tuner.experts.0.args.patch_size=8", "tuner.experts[0]: has a patch grid of 2x2"),
    ("segment.groups.backbone.lr=1", "segment.groups.backbone: no such optimizer group"),
    ("data.count=2", "too few"),
])  # fmt: skip
def test_bad_input_leaves_no_run(recipe, override, said):
    loaded = recipe(override)
    with pytest.raises(UserError) as error:
        segment(loaded, SilentReporter())
    assert said in str(error.value)
    assert not Path(loaded.recipe.run).exists()


@pytest.mark.parametrize("override, said", [
    ("segment.folds=1", "folds"), ("data.root=x", "root has no effect"), ("data.layout=kvasir", "count has no effect"),
    ("segment.zoom=[2.0,1.0]", "zoom"), ("tuner.dispatcher.kind=nothing", "nothing"), ("tuner.dispatcher.count=4", "count has no effect"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(recipe, override, said):
    with pytest.raises(UserError, match=said):
        recipe(override)
