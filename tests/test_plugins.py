"""Plugins: the package of docs/extend.md works from `prepare` to `report`; broken ones are named in one line and do not affect others."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from smatcli import plugins
from smatcli.config import load_recipe
from smatcli.config.schema import AdaptConfig, TrainRecipe
from smatcli.errors import UserError
from tests.docs import toys

runner = CliRunner()

RECIPE = """
kind: train
run: runs/biases
device: cpu
precision: fp32
backbone: {name: toy_cnn, args: {width: 4}, image_size: 16, weights: none}
data: {root: data, train: [dots], id: [dots]}
episode: {ways: 3, shots: 2, queries: 2}
method: {name: biases, scale: 5}
train: {steps: 4, valid_every: 2, valid_episodes: 2, checkpoint_every: 2}
eval: {episodes: 3, episode: {ways: 3, shots: 2, queries: 2}, adapt: [proto, neighbours]}
adapt: {neighbours: {k: 3}}
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Create an empty folder for installed packages, and a working folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    forget_plugins()
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in ("toys", "bad")]:
        del sys.modules[name]
    monkeypatch.undo()
    importlib.invalidate_caches()
    forget_plugins()


def forget_plugins():
    """Clear the cache of installed packages."""
    for function in (plugins._entries, plugins._load, plugins._warn_once):
        function.cache_clear()


def install(site, **entries):
    toys.install(site, **entries)
    importlib.invalidate_caches()
    forget_plugins()


def smat(*words):
    from smatcli.cli import app

    return runner.invoke(app, list(map(str, words)))


