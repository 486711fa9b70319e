"""What an earlier report left is removed, nothing else; figures of too many series are left out by name."""

import json
from pathlib import Path

import pytest

from smatcli.report import manifest, report
from tests.report.fakes import add_eval, draw, make_run, make_study


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), 6)


def names(out: Path) -> set[str]:
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and p.name != manifest.NAME}


def test_what_the_new_report_does_not_make_is_removed(runs: Path, tmp_path: Path):
    report([runs / "pretrained", runs / "smat"], tmp_path, formats=["files", "html"])
    first = names(tmp_path)
    assert "figures/gains-5w5s10q-6-over-Pre-trained.png" in first
    assert "report.html" in first
    (tmp_path / "mine.tex").write_text("my own")
    (tmp_path / "figures/mine.png").write_bytes(b"x")
    made = report([runs / "smat"], tmp_path)
    left = names(tmp_path)
    assert left == {p.relative_to(tmp_path).as_posix() for p in made.files} | {"mine.tex", "figures/mine.png", "report.html"}
    assert first - left
    assert not made.lines


def test_a_folder_of_figures_that_is_empty_goes_too(runs: Path, tmp_path: Path):
    report([runs / "pretrained", runs / "smat"], tmp_path)
    report([runs / "pretrained"], tmp_path)
    assert not (tmp_path / "figures").exists()
    assert (tmp_path / "table-5w5s10q-6.csv").exists()


def test_a_file_that_was_changed_is_kept_and_named(runs: Path, tmp_path: Path):
    report([runs / "pretrained", runs / "smat"], tmp_path)
    edited = tmp_path / "gains-5w5s10q-6-over-Pre-trained.tex"
    edited.write_text("% improved by hand")
    lines = report([runs / "smat"], tmp_path).lines
    assert edited.read_text() == "% improved by hand"
    assert lines == [f"{edited}: of an earlier report, changed since: kept"]
    assert report([runs / "smat"], tmp_path).lines == []  # it is the user's now


@pytest.mark.parametrize("record", ["", "[]", "{", '{"files": {"files": 3}}', '{"files": {"files": {"../keep": "x", "/keep": "x"}}}'])
def test_a_damaged_record_removes_nothing(runs: Path, tmp_path: Path, record: str):
    out = tmp_path / "out"
    report([runs / "pretrained", runs / "smat"], out)
    before = names(out)
    (tmp_path / "keep").write_text("x")
    (out / manifest.NAME).write_text(record)
    report([runs / "smat"], out)
    assert names(out) >= before
    assert (tmp_path / "keep").exists()
    assert json.loads((out / manifest.NAME).read_text())["format"] == 1


def test_figures_of_too_many_series_are_left_out_by_name(tmp_path: Path):
    for i in range(26):
        method = "pretrained" if i == 0 else "pmf"
        add_eval(make_run(tmp_path / "runs" / f"r{i}", method, valid=[0.5, 0.6]), "proto", draw(0.01 * i, 0, 4, ("aircraft",)), method)
    made = report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out/figures").exists()
    assert len(made.files) > 4
    assert [line.split(":")[0] for line in made.lines if line.startswith("no figure")] == [
        "no figure of the gains of 5w5s10q-4",
        "no figure of the training curves",
    ]
