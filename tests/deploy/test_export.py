"""Exports load in other programs and give the run's features."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import smatcli
from smatcli.deploy.export import export, export_experts
from smatcli.deploy.folder import Fitting
from smatcli.deploy.pictures import read_all, support_pictures
from smatcli.errors import UserError
from smatcli.experts.compress import CompressedExperts
from tests.deploy.world import BACKBONE, SIZE, SMAT, make_pretrain_run, make_run, make_support, pictures

IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def plain_timm(file: Path) -> torch.nn.Module:
    model = timm.create_model(BACKBONE["name"], num_classes=0, img_size=SIZE, **BACKBONE["args"])  # type: ignore[arg-type]
    model.load_state_dict(load_file(file), strict=True)
    return model.eval()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_task_parameters_load_strictly_into_timm(tmp_path: Path) -> None:
    run, folder = make_run(tmp_path), make_support(tmp_path / "support")
    out = export(run, tmp_path / "model", fitting=Fitting(folder, "flip"))
    model = smatcli.load(run)
    found = support_pictures(folder)
    pixels, labels, _ = read_all(found, SIZE, "crop")
    head = model.adapt(pixels, labels, "flip").head
    wanted = model.method.embed(IMAGES, head.theta)  # type: ignore[attr-defined]
    close(plain_timm(out / "model.safetensors")(IMAGES), wanted)
    close(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(IMAGES), wanted)
    config = json.loads((out / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]


@torch.no_grad()
def test_average_is_the_mean_of_the_masks(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    out = export(run, tmp_path / "model", average=True)
    saved = load_file(run / "checkpoints" / "last" / "model.safetensors")
    gate = torch.clamp(1.2 * torch.sigmoid(saved["log_alpha"].double()) - 0.1, 0, 1)  # inference: temperature 1
    theta = saved["theta_pre"] + saved["theta_delta"] * gate.mean(0)
    flat = torch.cat([tensor.flatten() for tensor in load_file(out / "model.safetensors").values()])
    names = list(load_file(out / "model.safetensors"))
    tensors = smatcli.load(run).method.space.unflatten(theta.float())
    torch.testing.assert_close(flat, torch.cat([tensors[name].flatten() for name in names]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("method", [SMAT, {"name": "softmerge", "experts": 2, "router": {"heads": 2}}])
def test_stretched_position_embeddings_are_settled(tmp_path: Path, method: dict[str, object]) -> None:
    run = make_run(tmp_path, method, position_size=32)
    model = smatcli.load(run)
    task = model.method.task(model.support([np.zeros((SIZE, SIZE, 3), np.uint8)] * 2, [0, 1], 2))
    assert task.merge is not None
    assert task.alpha is not None
    wanted = model.method.embed(IMAGES, task.merge(torch.ones_like(task.alpha)))
    close(plain_timm(export(run, tmp_path / "model", average=True) / "model.safetensors")(IMAGES), wanted)


@torch.no_grad()
def test_methods_without_experts_need_no_support(tmp_path: Path) -> None:
    pmf = make_run(tmp_path, {"name": "pmf"}, "pmf")
    theta = load_file(pmf / "checkpoints" / "last" / "model.safetensors")["theta"]
    model = smatcli.load(pmf)
    close(plain_timm(export(pmf, tmp_path / "a") / "model.safetensors")(IMAGES), model.method.embed(IMAGES, theta))
    pretrain = make_pretrain_run(tmp_path)
    close(plain_timm(export(pretrain, tmp_path / "b") / "model.safetensors")(IMAGES), plain_timm(pretrain / "backbone.safetensors")(IMAGES))


def test_compressed_experts_give_theta(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    saved = load_file(run / "checkpoints" / "last" / "model.safetensors")
    size, dense = export_experts(run, tmp_path / "experts.safetensors")
    experts = CompressedExperts.load(tmp_path / "experts.safetensors")
    gate = torch.clamp(1.2 * torch.sigmoid(saved["log_alpha"].double()) - 0.1, 0, 1)
    for m in range(3):
        torch.testing.assert_close(experts.mask(m).double(), saved["theta_delta"] * gate[m], rtol=1e-5, atol=1e-7)
    assert dense == gate.numel() * 4
    assert size == (tmp_path / "experts.safetensors").stat().st_size


def test_onnx_classifies_like_the_original(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    classifier = smatcli.load(make_run(tmp_path)).adapt(*pictures())
    out = export(classifier.save(tmp_path / "my.smat"), tmp_path / "my.onnx", "onnx")
    images = np.stack([np.asarray(image) for image in pictures()[0]])
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"images": (images / 255).astype(np.float32).transpose(0, 3, 1, 2)})[0]
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, classifier.predict(images).probabilities, atol=1e-4)
    properties = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(properties["classes"]) == ["blue", "green", "red"]


def test_onnx_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smatcli.deploy.onnx_file.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"smatcli\[onnx\]"):
        export(make_run(tmp_path), tmp_path / "a.onnx", "onnx", average=True)


def test_bad_use(tmp_path: Path) -> None:
    run, pmf = make_run(tmp_path), make_run(tmp_path, {"name": "pmf"}, "pmf")
    support = make_support(tmp_path / "support")
    saved = smatcli.load(pmf).adapt(*pictures()).save(tmp_path / "my.smat")
    before = sorted(tmp_path.rglob("*"))
    wrong = [
        (lambda: export(run, tmp_path / "a"), "add --support DIR, or --average"),
        (lambda: export(run, tmp_path / "a", fitting=Fitting(support), average=True), "give one of them"),
        (lambda: export(run, tmp_path / "a", fitting=Fitting(adapt="flip"), average=True), "need --support"),
        (lambda: export(run, tmp_path / "a.pt", average=True), "writes a folder"),
        (lambda: export(run, tmp_path, average=True), "already exists"),
        (lambda: export(tmp_path / "none", tmp_path / "a"), "no such run"),
        (lambda: export(saved, tmp_path / "a", fitting=Fitting(support)), "whose classes are fixed"),
        (lambda: export(saved, tmp_path / "a", average=True), "is only for runs"),
        (lambda: export(pmf, tmp_path / "a", fitting=Fitting(support, "flip")), "needs a method with experts"),
        (lambda: export_experts(pmf, tmp_path / "a.safetensors"), "no sparse experts"),
        (lambda: export_experts(run, tmp_path / "a.pt"), "ends in .safetensors"),
    ]
    for call, message in wrong:
        with pytest.raises(UserError) as caught:
            call()
        assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
