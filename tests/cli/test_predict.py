"""`smat predict`: table, picture, saved classifier, and one-line errors."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from smatcli.cli import app
from tests.deploy.world import COLOURS, make_queries, make_run, make_support, photo


def smat(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_run(folder)
    make_run(folder, {"name": "pmf"}, "pmf")
    make_support(folder / "support")
    make_queries(folder / "images")
    return folder


def test_table_picture_and_saved_classifier(world: Path, tmp_path: Path) -> None:
    out, sheet, save = tmp_path / "out.csv", tmp_path / "out.png", tmp_path / "my.smat"
    fitted = ["--model", world / "run", "--support", world / "support", "--images", world / "images"]
    done = smat(*fitted, "--adapt", "flip", "adapt.flip.rounds=1", "--out", out, "--sheet", sheet, "--save", save)
    assert done.exit_code == 0, done.output
    assert not done.stdout
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 9
    for row in rows:
        assert Path(row["file"]).name.startswith(row["class"]), "untrained features tell the colours apart"
        shares = [float(row[f"probability{k}"]) for k in (1, 2, 3)]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert (row["class"], row["probability"], row["status"]) == (row["top1"], row["probability1"], "ok")
    with Image.open(sheet) as picture:
        assert picture.height > 3 * 96
    again = smat("--model", save, "--images", world / "images")
    assert again.exit_code == 0, again.output
    for first, second in zip(rows, csv.DictReader(io.StringIO(again.stdout)), strict=True):
        assert first["class"] == second["class"]
        assert float(first["distance"]) == pytest.approx(float(second["distance"]), abs=1e-5)


def test_json_and_rejection(world: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    photo(COLOURS["red"], 5).save(images / "red.png")
    Image.new("RGB", (20, 20), "white").save(images / "white.png")
    options = ["--model", world / "run", "--support", world / "support", "--images", images, "--reject", "auto"]
    done = smat(*options, "--out", tmp_path / "out.json", "--sheet", tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    body = json.loads((tmp_path / "out.json").read_text())
    assert body["reject"] == body["support_distance_95"] > 0
    red, white = body["predictions"]
    assert white["status"] == "rejected"
    assert white["class"] is None
    assert white["distance"] > body["reject"]
    assert red["top"][0]["class"] == "red"
    everything = smat(*options[:-1], "1.99")
    assert "rejected" not in everything.stdout


def test_unreadable_images(world: Path, tmp_path: Path) -> None:
    images = make_queries(tmp_path / "images", 1)
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    options = ["--model", world / "run", "--support", world / "support", "--images", images, "--out", tmp_path / "out.csv"]
    refused = smat(*options, "--save", tmp_path / "my.smat")
    assert refused.exit_code == 2
    assert "broken.jpg" in refused.stderr.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]
    done = smat(*options, "--skip-unreadable")
    assert done.exit_code == 0, done.output
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out.csv").open())}
    assert rows["broken.jpg"]["class"] == ""
    assert rows["broken.jpg"]["status"].startswith("unreadable: ")
    assert [row["status"] for row in rows.values()].count("ok") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "run"], "--support is missing"),
        (["--model", "none", "--support", "support"], "no such run"),
        (["--model", "run", "--support", "support"], "nothing to do"),
        (["--model", "run", "--support", "images", "--images", "images"], "one class only"),
        (["--model", "run", "--support", "support", "--images", "none"], "none: does not exist"),
        (["--model", "run", "--support", "support", "--images", "images", "--adapt", "flop"], "did you mean 'flip'"),
        (["--model", "pmf", "--support", "support", "--images", "images", "--adapt", "flip"], "needs a method with experts"),
        (["--model", "run", "--support", "support", "--images", "images", "--reject", "far"], "cosine distance"),
        (["--model", "run", "--support", "support", "--images", "images", "--reject", "3"], "between 0 and 2"),
        (["--model", "run", "--support", "support", "--images", "images", "--out", "a.xls"], ".csv or .json"),
        (["--model", "run", "--support", "support", "--images", "images", "--sheet", "a.gif"], ".png"),
        (["--model", "run", "--support", "support", "--save", "a.pt"], ".smat"),
        (["--model", "run", "--support", "support", "--save", "a.smat", "--reject", "0.3"], "need --images"),
        (["--model", "run", "--support", "support", "--save", "a.smat", "--which", "worst"], "best or last"),
        (["--model", "run", "--support", "support", "--save", "a.smat", "--device", "tpu"], "unknown device"),
        (["--model", "run/recipe.yaml", "--support", "support", "--images", "images"], "is a saved classifier"),
        (["--model", "run/recipe.yaml", "--images", "images"], "not a saved classifier"),
        (["--model", "run", "--support", "support", "--images", "images", "--out", "run/recipe.yaml"], "ends in"),
        (["--model", "run", "--support", "support", "--images", "images", "data.root=x"], "cannot be changed here"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    world: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    done = smat(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr.splitlines()[-1]
    assert sum(line.startswith("smat: ") for line in done.stderr.splitlines()) == 1
    assert sorted(world.rglob("*")) == before
    assert not done.stdout


def test_existing_files_are_kept(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    options = ["--model", world / "run", "--support", world / "support", "--images", world / "images", "--out", out]
    done = smat(*options)
    assert done.exit_code == 2
    assert "--replace" in done.stderr
    assert out.read_text() == "mine"
    assert smat(*options, "--replace").exit_code == 0
    assert out.read_text() != "mine"
