"""train.compile, checkpoint_activations and chunk, from the recipe to the results."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.engine.loop import speed
from smatcli.engine.train.trainer import MetaLearner, train
from smatcli.errors import UserError
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("options", [["train.chunk=5"], ["train.checkpoint_activations=true", "train.chunk=7"]])
def test_the_numbers_stay_the_same(tmp_path: Path, options: list[str]) -> None:
    plain = train(load(tmp_path, f"run={tmp_path}/plain"), SilentReporter())
    run = train(load(tmp_path, *options), SilentReporter())
    for one, two in zip(plain.records("train"), run.records("train"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "compiler_missing", lambda device: "there is no C++ compiler")
    reporter = Lines()
    trainer = MetaLearner(load(tmp_path, "train.compile=true").recipe, reporter, "none")  # type: ignore[arg-type]
    assert reporter.said[0] == "train.compile: there is no C++ compiler; running uncompiled"
    assert trainer.method.execution.compiled is None
    assert speed.speed_statistics(trainer.method) == {}


def test_memory_report_prints_and_makes_no_run(tmp_path: Path) -> None:
    load(tmp_path)
    result = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--memory-report", "threads=1"])
    assert result.exit_code == 0
    assert "predicted peak" in result.output
    assert not (tmp_path / "run").exists()


def test_tf32_is_for_cuda(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tf32 needs a CUDA device"):
        train(load(tmp_path, "precision=tf32"), SilentReporter())
    assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
