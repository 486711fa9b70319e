import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.backbones import create_backbone, save_backbone
from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.engine import train as module
from smatcli.engine.reporter import SilentReporter
from smatcli.engine.run import RunDir
from smatcli.engine.signals import Interrupted
from smatcli.engine.train import load_method, train
from smatcli.errors import SmatError, UserError
from smatcli.methods.smat import SmatMethod
from tests.engine.train_world import load


def tensors(run: RunDir, which: str = "last") -> dict[str, torch.Tensor]:
    return load_method(run.path, which)[0].state_dict()


def plain(run: RunDir) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "time"} for record in run.records()]


def recipe_of(loaded: Loaded) -> TrainRecipe:
    assert isinstance(loaded.recipe, TrainRecipe)
    return loaded.recipe


@pytest.mark.parametrize("method", ["smat", "pmf"])
def test_a_run_holds_its_recipe_metrics_and_checkpoints(tmp_path: Path, method: str) -> None:
    extra = [] if method == "smat" else ["method={name: pmf}"]
    run = train(load(tmp_path, *extra), SilentReporter())
    assert RunDir.open(run.path).finished
    assert [r["step"] for r in run.records("train")] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in run.records("valid")] == [0, 3, 6]
    assert set(run.records("valid")[0]["datasets"]) == {"a", "b"}
    origins = json.loads((run.path / "origins.json").read_text())
    assert origins["train.steps"].startswith("file ") and origins["seed"] == "default"
    loaded, recipe = load_method(run.path, "last")
    assert recipe == recipe_of(load(tmp_path, *extra))
    assert not loaded.training


@pytest.mark.parametrize("name", ["smat", "pmf"])
@pytest.mark.parametrize("step", [1, 4])
def test_a_stopped_run_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, name: str) -> None:
    extra = [f"method={{name: {name}}}"] if name == "pmf" else []
    whole = train(load(tmp_path, f"run={tmp_path}/whole", *extra), SilentReporter())
    update = module.Trainer._update

    def stopping(self: module.Trainer, run: RunDir, batch: Any) -> None:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_update", stopping)
        with pytest.raises(Interrupted) as stopped:
            train(load(tmp_path, *extra), SilentReporter())
    assert stopped.value.exit_code == 143
    resumed = train(load(tmp_path, *extra), SilentReporter(), resume=True)
    one, two = tensors(whole), tensors(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert plain(whole) == plain(resumed)


def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written at the moment of death: the updates after the checkpoint are done again, and their records are not doubled."""
    whole = train(load(tmp_path, f"run={tmp_path}/whole"), SilentReporter())
    update = module.Trainer._update

    def dying(self: module.Trainer, run: RunDir, batch: Any) -> None:
        update(self, run, batch)
        if self.step == 5:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_update", dying)
        with pytest.raises(RuntimeError):
            train(load(tmp_path), SilentReporter())
    resumed = train(load(tmp_path), SilentReporter(), resume=True)
    one, two = tensors(whole), tensors(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert plain(whole) == plain(resumed)


def test_a_resumed_run_needs_its_first_weights_no_more(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    weights = tmp_path / "pretrain"
    weights.mkdir()
    save_backbone(weights, create_backbone(loaded.recipe.backbone), loaded.recipe.backbone, {})
    train(load(tmp_path, f"backbone.weights={weights}", "train.steps=2"), SilentReporter())
    for file in weights.iterdir():
        file.unlink()
    run = train(load(tmp_path, f"backbone.weights={weights}", "train.steps=4"), SilentReporter(), resume=True)
    assert run.records("train")[-1]["step"] == 4
    load_method(run.path)


def test_a_loss_that_is_not_a_number_names_its_episode_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = SmatMethod.loss

    def broken(self: SmatMethod, episode: Any, generator: torch.Generator) -> Any:
        found = loss(self, episode, generator)
        if episode.index == 9:
            found.total = found.total * float("nan")
        return found

    monkeypatch.setattr(SmatMethod, "loss", broken)
    with pytest.raises(SmatError, match=r"loss is nan at step 5, (a|b) episode 9 \(seed 0\); the last good checkpoint is kept") as error:
        train(load(tmp_path), SilentReporter())
    assert error.value.exit_code == 1
    assert json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())["state"]["step"] == 4


def test_best_is_the_best_validation_of_a_state_that_satisfies_the_constraint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tau = 0.99 cannot be reached in six updates, so no state may be kept as best, and meta-test takes the last one."""
    run = train(load(tmp_path, "method.sparsity.tau=0.99"), SilentReporter())
    assert not (run.checkpoints / "best").exists()
    load_method(run.path, "best")
    free = train(load(tmp_path, f"run={tmp_path}/free", "method.sparsity.tau=0"), SilentReporter())
    assert (free.checkpoints / "best").exists()


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'pretrained' has nothing to train; set train.steps=0"):
        train(load(tmp_path, "method={name: pretrained}"), SilentReporter())
    run = train(load(tmp_path, "method={name: pretrained}", "train.steps=0"), SilentReporter())
    assert [r["step"] for r in run.records("valid")] == [0]
    load_method(run.path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.train=[a, bb]"], "bb"),
        (["train.groups={deltas: {lr: 1e-3}}"], "did you mean 'delta'"),
        (["episode.ways=4"], "validation classes"),
        (["episode.ways=6", "data.valid=[a]"], "6"),
        (["episode.shots=6"], "6"),
        (["backbone.weights=nowhere"], "nowhere"),
        (["device=cuda:7"], "cuda"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_is_made(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        train(load(tmp_path, *overrides), SilentReporter())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused_and_untouched(tmp_path: Path) -> None:
    run = train(load(tmp_path, "train.steps=1"), SilentReporter())
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(load(tmp_path, "train.steps=1"), SilentReporter())
    with pytest.raises(UserError, match=r"method\.experts"):
        train(load(tmp_path, "method.experts=2"), SilentReporter(), resume=True)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_load_method_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_method(tmp_path / "nothing")
    loaded = load(tmp_path)
    RunDir.create(tmp_path / "run", loaded.recipe, loaded.origins)
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_method(tmp_path / "run")
