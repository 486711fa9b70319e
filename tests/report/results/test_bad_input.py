"""Damaged, foreign, unfinished, double and incompatible results: named, counted, in no table."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.errors import UserError
from smatcli.report import ReportOptions, report
from smatcli.report.results.frame import read
from tests.report.fakes import add_eval, draw, make_run

NAMES = ("aircraft", "coco_crops")


def good(root: Path) -> Path:
    return add_eval(make_run(root / "good", "pmf"), "proto", draw(0, 0, names=NAMES), "pmf")


def bad(root: Path) -> Path:
    return add_eval(make_run(root / "bad", "smat"), "proto", draw(0.1, 0.1, names=NAMES))


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def truncate(folder: Path) -> None:
    path = folder / "summary.csv"
    path.write_text(path.read_text()[:-30])


def half_finished(folder: Path) -> None:
    (folder / "summary.csv").unlink()
    (folder / "results.h5").unlink()
    (folder / "parts").mkdir()
    (folder / "parts" / "aircraft-000000-000009.h5").write_bytes(b"")


def other_numbers(folder: Path) -> None:
    with h5py.File(folder / "results.h5", "r+") as file:
        file["aircraft"]["accuracy"][...] = 0.5


def fewer_episodes(folder: Path) -> None:
    with h5py.File(folder / "results.h5", "r+") as file:
        for key in ("accuracy", "index"):
            values = file["aircraft"][key][:10]
            del file["aircraft"][key]
            file["aircraft"][key] = values


def doubled(folder: Path) -> None:
    lines = (folder / "summary.csv").read_text().splitlines()
    (folder / "summary.csv").write_text("\n".join([*lines, lines[-1]]) + "\n")


def newer(folder: Path) -> None:
    (folder / "settings.json").write_text(json.dumps({"settings": {"format": 2}, "datasets": {}}))


def no_share(folder: Path) -> None:
    lines = [line.split(",") for line in (folder / "summary.csv").read_text().splitlines()]
    for line in lines[1:]:
        line[5] = "61.5"
    (folder / "summary.csv").write_text("\n".join(",".join(line) for line in lines) + "\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "over nan episodes"),
        (half_finished, r"unfinished \(1 parts\)"),
        (lambda f: (f / "summary.csv").unlink(), "no summary.csv in it"),
        (lambda f: (f / "summary.csv").write_text("epoch,loss\n1,0.5\n"), "cannot be read as a summary"),
        (lambda f: (f / "summary.csv").write_bytes(b"\x89PNG\xff\xfe\x00"), "cannot be read as a summary"),
        (lambda f: (f / "summary.csv").write_text(""), "is empty"),
        (other_numbers, "its results.h5 0.5000 over 40"),
        (fewer_episodes, "over 10"),
        (doubled, "stands in it twice"),
        (newer, "has format 2, this smat reads 1"),
        (no_share, "no share in"),
        (lambda f: (f.parents[1] / "recipe.yaml").write_text("a: ["), "not YAML"),
    ],
)
def test_named_counted_left_out(tmp_path: Path, spoil, message):
    good(tmp_path)
    spoil(bad(tmp_path))
    frame = read([tmp_path])
    assert [e.run.path.name for e in frame.evaluations] == ["good"]
    assert frame.skipped == 1
    named = [line for line in frame.lines if ": skipped, " in line]
    assert len(named) == 1
    assert str(tmp_path / "bad") in named[0]
    assert "\n" not in named[0]
    assert re.search(message, named[0])
    assert frame.lines[-1] == "skipped in all: 1 (in no table)"
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(UserError, match=r"no results below .*; 1 skipped, the first: .*bad"):
        read([tmp_path])


def test_a_copy_counts_once(tmp_path: Path):
    folder = good(tmp_path)
    settings = json.loads((folder / "settings.json").read_text())
    settings["settings"]["weights"] = "abc"
    (folder / "settings.json").write_text(json.dumps(settings))
    shutil.copytree(tmp_path / "good", tmp_path / "good copy")
    frame = read([tmp_path])
    assert len(frame.evaluations) == 1
    assert frame.skipped == 1
    assert any(f"skipped, the same results as {folder}" in line and "good copy" in line for line in frame.lines)


def test_the_command_says_it_and_exits_2_when_nothing_is_left(tmp_path: Path):
    truncate(bad(tmp_path / "runs"))
    runner = CliRunner()
    done = runner.invoke(app, ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_names_come_out_literally(tmp_path: Path):
    nasty = "a_b & <i>$x^2$ #1 %..| `q`"
    add_eval(make_run(tmp_path / "runs" / nasty, "smat"), "proto", {nasty: np.array([0.4, 0.6])})
    done = CliRunner().invoke(app, ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--names", f"{nasty}={nasty}"])
    assert done.exit_code == 0, done.output
    assert all(p.resolve().is_relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*"))
    text = (tmp_path / "out" / "table-5w5s10q-2.tex").read_text()
    assert r"a\_b \& \textless{}i\textgreater{}\$x\textasciicircum{}2\$" in text
    assert "<i>" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("nasty", ["<script>alert(1)<%2Fscript>", r"\input{x}", "..", "$(rm -rf ~)", "a\nb"])
def test_datasets_and_columns_of_any_name(tmp_path: Path, nasty: str):
    """In LaTeX, Markdown, HTML and file names; the values come from `results.h5`, whose groups can have any name without a slash."""
    name = nasty if nasty != ".." else "dots.."
    for method in ("pretrained", "smat"):
        add_eval(make_run(tmp_path / "runs" / method, method), "proto", {name: np.array([0.4, 0.6, 0.5])}, method)
    report([tmp_path / "runs"], tmp_path / "out", ReportOptions(names={"smat": nasty}, formats=["files", "html"]))
    made = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert all(re.fullmatch(r"[A-Za-z0-9._=-]+", p.name) for p in made)
    for path in made:
        if path.suffix in (".tex", ".md", ".html"):
            text = path.read_text()
            assert r"\input{x}" not in text or path.suffix != ".tex"
            assert "<script>alert" not in text
