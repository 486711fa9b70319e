"""Invalid input of `smat import`: a one-line error that names the cause, exit code 2, and no written files."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.errors import UserError
from smatcli.importing import import_checkpoint
from smatcli.runs.directory import RunDir
from tests.importing.released import OVERRIDES, pmf_release, saved, smat_release

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
QUERY = "encoder.layer.1.attention.attention.query.weight"


def refused(tmp_path: Path, source: Path | str, message: str, *overrides: str, route: str = "learned") -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as error:
        import_checkpoint(str(source), tmp_path / "x", [*OVERRIDES, *overrides], route)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 420 + 2 * len(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def without(*keys: str) -> Change:
    return lambda t: {k: v for k, v in t.items() if k not in keys}


def put(key: str, value: Tensor) -> Change:
    return lambda t: {**t, key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"net.{QUERY}", f"net.encoder.{QUERY}"), rf"lacks net\.encoder\.{QUERY}"),
        (without("delta_hypernet.phis.3"), r"lacks delta_hypernet\.phis\.3$"),
        (without("mask_hypernet.log_alphas.38"), r"lacks mask_hypernet\.log_alphas\.38$"),
        (without("mask_hypernet.task_embed_agg.norm1.bias"), r"lacks mask_hypernet\.task_embed_agg\.norm1\.bias"),
        (without("num_metaupdates"), "lacks num_metaupdates"),
        (without("net.head.weight"), r"lacks net\.head\.weight"),
        (without("mask_hypernet.masks_keys"), "lacks mask_hypernet.masks_keys: .* --route uniform"),
        (put("delta_hypernet.phis.39", torch.ones(1)), r"unexpected delta_hypernet\.phis\.39"),
        (put("net.encoder.extra", torch.ones(1)), r"unexpected net\.encoder\.extra"),
        (put("delta_hypernet.phis.4", torch.ones(16, 16, dtype=torch.int8)), r"weights of type int8 \(delta_hypernet\.phis\.4\)"),
        (put("delta_hypernet.phis.4", torch.ones(16, 15)), r"delta_hypernet\.phis\.4 has shape \(16, 15\), expected \(16, 16\) as net\."),
        (put("mask_hypernet.log_alphas.4", torch.ones(1, 16, 3)), r"log_alphas\.4 has shape \(1, 16, 3\), .*structured masks"),
        (put("mask_hypernet.log_alphas.4", torch.ones(16, 16, 4)), r"log_alphas\.4 has shape \(16, 16, 4\), expected \(16, 16, 3\)"),
        (put("mask_hypernet.masks_keys", torch.ones(3, 8)), r"masks_keys has shape \(3, 8\), expected \(3, 16\)"),
        (put("mask_hypernet.task_embed_agg.mlp.fc2.bias", torch.ones(3)), r"fc2\.bias has shape \(3,\), expected \(16,\)"),
        (put("mask_hypernet.skills_tokens", torch.ones(4, 16)), r"skills_tokens has shape \(4, 16\)"),
        (put("num_metaupdates", torch.ones(2)), r"num_metaupdates has shape \(2,\)"),
        (put("mask_sparsity_targets", torch.tensor([0.9, 0.8, 0.9])), "mask_sparsity_targets differ"),
        (put("mask_sparsity_targets", torch.ones(1)), "has 1 expert"),
        (put("lagrangian_multiplier", torch.ones(2)), r"lagrangian_multiplier has shape \(2,\)"),
        (put("mask_hypernet.use_hard_masks", torch.tensor(1)), "hard masks"),
        (put("delta_hypernet.phis.5", torch.full((16,), float("nan"))), r"NaN or infinite values in delta_hypernet\.phis\.5"),
        (put("net.encoder.embeddings.position_embeddings", torch.ones(1, 4, 16)), r"phis\.1 has shape|position_embeddings has shape"),
        (put("net.encoder.embeddings.patch_embeddings.projection.weight", torch.ones(16)), "has shape"),
        (lambda t: {k: v for k, v in t.items() if "encoder." not in k}, "not a supported vision transformer"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Change, message: str) -> None:
    refused(tmp_path, saved(tmp_path / "a.pt", change(smat_release())), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("backbone.norm.weight"), r"lacks backbone\.norm\.weight"),
        (put("prompt", torch.ones(1)), "unexpected prompt"),
        (put("backbone.blocks.0.norm1.weight", torch.ones(31)), r"backbone\.blocks\.0\.norm1\.weight has shape \(31,\), expected \(32,\)"),
        (put("scale_cls", torch.tensor([-1.0])), "scale_cls is -1"),
        (put("scale_cls", torch.tensor([float("inf")])), "infinite values in scale_cls"),
        (lambda t: {"scale_cls": t["scale_cls"], "backbone.conv1.weight": torch.ones(2)}, "not a supported vision transformer"),
        (lambda t: {"something": torch.ones(1)}, "neither a SMAT nor a PMF checkpoint .it has something"),
    ],
)
def test_pmf_what_does_not_fit_is_named(tmp_path: Path, change: Change, message: str) -> None:
    refused(tmp_path, saved(tmp_path / "a.pth", change(pmf_release())), message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backbone.name=vit_base_patch16_224", "backbone.args={num_heads: 2}"), "different backbone: it lacks blocks.2.norm1.weight"),
        (("backbone.args.depth=1",), r"different backbone: it has net\.encoder\.encoder\.layer\.1\.\S+query\.weight"),
        (("backbone.args.embed_dim=24",), r"has shape \(1, 1, 16\), expected \(1, 1, 24\) by the recipe's backbone"),
        (("method.experts=4",), r"log_alphas\.0 has shape \(1, 1, 16, 3\), expected \(1, 1, 16, 4\)"),
        (("method.router.spectral_norm=false",), "has no router.qkv.u for mask_hypernet.task_embed_agg.attn.qkv.weight_u"),
        (("method.masks={kind: random}", "method.sparsity={tau: 0.9}"), "the method of the recipe has no log_alpha"),
        (("method.masks.group=input",), "does not fit the recipe: .*log_alpha"),
        (("method={name: pmf}",), "method.name=pmf: .* is a checkpoint of smat"),
        (("methodd.experts=4",), "methodd"),
        (("run=elsewhere",), "use --out"),
        (("backbone.image_size=20",), "20 is not a multiple of the patch size 8"),
    ],
)
def test_settings_that_do_not_fit_the_file(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    refused(tmp_path, saved(tmp_path / "a.pt", smat_release()), message, *overrides)


def test_the_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", smat_release())
    with pytest.raises(UserError, match=r"number of heads is not in the file; add backbone\.args\.num_heads=N"):
        import_checkpoint(str(path), tmp_path / "x")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"", "is empty"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git-lfs pointer.*git lfs pull"),
        ("a.safetensors", b"/annex/objects/SHA256E-s1--abc.safetensors\n", "git-annex pointer.*git annex get"),
        ("a.pt", b"not weights at all", "truncated or not a PyTorch file"),
        ("a.safetensors", b"\xff" * 100, "truncated or not a safetensors"),
        ("a.pt", pickle.dumps({"model": {"a": Evil()}}, protocol=2), "cannot be read"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, tmp_path / name, message)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": smat_release(), "scheduler": Evil()}, tmp_path / "a.pt")
    refused(tmp_path, tmp_path / "a.pt", "objects other than tensors")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, smat_release())
    path.write_bytes(path.read_bytes()[:-2000])
    refused(tmp_path, path, "truncated")


@pytest.mark.parametrize(
    ("tree", "message"),
    [([torch.ones(1)], "no named tensors"), ({"model": {"a": 3}}, "'a' is a int"), ({}, "no named tensors")],
)
def test_trees_without_tensors(tmp_path: Path, tree: object, message: str) -> None:
    torch.save(tree, tmp_path / "a.pt")
    refused(tmp_path, tmp_path / "a.pt", message)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "gone.pt", "file not found")
    refused(tmp_path, "folder/gone.pt", "file not found")
    refused(tmp_path, "someone/smat-vits16", "hub cannot be reached .HF_HUB_OFFLINE is set.*give its path")


def test_folders(tmp_path: Path) -> None:
    (folder := tmp_path / "hub").mkdir()
    refused(tmp_path, folder, "contains no weights")
    saved(folder / "one.pt", pmf_release())
    saved(folder / "two.pt", pmf_release())
    refused(tmp_path, folder, "contains 2 checkpoints; give one of them: .*one.pt")
    saved(folder / "model.safetensors", pmf_release())
    run = import_checkpoint(str(folder), tmp_path / "x", OVERRIDES)
    assert run.info["imported"]["file"] == "model.safetensors"
    with pytest.raises(UserError, match="is already a run"):
        import_checkpoint(str(run.path), tmp_path / "y", OVERRIDES)


def test_hub_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    (cache := tmp_path / "cache").mkdir()
    saved(cache / "model.safetensors", pmf_release())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(cache))
    assert import_checkpoint("someone/pmf", tmp_path / "run", OVERRIDES).info["imported"]["source"] == "someone/pmf"

    def unknown(name: str, **_: object) -> str:
        raise HFValidationError("no\nsuch repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    refused(tmp_path, "someone/pmf", "nor a public model of the Hugging Face hub; check the name")


def test_routes_and_folders_that_are_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", pmf_release())
    refused(tmp_path, path, "--route uniform is for SMAT checkpoints", route="uniform")
    refused(tmp_path, path, "did you mean 'uniform'", route="unifrom")
    (tmp_path / "x").mkdir()
    refused(tmp_path, path, "--out .* exists; choose another folder")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import smatcli.importing

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    path = saved(tmp_path / "a.pth", pmf_release())
    monkeypatch.setattr(smatcli.importing, "save_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(str(path), tmp_path / "x", OVERRIDES)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine.train.world import write_stores

    monkeypatch.chdir(tmp_path)
    write_stores(tmp_path)
    saved(tmp_path / "a.pt", smat_release())
    cli = CliRunner()
    wrong = cli.invoke(app, ["import", "a.pt", "--out", "runs/x", "--route", "best"])
    assert wrong.exit_code == 2
    assert "--route best: use learned or uniform" in wrong.output
    assert not (tmp_path / "runs").exists()
    data = ["data.root=.", "data.id=[a]", "data.ood=[c]", "eval.episodes=2"]
    made = cli.invoke(app, ["import", "a.pt", "--out", "runs/x", *OVERRIDES, *data])
    assert made.exit_code == 0
    assert "runs/x: meta-test it with" in made.output
    assert "SMAT release (transformers names)" in made.output
    assert RunDir.open("runs/x").finished
    options = ["--episode", "fixed", "--ways", "3", "--shots", "2", "--queries", "2"]
    done = cli.invoke(app, ["eval", "runs/x", "--adapt", "proto", "--adapt", "flip", *options])
    assert done.exit_code == 0, done.output
    assert "OOD average" in done.output
    assert "flip" in done.output
