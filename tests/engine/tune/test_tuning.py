"""`engine.tune`: learning, exact resume, search, stored files and errors."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from smatcli.engine.tune.fit import TuneLearner
from smatcli.engine.tune.tuning import tune
from smatcli.engine.tune.weights import load_tuned
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted
from tests.tuning.world import load

FULL = "tuner={name: full}"


def result(run):
    return json.loads((run.path / "tune.json").read_text())


def weights(run, name="last"):
    return load_checkpoint(run.checkpoints / name).model


def plain(run):
    return [{k: v for k, v in r.items() if k != "time"} for r in run.records()]


def _stop_at(monkeypatch, step, signum=signal.SIGTERM):
    """Send the signal while this step is computed."""
    backward = TuneLearner.backward

    def stopping(self, batch, now):
        if now == step:
            os.kill(os.getpid(), signum)
        return backward(self, batch, now)

    monkeypatch.setattr(TuneLearner, "backward", stopping)


def test_it_learns_validates_and_tests(tmp_path):
    reporter = SilentReporter()
    run = tune(load(tmp_path, FULL, "data.fit=train", "tune.epochs=15", "tune.valid_every=5", "tune.select=best"), reporter)
    found = result(run)
    assert found["scores"]["accuracy"] > 0.8
    assert found["score"] == found["scores"]["accuracy"]
    valid = run.records("valid")
    assert [r["epoch"] for r in valid] == [5, 10, 15]
    assert max(r["mean"] for r in valid) > 0.8
    assert found["images"] == {"train": 20, "valid": 10, "test": 26}
    assert found["fitted"] == 20
    assert found["classes"] == 4
    assert RunDir.open(run.path).finished
    recipe, task, tuner, device = load_tuned(run.path)
    from smatcli.engine.tune.task import View, network_input

    view = View(task, task.rows["test"], device, True)
    assert view.kept is not None
    with torch.no_grad():
        right = (tuner(network_input(view.kept, recipe)).argmax(1) == view.labels).float().mean()
    assert abs(float(right) - found["score"]) < 1e-6


@pytest.mark.parametrize(
    "overrides",
    [[], ["tuner={name: lora, dropout: 0.3}", "tune.augment={crop_scale: [0.5, 1.0], flip: 0.5}", "data.fit=train"],
     ["tuner={name: linear}"], ["tuner={name: gapt, dropout: 0.2}", "tune.memory=0"]],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 6])
def test_a_stopped_run_continues_exactly(tmp_path, monkeypatch, overrides, step):
    whole = tune(load(tmp_path, f"run={tmp_path}/whole", *overrides), SilentReporter())
    with monkeypatch.context() as patch:
        _stop_at(patch, step)
        with pytest.raises(Interrupted) as stopped:
            tune(load(tmp_path, *overrides), SilentReporter())
    assert stopped.value.exit_code == 143
    assert f"step {step + 1} of" in str(stopped.value)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    resumed = tune(load(tmp_path, *overrides), SilentReporter(), resume=True)
    one, two = weights(whole), weights(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert plain(whole) == plain(resumed)
    assert result(whole)["scores"] == result(resumed)["scores"]


def test_the_cached_prefix_changes_nothing(tmp_path, monkeypatch):
    runs = []
    for name, memory in (("kept", 2), ("made", 0)):
        with monkeypatch.context() as patch:
            if not memory:
                patch.setattr(TuneLearner, "_frozen_features", lambda self, view: None)
            runs.append(tune(load(tmp_path, f"run={tmp_path}/{name}", "tuner={name: vpt-shallow, prompts: 2}"), SilentReporter()))
    one, two = map(weights, runs)
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


def test_a_checkpoint_holds_what_is_trained_alone(tmp_path):
    run = tune(load(tmp_path), SilentReporter())
    kept = weights(run)
    assert set(kept) == {f"backbone.blocks.{i}.attn.qkv.{n}" for i in (0, 1) for n in ("a", "b", "coefficients")} | {
        "head.weight",
        "head.bias",
    }
    assert result(run)["parameters"] == {"tuner": 2 * (4 * 64 + 4), "head": 17 * 4}


def test_a_merged_file_is_the_tuned_network(tmp_path):
    import timm

    run = tune(load(tmp_path, "tune.merged=true"), SilentReporter())
    tuner = load_tuned(run.path)[2]
    net = timm.create_model("vit_tiny_patch16_224", patch_size=8, embed_dim=16, depth=2, num_heads=2, img_size=16, num_classes=4)
    net.load_state_dict(load_file(run.path / "merged.safetensors"))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), tuner(images), atol=1e-5, rtol=1e-5)


def test_search_chooses_on_validation_images_and_goes_on_where_it_was(tmp_path, monkeypatch):
    overrides = ["tune.search={lr: [1.0e-9, 0.02], p: [0.0, 0.5]}", "tune.epochs=12"]
    with monkeypatch.context() as patch:
        fits = []
        batches = TuneLearner.batches

        def second(self, step):
            fits.append(self)
            if len(fits) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return batches(self, step)

        patch.setattr(TuneLearner, "batches", second)
        with pytest.raises(Interrupted):
            tune(load(tmp_path, *overrides), SilentReporter())
    assert len(json.loads((tmp_path / "run/search/search.json").read_text())) == 2
    reporter = SilentReporter()
    run = tune(load(tmp_path, *overrides), reporter, resume=True)
    tried = json.loads((run.path / "search/search.json").read_text())
    assert set(tried) == {f"lr={lr},p={p}" for lr in ("1e-09", "0.02") for p in ("0", "0.5")}
    found = result(run)
    best = max(tried, key=lambda name: tried[name])
    assert found["searched_score"] == tried[best]
    assert f"lr={found['searched']['tune.lr']:g},p={found['searched']['tuner.p']:g}" == best
    assert found["searched"]["tune.lr"] == 0.02
    assert found["fitted"] == 30
    assert sum("trial" in line for line in reporter.lines) >= 2


def test_equal_seeds_are_equal_and_others_are_not(tmp_path):
    one, two, three = (
        tune(load(tmp_path, f"run={tmp_path}/{n}", f"seed={s}"), SilentReporter()) for n, s in (("x", 1), ("y", 1), ("z", 2))
    )
    assert all(torch.equal(weights(one)[k], v) for k, v in weights(two).items())
    assert not torch.equal(weights(one)["head.weight"], weights(three)["head.weight"])


def test_other_weights_are_refused_on_resume(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_at(patch, 4)
        with pytest.raises(Interrupted):
            tune(load(tmp_path), SilentReporter())
    monkeypatch.setattr("smatcli.engine.tune.fit.frozen_digest", lambda tuner: "other")
    with pytest.raises(UserError, match=r"backbone.weights: changed since run"):
        tune(load(tmp_path), SilentReporter(), resume=True)


def test_a_loss_that_is_not_finite_ends_the_run_without_a_result(tmp_path):
    with pytest.raises(SmatError, match=r"tuning step .* lower tune.lr or set tune.clip"):
        tune(load(tmp_path, "tune.optimizer=sgd", "tune.lr=1e30", "tune.epochs=20", FULL), SilentReporter())
    assert not (tmp_path / "run" / "tune.json").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tuner={name: vpt-deep}", "tune.merged=true"], "tune.merged: vpt-deep cannot be merged"),
        (["tune.search={p: [0.0, 0.5]}", "tuner.pattern=incremental"], "set p to"),
        (["tuner={name: vpt-deep, layers: 5}"], "5 prompt layers, but the backbone has 2 blocks"),
        (["tuner.layers=[blocks.*.attn.q]"], "no linear layer matches"),
        (["data.train=60"], "leave none to test"),
    ],
)
def test_refused_before_anything_is_made(tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        tune(load(tmp_path, *overrides), SilentReporter())
    assert not (tmp_path / "run").exists()
