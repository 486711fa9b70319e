"""Imported checkpoints give the predictions of the release."""

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from smatcli.engine.loop.loading import load_method
from smatcli.experts.masks import counted_sparsity
from smatcli.importing import import_checkpoint
from smatcli.methods.base import FlatMethod
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.smat import SmatMethod
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from smatcli.seams import Support
from tests.experts.parity import Parity, close, release_config
from tests.importing.released import OVERRIDES, hf_pairs, pmf_release, random_vit, saved, smat_release, third


def imported(tmp_path: Path, tensors: dict[str, Tensor], name: str = "a.pt", *overrides: str, route: str = "learned") -> FlatMethod:
    run = import_checkpoint(str(saved(tmp_path / name, tensors)), tmp_path / "runs" / "x", [*OVERRIDES, *overrides], route)
    return load_method(run.path)[0]


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors"])
@pytest.mark.parametrize("names", ["transformers", "torch hub"])
def test_predictions_are_those_of_the_release(tmp_path: Path, names: str, name: str) -> None:
    data = Parity("task")
    method = imported(tmp_path, smat_release(names), name)
    support = Support(data["x_s"].float(), data["y_s"], 4)
    task = method.task(support)
    assert task.alpha is not None
    assert close(task.alpha, data["eval.alpha"], 1e-4)
    centres = prototypes(task.embed(support.images, task.theta), support.labels, 4)
    logits = cosine_logits(task.embed(data["x_q"].float(), task.theta), centres, task.scale)
    assert close(logits, data["eval.query_logits"], 1e-4)


def test_everything_else_of_the_release_is_in_the_run(tmp_path: Path) -> None:
    method, data = imported(tmp_path, smat_release()), Parity("task")
    assert isinstance(method, SmatMethod)
    found = RunDir.open(tmp_path / "runs" / "x")
    expected = release_config(3)
    config = method.config.model_copy(update={"router": method.config.router.model_copy(update={"temperature": (5.0, 0.5)})})
    assert config == expected
    assert float(method.router.temperature) == pytest.approx(3.5)
    assert close(method.sparsity.multipliers, data["multiplier"], 1e-6)
    counted = counted_sparsity(method.log_alpha.detach(), method.shape, training=False)
    # The release counts its head's 16 masks of one: once in the total, and for each of the three experts among the non-zeros.
    size = method.space.size
    zeros = 1 - ((1 - counted) * size + 3 * 16) / (size + 16)
    assert close(zeros, data["eval.expert_sparsity"], 1e-5)
    assert found.finished
    assert found.info["imported"]["tasks"] == 6000
    assert json.loads((found.path / "origins.json").read_text())["method.experts"].endswith("a.pt")


def test_scores_need_the_routers_keys_or_are_equal(tmp_path: Path) -> None:
    reporter, data = SilentReporter(), Parity("task")
    path = str(saved(tmp_path / "new.pt", smat_release(age="new")))
    run = import_checkpoint(path, tmp_path / "x", OVERRIDES, "uniform", reporter)
    method = load_method(run.path)[0]
    task = method.task(Support(data["x_s"].float(), data["y_s"], 4))
    assert task.alpha is not None
    assert close(task.alpha, torch.full((3,), 1 / 3, dtype=torch.float64), 1e-6)
    assert any("same score" in line for line in reporter.lines)
    assert run.info["imported"]["router"] == "uniform"
    assert isinstance(method, SmatMethod)
    assert not method.sparsity.multipliers.any()


