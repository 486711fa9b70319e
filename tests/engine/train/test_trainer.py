import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.backbones import create_backbone, save_backbone
from smatcli.config import Loaded
from smatcli.config.loader import vision
from smatcli.config.schema import TrainRecipe
from smatcli.engine.loop import guard
from smatcli.engine.loop.loading import load_method
from smatcli.engine.loop.optimizers import Optimizers
from smatcli.engine.train.debug_episode import debug_episode
from smatcli.engine.train.trainer import MetaLearner, train
from smatcli.errors import SmatError, UserError
from smatcli.methods.smat import SmatMethod
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load


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
    assert origins["train.steps"].startswith("file ")
    assert origins["seed"] == "default"
    loaded, recipe = load_method(run.path, "last")
    assert recipe == recipe_of(load(tmp_path, *extra))
    assert not loaded.training


def test_a_resumed_run_needs_its_first_weights_no_more(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    weights = tmp_path / "pretrain"
    weights.mkdir()
    backbone = vision(loaded.recipe).backbone
    save_backbone(weights, create_backbone(backbone), backbone, {})
    train(load(tmp_path, f"backbone.weights={weights}", "train.steps=2"), SilentReporter())
    for file in weights.iterdir():
        file.unlink()
    run = train(load(tmp_path, f"backbone.weights={weights}", "train.steps=4"), SilentReporter(), resume=True)
    assert run.records("train")[-1]["step"] == 4
    load_method(run.path)


def break_losses(monkeypatch: pytest.MonkeyPatch, broken: Callable[[int], bool], value: float = float("nan")) -> None:
    """Replace the losses of some episodes (by index) by NaN or multiples."""
    loss = SmatMethod.loss

    def broken_loss(self: SmatMethod, episode: Any, generator: torch.Generator) -> Any:
        found = loss(self, episode, generator)
        if broken(episode.index):
            found.total = found.total * value
        return found

    monkeypatch.setattr(SmatMethod, "loss", broken_loss)


def test_losses_that_are_not_numbers_end_the_run_name_the_episode_and_keep_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, lambda index: index in (7, 9))
    says = (
        r"step 5: the loss is nan \((a|b) episode 9 \(seed 0\)\); 2 updates in a row were skipped; the last good checkpoint is kept"
        r".*--debug-episode (a|b):9"
    )
    with pytest.raises(SmatError, match=says) as error:
        train(load(tmp_path, "train.spike.in_a_row=2"), SilentReporter())
    assert error.value.exit_code == 1
    assert json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())["state"]["step"] == 2
    assert json.loads((tmp_path / "run" / "checkpoints" / "failed" / "state.json").read_text())["state"]["step"] == 4


def test_no_checkpoint_replaces_the_last_good_one_while_updates_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_losses(monkeypatch, lambda index: index in range(6, 12))
    with pytest.raises(SmatError, match="step 6"):
        train(load(tmp_path, "train.spike.in_a_row=3", "train.checkpoint_every=1"), SilentReporter())
    assert json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())["state"]["step"] == 3


def test_a_skipped_update_changes_nothing_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, optimizer and power iterations are unchanged; the schedule advances."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    after_step = MetaLearner.after_step

    def watched(self: MetaLearner, step: int) -> None:
        after_step(self, step)
        tensors, _ = self.optimizers.state_dict()
        seen[step] = {k: v.clone() for k, v in {**self.method.state_dict(), **tensors}.items()}
        assert self.optimizers.step_index == step

    monkeypatch.setattr(MetaLearner, "after_step", watched)
    break_losses(monkeypatch, lambda index: index == 7)
    reporter = SilentReporter()
    run = train(load(tmp_path), reporter)
    same = [k for k in seen[3] if torch.equal(seen[3][k], seen[4][k])]
    assert sorted(seen[3].keys() - same) == ["router.temperature"]
    assert not all(torch.equal(seen[4][k], seen[5][k]) for k in seen[4])
    (skip,) = run.records("skip")
    assert (skip["step"], skip["reason"], skip["skipped"]) == (4, "the loss is nan", 1)
    assert [(e["index"], e["seed"]) for e in skip["episodes"]] == [(7, 0)]
    assert [r["step"] for r in run.records("train")] == [1, 2, 3, 5, 6]
    assert any("1 of 6 updates were skipped" in line for line in reporter.lines)


