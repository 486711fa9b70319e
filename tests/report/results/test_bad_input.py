"""Damaged, foreign, unfinished, duplicate and incompatible results are named and counted, but not in tables."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.errors import UserError
from smatcli.report import ReportOptions, report
from smatcli.report.results.frame import read
from smatcli.runs.results import COLUMNS, NUMBERS
from tests.report.fakes import add_eval, draw, make_run, set_facts

NAMES = ("aircraft", "coco_crops")


def good(root: Path) -> Path:
    return add_eval(make_run(root / "good", "pmf"), "proto", draw(0, 0, names=NAMES), "pmf")


def bad(root: Path) -> Path:
    return add_eval(make_run(root / "bad", "smat"), "proto", draw(0.1, 0.1, names=NAMES))


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def truncate(folder: Path) -> None:
    path = folder / "results.h5"
    path.write_bytes(path.read_bytes()[:1500])


def half_finished(folder: Path) -> None:
    (folder / "summary.csv").unlink()
    (folder / "results.h5").unlink()
    (folder / "parts").mkdir()
    (folder / "parts" / "aircraft-000000-000009.h5").write_bytes(b"")


def replaced(key: str, values: object) -> Callable[[Path], None]:
    """Replace a column of one dataset."""

    def spoil(folder: Path) -> None:
        with h5py.File(folder / "results.h5", "r+") as file:
            del file["aircraft"][key]
            file["aircraft"][key] = values

    return spoil


def attribute(group: str, key: str, value: object = None) -> Callable[[Path], None]:
    """Set an attribute of the file (`/`) or of a dataset, or delete it."""

    def spoil(folder: Path) -> None:
        with h5py.File(folder / "results.h5", "r+") as file:
            if value is None:
                del file[group].attrs[key]
            else:
                file[group].attrs[key] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"results\.h5: skipped, cannot be read \(.*evaluate again"),
        (half_finished, r"unfinished \(1 parts\)"),
        (lambda f: (f / "results.h5").unlink(), r"no results\.h5 in it; run `smat eval .*bad` again"),
        (lambda f: (f / "results.h5").write_bytes(b""), "is empty"),
        (lambda f: (f / "results.h5").write_bytes(b"\x89PNG\xff\xfe\x00"), "is not an HDF5 file"),
        (attribute("/", "format"), r"lacks the protocol and domains.*run `smat eval .*bad` to add them"),
        (attribute("/", "format", 2), "has format 2, this smat reads 1; update smat"),
        (attribute("/", "settings", "[]"), "settings are not a JSON object"),
        (attribute("/", "method"), "method"),
        (attribute("/", "method", "softmerge"), r"are of a softmerge run, but .*bad is a \w+ run; move the folder back"),
        (attribute("aircraft", "domain"), "domain"),
        (attribute("aircraft", "domain", "XX"), "the domain 'XX', neither ID nor OOD"),
        (attribute("aircraft", "protocol"), "protocol"),
        (attribute("aircraft", "lr", "fast"), "could not convert"),
        (replaced("accuracy", np.full(40, 61.5)), "not fractions"),
        (replaced("accuracy", np.full(40, np.nan)), "not fractions"),
        (replaced("accuracy", np.full(39, 0.5)), "different lengths"),
        (replaced("accuracy", np.zeros((40, 2))), "different lengths"),
        (lambda f: (f.parents[1] / "recipe.yaml").write_text("a: ["), "not valid YAML"),
    ],
)
def test_what_is_damaged_is_named_counted_and_skipped(tmp_path: Path, spoil: Callable[[Path], None], message: str):
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
    assert frame.lines[-1] == "1 skipped in total (in no table)"
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(UserError, match=r"no results below .*; 1 skipped, the first: .*bad"):
        read([tmp_path])


def test_the_summary_is_an_export(tmp_path: Path):
    """The report does not read it, and is the same without it."""
    good(tmp_path / "runs")
    folder = bad(tmp_path / "runs")
    report([tmp_path / "runs"], tmp_path / "with")
    (folder / "summary.csv").unlink()
    report([tmp_path / "runs"], tmp_path / "without")
    for path in (tmp_path / "with").glob("*.csv"):
        assert path.read_text() == (tmp_path / "without" / path.name).read_text()


@pytest.mark.parametrize("column", COLUMNS)
def test_a_summary_that_contradicts_the_results_is_named(tmp_path: Path, column: str):
    folder = bad(tmp_path)
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    before = read([tmp_path])
    rows[0][column] = "7" if column in NUMBERS else "other"
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    frame = read([tmp_path])
    assert before.lines == []
    assert frame.skipped == 0
    (line,) = frame.lines
    assert line.startswith(f"{folder / 'summary.csv'}: contradicts results.h5 (")
    assert ("no dataset other in results.h5" if column == "dataset" else f"({column} of aircraft is ") in line
    assert line.endswith(f"results.h5 is used; `smat eval {tmp_path / 'bad'}` exports it again")
    assert [e.results for e in frame.evaluations] == [e.results for e in before.evaluations]
    assert [e.run.method for e in frame.evaluations] == ["smat"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], "contradicts|is not a summary"),
        (lambda text: "", "0 rows instead of 2"),
        (lambda text: text + text.splitlines()[-1] + "\n", "3 rows instead of 2"),
        (lambda text: text.replace("mean,", "average,"), "is not a summary of smat eval"),
        (lambda text: text.replace(",40,", ",many,"), "is not a summary of smat eval"),
    ],
)
def test_a_damaged_summary_is_named_and_not_used(tmp_path: Path, change: Callable[[str], str], message: str):
    folder = bad(tmp_path)
    (folder / "summary.csv").write_text(change((folder / "summary.csv").read_text()))
    frame = read([tmp_path])
    (line,) = frame.lines
    assert re.search(message, line)
    assert "\n" not in line
    assert [r.episodes for r in frame.evaluations[0].results] == [40, 40]


def test_a_copy_counts_once(tmp_path: Path):
    folder = good(tmp_path)
    set_facts(folder, settings=json.dumps({"seed": 0, "weights": "abc"}))
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
