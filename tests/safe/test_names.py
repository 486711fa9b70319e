"""Untrusted names (of classes, files, datasets, runs, protocols) never reach other files and are never executed as code."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.stores.store import Store, write_store
from smatcli.errors import SmatError, UserError
from smatcli.runs.results import read_results, write_summary
from smatcli.safe.text import csv_cell
from tests.report.fakes import add_eval, make_run

NASTY = {
    "script": "<script>alert(1)</script>",
    "closing": '"></details></pre><img src=x onerror=alert(1)>',
    "latex": r"\input{x}",
    "write18": r"\immediate\write18{id}",
    "formula": "=cmd()|' /C calc'!A0",
    "newline": "a\nb\tc",
    "left": "\u202egnp.exe",
    "dots": "abc. . ...",
    "up": "../../evil",
    "absolute": "/tmp/evil",
    "long": "n" * 180,
    "link": "[a](javascript:alert(1))",
    "bell": "\x1b[31mred\x07",
}
PLACES = ("run", "sweep", "dataset", "adapt", "protocol", "search")


class Seen(HTMLParser):
    """Parser that collects the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def made(root: Path, place: str, name: str) -> Path:
    """Write a run (or a sweep of two) with `name` in the given place."""
    runs = root / "runs"
    paths = [runs / (name if place == "run" else "smat")]
    if place == "sweep":
        paths = [runs / name / f"tau={tau}" for tau in (0.5, 0.7)]
    for path in paths:
        run = make_run(path, "smat", 0.9, 8, [0.4, 0.5])
        folder = add_eval(run, "proto", {"d": np.array([0.4, 0.6, 0.7])}, tau=0.9, experts=8)
        with h5py.File(folder / "results.h5", "r+") as file:
            if place in ("run", "adapt"):
                file.attrs[place] = name
            elif place in ("protocol", "search"):
                file["d"].attrs[place] = name + ("-test" if place == "protocol" else "")
            elif place == "dataset":
                file.move("d", name)
        write_summary(folder / "summary.csv", read_results(folder / "results.h5").rows)
    return runs


def cases() -> list[tuple[str, str]]:
    """Return every kind of name in two places, so that every place has several names."""
    found = []
    for i, (kind, name) in enumerate(NASTY.items()):
        for place in (PLACES[i % len(PLACES)], PLACES[(i + 2) % len(PLACES)]):
            if not (place in ("run", "sweep", "dataset") and "/" in name):
                found.append((place, kind))
    return found


