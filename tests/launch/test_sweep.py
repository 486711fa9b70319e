"""Sweeps, with training and evaluation replaced by fakes that write similar files."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import smatcli
import smatcli.engine.evaluate.evaluation as evaluate_module
import smatcli.engine.train.trainer as train_module
from smatcli.cli import app
from smatcli.cli.sweep import parse
from smatcli.config.loader import vision
from smatcli.config.methods import SmatConfig
from smatcli.config.schema import TrainRecipe
from smatcli.errors import SmatError, UserError
from smatcli.launch import local
from smatcli.launch.grid import parse_axis, parse_grid, plan_points, short_keys, split_values
from smatcli.launch.placement import Placement
from smatcli.launch.points import eval_overrides
from smatcli.launch.sweep import sweep
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted
from tests.runs.eval_results import write_evaluation


def write_results(run, tau, adapts=("proto",)):
    """Write the files of training and evaluation: accuracies that depend on tau, and a log with two validations."""
    (run / "checkpoints/best").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints/best/state.json").write_text(json.dumps({"state": {"step": 5}}))
    valid = [
        {"step": s, "kind": "valid", "mean": 0.5, "sparsity_inference": v, "sparsity_expected": 0} for s, v in ((5, tau + 0.01), (10, 0.1))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in valid))
    for adapt in adapts:
        datasets = {"a": ("ID", "5w5s10q-test", tau, 0.03), "c": ("OOD", "5w5s10q-all", tau / 2, 0.01)}
        write_evaluation(run / "eval" / f"{adapt}-5w5s10q-test", datasets, adapt, tau, 2)


def tau_of(recipe):
    assert isinstance(recipe.method, SmatConfig)
    return recipe.method.sparsity.tau


@pytest.fixture
def world(monkeypatch, recipe_file, tmp_path):
    """Replace the engines by fakes; `calls` lists the calls, and `fail` maps tau to an error."""

    world: Any = SimpleNamespace(calls=[], fail={}, folder=tmp_path / "runs/small-sweep-tau")
    world.recipe = recipe_file("run: runs/small", f"run: {tmp_path}/runs/small")

    def train(loaded, reporter, resume=False):
        tau = tau_of(loaded.recipe)
        world.calls.append(("train", tau, resume, loaded.recipe.device))
        run = RunDir.start(loaded, reporter, resume)
        if tau in world.fail:
            raise world.fail[tau]
        run.note(status="finished")
        return run

    def evaluate(run, adapts=None, datasets=None, episodes=None, overrides=(), options=None, reporter=None):
        recipe = evaluate_module.plan(run, adapts, episodes, overrides)  # type: ignore[attr-defined]
        world.calls.append(("eval", tau_of(recipe), recipe.eval.episodes, tuple(recipe.eval.adapt)))
        write_results(run, tau_of(recipe), recipe.eval.adapt)
        return []

    monkeypatch.setattr(train_module, "train", train)
    monkeypatch.setattr(evaluate_module, "evaluate", evaluate)
    return world


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_trains_evaluates_and_tabulates(world):
    result = sweep(world.recipe, [parse_axis("tau", "0.5,0.7")], SilentReporter())
    assert world.calls == [
        ("train", 0.5, False, "auto"),
        ("eval", 0.5, 4, ("proto",)),
        ("train", 0.7, False, "auto"),
        ("eval", 0.7, 4, ("proto",)),
    ]
    assert result.folder == world.folder
    assert sorted(p.name for p in world.folder.glob("[!.]*")) == ["sweep.csv", "tau=0.5", "tau=0.7"]
    rows = read(world.folder / "sweep.csv")
    assert [r["method.sparsity.tau"] for r in rows] == ["0.5", "0.7"]
    assert not result.failed
    last = rows[1]
    assert (last["id_mean"], last["ood_mean"], last["ood_half_width"]) == ("0.7", "0.35", "0.01")
    assert float(last["sparsity"]) == pytest.approx(0.71), "of the best checkpoint, not of the last validation"
    assert last["run"] == str(world.folder / "tau=0.7")
    assert last["protocol"] == "5w5s10q"
    assert last["episodes"] == "4"


def test_means_over_datasets(world, tmp_path):
    point = plan_points(world.recipe, [parse_axis("tau", "0.5")], ["data.id=[a, b]"])[0]
    write_results(point.run, 0.5)
    means = (("a", 0.4, 0.03), ("b", 0.6, 0.04), ("z", 0.9, 0.01))
    write_evaluation(point.run / "eval/proto-5w5s10q-test", {n: ("ID", "p-test", m, h) for n, m, h in means})
    from smatcli.launch.table import read_rows

    (row,) = read_rows(point)
    assert float(row["id_mean"]) == pytest.approx(0.5)
    assert float(row["id_half_width"]) == pytest.approx(math.hypot(0.03, 0.04) / 2)
    assert row["ood_mean"] == "", "z is not a dataset of the recipe, and there is no out-of-domain one"
    (point.run / "eval/proto-5w5s10q-test/results.h5").unlink()
    with pytest.raises(UserError, match=r"has a summary\.csv but no results\.h5; run `smat eval .*` again"):
        read_rows(point)


def test_again_resumes_every_point(world):
    axis = [parse_axis("tau", "0.5,0.7")]
    sweep(world.recipe, axis, SilentReporter())
    before = (world.folder / "sweep.csv").read_bytes()
    world.calls.clear()
    sweep(world.recipe, axis, SilentReporter())
    assert [c[2] for c in world.calls if c[0] == "train"] == [True, True]
    assert (world.folder / "sweep.csv").read_bytes() == before


def test_later_evaluation_settings_reach_finished_points(world):
    axis = [parse_axis("tau", "0.5")]
    sweep(world.recipe, axis, SilentReporter())
    sweep(world.recipe, axis, SilentReporter(), ["eval.episodes=9", "eval.adapt=[proto, flip]"])
    assert world.calls[-1] == ("eval", 0.5, 9, ("proto", "flip"))
    assert [r["adapt"] for r in read(world.folder / "sweep.csv")] == ["proto", "flip"]


@pytest.mark.parametrize("error", [SmatError("the loss is nan"), RuntimeError("odd")])
def test_failed_point_is_named_and_the_others_go_on(world, error):
    world.fail[0.5] = error
    done = CliRunner().invoke(app, ["sweep", "tau", str(world.recipe), "--values", "0.5,0.7"])
    assert done.exit_code == 1
    assert "1 of 2 points failed: tau=0.5" in done.stderr.splitlines()[-1]
    assert str(error) in done.stderr.splitlines()[-1]
    assert [r["point"] for r in read(world.folder / "sweep.csv")] == ["tau=0.7"]
    assert "tau=0.7" in done.stdout
    assert "35.0 ± 1.0" in done.stdout


def test_interrupt_stops_the_sweep(world):
    world.fail[0.7] = Interrupted(15, "stopped at step 3")
    with pytest.raises(Interrupted, match=r"stopped at tau=0\.7; all progress is kept") as caught:
        sweep(world.recipe, [parse_axis("tau", "0.5,0.7,0.9")], SilentReporter())
    assert caught.value.exit_code == 143
    assert [c[:2] for c in world.calls] == [("train", 0.5), ("eval", 0.5), ("train", 0.7)]
    assert [r["point"] for r in read(world.folder / "sweep.csv")] == ["tau=0.5"]


def test_grid_is_a_product(world):
    points = plan_points(world.recipe, [parse_grid("method.experts=2,4"), parse_grid("seed=0,1")], ["train.steps=5"])
    assert [p.name for p in points] == ["experts=2,seed=0", "experts=2,seed=1", "experts=4,seed=0", "experts=4,seed=1"]
    assert [p.loaded.recipe.seed for p in points] == [0, 1, 0, 1]
    assert points[0].run.parent.name == "small-sweep-experts-seed"
    assert {p.loaded.recipe.train.steps for p in points} == {5}  # type: ignore[union-attr]


def test_out_and_run_overrides(world, tmp_path):
    axis = [parse_axis("tau", "0.5")]
    assert plan_points(world.recipe, axis, out=tmp_path / "o")[0].run == tmp_path / "o/tau=0.5"
    assert plan_points(world.recipe, axis, ["run=elsewhere/x"])[0].run.as_posix() == "elsewhere/x-sweep-tau/tau=0.5"


def test_values():
    assert split_values("a,[1, 2],{b: c, d: e},'x,y'") == ["a", "[1, 2]", "{b: c, d: e}", "'x,y'"]
    assert parse_axis("tau", "0.50, 1e-1").values == ("0.5", "0.1")
    assert short_keys(["train.groups.a.lr", "train.groups.b.lr", "seed"]) == {
        "train.groups.a.lr": "a.lr",
        "train.groups.b.lr": "b.lr",
        "seed": "seed",
    }


def test_folder_names_of_awkward_values(world):
    points = plan_points(world.recipe, [parse_grid("backbone.weights=a/b.pth,'x y'")])
    assert [p.name for p in points] == ["weights=a_b.pth", "weights=x_y"]
    assert vision(points[0].loaded.recipe).backbone.weights == "a/b.pth"


@pytest.mark.parametrize(
    ("axes", "overrides", "part"),
    [
        (["tau=0.5,0.50"], [], "the value 0.5 is given twice"),
        (["tau=0.5,,0.7"], [], "a value is missing"),
        (["tau=0.5", "method.sparsity.tau=0.7"], [], "axis method.sparsity.tau is given twice"),
        (["run=a,b"], [], "a sweep sets run itself"),
        (["tau"], [], "is not of the form key=v1,v2"),
        (["tau=1.5"], [], "method.sparsity.tau: expected a number < 1, got 1.5"),
        (["method.expert=1"], [], "did you mean 'experts'?"),
        (["tau=0.5"], ["method.sparsity.tau=0.4"], "is given twice"),
        (["method.masks.init_mean=1,+1"], [], "given twice"),
        (["backbone.weights=a/b,a_b"], [], "two points would share the folder weights=a_b"),
        ([], [], "a sweep needs an axis"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_made(world, axes, overrides, part):
    with pytest.raises(UserError) as caught:
        sweep(world.recipe, [parse_grid(a) for a in axes], SilentReporter(), overrides)
    assert part in str(caught.value)
    assert not world.calls
    assert not world.folder.exists()


@pytest.mark.parametrize(
    ("words", "values", "grid", "part"),
    [
        (["tau", "quickstart/smat"], None, [], "give its values"),
        (["tua", "quickstart/smat"], "1", [], "did you mean 'tau'?"),
        (["quickstart/smat"], "0.5", [], "--values needs a named axis"),
        (["tau"], None, [], "give one recipe"),
        (["a", "b", "c"], None, ["seed=1"], "give one recipe"),
        (["quickstart/smta"], None, ["seed=1"], "this recipe does not exist; did you mean"),
    ],
)
def test_bad_words(words, values, grid, part):
    with pytest.raises(UserError) as caught:
        parse(words, values, grid)
    assert part in str(caught.value)


def test_both_forms_parse():
    recipe, axes, overrides = parse(["tau", "quickstart/smat", "seed=1"], "0.5,0.9", ["method.experts=2,4"])
    assert recipe == "quickstart/smat"
    assert overrides == ["seed=1"]
    assert [(a.key, a.values) for a in axes] == [("method.sparsity.tau", ("0.5", "0.9")), ("method.experts", ("2", "4"))]
    assert parse(["quickstart/smat", "seed=1"], None, ["tau=0.5"])[1][0].key == "method.sparsity.tau"


def test_a_run_is_no_folder_for_a_sweep(world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(UserError, match="is a run directory, and a sweep needs a separate folder"):
        sweep(world.recipe, [parse_axis("tau", "0.5")], SilentReporter(), out=tmp_path / "run")


def test_slots():
    assert Placement().slots() == [None]
    assert Placement(devices=["cuda:0", "cuda:1"]).slots() == ["cuda:0", "cuda:1"]
    assert Placement(None, ["cuda:0", "cuda:1"], 3).slots() == ["cuda:0", "cuda:1", "cuda:0"]
    assert Placement(None, ["cuda:0", "cuda:1"], 1).slots() == ["cuda:0"]
    with pytest.raises(UserError, match="--jobs 0: give 1 or more"):
        Placement(jobs=0).slots()


def test_device_twice(world):
    with pytest.raises(UserError, match="device= and --devices"):
        sweep(world.recipe, [parse_axis("tau", "0.5")], SilentReporter(), ["device=cpu"], placement=Placement(devices=["cpu"]))


def test_one_device_reaches_the_recipe(world):
    sweep(world.recipe, [parse_axis("tau", "0.5")], SilentReporter(), placement=Placement(devices=["cpu"]))
    assert world.calls[0] == ("train", 0.5, False, "cpu")


def stand_in(world, monkeypatch, body):
    """Replace every parallel command by `python -c body VERB TAU`."""
    real = local.commands_of

    def commands(point, device, side_by_side):
        made = real(point, device, side_by_side)
        assert [c[4] for c in made] == ["train", "eval"]
        assert f"device={device}" in made[0]
        tau = point.values["method.sparsity.tau"]
        return [[sys.executable, "-c", body, c[4], tau] for c in made]

    monkeypatch.setattr(local, "commands_of", commands)


def test_side_by_side(world, monkeypatch):
    stand_in(world, monkeypatch, "import sys; print('smat: the loss is nan'); sys.exit(sys.argv[1:] == ['train', '0.7'])")
    for tau in (0.5, 0.9):
        write_results(world.folder / f"tau={tau}", tau)
    result = sweep(world.recipe, [parse_axis("tau", "0.5,0.7,0.9")], SilentReporter(), placement=Placement(devices=["cpu", "cpu"]))
    assert list(result.failed) == ["tau=0.7"]
    assert "the loss is nan (log: " in result.failed["tau=0.7"]
    assert [r["point"] for r in read(result.table)] == ["tau=0.5", "tau=0.9"]
    assert (world.folder / "tau=0.5.log").read_text().count("loss") == 2


def test_side_by_side_stops_its_processes(world, monkeypatch):
    body = "import signal, sys, time; signal.signal(15, lambda *_: (print('bye'), sys.exit(143))); print('on', flush=True); time.sleep(60)"
    stand_in(world, monkeypatch, body)
    started = time.monotonic()

    class Stopper(SilentReporter):
        def start(self, *args, **kwargs):
            monkeypatch.setattr(local, "time", SimpleNamespace(sleep=self.sleep, monotonic=time.monotonic))

        def sleep(self, seconds):
            logs = [world.folder / f"tau={t}.log" for t in (0.5, 0.7)]
            if all(log.exists() and "on" in log.read_text() for log in logs):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(world.recipe, [parse_axis("tau", "0.5,0.7")], Stopper(), placement=Placement(devices=["cpu", "cpu"]))
    assert time.monotonic() - started < 30
    assert all("bye" in (world.folder / f"tau={t}.log").read_text() for t in (0.5, 0.7))


def test_commands_parse_as_recipes(world):
    point = plan_points(world.recipe, [parse_axis("tau", "0.5")])[0]
    train, evaluate = local.commands_of(point, "cuda:1", 2)
    from smatcli.config import load_recipe

    recipe = load_recipe(train[5], train[6:-1]).recipe
    assert isinstance(recipe, TrainRecipe)
    assert recipe.device == "cuda:1"
    assert recipe.threads is not None
    assert recipe.run == str(point.run)
    assert train[-1] == "--resume"
    assert evaluate[4:6] == ["eval", str(point.run)]
    assert evaluate[-2:] == ["--device", "cuda:1"]
    assert load_recipe(world.recipe, eval_overrides(recipe)).recipe.eval == recipe.eval  # type: ignore[union-attr]


def test_child_processes_start_and_run_no_code_of_the_current_folder(world, tmp_path):
    folder = tmp_path / "sent"
    folder.mkdir()
    for name in ("typer", "numbers", "yaml", "torch", "smatcli", "multiprocessing", "site"):
        (folder / f"{name}.py").write_text("open('executed', 'a').close()")
    point = plan_points(world.recipe, [parse_axis("tau", "0.5")])[0]
    environment = {**os.environ, "PYTHONPATH": str(Path(smatcli.__file__).parents[1])}
    for command in local.commands_of(point, "cpu", 2):
        command = [*command[: command.index("smatcli.cli") + 1], "train", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr
    assert not (folder / "executed").exists()