def test_a_transformers_vit_gives_the_features_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.ViTConfig(**size, image_size=24, patch_size=8, layer_norm_eps=1e-6)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.3)
    # Newer versions of that library have other names; their tensors in the order of version 4's names.
    new = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    state = model.state_dict()
    tensors = {}
    for name, _, _ in hf_pairs(2):
        wanted = name
        if name not in state:
            wanted = name.replace("encoder.layer.", "layers.")
            old = next((old for old in new if f".{old}." in wanted), None)
            wanted = wanted.replace(old, new[old]) if old else wanted
        tensors[f"net.encoder.{name}"] = state[wanted]
    tensors["net.head.weight"] = torch.zeros(1, 32)
    shapes = [value.shape for value in tensors.values()]
    agg = [(k, v.shape) for k, v in smat_release().items() if "task_embed_agg" in k]
    grown = {k: torch.randn([2 * n for n in shape]) for k, shape in agg}  # width 16 -> 32
    tensors |= grown | {f"delta_hypernet.phis.{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    tensors |= {f"mask_hypernet.log_alphas.{i}": torch.zeros(*shape, 2) for i, shape in enumerate(shapes)}
    tensors |= {"mask_sparsity_targets": torch.full((2,), 0.95), "num_metaupdates": torch.tensor([50000.0])}
    method = imported(tmp_path, tensors, route="uniform")
    images = torch.randn(3, 3, 24, 24)
    expected = model(images).last_hidden_state[:, 0].detach()
    assert close(method.embed(images, method.theta_pre).detach(), expected.double(), 1e-5)


def timm_features(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=images.shape[-1], num_classes=0, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )
    model.load_state_dict(tensors, strict=True)
    return model.eval()(images).detach()


def test_pmf_predicts_as_pmf(tmp_path: Path) -> None:
    tensors = pmf_release(3)
    path = saved(tmp_path / "best.pth", tensors, args=argparse.Namespace(arch="dino_small_patch16"), epoch=3)
    run = import_checkpoint(str(path), tmp_path / "x", OVERRIDES)
    method = load_method(run.path)[0]
    support = Support(torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 0, 1]), 2)
    query = torch.randn(5, 3, 24, 24)
    task = method.task(support)
    centres = prototypes(task.embed(support.images, task.theta), support.labels, 2)
    ours = cosine_logits(task.embed(query, task.theta), centres, task.scale)
    vit = random_vit(3)
    known, asked = timm_features(vit, support.images), timm_features(vit, query)
    means = torch.stack([known[[0, 2]].mean(0), known[[1, 3]].mean(0)])
    theirs = 12.5 * (F.normalize(asked, dim=1) @ F.normalize(means, dim=1).T + 0.25)
    torch.testing.assert_close(ours.softmax(1), theirs.softmax(1), rtol=1e-4, atol=1e-5)


def test_position_embeddings_are_stretched_as_the_release_does(tmp_path: Path) -> None:
    method = imported(tmp_path, pmf_release(5), "a.pt", "backbone.image_size=24")
    images, vit = torch.randn(2, 3, 24, 24), random_vit(5)
    square = vit["pos_embed"][0, 1:].reshape(5, 5, 32).double()
    weights = cubic_weights(5, 3, (3 + 0.1) / 5)
    resized = torch.einsum("hi,wj,ijd->hwd", weights, weights, square).reshape(1, 9, 32).float()
    expected = timm_features({**vit, "pos_embed": torch.cat([vit["pos_embed"][:, :1], resized], 1)}, images)
    assert close(method.embed(images, method.theta_pre), expected.double(), 1e-5)


def cubic_weights(before: int, after: int, scale: float) -> Tensor:
    """Return rows of bicubic interpolation (a = -0.75) at half-pixel centres, source positions (i + 0.5) / scale - 0.5, edges repeated."""

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    rows = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        at = (i + 0.5) / scale - 0.5
        for j in range(int(at // 1) - 1, int(at // 1) + 3):
            rows[i, min(max(j, 0), before - 1)] += kernel(at - j)
    return rows


def test_the_recipe_knows_the_published_backbones(tmp_path: Path) -> None:
    from smatcli.importing import parse

    vit = pmf_release(14, dim=384, depth=12, patch=16)
    found = parse(saved(tmp_path / "s.pt", {k: v.half() for k, v in vit.items()}))
    assert found.backbone == {"name": "vit_small_patch16_224", "args": {}, "image_size": 128, "position_size": 224, "weights": "none"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapped_networks_are_unwrapped(tmp_path: Path, prefix: str) -> None:
    plain = imported(tmp_path, pmf_release(2)).state_dict()
    other = tmp_path / "other"
    other.mkdir()
    wrapped = imported(other, {f"{prefix}{k}": v for k, v in pmf_release(2).items()}).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in wrapped.items())


def test_thirds_of_qkv_are_in_their_places(tmp_path: Path) -> None:
    method, data = imported(tmp_path, smat_release()), Parity("task")
    fused = data[f"{data.names.index('encoder.blocks.1.attn.qkv.weight')}.theta_delta"].float()
    assert isinstance(method, SmatMethod)
    assert torch.equal(method.space.unflatten(method.theta_delta.detach())["blocks.1.attn.qkv.weight"], fused)
    assert torch.equal(third(fused, 2), fused[32:])
