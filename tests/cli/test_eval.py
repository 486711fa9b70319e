"""`smat eval`: options, table, exit codes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.cli.evaluate import percent, table
from smatcli.runs.results import SummaryRow, read_summary
from smatcli.runs.statistics import Estimate
from tests.engine.evaluate.evalruns import FakeMethod, make_run, serve


def smat(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    serve(monkeypatch, FakeMethod())
    return make_run(tmp_path)


def test_table_and_files(run: Path) -> None:
    done = smat(run, "--adapt", "proto", "--adapt", "flip", "--episodes", 3)
    assert done.exit_code == 0, done.output
    folder = run / "eval" / "proto-4w3s6q-test"
    rows = read_summary(folder / "summary.csv")
    for row in rows:
        assert f"{100 * row.mean:.1f} ± {100 * row.half_width:.1f}" in done.stdout
    for text in ("ID average", "OOD average", "proto", "flip", "4w3s6q", "3 episodes", str(folder / "summary.csv")):
        assert text in done.stdout


def test_options_reach_the_protocol(run: Path) -> None:
    done = smat(run, "--ways", "3-4", "--shots", 2, "--queries", 4, "--flip-loss", "leave-one-out", "--adapt", "flip", "eval.episodes=2")
    assert done.exit_code == 0, done.output
    assert [p.name for p in (run / "eval").iterdir()] == ["flip-leave-one-out-3-4w2s4q-test"]
    variable = smat(run, "--episode", "variable", "--queries", 10, "--episodes", 2, "--adapt", "proto", "--datasets", "far,near")
    assert variable.exit_code == 0, variable.output
    assert {row.dataset for row in read_summary(run / "eval" / "proto-variable-test" / "summary.csv")} == {"near", "far"}


def test_search_and_trajectory(run: Path) -> None:
    fast = ["adapt.full.steps=2", "adapt.search.rates=[0.01]", "adapt.search.episodes=2", "--episodes", 2, "--datasets", "far"]
    done = smat(run, "--adapt", "full", "--search", "paper", "--trajectory", *fast)
    assert done.exit_code == 0, done.output
    (folder,) = (run / "eval").iterdir()
    assert folder.name == "full-steps2-trajectory-search-paper-episodes2-rates0.01-4w3s6q-test"
    assert "search-paper" in done.stdout.replace("\n", "")
    assert "learning rate" in done.stderr + done.stdout


def test_several_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path, {"name": "pmf"}, name="other")
    done = smat(run, other, "--adapt", "proto", "--episodes", 2)
    assert done.exit_code == 0, done.output
    assert "smat" in done.stdout
    assert "other" in done.stdout
    refused = smat(run, other, "--adapt", "flip", "--episodes", 4)
    assert refused.exit_code == 2
    assert not (run / "eval" / "flip-4w3s6q-test").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapt", "prot"], "did you mean 'proto'"),
        (["--datasets", "fa"], "far"),
        (["--datasets", ","], "--datasets is empty"),
        (["--which", "lst"], "did you mean 'last'"),
        (["--ways", "many"], "ways"),
        (["--flip-loss", "loo"], "leave-one-out"),
        (["--adapt", "full", "--search", "valit"], "valid"),
        (["--adapt", "full", "--search", "none"], "adapt.full.lr"),
        (["--adapt", "proto", "--search", "paper"], "no learning rate"),
        (["--adapt", "proto", "--trajectory"], "no gradient steps"),
        (["train.steps=3"], "cannot be changed"),
        (["missing"], "missing does not exist"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(run: Path, arguments: list[str], message: str) -> None:
    done = smat(run, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (run / "eval").exists()


def test_needs_a_run() -> None:
    done = smat("eval.seed=1")
    assert done.exit_code == 2
    assert "run directory" in done.stderr


def test_average_is_left_out_where_a_dataset_is_missing() -> None:
    def row(run: str, dataset: str, mean: float) -> SummaryRow:
        return SummaryRow(run, "smat", "proto", dataset, "OOD", mean, 0.01, 10, "5w5s10q-all", 1.0)

    made = table([[row("a", "x", 0.5), row("a", "y", 0.7)], [row("b", "x", 0.4)]])
    cells = [list(column.cells) for column in made.columns]
    assert cells[0] == ["x", "y", "OOD average"]
    assert cells[1] == ["50.0 ± 1.0", "70.0 ± 1.0", "60.0 ± 0.7"]
    assert cells[2] == ["40.0 ± 1.0", "-", "-"]
    assert percent(Estimate(0.5, float("nan"))) == "50.0"
