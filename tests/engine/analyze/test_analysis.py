"""Analyses of a tiny trained run, compared with its evaluation, its checkpoint and plain computations."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from smatcli.engine.analyze import AnalysisOptions, analyze
from smatcli.engine.analyze.features import principal
from smatcli.engine.evaluate.evaluation import EvalOptions, evaluate
from smatcli.engine.loop.loading import load_method
from smatcli.engine.train.trainer import train
from smatcli.errors import UserError
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import merge_reference
from smatcli.experts.merge_eager import Gate
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.runs.analysis import Analysis, read_analysis, write_analysis
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.results import read_records
from tests.engine.train.world import load

KINDS = ["masks", "gradients", "predictions-proto-3w2s2q-test", "flip-3w2s2q-test", "features-proto-3w2s2q-test"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    path = train(load(root, "train.steps=4", "train.groups={delta: {lr: 0.05}}", "train.valid_every=4"), SilentReporter()).path
    evaluate(path, ["proto", "flip"], options=EvalOptions("last"))
    return path


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, Analysis]:
    paths = analyze(run, AnalysisOptions(episodes=3, which="last"))
    assert [p.stem for p in paths] == KINDS
    assert all(p.with_suffix(".csv").exists() for p in paths)
    return {path.stem: read_analysis(path) for path in paths}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def test_masks_are_those_of_the_checkpoint(run: Path, files: dict[str, Analysis]):
    # the inference gate is zero where sigmoid(log_alpha) * 1.2 - 0.1 <= 0
    on = 1.2 / (1 + np.exp(-weights(run)["log_alpha"].double().numpy())) - 0.1 > 0
    found = files["masks"].groups["all"]
    np.testing.assert_array_equal(found["nonzeros"].sum(1), on.sum(1))
    start = 0
    for i, size in enumerate(found["size"]):
        np.testing.assert_array_equal(found["nonzeros"][:, i], on[:, start : start + size].sum(1))
        start += size
    assert start == on.shape[1] == files["masks"].facts["parameters"]
    chosen = [set(np.flatnonzero(row)) for row in on]
    jaccard = [[len(a & b) / len(a | b) for b in chosen] for a in chosen]
    np.testing.assert_allclose(found["overlap"], jaccard)
    assert {"q", "k", "v", "proj", "fc1", "fc2", "norm"} <= set(found["layer"])
    assert set(found["depth"]) == {-1, 0, 1}


def test_gradients_are_those_that_autograd_gives_the_shared_parameters(run: Path, files: dict[str, Analysis]):
    found = files["gradients"].groups["all"]
    method, recipe = load_method(run, "last")
    tensors = weights(run)
    from smatcli.data.episodes.loader import EpisodeLoader
    from smatcli.data.episodes.sampler import EpisodeSampler
    from smatcli.data.stores.opening import open_stores

    gradients = []
    for name in recipe.data.train:
        sampler = EpisodeSampler(open_stores(recipe.data.root, [name]), "train", recipe.episode, recipe.seed)
        for episode in EpisodeLoader(sampler, range(3), image_size=16):
            delta = tensors["theta_delta"].clone().requires_grad_()
            alpha = method.task(episode.support).alpha
            assert alpha is not None
            theta = merge_reference(tensors["theta_pre"], delta, tensors["log_alpha"], alpha, Gate(HardConcrete(), training=False))
            known, asked = method.embed(episode.support.images, theta), method.embed(episode.query_images, theta)
            loss = F.cross_entropy(cosine_logits(asked, prototypes(known, episode.support.labels, 3)), episode.query_labels)
            gradients.append(torch.autograd.grad(loss, delta)[0].double())
    units = F.normalize(torch.stack(gradients), dim=1)
    parts = list(found["part"])
    assert parts == ["theta", "delta", "expert 1", "expert 2", "expert 3"]
    assert list(found["dataset"]) == ["a"] * 3 + ["b"] * 3
    np.testing.assert_allclose(found["cosine"][parts.index("delta")], (units @ units.T).numpy(), atol=1e-4)
    np.testing.assert_allclose(found["cosine"][:, range(6), range(6)], 1, atol=1e-5)


def test_predictions_are_those_of_the_evaluation(run: Path, files: dict[str, Analysis]):
    measured = read_records(run / "eval" / "proto-3w2s2q-test-last" / "results.h5")
    for name, found in files[KINDS[2]].groups.items():
        right = found["label"] == found["predicted"]
        shares = [right[found["episode"] == i].mean() for i in range(3)]
        np.testing.assert_allclose(shares, measured[name]["accuracy"])
        assert ((found["confidence"] > 1 / 3 - 1e-6) & (found["confidence"] <= 1)).all()
        np.testing.assert_allclose(found["loss"][right], -np.log(found["confidence"][right]), rtol=1e-4)
        assert {str(found["class_names"][c])[0] for c in found["label"]} == {name}
        for (a, b), count, asked in zip(found["pair"], found["pair_count"], found["pair_asked"], strict=True):
            both = [i for i in range(3) if {a, b} <= set(found["label"][found["episode"] == i])]
            within = np.isin(found["episode"], both)
            label, said = found["label"][within], found["predicted"][within]
            assert count == (((label == a) & (said == b)) | ((label == b) & (said == a))).sum() > 0
            assert asked == np.isin(label, (a, b)).sum()
        assert found["pair_thumbnails"].shape == (len(found["pair"]), 2, 48, 48, 3)
    with (run / "analysis" / f"{KINDS[2]}.csv").open() as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file)}
    assert float(rows["c"]["accuracy"]) == pytest.approx(measured["c"]["accuracy"].mean())
    assert rows["c"]["domain"] == "OOD"


def test_flip_ends_where_the_evaluation_ended(run: Path, files: dict[str, Analysis]):
    measured = read_records(run / "eval" / "flip-3w2s2q-test-last" / "results.h5")
    for name, found in files["flip-3w2s2q-test"].groups.items():
        np.testing.assert_allclose(found["lowest"][:, -1], measured[name]["loss"], rtol=1e-5)
        np.testing.assert_allclose(found["loss"][:, 0], measured[name]["loss_start"], rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"][:, -1], measured[name]["accuracy"])
        np.testing.assert_array_equal(found["states"], measured[name]["evaluations"])
        assert (np.diff(found["lowest"], axis=1) <= 0).all()
        np.testing.assert_array_equal(np.isfinite(found["loss"]).sum(1), found["states"])


def test_features_show_one_episode_before_and_after(run: Path, files: dict[str, Analysis]):
    groups = files[KINDS[4]].groups
    assert list(groups) == ["a", "c"]  # the first in-domain and the first out-of-domain dataset
    measured = read_records(run / "eval" / "proto-3w2s2q-test-last" / "results.h5")
    for name, found in groups.items():
        assert list(found["stage"]) == ["pre-trained", "meta-tuned"]
        assert found["coordinates"].shape == (2, 12, 2)
        assert found["is_query"].sum() == 6
        assert len(found["class_names"]) == 3
        assert found["accuracy"][1] == pytest.approx(measured[name]["accuracy"][0])


def test_principal_axes():
    points = np.random.default_rng(0).normal(size=(30, 6)) * [5, 3, 1, 1, 0.5, 0.1] + 7
    found, shares = principal(torch.from_numpy(points))
    values, vectors = np.linalg.eigh(np.cov(points.T))
    np.testing.assert_allclose(shares.numpy(), values[::-1][:2] / values.sum())
    np.testing.assert_allclose(found.abs().numpy(), np.abs((points - points.mean(0)) @ vectors[:, ::-1][:, :2]))
    assert all(column[np.abs(column).argmax()] > 0 for column in found.numpy().T)


def test_is_not_repeated_and_not_replaced_unasked(run: Path, files: dict[str, Analysis]):
    before = {path: path.stat().st_mtime_ns for path in (run / "analysis").iterdir()}
    reporter = SilentReporter()
    analyze(run, AnalysisOptions(["masks", "flip"], episodes=3, which="last"), reporter)
    assert sum("exists already" in line for line in reporter.lines) == 2
    with pytest.raises(UserError, match=r"flip-3w2s2q-test\.h5 exists with other settings \(episodes\); add --replace"):
        analyze(run, AnalysisOptions(["masks", "flip"], episodes=2, which="last"))
    assert {path: path.stat().st_mtime_ns for path in (run / "analysis").iterdir()} == before
    (path,) = analyze(run, AnalysisOptions(["gradients"], episodes=2, which="last", replace=True))
    assert len(read_analysis(path).groups["all"]["loss"]) == 4


def test_refusals(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"--only mask: no such analysis; did you mean 'masks'\?"):
        analyze(run, AnalysisOptions(["mask"]))
    pmf = train(load(tmp_path, "train.steps=0", "method={name: pmf}"), SilentReporter()).path
    with pytest.raises(UserError, match="--only flip needs a method with experts, this is pmf"):
        analyze(pmf, AnalysisOptions(["flip"]))
    with pytest.raises(UserError, match="full: no learning rate has been chosen for a; run `smat eval"):
        analyze(pmf, AnalysisOptions(["predictions"], ["full"], which="last"))
    assert not (pmf / "analysis").exists()


def test_a_file_keeps_everything_and_says_when_it_cannot_be_read(tmp_path: Path):
    arrays = {"x": np.arange(5.0), "names": np.array(["ä", "b<"], object)}
    analysis = Analysis("masks", "m", {"a": [1]}, {"g": arrays}, {"g": {"domain": "ID"}}, {"t": [["h"], ["1"]]}, {"n": 3})
    path = write_analysis(tmp_path, analysis)
    found = read_analysis(path)
    assert (found.kind, found.settings, found.facts["n"], found.attributes) == ("masks", {"a": [1]}, 3, {"g": {"domain": "ID"}})
    assert list(found.groups["g"]["names"]) == ["ä", "b<"]
    assert (tmp_path / "m-t.csv").read_text() == "h\n1\n"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="cannot be read as an analysis"):
        read_analysis(path)
