"""`smat report`: the folder that it writes, options, exit codes, and that it does not import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.report import manifest
from tests.report.fakes import make_run, make_study

GROUP = "5w5s10q-40"
TABLES = [
    *(f"{kind}-{GROUP}" for kind in ("table", "pairs", "significance", "strategies", "cost", "sweep-smat-sweep-tau")),
    f"gains-{GROUP}-over-Pre-trained",
    f"significance-{GROUP}-datasets",
]
FIGURES = [
    "gains-5w5s10q-40-over-Pre-trained",
    "tau-smat-sweep-tau-5w5s10q-40",
    "training",
    "training-smat-sweep-tau",
    "tradeoff-smat-sweep-tau-5w5s10q-40",
]


def smat(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env={"NO_COLOR": "1"})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study") / "runs")


def test_makes_everything_and_the_same_again(study: Path, tmp_path: Path):
    done = smat(study, "--out", tmp_path / "one", "--title", "A_study", "--digits", 2)
    assert done.exit_code == 0, done.output
    files = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*") if p.is_file() and p.name != manifest.NAME}
    wanted = {f"{t}.{end}" for t in TABLES for end in ("tex", "tabular.tex", "csv", "md")}
    assert files == wanted | {f"figures/{f}.{end}" for f in FIGURES for end in ("png", "pdf", "csv")} | {"README.md"}
    assert f"{tmp_path / 'one' / 'README.md'}: {len(files)} files" in done.stdout
    assert "base: skipped, a pre-training run" in done.stderr
    index = (tmp_path / "one" / "README.md").read_text()
    assert index.startswith("# A_study\n")
    assert all(file.split("/")[-1] in index for file in files - {"README.md"})
    for _ in range(2):
        assert smat(study, "--out", tmp_path / "two", "--title", "A_study", "--digits", 2).exit_code == 0
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_names_and_baselines(study: Path, tmp_path: Path):
    done = smat(study, "-o", tmp_path, "--baseline", "pmf", "--baseline", "Base", "--names", "pretrained=Base", "--names", "smat=A = B_c")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "gains-5w5s10q-40-over-PMF.csv").exists()
    assert (tmp_path / "gains-5w5s10q-40-over-Base.csv").exists()
    assert "Dataset,block,Base," in (tmp_path / "table-5w5s10q-40.csv").read_text()
    assert r"A = B\_c + flip" in (tmp_path / "table-5w5s10q-40.tex").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "pmff"], "--baseline pmff: no such column"),
        (["--names", "smat"], "--names 'smat' is not of the form RUN=LABEL"),
        (["--names", "smat="], "is not of the form RUN=LABEL"),
        (["--names", "smut=x"], "did you mean 'smat'?"),
    ],
)
def test_wrong_options(study: Path, tmp_path: Path, arguments: list[str], message: str):
    done = smat(study, "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_to_report_and_no_place_for_it(study: Path, tmp_path: Path):
    run = make_run(tmp_path / "run")
    done = smat(run, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "smat eval" in done.stderr
    assert not (tmp_path / "out").exists()
    assert smat(tmp_path / "nowhere").exit_code == 2
    into_run = smat(study, "--out", run)
    assert into_run.exit_code == 2
    assert "give the report a folder of its own" in into_run.stderr
    (tmp_path / "file").write_text("")
    assert smat(study, "--out", tmp_path / "file").exit_code == 2
    assert smat().exit_code != 0


def test_needs_no_torch_and_no_display(study: Path, tmp_path: Path):
    code = (
        "import sys\n"
        "class Refuses:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name not in ('torch', 'timm'), name\n"
        "sys.meta_path.insert(0, Refuses())\n"
        "from pathlib import Path; from smatcli.report import report\n"
        f"report([{str(study)!r}], {str(tmp_path / 'out')!r})"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert (tmp_path / "out" / "figures" / "training.png").read_bytes().startswith(b"\x89PNG")
