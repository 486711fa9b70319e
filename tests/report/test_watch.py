"""A report is rewritten when its runs change."""

import os
from pathlib import Path

import pytest

from smatcli.errors import UserError
from smatcli.report.watch import state, watch
from tests.report.fakes import add_eval, draw, make_run


def test_writes_again_only_after_a_change(tmp_path: Path):
    run = make_run(tmp_path / "a", valid=[0.1, 0.2])
    made: list[int] = []
    said: list[str] = []
    pauses: list[float] = []
    script = iter([lambda: None, lambda: add_eval(run, "proto", draw(0, 0, 4)), lambda: None, lambda: make_run(tmp_path / "b")])

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        next(script)()

    watch(lambda: made.append(len(made)), [tmp_path], 5.0, said.append, pause, times=5)
    assert made == [0, 1, 2]
    assert pauses == [5.0] * 4
    assert said == []


def test_waits_for_the_first_results_and_survives_later_errors(tmp_path: Path):
    run = make_run(tmp_path / "a")
    problems = iter([UserError("no results below a; run it"), None, UserError("x is damaged"), None])
    calls: list[int] = []
    said: list[str] = []

    def make() -> None:
        calls.append(1)
        if (problem := next(problems)) is not None:
            raise problem

    def change(_: float) -> None:
        path = run / "recipe.yaml"
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))

    watch(make, [tmp_path], 1.0, said.append, change, times=4)
    assert len(calls) == 4
    assert said == ["no results below a; run it; waiting", "x is damaged; waiting"]


def test_an_invalid_option_is_raised(tmp_path: Path):
    def make() -> None:
        raise UserError("--names x: no such run")

    with pytest.raises(UserError, match="no such run"):
        watch(make, [tmp_path], 1.0, print, times=3)


def test_watches_all_files_that_a_report_reads(tmp_path: Path):
    run = make_run(tmp_path / "s" / "tau=0.5", valid=[0.1])
    folder = add_eval(run, "proto", draw(0, 0, 4))
    (run / "notes.txt").write_text("x")
    (run / "tune.json").write_text("{}")
    (run / "segment").mkdir()
    (run / "segment" / "fold0.json").write_text("{}")
    watched = {Path(p).relative_to(run).as_posix() for p in state([tmp_path, tmp_path / "nowhere"])}
    evaluation = {f"eval/{folder.name}/summary.csv", f"eval/{folder.name}/results.h5"}
    assert watched == {"recipe.yaml", "metrics.jsonl", "tune.json", "segment/fold0.json"} | evaluation
