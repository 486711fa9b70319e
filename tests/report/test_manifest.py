"""A new report removes the files of an earlier one, and no others."""

import json
from pathlib import Path

import pytest

from smatcli.report import ReportOptions, manifest, report
from smatcli.report.manifest import settle
from tests.report.fakes import add_eval, draw, make_run, make_study


def names(out: Path) -> set[str]:
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and p.name != manifest.NAME}


def write(out: Path, *files: str) -> list[Path]:
    """Write files as a report does."""
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"content of {name}")
    return [out / name for name in files]


def test_a_whole_report_removes_what_it_does_not_replace(tmp_path: Path):
    runs, out = make_study(tmp_path / "runs", 4, ("aircraft", "omniglot", "cifar10")), tmp_path / "out"
    report([runs / "pretrained", runs / "smat"], out, ReportOptions(formats=["files", "html"]))
    first = names(out)
    assert "figures/gains-5w5s10q-4-over-Pre-trained.png" in first
    assert "report.html" in first
    (out / "mine.tex").write_text("my own")
    (out / "figures/mine.png").write_bytes(b"x")
    second = report([runs / "smat"], out)
    left = names(out)
    assert left == {p.relative_to(out).as_posix() for p in second.files} | {"mine.tex", "figures/mine.png", "report.html"}
    assert first - left
    assert not second.lines


def test_files_of_other_formats_are_kept(tmp_path: Path):
    settle(tmp_path, {"files": write(tmp_path, "a.tex", "b.tex"), "html": write(tmp_path, "report.html")})
    settle(tmp_path, {"files": write(tmp_path, "b.tex")})
    assert names(tmp_path) == {"b.tex", "report.html"}
    settle(tmp_path, {"html": []})
    assert names(tmp_path) == {"b.tex"}


def test_an_empty_folder_of_figures_is_removed(tmp_path: Path):
    settle(tmp_path, {"files": write(tmp_path, "a.csv", "figures/a.png", "figures/b.png")})
    settle(tmp_path, {"files": write(tmp_path, "a.csv")})
    assert not (tmp_path / "figures").exists()
    assert (tmp_path / "a.csv").exists()


def test_an_edited_file_is_kept_and_named(tmp_path: Path):
    settle(tmp_path, {"files": write(tmp_path, "a.tex", "b.tex")})
    edited = tmp_path / "a.tex"
    edited.write_text("% improved by hand")
    assert settle(tmp_path, {"files": write(tmp_path, "b.tex")}) == [
        f"{edited}: kept, because it was edited after an earlier report wrote it"
    ]
    assert edited.read_text() == "% improved by hand"
    assert settle(tmp_path, {"files": write(tmp_path, "b.tex")}) == []  # from now on it is the user's file
    assert edited.exists()


def test_a_link_is_kept(tmp_path: Path):
    out = tmp_path / "out"
    settle(out, {"files": write(out, "a.tex", "b.tex")})
    (tmp_path / "target").write_text("content of a.tex")
    (out / "a.tex").unlink()
    (out / "a.tex").symlink_to(tmp_path / "target")
    settle(out, {"files": write(out, "b.tex")})
    assert (out / "a.tex").is_symlink()


@pytest.mark.parametrize("record", ["", "[]", "{", '{"files": {"files": 3}}', '{"files": {"files": {"../keep": "x", "/keep": "x"}}}'])
def test_a_damaged_record_removes_nothing(tmp_path: Path, record: str):
    out = tmp_path / "out"
    settle(out, {"files": write(out, "a.tex", "b.tex")})
    (tmp_path / "keep").write_text("x")
    (out / manifest.NAME).write_text(record)
    settle(out, {"files": write(out, "b.tex")})
    assert names(out) == {"a.tex", "b.tex"}
    assert (tmp_path / "keep").exists()
    assert json.loads((out / manifest.NAME).read_text())["format"] == 1


def test_a_record_cannot_name_a_file_outside(tmp_path: Path):
    out, outside = tmp_path / "out", tmp_path / "keep"
    outside.write_text("x")
    settle(out, {"files": write(out, "b.tex")})
    digest = manifest._digest(outside)
    for name in ("../keep", str(outside)):
        (out / manifest.NAME).write_text(json.dumps({"files": {"files": {name: digest}}}))
        assert settle(out, {"files": [out / "b.tex"]}) == []
        assert outside.exists()


def test_figures_of_too_many_series_are_skipped_by_name(tmp_path: Path):
    for i in range(26):
        method = "pretrained" if i == 0 else "pmf"
        add_eval(make_run(tmp_path / "runs" / f"r{i}", method, valid=[0.5, 0.6]), "proto", draw(0.01 * i, 0, 4, ("aircraft",)), method)
    written = report([tmp_path / "runs"], tmp_path / "out")
    assert not (tmp_path / "out/figures").exists()
    assert len(written.files) > 4
    assert [line.split(":")[0] for line in written.lines if line.startswith("no figure")] == [
        "no figure of the gains of 5w5s10q-4",
        "no figure of the training curves",
    ]
