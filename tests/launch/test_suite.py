"""`smat tune` on the command line: suites, seeds, skipped tasks, missing stores, invalid input; and its report."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.catalogue.datasets import COLLECTIONS
from smatcli.data.catalogue.suites import GROUPS, grouped, means, stores_of
from smatcli.data.stores.opening import store_files
from tests.data.listfiles import write_task
from tests.tuning.world import load

FGVC = COLLECTIONS["fgvc"]
VTAB = COLLECTIONS["vtab"]

QUICK = ["tune.epochs=1"]


def smat(*arguments: str):
    return CliRunner().invoke(app, ["tune", *arguments], env={"NO_COLOR": "1", "COLUMNS": "200"})


def test_the_groups_of_vtab():
    assert [len(tasks) for tasks in GROUPS.values()] == [7, 4, 8]
    assert [task.title for task in GROUPS["Specialized"]] == ["Patch Camelyon", "EuroSAT", "Resisc45", "Retinopathy"]
    assert grouped(["vtab_svhn", "vtab_dmlab", "pets"]) == {"Natural": ["vtab_svhn"], "Structured": ["vtab_dmlab"], "": ["pets"]}


def test_means_are_means_of_group_means_and_only_where_complete():
    values = {task.name: (1.0 if task in GROUPS["Natural"] else 0.5 if task in GROUPS["Specialized"] else 0.0) for task in VTAB}
    assert means(values, "vtab") == {"Natural": 1.0, "Specialized": 0.5, "Structured": 0.0, "Mean": 0.5}
    del values["vtab_dmlab"]
    assert means(values, "vtab") == {"Natural": 1.0, "Specialized": 0.5}
    five = {task.name: i / 10 for i, task in enumerate(FGVC)}
    assert means(five, "fgvc") == {"Mean": pytest.approx(0.2)}
    assert means({"fgvc_nabirds": 1.0}, "fgvc") == {}
    assert means({"a": 0.0, "b": 1.0}) == {"Mean": 0.5}


@pytest.fixture
def root(tmp_path):
    """Write the recipe, with two tasks of VTAB-1k next to the other stores, one under another name."""
    load(tmp_path)
    shutil.copy(tmp_path / "b.h5", tmp_path / "vtab_svhn.h5")
    shutil.copy(tmp_path / "b.h5", tmp_path / "vtab_retinopathy.h5")
    return tmp_path


def test_known_names_are_found(root):
    found, missing = stores_of("vtab", store_files(root))
    assert list(found) == ["vtab_svhn", "vtab_retinopathy"]
    assert len(missing) == 17


def test_a_suite_names_what_is_missing_and_goes_on_where_it_was(root: Path):
    recipe = str(root / "recipe.yaml")
    done = smat(recipe, "--suite", "vtab", "--seeds", "0,1", *QUICK)
    assert done.exit_code == 0, done.output
    assert "missing: vtab_cifar (CIFAR-100); smat data prepare vtab VTAB/cifar" in done.stderr
    assert done.stderr.count("missing: ") == 17
    assert "4 runs in" in done.stderr
    names = {p.name for p in (root / "run-vtab").iterdir() if not p.name.startswith(".")}
    assert names == {f"run-vtab_{task}-seed{seed}" for task in ("svhn", "retinopathy") for seed in (0, 1)} | {"suite.csv"}
    with (root / "run-vtab" / "suite.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [json.loads((Path(row["run"]) / "tune.json").read_text())["score"] for row in rows]
    assert [float(row["score"]) for row in rows] == scores
    shutil.rmtree(root / "run-vtab" / "run-vtab_svhn-seed1")
    again = smat(recipe, "--suite", "vtab", "--seeds", "0,1", *QUICK)
    assert again.exit_code == 0
    assert "3 of them are already finished" in again.stderr
    assert "[1/1] run-vtab_svhn-seed1" in again.stderr
    assert "vtab_svhn" in again.stdout
    assert (root / "run-vtab" / "run-vtab_svhn-seed1" / "tune.json").exists()


def test_recipes_of_a_folder_side_by_side_and_their_report(root: Path):
    folder = root / "recipes"
    folder.mkdir()
    text = (root / "recipe.yaml").read_text()
    (folder / "lora.yaml").write_text(text.replace("name: mlae, rank: 4, p: 0.5", "name: lora, rank: 4").replace("/run\n", "/lora\n"))
    (folder / "mlae.yaml").write_text(text.replace("/run\n", "/mlae\n"))
    shared = ["--suite", "a,b", "--out", str(root / "many"), *QUICK]
    assert smat(str(folder / "lora.yaml"), *shared).exit_code == 0
    done = smat(str(folder), *shared, "--jobs", "2")
    assert done.exit_code == 0, done.output + done.stderr
    assert "2 of them are already finished" in done.stderr
    assert "mlae-a-seed0: done" in done.stderr
    assert len(list((root / "many").glob("*/tune.json"))) == 4
    made = CliRunner().invoke(app, ["report", str(root / "many"), "--out", str(root / "report")])
    assert made.exit_code == 0, made.output + made.stderr
    page = (root / "report" / "tuning-datasets-accuracy.md").read_text()
    assert "mlae p=0.5 rank 4" in page
    assert "lora rank 4" in page
    found = {row[0]: row[1:] for row in csv.reader((root / "report" / "tuning-datasets-accuracy.csv").read_text().splitlines())}
    scores = [json.loads((root / "many" / f"lora-{d}-seed0" / "tune.json").read_text())["score"] for d in "ab"]
    assert any(f"{100 * scores[0]:.1f}" in str(cells) and f"{50 * sum(scores):.1f}" in str(cells) for cells in found.values())


def test_the_report_shows_published_means_beside_ours(root: Path):
    assert smat(str(root / "recipe.yaml"), "--suite", "vtab", *QUICK).exit_code == 0
    made = CliRunner().invoke(app, ["report", str(root / "run-vtab"), "--out", str(root / "report"), "--published", "mlae"])
    assert made.exit_code == 0, made.output + made.stderr
    page = (root / "report" / "tuning-vtab-accuracy.md").read_text()
    assert "SVHN" in page
    assert "Retinopathy" in page
    assert "No result: Caltech-101" in page
    assert "published, not measured here" in page


def test_seeds_without_a_suite(root: Path):
    done = smat(str(root / "recipe.yaml"), "--seeds", "3,4", *QUICK)
    assert done.exit_code == 0
    assert {p.name for p in (root / "run-seeds").glob("run*")} == {"run-a-seed3", "run-a-seed4"}


def test_a_failed_run_does_not_stop_the_others(root: Path):
    (root / "broken.h5").write_bytes((root / "b.h5").read_bytes()[:2000])
    done = smat(str(root / "recipe.yaml"), "--suite", "broken,a", *QUICK)
    assert done.exit_code == 1
    assert "1 of 2 runs failed: run-broken-seed0" in done.stderr
    assert (root / "run-suite" / "run-a-seed0" / "tune.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tuner.rank=0"], "tuner.rank: expected a number > 0"),
        (["tuner.p=1.0"], "p is 1; give a probability below 1"),
        (["tuner.layers=[blocks.*.attn.v]"], "no linear layer matches 'blocks.*.attn.v'; use blocks.*.attn.qkv, blocks.*.attn.proj"),
        (["tuner={name: vpt-deep, layers: 3}"], "3 prompt layers, but the backbone has 2 blocks"),
        (["data.dataset=c", "tune.search={lr: [0.1]}"], "has no validation images, which tune.search.lr needs"),
        (["tuner={name: lora}", "tune.search={p: [0.1]}"], "tune.search.p is only for mlae, but the tuner is lora"),
        (["tune.momentum=0.9"], "momentum has no effect with optimizer adamw"),
        (["tuner.name=mlea"], "tuner.name: expected"),
        (["--suite", "vtba"], "'vtba' is neither vtab nor fgvc nor a dataset"),
        (["--suite", "fgvc"], "contains no task of fgvc; prepare them first"),
        (["--suite", "a", "data.dataset=b"], "data.dataset and --suite are both given"),
        (["--seeds", "0,x"], "--seeds 0,x: give different whole numbers"),
        (["--suite", "a", "run=elsewhere"], "give the folder of a suite with --out"),
        (["--jobs", "2"], "--jobs has no effect on a single run"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_made(root: Path, arguments: list[str], message: str):
    before = sorted(root.iterdir())
    done = smat(str(root / "recipe.yaml"), *arguments)
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(root.iterdir()) == before


def test_no_recipe(tmp_path):
    assert "give a recipe" in smat("tune.epochs=1").stderr
    assert "this folder contains no recipe" in smat(str(tmp_path)).stderr


def test_lists_that_name_missing_images_are_refused(tmp_path):
    task = write_task(tmp_path / "svhn", copies=False)
    (task / "images/train800/000002.jpg").unlink()
    prepare = ["data", "prepare", "vtab", str(task), "--size", "16", "--out", str(tmp_path / "stores")]
    done = CliRunner().invoke(app, prepare, env={"NO_COLOR": "1", "COLUMNS": "200"})
    last = done.stderr.splitlines()[-1]
    assert done.exit_code == 2
    assert "1 unreadable (--no-strict skips them): images/train800/000002.jpg: vanished" in last
    assert not list((tmp_path / "stores").glob("*.h5"))
    assert CliRunner().invoke(app, [*prepare, "--no-strict"]).exit_code == 0