def write_npz(path):
    """Write 21 classes of six images, each of one colour with noise, and one class with too few images."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(21), 6)
    images = np.clip(rng.integers(40, 216, (21, 1, 1, 3))[labels] + rng.normal(0, 8, (126, 16, 16, 3)), 0, 255).astype(np.uint8)
    np.savez(path, images=np.concatenate([images, images[:1]]), labels=np.append(labels, 21))


def test_the_package_of_the_page_works_from_preparing_to_reporting(site, tmp_path):
    install(site)
    write_npz(tmp_path / "dots.npz")
    done = smat("data", "prepare", "npz", "dots.npz", "--out", "data", "--least", "3", "--split", "40/30/30")
    assert done.exit_code == 0, done.output
    assert "skipped classes with fewer than 3 images: 21" in done.output
    assert "dots" in done.stdout
    from smatcli.data.stores.store import Store

    store = Store.open(tmp_path / "data/dots.h5")
    assert len(store) == 126
    assert store.image_size == 16

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = smat("train", "recipe.yaml")
    assert done.exit_code == 0, done.output
    dumped = yaml.safe_load((tmp_path / "runs/biases/recipe.yaml").read_text())
    assert dumped["method"] == {"name": "biases", "scale": 5.0}
    assert dumped["adapt"]["neighbours"] == {"k": 3}
    assert json.loads((tmp_path / "runs/biases/origins.json").read_text())["method.scale"].startswith("file ")
    from safetensors.torch import load_file

    state = load_file(tmp_path / "runs/biases/checkpoints/last/model.safetensors")
    assert "offset" in state
    assert bool(state["offset"].any())

    done = smat("eval", "runs/biases")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "runs/biases/eval").iterdir()} == {"proto-3w2s2q-test", "neighbours-k3-3w2s2q-test"}
    done = smat("eval", "runs/biases", "--adapt", "neighbours", "adapt.neighbours.k=1")
    assert done.exit_code == 0, done.output
    assert "neighbours" in done.stdout, done.output

    done = smat("report", "runs/biases", "--out", "report")
    assert done.exit_code == 0, done.output
    assert "Biases only" in (tmp_path / "report/table-3w2s2q-3.md").read_text()
    hardest = (tmp_path / "report/hardest-3w2s2q-3.md").read_text()
    assert "dots" in hardest
    assert "Hardest" in (tmp_path / "report/README.md").read_text()

    done = smat("train", "recipe.yaml", "run=runs/other", "method.scael=3")
    assert done.exit_code == 2
    assert "did you mean 'scale'" in done.stderr
    done = smat("data", "prepare", "npz", "dots.npz", "--out", "data", "--least", "1")
    assert done.exit_code == 2
    assert "--least" in done.stderr
    listed = smat("data", "prepare", "--help").stdout
    assert "npz" in listed
    assert "folder" in listed
    assert "toys 0.1" in smat("env", "--json").stdout


def test_a_saved_method_is_restored_and_predicts(site, tmp_path):
    install(site)
    write_npz(tmp_path / "dots.npz")
    smat("data", "prepare", "npz", "dots.npz", "--out", "data", "--split", "40/30/30")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert smat("train", "recipe.yaml", "eval.adapt=[proto]").exit_code == 0
    import smatcli

    images = [np.full((16, 16, 3), value, np.uint8) for value in (30, 40, 220, 230)]
    classifier = smatcli.load("runs/biases").adapt(images, ["dark", "dark", "light", "light"], adapt="neighbours")
    assert classifier.predict([images[0], images[3]]).labels == ["dark", "light"]
    done = smat("export", "runs/biases", "--average", "--out", "model")
    assert done.exit_code == 2
    assert "is from a plugin" in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("method = 3", "is a int, not a smatcli.plugins.MethodPlugin"),
        ("other = 3", "AttributeError"),
        ("from smatcli.plugins import MethodPlugin\nmethod = MethodPlugin('bad:x')", "has no settings"),
        (
            "from pydantic import BaseModel\nfrom smatcli.plugins import MethodPlugin\n"
            "class C(BaseModel):\n    name: str = 'bad'\nmethod = MethodPlugin('bad:x', C)",
            "accept unknown keys",
        ),
        (
            "from smatcli.config.base import Strict\nfrom smatcli.plugins import MethodPlugin\n"
            "class C(Strict):\n    name: str = 'bad'\nmethod = MethodPlugin('bad:x', C)",
            'needs `name: Literal["bad"] = "bad"` in C',
        ),
    ],
)
def test_a_broken_plugin_is_named_in_one_line_and_stops_nobody_else(site, tmp_path, code, reason):
    install(site)
    (site / "bad.py").write_text(code)
    toys.write_metadata(site, "broken", "0.9", {"smatcli.methods": {"bad": "bad:method"}})
    importlib.invalidate_caches()
    forget_plugins()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert load_recipe("recipe.yaml").recipe.method.name == "biases"  # type: ignore[union-attr]
    with pytest.raises(UserError) as caught:
        load_recipe("recipe.yaml", ["method={name: bad}"])
    line = str(caught.value)
    assert line.startswith("plugin methods.bad of broken 0.9 ")
    assert reason in line
    assert "\n" not in line
    assert reason in plugins.listing()["methods.bad"]
    assert plugins.listing()["methods.biases"] == "toys 0.1"
    assert set(plugins.loaded("methods")) == {"biases"}


def test_a_broken_source_does_not_hide_the_others(site, caplog):
    install(site)
    toys.write_metadata(site, "broken", "0.9", {"smatcli.sources": {"worse": "not_there:source", "folder": "toys.plugin:source"}})
    importlib.invalidate_caches()
    forget_plugins()
    done = smat("data", "prepare", "--help")
    assert done.exit_code == 0
    assert "npz" in done.stdout
    assert "folder" in done.stdout
    assert "worse" not in done.stdout
    assert [r.message for r in caplog.records if "sources.worse of broken 0.9" in r.message and "skipped" in r.message]
    done = smat("data", "prepare", "worse", "x", "--out", "data")
    assert done.exit_code == 2
    assert "plugin sources.worse of broken 0.9" in done.output


def test_names_of_built_in_things_and_doubles_are_refused(site):
    install(site, adaptations={"flip": "toys.plugin:adaptation", "two": "toys.plugin:adaptation", "Not-One": "toys.plugin:adaptation"})
    toys.write_metadata(site, "second", "2.0", {"smatcli.adaptations": {"two": "toys.plugin:method"}})
    importlib.invalidate_caches()
    forget_plugins()
    found = plugins.listing({"adaptations": ["proto", "flip"]})
    assert "has the name of a built-in plugin" in found["adaptations.flip"]
    assert "more than one package: " in found["adaptations.two"]
    assert "second 2.0" in found["adaptations.two"]
    assert "an invalid name" in found["adaptations.Not-One"]
    from smatcli.adaptation import build_adaptation, check_adaptation

    assert type(build_adaptation("flip", AdaptConfig())).__name__ == "Flip"
    with pytest.raises(UserError, match="more than one package"):
        check_adaptation("two")
    with pytest.raises(UserError, match="did you mean 'two'"):
        check_adaptation("tow")


def test_a_failing_table_is_left_out_and_named(site, tmp_path, caplog):
    from tests.report.fakes import add_eval, draw, make_run

    install(site, tables={"hardest": "toys.plugin:table", "fails": "bad:table"})
    (site / "bad.py").write_text("from smatcli.plugins import TablePlugin\ntable = TablePlugin(lambda group, digits: 1 / 0)\n")
    add_eval(make_run(tmp_path / "runs/smat"), "proto", draw(0, 0))
    done = smat("report", "runs/smat", "--out", "report")
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "report").glob("hardest-*.tex")), done.output
    assert any("plugin tables.fails failed" in r.message and "ZeroDivisionError" in r.message for r in caplog.records)


def test_without_plugins_the_models_are_the_plain_ones(site, monkeypatch, recipe_file):
    install(site)
    assert type(load_recipe(recipe_file()).recipe) is TrainRecipe
    monkeypatch.setenv(plugins.OFF, "1")
    forget_plugins()
    assert plugins.listing() == {}
    (Path("recipe2.yaml")).write_text(RECIPE)
    with pytest.raises(UserError, match=r"unknown key 'adapt.neighbours'.*method.name"):
        load_recipe("recipe2.yaml")


def test_the_config_of_a_plugin_loads_no_torch(site, tmp_path):
    toys.install(site)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code = (
        "import sys; from smatcli.config import load_recipe; r = load_recipe('recipe.yaml').recipe;"
        "print(r.method.name, r.adapt.neighbours.k, 'torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(toys.ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["biases", "3", "False"], done.stderr
