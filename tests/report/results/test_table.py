"""smatcli.results: one row per run, adaptation and dataset."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import smatcli
from smatcli.errors import UserError
from smatcli.report.results.table import COLUMNS
from tests.report.fakes import ID, OOD, draw, make_study, set_columns
from tests.report.tables.test_tuning import segmented


def test_a_row_per_run_adaptation_and_dataset(tmp_path: Path):
    make_study(tmp_path / "runs")
    folder = tmp_path / "runs/pmf/eval/proto-5w5s10q"
    set_columns(folder, lr=0.01, search="valid", list_hash="abc")
    table = smatcli.results(tmp_path / "runs")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == (1 + 1 + 2 + 8) * len(ID + OOD)
    assert not table.duplicated(["path", "adapt", "dataset"]).any()
    row = table[(table.run == "pmf") & (table.dataset == "cifar10")].iloc[0]
    expected = draw(0.03, -0.02)["cifar10"]
    assert (row["mean"], row.half_width) == (expected.mean(), pytest.approx(1.96 * expected.std(ddof=1) / math.sqrt(40)))
    assert (row.kind, row.method, row.adapt, row.domain, row.split, row.protocol) == ("train", "pmf", "proto", "OOD", "all", "5w5s10q")
    assert (row.episodes, row.lr, row.search, row.list_hash, row.seconds, row.metric) == (40, 0.01, "valid", "abc", 1.5, "accuracy")
    smat = table[table.run == "smat"].iloc[0]
    assert (smat.tau, smat.experts) == (0.9, 8)
    assert table.attrs["lines"] == [f"{tmp_path / 'runs' / 'base'}: skipped, a pre-training run"]


def test_paths_patterns_and_several(tmp_path: Path):
    make_study(tmp_path / "runs")
    several = smatcli.results([tmp_path / "runs" / "pmf", str(tmp_path / "runs" / "smat")])
    assert list(dict.fromkeys(several.run)) == ["pmf", "smat"]
    assert list(dict.fromkeys(smatcli.results(f"{tmp_path}/runs/p*").run)) == ["pmf", "pretrained"]
    with pytest.raises(UserError, match="matches no folder"):
        smatcli.results(f"{tmp_path}/runs/x*")
    with pytest.raises(UserError, match="no such folder"):
        smatcli.results(tmp_path / "nowhere")


def test_tuning_and_segmentation(tmp_path: Path):
    segmented(tmp_path / "runs" / "net", "linear", 3, [0.4, 0.6], 2)
    tuned = tmp_path / "runs" / "tuned"
    tuned.mkdir()
    recipe = {"kind": "tune", "seed": 1, "backbone": {"name": "vit", "image_size": 64}}
    (tuned / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tuned / "tune.json").write_text(json.dumps({"format": 1, "dataset": "a", "score": 0.75, "seed": 1, "tuner": {"name": "lora"}}))
    table = smatcli.results(tmp_path / "runs")
    assert table[["kind", "run", "method", "adapt", "dataset", "metric", "seed", "image_size"]].to_numpy().tolist() == [
        ["tune", "tuned", "lora", "", "a", "accuracy", 1, 64],
        ["segment", "net", "linear", "single", "Kvasir-SEG", "miou", 3, 64],
        ["segment", "net", "linear", "multi", "Kvasir-SEG", "miou", 3, 64],
    ]
    assert table["mean"].tolist() == pytest.approx([0.75, 0.5, 0.51], abs=1e-6)


def test_invalid_results_are_skipped_with_a_warning(tmp_path: Path):
    make_study(tmp_path / "runs")
    path = tmp_path / "runs/pmf/eval/proto-5w5s10q/results.h5"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="1 results skipped"):
        table = smatcli.results(tmp_path / "runs")
    assert any(line.startswith(f"{path}: skipped, ") for line in table.attrs["lines"])
    assert "pmf" not in set(table.run)


def test_importing_smatcli_stays_cheap():
    code = "import sys, smatcli; smatcli.results; print([m for m in ('torch', 'pandas', 'numpy', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
