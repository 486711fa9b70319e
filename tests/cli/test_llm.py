"""`smat llm` as a user calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from tests.engine.llm.tiny import recipe_of, rows, write_rows


def smat(*words: Any, code: int = 0) -> str:
    """Return what `smat llm WORDS` prints: on standard output, or on standard error if it is to end with an error code."""
    done = CliRunner().invoke(app, ["llm", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def test_from_rows_to_a_dense_model(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    out = smat("prepare", tmp_path / "train.jsonl", "--out", tmp_path / "prepared", "--show", 1)
    assert "24 rows read, 24 kept" in out
    assert "<user>mul 0<end><assistant>[0<end>]" in out
    facts = json.loads((tmp_path / "prepared/data.json").read_text())
    assert (facts["kept"], facts["categories"]) == (24, {"mul": 12, "red": 12})
    for name in ("simoe", "full"):
        words = (recipe, f"run={tmp_path / name}", f"method={{name: {name}}}", f"data.train={tmp_path / 'prepared'}")
        assert f"{name}/metrics.jsonl" in smat("train", *words)
    out = smat("eval", tmp_path / "simoe", tmp_path / "full", "--no-generate")
    assert "NLL per answer token" in out
    assert "over 4 tasks (95 %, paired bootstrap)" in out
    assert (tmp_path / "full/eval/heldout/results.json").exists()
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path / "full")])
    assert "last valid" in shown.stdout
    assert "skipped" not in shown.output
    assert len(smat("generate", tmp_path / "simoe", "--prompt", "add 1", "--prompt", "sub 2", "--tokens", 4).splitlines()) >= 2
    smat("export", tmp_path / "simoe", "--form", "dense", "--prompt", "add 1", "--out", tmp_path / "dense")
    assert (tmp_path / "dense/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("prepare", "ROOT/no.jsonl", "--out", "ROOT/x"), "no.jsonl: cannot be read"),
        (("prepare", "ROOT/bad.jsonl", "--out", "ROOT/x"), "bad.jsonl:2: unknown key 'anwser'; did you mean 'answer'?"),
        (("prepare", "ROOT/train.jsonl", "--out", "ROOT"), "exists; choose another folder for --out"),
        (("prepare", "ROOT/train.jsonl", "--out", "ROOT/x", "--model", "y"), "--model is for --show"),
        (("train", "ROOT/recipe.yaml", "train.stpes=3"), "did you mean 'steps'?"),
        (("train", "quickstart/smat"), "is a train recipe; run it with `smat train"),
        (("eval", "ROOT/nowhere"), "nowhere"),
        (("eval", "ROOT/nowhere", "--which", "bset"), "bset"),
        (("generate", "ROOT/nowhere", "--prompt", "x"), "nowhere"),
        (("export", "ROOT/nowhere", "--form", "dnese", "--out", "ROOT/x"), "'dnese' is not supported; did you mean 'dense'?"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    recipe_of(tmp_path)
    write_rows(tmp_path / "bad.jsonl", rows(1, "a")[0], {"prompt": "x", "anwser": "y"})
    error = smat(*(word.replace("ROOT", str(tmp_path)) for word in words), code=2)
    assert part in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
