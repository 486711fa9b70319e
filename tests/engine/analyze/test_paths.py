"""Expert paths: means of the dispatch weights of a tuned run, and their figures."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from smatcli.config.loader import vision
from smatcli.config.schema import BackboneConfig
from smatcli.engine.analyze import AnalysisOptions, analyze
from smatcli.engine.analyze.paths import expert_names
from smatcli.engine.tune.task import network_input
from smatcli.engine.tune.tuning import tune
from smatcli.engine.tune.weights import load_tuned
from smatcli.errors import UserError
from smatcli.report.figures.analyses import RunAnalysis
from smatcli.report.figures.curves import Curves
from smatcli.report.figures.tuners import path_figures
from smatcli.report.figures.types import HeatMap
from smatcli.report.results.runs import Run
from smatcli.runs.analysis import read_analysis
from smatcli.runs.reporter import SilentReporter
from smatcli.tuning.pmoe import Pmoe
from tests.tuning import world

VIT = "{name: vit_tiny_patch16_224, args: {patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}, image_size: 16, weights: "


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return a run of two experts with weights on disk, because a run loads its frozen backbones again."""
    from safetensors.torch import save_file

    from smatcli.backbones import create_backbone

    root = tmp_path_factory.mktemp("paths")
    loaded = world.load(root)
    for k in range(2):
        torch.manual_seed(k)
        save_file(create_backbone(vision(loaded.recipe).backbone).state_dict(), root / f"expert{k}.safetensors")
    tuner = f"tuner={{name: pmoe, prompts: 2, experts: [{VIT}{root}/expert1.safetensors}}]}}"
    loaded = world.load(root, tuner, f"backbone.weights={root}/expert0.safetensors", "tune.lr=0.1")
    return tune(loaded, SilentReporter()).path


def test_paths_are_means_over_the_test_images(run):
    (path,) = analyze(run)
    found = read_analysis(path)
    recipe, task, tuner, _ = load_tuned(run)
    assert isinstance(tuner, Pmoe)
    rows = task.rows["test"]
    sums = np.zeros((2, 2, 2))
    for row in rows:  # one image, one prompt at a time
        weights = tuner.paths(network_input(torch.from_numpy(np.array(task.store.images[int(row)]))[None], recipe))
        for n in range(2):
            sums += weights[:, 0, :, n].double().numpy() / 2
    np.testing.assert_allclose(found.groups["a"]["weights"], sums / len(rows), atol=1e-6)
    np.testing.assert_allclose(found.groups["a"]["weights"].sum(-1), 1, atol=1e-6)
    assert found.groups["a"]["experts"].tolist() == ["expert0", "expert1"]
    assert found.attributes["a"]["images"] == len(rows)
    with (run / "analysis/paths.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 2 * 2
    assert sum(int(r["path"]) for r in table) == 2 * 2


def test_what_is_there_is_kept_and_other_settings_need_replace(run):
    reporter = SilentReporter()
    analyze(run, reporter=reporter)
    assert "exists already" in reporter.lines[-1]
    with pytest.raises(UserError, match="--replace"):
        analyze(run, AnalysisOptions(datasets=["a", "b"]))
    (path,) = analyze(run, AnalysisOptions(datasets=["a", "b"], replace=True))
    assert set(read_analysis(path).groups) == {"a", "b"}
    curves, heat = path_figures([RunAnalysis("pMoE", Run(run, "tune", "pmoe"), read_analysis(path))])
    assert isinstance(curves, Curves)
    assert isinstance(heat, HeatMap)
    assert list(curves.panels) == ["a", "b"]
    assert [s.label for s in curves.panels["a"]] == ["expert0", "expert1"]
    both = [s.points[0][1].mean for s in curves.panels["a"]]
    assert sum(both) == pytest.approx(1)
    assert heat.values.shape == (8, 2)


@pytest.mark.parametrize("options, said", [
    ({"only": ["masks"]}, "no such analysis of a tuned run"), ({"episodes": 3}, "--episodes has no effect"),
    ({"which": "last"}, "--which has no effect"), ({"overrides": ["eval.seed=1"]}, "KEY=VALUE has no effect"),
    ({"datasets": ["nothing"]}, "no dataset 'nothing'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(run, options, said):
    with pytest.raises(UserError, match=said):
        analyze(run, AnalysisOptions(**options))


def test_names_of_experts():
    made = [
        BackboneConfig(weights="runs/a"),
        BackboneConfig(name="vit_x"),
        BackboneConfig(weights="x/a.pth"),
        BackboneConfig(weights="b.pth"),
    ]
    assert expert_names(made) == ["a (1)", "vit_x", "a (3)", "b"]
