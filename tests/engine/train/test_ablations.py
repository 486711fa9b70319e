"""Ablation methods and switches through training, a resumed run and a meta-test."""

from pathlib import Path

import pytest

from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.engine.train.trainer import train
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load

QUICK = ("train.valid_every=2", "train.valid_episodes=1", "train.checkpoint_every=1", "train.meta_batch=1")


@pytest.mark.parametrize(
    "method",
    [
        "{name: softmerge, experts: 2, router: {heads: 2}}",
        "{name: mlp_experts, experts: 2, router: {heads: 2}}",
        "{name: smat, experts: 2, router: {heads: 2}, masks: {kind: random}}",
        "{name: smat, experts: 2, router: {heads: 2}, masks: {group: output}, interpolated: false}",
    ],
)
def test_train_resume_and_evaluate(method: str, tmp_path: Path) -> None:
    options = (*QUICK, f"method={method}")
    train(load(tmp_path, *options, "train.steps=2"), SilentReporter())
    again = train(load(tmp_path, *options, "train.steps=3"), SilentReporter(), resume=True)
    assert [record["step"] for record in again.records("train")] == [1, 2, 3]
    folders = evaluate(again.path, ["proto", "flip"], ["c"], 2, reporter=SilentReporter())
    assert [(folder / "summary.csv").exists() for folder in folders] == [True, True]
    assert evaluate(again.path, ["proto"], ["c"], 2, reporter=SilentReporter())[0] == folders[0]
