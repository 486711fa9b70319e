"""Seeds of one training share a column, with an interval over episodes and one over seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from smatcli.report.results.compare import difference
from smatcli.report.results.frame import read
from smatcli.report.results.groups import make_groups
from smatcli.report.results.seeds import merge_seeds
from smatcli.report.tables.ours import main_table
from smatcli.report.tables.studies import seeds_table
from tests.report.fakes import accuracies, add_eval, draw, make_run, set_facts

NAMES = ("aircraft", "omniglot", "coco_crops")
SHIFTS = (0.02, 0.03, 0.07)


def change(folder: Path, /, **values: object) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | values))


def study(root: Path, **odd: object) -> Path:
    add_eval(make_run(root / "pretrained", "pretrained"), "proto", draw(0, 0, names=NAMES), "pretrained")
    for seed, shift in enumerate(SHIFTS):
        run = make_run(root / f"pmf-seed{seed}", "pmf", valid=[0.1, 0.2])
        change(run, seed=seed, run=str(run), threads=seed + 1)
        add_eval(run, "proto", draw(shift, shift, names=NAMES), "pmf")
        if seed == 2 and odd:
            change(run, **odd)
    return root


def test_one_column_with_both_intervals(tmp_path: Path):
    frame = merge_seeds(read([study(tmp_path)]))
    (group,) = make_groups(frame, {"pmf": "P & F"})
    assert [c.label for c in group.columns] == ["Pre-trained", "P & F"]
    assert any("pmf: mean over the seeds 0, 1, 2 (pmf-seed0, pmf-seed1, pmf-seed2)" in line for line in frame.lines)
    each = np.array([[accuracies(shift, name, 40) for name in NAMES] for shift in SHIFTS])
    table = seeds_table(group)
    assert table is not None
    assert table.heads == ["± episodes", "± 3 seeds"]
    assert table.families == [("P & F", 2)]
    for i, row in enumerate(table.blocks[0].rows[:2]):
        episodes, seeds = (cell.estimate for cell in row.cells)
        assert episodes.mean == pytest.approx(each[:, i].mean()) == pytest.approx(seeds.mean)
        assert episodes.half_width == pytest.approx(1.96 * stats.sem(each[:, i].mean(0)))
        low, high = stats.ttest_1samp(each[:, i].mean(1), 0).confidence_interval()
        assert seeds.half_width == pytest.approx((high - low) / 2)
    seeds = table.blocks[0].rows[2].cells[1].estimate
    low, high = stats.ttest_1samp(each[:, :2].mean((1, 2)), 0).confidence_interval()
    assert seeds.half_width == pytest.approx((high - low) / 2)
    assert any(note.startswith("Mean over seeds: P & F (3)") and "single trainings" in note for note in main_table(group).notes)


def test_differences_of_means_are_paired(tmp_path: Path):
    (group,) = make_groups(merge_seeds(read([study(tmp_path)])), {})
    key = group.keys("OOD")[0]
    found = difference(group.columns[1], group.columns[0], key)
    delta = np.mean([accuracies(s, key.dataset, 40) for s in SHIFTS], axis=0) - accuracies(0.0, key.dataset, 40)
    assert found.paired
    assert found.estimate.mean == pytest.approx(delta.mean())
    assert found.estimate.half_width == pytest.approx(1.96 * stats.sem(delta))


@pytest.mark.parametrize("odd", [{"seed": 1}, {"train": {"meta_batch": 4}}])
def test_anything_else_keeps_them_apart(tmp_path: Path, odd):
    frame = merge_seeds(read([study(tmp_path, **odd)]))
    (group,) = make_groups(frame, {})
    names = {c.evaluation.run.name for c in group.columns}
    assert names == {"pretrained", "pmf", "pmf-seed2"} if "train" in odd else {"pretrained", "pmf-seed0", "pmf-seed1", "pmf-seed2"}
    assert seeds_table(group) is None if "seed" in odd else seeds_table(group) is not None


def test_other_episodes_keep_them_apart(tmp_path: Path):
    study(tmp_path)
    set_facts(tmp_path / "pmf-seed2" / "eval" / "proto-5w5s10q", settings=json.dumps({"seed": 5}))
    (group,) = make_groups(merge_seeds(read([tmp_path])), {})
    assert {c.evaluation.run.name for c in group.columns} == {"pretrained", "pmf", "pmf-seed2"}


def test_single_trainings_have_no_interval_over_seeds(tmp_path: Path):
    add_eval(make_run(tmp_path / "a", "pmf"), "proto", draw(0, 0, names=NAMES), "pmf")
    (group,) = make_groups(merge_seeds(read([tmp_path])), {})
    assert seeds_table(group) is None
    assert main_table(group).notes == []