@pytest.mark.parametrize(("place", "kind"), cases())
def test_reports(tmp_path, place, kind):
    name = NASTY[kind]
    runs = made(tmp_path, place, name)
    before = set(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "out"), "--format", "html"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["report", str(runs), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    new = [p for p in set(tmp_path.rglob("*")) - before if p != tmp_path / "out"]
    assert new
    assert all((tmp_path / "out") in p.parents for p in new)
    assert all(len(p.name.encode()) < 200 and p.name.isprintable() and not set(p.name) & set("<>:\"|?*'\\") for p in new)
    for path in new:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if path.suffix == ".html":
            page = Seen()
            page.feed(text)
            assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
            assert not any(str(a.get(key)).startswith("javascript") for _, a in page.tags for key in ("href", "src"))
            assert "alert(1)</script>" not in text
        elif path.suffix == ".tex":
            assert r"\input{x}" not in text
            assert r"\write18" not in text
            assert r"\immediate" not in text
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                assert not [c for row in csv.reader(file) for c in row if c[:1] in ("=", "@", "\t", "\r")]
        elif path.suffix == ".md":
            assert "<script" not in text
            assert "<img" not in text
            assert not re.search(r"(?<!\\)\]\(javascript", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("+1+1", "'+1+1"),
        ("-cmd", "'-cmd"),
        ("\tx", "'\tx"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-", "-"),
        ("", ""),
        ("cat", "cat"),
    ],
)
def test_cells(text, shown):
    assert csv_cell(text) == shown


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", ".hidden", "a\nb", "", "a\x00b", "..", "."])
def test_a_store_is_named_within_its_folder(tmp_path, name):
    with pytest.raises(UserError, match="cannot be a dataset's name"):
        write_store(tmp_path / "s" / "x.h5", name, 8, [("a", 0, np.zeros((1, 8, 8, 3), np.uint8))])
    assert not (tmp_path / "s").exists() or not list((tmp_path / "s").iterdir())


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-smat", "a/b", ".."])
def test_prepare_writes_below_out(tmp_path, name):
    """Test names from an untrusted specification, and a name given by the user."""
    from tests.data.imagefiles import picture
    from tests.data.mdfiles import flat, write_records

    images = {0: [picture(0), picture(1)], 1: [picture(2)], 2: [picture(3)]}
    write_records(tmp_path / "src" / "toy", flat((1, 1, 1), [2, 1, 1], name=name), images)
    before = set(tmp_path.rglob("*"))
    for more in ([], ["--name", name]):
        done = CliRunner().invoke(
            app, ["data", "prepare", "meta-dataset", str(tmp_path / "src" / "toy"), "--out", str(tmp_path / "out"), *more]
        )
        assert done.exit_code == 2, done.output
        assert "internal" not in done.output, done.output
        assert "Traceback" not in done.output, done.output
    assert all((tmp_path / "out") in (p, *p.parents) for p in set(tmp_path.rglob("*")) - before)


def test_names_of_datasets_in_a_recipe_are_no_paths(tmp_path):
    from smatcli.data.stores.opening import open_stores

    write_store(tmp_path / "secret.h5", "secret", 8, [("a", 0, np.zeros((1, 8, 8, 3), np.uint8))])
    (tmp_path / "stores").mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "./../secret", "", "."):
        with pytest.raises(UserError, match="no dataset"):
            open_stores(tmp_path / "stores", [name])


def test_a_checkpoint_names_no_files_elsewhere(tmp_path):
    import torch

    from smatcli.runs.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(tmp_path / "last", {"a": torch.zeros(2)}, {"step": 1})
    manifest = tmp_path / "last" / "manifest.json"
    body = json.loads(manifest.read_text())
    for name in ("/dev/zero", "../../x"):
        manifest.write_text(json.dumps({**body, "files": {**body["files"], name: {"bytes": 1, "sha256": ""}}}))
        with pytest.raises(SmatError, match="list of files cannot be read"):
            load_checkpoint(tmp_path / "last")


def test_a_class_may_be_called_anything_but_is_only_text(tmp_path):
    names = [*NASTY.values(), "é" * 100, "鳥"]
    path = write_store(tmp_path / "s.h5", "s", 8, [(n, 0, np.zeros((1, 8, 8, 3), np.uint8)) for n in names])
    assert Store.open(path).class_names == names
    for args in (["data", "info", str(path)], ["data", "ls", str(tmp_path)], ["data", "show", str(path), "--out", str(tmp_path / "s.png")]):
        done = CliRunner().invoke(app, args)
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output, done.output
        assert "\x07" not in done.output, done.output


def test_a_run_is_made_where_the_recipe_says_and_nothing_is_replaced(tmp_path, recipe_file):
    """`run:` may be any path, such as a scratch disk; existing files are never changed."""
    from smatcli.config import load_recipe
    from smatcli.runs.directory import RunDir

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    os_link = tmp_path / "link"
    os_link.symlink_to(tmp_path / "nowhere")
    for target in ("mine", "mine/thesis.tex", "link"):
        recipe = load_recipe(recipe_file("run: runs/small", f"run: {tmp_path / target}")).recipe
        with pytest.raises(UserError, match="exists"):
            RunDir.create(recipe.run, recipe)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "words"
    assert not (tmp_path / "nowhere").exists()


def test_points_of_a_sweep_stay_in_its_folder(tmp_path, recipe_file):
    from smatcli.launch.points import file_text

    for value in ("../../x", "/etc/passwd", "a\nb", "a b<c>", "x" * 500):
        text = file_text(value)
        assert "/" not in text
        assert "\n" not in text
        assert text not in ("", ".", "..")
        assert len(text) < 200