def test_spikes_are_trained_on_unless_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FEWEST", 2)
    break_losses(monkeypatch, lambda index: index == 9, 1e6)
    free = train(load(tmp_path, f"run={tmp_path}/free", "train.steps=5"), SilentReporter())
    assert not free.records("skip")
    careful = train(load(tmp_path, "train.spike.factor=50", "train.steps=5"), SilentReporter())
    (skip,) = careful.records("skip")
    assert skip["step"] == 5
    assert "a spike above" in skip["reason"]
    assert len(skip["episodes"]) == 2
    assert [plain(free)[i] == plain(careful)[i] for i in range(5)] == [True] * 5


def dataset_of(loaded: Loaded, index: int) -> str:
    return MetaLearner(recipe_of(loaded), SilentReporter(), "none").sampler.dataset(index)


def test_debug_episode_gives_the_loss_that_the_run_had(tmp_path: Path) -> None:
    """The loss is equal bit for bit, including augmentation, noise and power iterations."""
    two = load(tmp_path, "train.meta_batch=1", "train.steps=2")
    train(two, SilentReporter())
    name = dataset_of(two, 2)
    found = debug_episode(load(tmp_path, "train.meta_batch=1", "train.steps=2"), name, 2, SilentReporter())
    assert (found.step, found.checkpoint.name, found.broken) == (2, "last", [])
    # The schedule of the norms' run is another one, but its third update begins with the same weights.
    record = train(load(tmp_path, "train.meta_batch=1", "train.steps=3"), SilentReporter(), resume=True).records("train")[2]
    assert {"loss": found.total, **found.logs, **{f"loss_{k}": v for k, v in found.terms.items()}}.items() <= record.items()
    assert found.norms == {k[5:]: v for k, v in record.items() if k.startswith("norm_")}


def test_debug_episode_starts_from_the_weights_of_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tmp_path, "train.spike.in_a_row=1", "train.checkpoint_every=100")
    name = dataset_of(loaded, 9)
    break_losses(monkeypatch, lambda index: index == 9, float("inf"))
    with pytest.raises(SmatError, match=f"step 5: the loss is inf .*{name} episode 9"):
        train(loaded, SilentReporter())
    found = debug_episode(loaded, name, 9, SilentReporter())
    assert (found.step, found.checkpoint.name, found.total) == (4, "failed", float("inf"))
    assert any("gradient" in what for what in found.broken)
    other = "b" if name == "a" else "a"
    with pytest.raises(UserError, match=rf"episode 9 \(seed 0\) is from {name}, not {other}"):
        debug_episode(loaded, other, 9, SilentReporter())
    with pytest.raises(UserError, match="does not exist"):
        debug_episode(load(tmp_path, f"run={tmp_path}/none"), name, 9, SilentReporter())


def test_kept_checkpoints_stand_in_for_lost_ones(tmp_path: Path) -> None:
    """With `last` and its predecessor damaged, training continues from step-N and ends with the same result."""
    whole = train(load(tmp_path, f"run={tmp_path}/whole"), SilentReporter())
    run = train(load(tmp_path, "train.keep_every=2", "train.steps=6"), SilentReporter())
    assert sorted(p.name for p in run.checkpoints.iterdir() if p.name[:4] in ("step", "last")) == [
        "last", "last.old", "step-2", "step-4", "step-6",
    ]  # fmt: skip
    for name in ("last", "last.old", "step-6"):
        (run.checkpoints / name / "optim.safetensors").write_bytes(b"")
    run.note(status="interrupted")
    reporter = SilentReporter()
    resumed = train(load(tmp_path), reporter, resume=True)
    (line,) = (line for line in reporter.lines if "damaged" in line)
    assert line.endswith("step-4)")
    assert line.count("is damaged") == 3
    one, two = tensors(whole), tensors(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert plain(whole) == plain(resumed)


def test_weights_that_are_not_finite_are_never_kept_as_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Optimizers.step

    def overflow(self: Optimizers) -> dict[str, float]:
        norms = step(self)
        if self.step_index == 4:
            next(iter(self.groups.values()))[0].data.fill_(float("inf"))
        return norms

    monkeypatch.setattr(Optimizers, "step", overflow)
    with pytest.raises(SmatError, match=r"step 4: parameter 0 of group '\w+' is not finite; the last good checkpoint is kept"):
        train(load(tmp_path), SilentReporter())
    assert json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())["state"]["step"] == 2


def test_best_is_the_best_validation_of_a_state_that_satisfies_the_constraint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tau = 0.99 is not reached in six updates, so no state becomes best, and the meta-test uses the last one."""
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
