"""The report of tuning and segmentation runs: rows, paired differences, similarity, folds; numbers against scipy and closed forms."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from smatcli.data.catalogue.datasets import COLLECTIONS
from smatcli.errors import UserError
from smatcli.report import ReportOptions, report
from smatcli.runs.analysis import Analysis, texts, write_analysis

VTAB = COLLECTIONS["vtab"]

A, B = (0.61, 0.64, 0.60), (0.58, 0.57, 0.59)


def tuned(folder: Path, tuner: dict, dataset: str, seed: int, score: float, **recipe) -> Path:
    """Write a finished run of smat tune."""
    folder.mkdir(parents=True)
    made = {"kind": "tune", "seed": seed, "run": str(folder), "data": {"root": "data", "dataset": dataset}, "tuner": tuner, **recipe}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    facts = {"format": 1, "dataset": dataset, "tuner": tuner, "metric": "accuracy", "score": score, "seed": seed, "searched": {}}
    facts |= {"parameters": {"tuner": 24_624, "head": 100}, "images": {"test": 90}, "fitted": 1000, "split": "counted", "content_hash": "x"}
    (folder / "tune.json").write_text(json.dumps(facts))
    return folder


def mlae(p: float) -> dict:
    return {"name": "mlae", "rank": 8, "mask": "stochastic", "p": p}


def study(root: Path, datasets: tuple[str, ...] = ("a", "b")) -> Path:
    """Write three seeds of two rows on datasets that differ by a shift."""
    for shift, dataset in enumerate(datasets):
        for seed in range(3):
            tuned(root / f"half-{dataset}-{seed}", mlae(0.5), dataset, seed, A[seed] + 0.01 * shift)
            tuned(root / f"none-{dataset}-{seed}", mlae(0.0), dataset, seed, B[seed] + 0.03 * shift * (seed == 1))
    return root


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row.pop(next(iter(row))): row for row in csv.DictReader(file)}


def test_a_row_a_tuner_with_mean_spread_and_parameters(tmp_path):
    report([study(tmp_path / "runs")], tmp_path / "out")
    found = rows(tmp_path / "out" / "tuning-datasets-accuracy.csv")
    assert list(found) == ["mlae p=0", "mlae p=0.5"]
    row = found["mlae p=0.5"]
    assert row["Parameters (M)"] == "0.025"
    assert float(row["a"]) == pytest.approx(100 * statistics.fmean(A), abs=1e-3)
    assert float(row["a deviation"]) == pytest.approx(100 * statistics.stdev(A), abs=1e-3)
    assert float(row["Mean"]) == pytest.approx(100 * statistics.fmean(A) + 0.5, abs=1e-3)
    assert float(row["Mean deviation"]) == pytest.approx(100 * statistics.stdev(A), abs=1e-3)  # the shift is the same in all seeds
    (tmp_path / "runs" / "half-b-2" / "tune.json").unlink()
    report([tmp_path / "runs"], tmp_path / "out")
    assert rows(tmp_path / "out" / "tuning-datasets-accuracy.csv")["mlae p=0.5"]["Mean deviation"] == ""


def test_wide_tables_are_turned(tmp_path):
    for task in VTAB:
        tuned(tmp_path / "runs" / task.name, {"name": "full"}, task.name, 0, 0.5)
    report([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "tuning-vtab-accuracy.tex").read_text()
    assert r"\multicolumn{1}{c}{\rotatebox{90}{SVHN}}" in text
    assert "margin=2cm,landscape" in text
    assert "landscape" not in (tmp_path / "out" / "tuning-vtab-accuracy.tabular.tex").read_text()


def test_paired_differences_are_those_of_a_paired_t_test(tmp_path):
    report([study(tmp_path / "runs")], tmp_path / "out", ReportOptions(baselines=["mlae p=0"]))
    (row,) = rows(tmp_path / "out" / "tuning-pairs-datasets-accuracy.csv").items()
    assert row[0] == "mlae p=0.5 vs. mlae p=0"
    assert row[1]["Better / worse"] == "6 / 0 of 6"
    second = np.array(A) + 0.01 - (np.array(B) + np.array([0, 0.03, 0]))
    for head, values in {"a": np.subtract(A, B), "b": second, "Mean": (np.subtract(A, B) + second) / 2}.items():
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert float(row[1][head]) == pytest.approx(100 * values.mean(), abs=1e-3)
        assert float(row[1][f"{head} half-width"]) == pytest.approx(50 * (high - low), abs=1e-3)
        assert row[1][f"{head} bold"] == str(int(low > 0 or high < 0))


def test_other_images_are_not_compared_and_a_lone_seed_has_no_interval(tmp_path):
    runs = study(tmp_path / "runs", ("a",))
    for seed in (1, 2):
        path = runs / f"none-a-{seed}" / "tune.json"
        path.write_text(path.read_text().replace('"fitted": 1000', '"fitted": 800'))
    report([runs], tmp_path / "out")
    page = (tmp_path / "out" / "tuning-pairs-datasets-accuracy.md").read_text()
    assert "| mlae p=0.5 vs. mlae p=0 | +3.0 | 1 / 0 of 1 |" in page
    assert "Runs on different images are not compared" in page


def test_of_many_rows_only_those_of_one_tuner_are_paired(tmp_path):
    for i, tuner in enumerate(["full", "linear", "bias", "ssf", "adapter", "lora", "gapt"]):
        tuned(tmp_path / "runs" / tuner, {"name": tuner}, "a", 0, 0.1 * i)
    study(tmp_path / "runs", ("a",))
    report([tmp_path / "runs"], tmp_path / "out")
    assert list(rows(tmp_path / "out" / "tuning-pairs-datasets-accuracy.csv")) == ["mlae p=0.5 vs. mlae p=0"]
    order = list(rows(tmp_path / "out" / "tuning-datasets-accuracy.csv"))
    assert order == ["full", "linear", "bias", "gapt", "adapter", "ssf", "lora", "mlae p=0", "mlae p=0.5"]
    report([tmp_path / "runs"], tmp_path / "out", ReportOptions(baselines=["lora", "linear"]))
    assert len(rows(tmp_path / "out" / "tuning-pairs-datasets-accuracy.csv")) == 8 + 7


def test_other_settings_are_other_rows_and_a_seed_counts_once(tmp_path):
    runs = tmp_path / "runs"
    for lr in (0.1, 0.2):
        tuned(runs / f"lr{lr}", {"name": "vpt-deep", "prompts": 10}, "a", 0, lr, tune={"lr": lr, "memory": lr})
    tuned(runs / "copy", {"name": "vpt-deep", "prompts": 10}, "a", 0, 0.1, tune={"lr": 0.1})
    tuned(runs / "elsewhere", {"name": "vpt-deep", "prompts": 10}, "b", 0, 0.5, tune={"lr": 0.3})
    made = report([runs], tmp_path / "out")
    found = rows(tmp_path / "out" / "tuning-datasets-accuracy.csv")
    assert {label: row["a"] for label, row in found.items()} == {
        "vpt-deep lr=0.1": "10.000", "vpt-deep lr=0.2": "20.000", "vpt-deep lr=0.3": ""
    }  # fmt: skip
    assert sum("skipped, same settings and seed as" in line for line in made.lines) == 1


def test_names_are_of_whole_rows(tmp_path):
    runs = study(tmp_path / "runs", ("a",))
    report([runs], tmp_path / "out", ReportOptions(names={"half-a-1": "MLAE", "mlae p": "0=without"}))  # --names "mlae p=0=without"
    assert list(rows(tmp_path / "out" / "tuning-datasets-accuracy.csv")) == ["without", "MLAE"]


def test_an_unknown_baseline_lists_the_rows(tmp_path):
    with pytest.raises(UserError, match=r"--baseline lorra: no such column; there are mlae p=0, mlae p=0\.5"):
        report([study(tmp_path / "runs")], tmp_path / "out", ReportOptions(baselines=["lorra"]))


def test_similarity_of_the_runs_that_were_analysed(tmp_path):
    runs = study(tmp_path / "runs")
    for seed in range(3):
        model, factors = np.array([0.1 * seed, 0.2]), np.array([0.3, 0.4])
        layers = {"layers": texts(["q"]), "experts": np.array([8]), "cosine": model[:1], "absolute": model[1:]}
        arrays = {**layers, "model": model, "factors": factors, "absolute_b": factors[:1], "absolute_a": factors[1:]}
        write_analysis(runs / f"half-a-{seed}" / "analysis", Analysis("similarity", "similarity", {}, {"all": arrays}))
    report([runs], tmp_path / "out")
    page = (tmp_path / "out" / "tuning-similarity.md").read_text()
    assert "| mlae p=0.5 | 0.100 ± 0.100 | 0.200 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 |" in page
    assert "3 seeds" in page
    assert (tmp_path / "out" / "figures" / "similarity-layers.png").exists()


def confusion(iou: float) -> list[list[int]]:
    """Return pixel counts of two classes with the same IoU, hit / (hit + 2 missed)."""
    hit = 10_000_000
    missed = round(hit * (1 - iou) / (2 * iou))
    return [[hit, missed], [missed, hit]]


def segmented(folder: Path, tuner: str, seed: int, single: list[float], folds: int = 0, **data) -> Path:
    """Write a finished run of smat segment; multi-scale is one point better."""
    (folder / "segment").mkdir(parents=True)
    recipe = {"kind": "segment", "seed": seed, "run": str(folder), "data": {"layout": "kvasir", "root": "/data/Kvasir-SEG", **data}}
    recipe |= {"tuner": {"name": tuner}, "segment": {"folds": folds}, "eval": {"size": "mask"}, "backbone": {"image_size": 64}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for k, iou in enumerate(single):
        facts = {"format": 1, "fold": k, "trained": {"tuner": 2_000, "head": 1_000_000}, "test_images": 20}
        facts |= {"confusion": {"single": confusion(iou), "multi": confusion(iou + 0.01)}}
        (folder / "segment" / f"fold{k}.json").write_text(json.dumps(facts))
    return folder


PMOE, VPT = [0.70, 0.72, 0.75, 0.71, 0.74], [0.69, 0.70, 0.72, 0.71, 0.70]


def test_segmentation_over_folds(tmp_path):
    runs = tmp_path / "runs"
    segmented(runs / "pmoe", "pmoe", 0, PMOE, 5)
    segmented(runs / "vpt", "vpt-deep", 0, VPT, 5)
    report([runs], tmp_path / "out")
    found = rows(tmp_path / "out" / "segmentation-Kvasir-SEG-5folds.csv")
    row = found["pmoe"]
    assert list(found) == ["vpt-deep", "pmoe"]
    assert (row["Tuner (M)"], row["Head (M)"]) == ("0.002", "1.000")
    assert float(row["mIoU, single scale"]) == pytest.approx(100 * statistics.fmean(PMOE), abs=1e-3)
    assert float(row["mIoU, single scale deviation"]) == pytest.approx(100 * statistics.stdev(PMOE), abs=1e-3)
    assert float(row["mIoU, multi-scale"]) == pytest.approx(100 * statistics.fmean(PMOE) + 1, abs=1e-3)
    assert row["mIoU, single scale bold"] == "1"
    assert found["vpt-deep"]["mIoU, single scale bold"] == "0"
    assert "standard deviation over 5 folds, 100 test images" in (tmp_path / "out" / "segmentation-Kvasir-SEG-5folds.md").read_text()
    pair = rows(tmp_path / "out" / "segmentation-pairs-single-Kvasir-SEG-5folds.csv")["pmoe vs. vpt-deep"]
    low, high = stats.ttest_rel(PMOE, VPT).confidence_interval(0.95)
    assert float(pair["Kvasir-SEG"]) == pytest.approx(50 * (low + high), abs=1e-3)
    assert float(pair["Kvasir-SEG half-width"]) == pytest.approx(50 * (high - low), abs=1e-3)
    assert r"\begin{tabular}" in (tmp_path / "out" / "segmentation-Kvasir-SEG-5folds.tex").read_text()


def test_segmentation_tables_hold_equal_conditions(tmp_path):
    runs = tmp_path / "runs"
    for seed in (0, 1):
        segmented(runs / f"lin{seed}", "linear", seed, [0.5 + 0.1 * seed])
    segmented(runs / "folds", "linear", 0, [0.4, 0.6], 2)
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "recipe.yaml").write_text("kind: segment\n")
    made = report([runs], tmp_path / "out")
    assert {p.name for p in made.files if p.suffix == ".csv"} == {"segmentation-Kvasir-SEG.csv", "segmentation-Kvasir-SEG-2folds.csv"}
    assert "| 55.0 ± 7.1 | 56.0 ± 7.1 |" in (tmp_path / "out" / "segmentation-Kvasir-SEG.md").read_text()
    assert any("unfinished: not finished yet (smat segment --resume)" in line for line in made.lines)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 1, "confusion": {"single": [[1, -1], [0, 1]]}}',
        '{"format": 1, "confusion": {"single": [[1, "x"], [0, 1]]}}',
        '{"format": 1, "confusion": {"single": [[1, 0]]}}',
        '{"format": 1, "confusion": {"multi": [[1, 0], [0, 1]]}}',
        '{"format": 1, "confusion": {"single": [[1]], "multi": [[1, 0], [0, 1]]}}',
        '{"format": 2, "confusion": {"single": [[1, 0], [0, 1]]}}',
    ],
)
def test_a_damaged_segmentation_is_left_out_and_named(tmp_path, text):
    run = segmented(tmp_path / "runs" / "bad", "linear", 0, [0.5])
    (run / "segment" / "fold0.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as a result of smat segment"):
        report([tmp_path / "runs"], tmp_path / "out")
    segmented(tmp_path / "runs" / "good", "linear", 0, [0.5])
    made = report([tmp_path / "runs"], tmp_path / "out")
    assert any("bad/segment/fold0.json" in line and "skipped" in line for line in made.lines)
