"""Trackers mirror metrics.jsonl: TensorBoard, read by its own reader, and W&B, as a fake and as the real package offline."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from smatcli.config import load_recipe
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.tracking import check_trackers, numbers

TRAIN = {"step": 1, "kind": "train", "tasks": 2, "loss": 0.5, "note": "text", "odd": float("nan")}
VALID = {"step": 2, "kind": "valid", "mean": 0.25, "datasets": {"a": 0.2, "b": 0.3}}


def write(recipe_file: Any, tmp_path: Any, names: str, *records: dict[str, Any], resume: bool = False) -> RunDir:
    """Write a run that logs some records."""
    file = recipe_file("run: runs/small", f"run: {tmp_path}/runs/small")
    run = RunDir.start(load_recipe(file, [f"track={names}"], kind="train"), SilentReporter(), resume)
    run.info["status"] = "created"
    with run.active():
        for record in records:
            run.log(record)
    return run


def test_numbers():
    assert numbers({**TRAIN, "time": 1}) == {"train/loss": 0.5, "train/time": 1.0}
    assert numbers(VALID) == {"valid/mean": 0.25, "valid/datasets/a": 0.2, "valid/datasets/b": 0.3}


def test_off_by_default(recipe_file, tmp_path):
    run = write(recipe_file, tmp_path, "[]", TRAIN)
    assert sorted(p.name for p in run.path.glob("[!.]*")) == ["checkpoints", "metrics.jsonl", "origins.json", "recipe.yaml", "run.json"]


def test_tensorboard(recipe_file, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra `trackers`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = write(recipe_file, tmp_path, "[tensorboard]", TRAIN, VALID, {**TRAIN, "step": 3, "loss": 9.0})
    run.truncate(2)
    write(recipe_file, tmp_path, "[tensorboard]", {**TRAIN, "step": 3, "loss": 0.125}, resume=True)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"train/loss", "valid/mean", "valid/datasets/a"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (3, 0.125)], "what is done again is purged"
    assert "method" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_wandb_by_a_stand_in(recipe_file, tmp_path, monkeypatch):
    calls: list[tuple[str, Any]] = []

    def init(**settings: Any) -> Any:
        calls.append(("init", settings))
        return SimpleNamespace(
            log=lambda numbers: calls.append(("log", numbers)),
            define_metric=lambda *a, **k: None,
            finish=lambda quiet: calls.append(("finish", quiet)),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    run = write(recipe_file, tmp_path, "[wandb]", TRAIN, VALID)
    first = calls[0][1]
    assert (first["project"], first["name"], first["resume"], first["config"]["method"]["experts"]) == ("smat", "small", "allow", 2)
    assert {k: v for k, v in calls[2][1].items() if k != "valid/time"} == {**numbers(VALID), "step": 2}
    assert calls[-1][0] == "finish"
    write(recipe_file, tmp_path, "[wandb]", {**TRAIN, "step": 3}, resume=True)
    again = [settings for name, settings in calls if name == "init"][1]
    assert again["id"] == first["id"] == (run.path / "wandb.id").read_text().strip(), "a resumed run goes on with its W&B run"


def test_wandb_offline(recipe_file, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (extra `trackers`)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = write(recipe_file, tmp_path, "[wandb]", TRAIN, VALID)
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_wandb_that_does_not_start_is_one_line(recipe_file, tmp_path, monkeypatch):
    def init(**settings: Any) -> Any:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match=r"track: wandb cannot start: api_key not configured \(no-tty\); log in with `wandb login`"):
        write(recipe_file, tmp_path, "[wandb]", TRAIN)


def test_a_missing_tracker_is_said_before_anything_is_made(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"track: wandb is not installed; install it with `pip install 'smatcli\[trackers\]'`"):
        write(recipe_file, tmp_path, "[wandb]", TRAIN)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        check_trackers(["wanbd"])
