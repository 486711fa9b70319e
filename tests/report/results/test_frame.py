"""Finding and reading runs: which are skipped, and which are errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smatcli.errors import UserError
from smatcli.report.results.frame import read
from smatcli.report.results.groups import make_groups
from smatcli.report.results.runs import shortest_names
from smatcli.report.results.table import split_protocol
from tests.report.fakes import ID, OOD, add_eval, draw, make_run, make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def test_finds_runs_and_sweeps_once(study: Path):
    frame = read([study, study / "smat", study / "smat-sweep-tau"])
    assert [run.name for run in frame.runs] == [
        "pmf", "pretrained", "smat", *(f"smat-sweep-tau/tau={tau}" for tau in (0.5, 0.7, 0.9, 0.95)),
    ]  # fmt: skip
    assert len(frame.evaluations) == 1 + 1 + 2 + 8
    assert frame.lines == [f"{study / 'base'}: skipped, a pre-training run"]
    smat = frame.runs[2]
    assert (smat.method, smat.tau, smat.experts, smat.meta_batch, smat.sparsity, smat.sweep) == ("smat", 0.9, 8, 2, 0.89, None)
    assert frame.runs[3].sweep == study / "smat-sweep-tau"
    assert frame.runs[3].coordinates == {"tau": "0.5"}


def test_reads_accuracies_by_episode_number(study: Path):
    pmf = next(e for e in read([study]).evaluations if e.run.method == "pmf")
    expected = draw(0.03, -0.02)
    for name in ID + OOD:
        np.testing.assert_array_equal(pmf.accuracies[name], np.stack([np.arange(40), expected[name]], axis=1))
        result = next(r for r in pmf.results if r.dataset == name)
        assert result.estimate.mean == pytest.approx(expected[name].mean())
        assert result.episodes == 40
        assert result.domain == ("OOD" if name in OOD else "ID")


def test_groups_keep_protocols_and_counts_apart(tmp_path: Path):
    for name, count, protocol in (("a", 30, "5w5s10q"), ("b", 30, "5w5s10q"), ("c", 20, "5w5s10q"), ("d", 30, "variable")):
        add_eval(make_run(tmp_path / name, "pmf"), "proto", draw(0, 0, count), "pmf", protocol)
    groups = make_groups(read([tmp_path]), {"b": "Bee"})
    assert [(g.protocol, g.episodes, [c.label for c in g.columns]) for g in groups] == [
        ("5w5s10q", 30, ["a", "Bee"]),
        ("5w5s10q", 20, ["PMF"]),
        ("variable", 30, ["PMF"]),
    ]


def test_splits_of_a_dataset_are_rows_of_their_own(tmp_path: Path):
    for name, split in (("a", "all"), ("b", "test")):
        add_eval(make_run(tmp_path / name, "pmf"), "proto", draw(0, 0), "pmf", ood_split=split)
    (group,) = make_groups(read([tmp_path]), {})
    labels = [group.row_label(key) for key in group.keys("OOD")]
    assert labels == [f"{name} (all)" for name in OOD] + [f"{name} (test)" for name in OOD]
    assert [group.row_label(key) for key in group.keys("ID")] == list(ID)
    assert not group.columns[0].average(group.keys("OOD")).known
    assert split_protocol("5w5s10q-seed1-all") == ("5w5s10q-seed1", "all")
    assert split_protocol("own") == ("own", "")


def test_labels(study: Path):
    groups = make_groups(read([study]), {"tau=0.7": "seven", "smat": "M = 8"})
    assert [c.label for c in groups[0].columns] == ["Pre-trained", "PMF", "M = 8", "M = 8 + flip"]
    assert [c.family for c in groups[0].columns] == ["Without fine-tuning"] * 3 + ["Gradient-free"]
    (points,) = groups[0].sweeps.values()
    assert {c.label for c in points} >= {"tau=0.5", "tau=0.5 + flip", "seven", "seven + flip"}
    with pytest.raises(UserError, match=r"--names smatt: no such run.*did you mean 'smat'"):
        make_groups(read([study]), {"smatt": "x"})
    assert shortest_names([Path("/a/x/run"), Path("/a/y/run"), Path("/b/other")]) == ["x/run", "y/run", "other"]


def test_a_lone_point_of_a_sweep_is_an_ordinary_run(tmp_path: Path):
    add_eval(make_run(tmp_path / "s" / "tau=0.5", "smat", 0.5, 4), "proto", draw(0, 0), tau=0.5)
    (group,) = make_groups(read([tmp_path]), {})
    assert [c.label for c in group.columns] == ["SMAT"]
    assert not group.sweeps


def test_nothing_to_report(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no results below .*empty; run `smat eval RUN --adapt proto` first"):
        read([tmp_path / "empty"])
    run = make_run(tmp_path / "trained", valid=[0.1, 0.2])
    with pytest.raises(UserError, match=f"run `smat eval {run} --adapt proto` first"):
        read([tmp_path])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read([tmp_path / "nowhere"])


def test_damaged_logs_and_recipes(tmp_path: Path):
    run = make_run(tmp_path / "a", valid=[0.1, 0.2, 0.3])
    add_eval(run, "proto", draw(0, 0))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "kind": "valid", "mean": 0.')
    assert len(read([tmp_path]).runs[0].valid) == 3
    (run / "recipe.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"recipe\.yaml: not valid YAML"):
        read([tmp_path])


def test_knows_no_torch_and_draws_late():
    code = "import sys, smatcli.report; print([m for m in ('torch', 'timm', 'matplotlib', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
