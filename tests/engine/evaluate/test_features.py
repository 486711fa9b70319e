"""The feature cache of a meta-test: results equal those without cache, and images are embedded once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smatcli.config.methods import MethodConfig, PmfConfig, PretrainedConfig, RouterConfig, SmatConfig
from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store
from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.engine.evaluate.features import Features
from smatcli.methods import build_method
from smatcli.methods.base import FlatMethod
from smatcli.runs.results import Records, read_records
from tests.adaptation.nets import backbone
from tests.engine.evaluate.evalruns import NO_CLOCK, make_run, serve

CONFIGS: dict[str, MethodConfig] = {
    "pretrained": PretrainedConfig(),
    "pmf": PmfConfig(),
    "smat": SmatConfig(experts=2, router=RouterConfig(heads=2)),
}


class Counted:
    """Count the images that a method's network embeds."""

    def __init__(self, method: FlatMethod, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = self.calls = 0
        plain = method.execution

        def counting(tensors, images):
            self.images += len(images)
            self.calls += 1
            return plain(tensors, images)

        counting.views = plain.views  # type: ignore[attr-defined]
        monkeypatch.setattr(method, "execution", counting)


def made(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[FlatMethod, Counted]:
    method = build_method(CONFIGS[name], backbone()).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.groups().get("delta", method.groups().get("theta", [])):
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.02)
    serve(monkeypatch, method)
    return method, Counted(method, monkeypatch)


def results(folder: Path) -> dict[str, Records]:
    return read_records(folder / "results.h5")


def assert_equal(one: dict[str, Records], other: dict[str, Records]) -> None:
    assert one.keys() == other.keys()
    for dataset in one:
        assert one[dataset].keys() == other[dataset].keys()
        for key in one[dataset].keys() - NO_CLOCK:
            np.testing.assert_allclose(one[dataset][key], other[dataset][key], rtol=1e-4, atol=1e-5, err_msg=f"{dataset} {key}")
        np.testing.assert_array_equal(one[dataset]["accuracy"], other[dataset]["accuracy"])
        np.testing.assert_array_equal(one[dataset]["plan"], other[dataset]["plan"])


@pytest.mark.parametrize(
    ("name", "adapts"), [("pretrained", ["proto"]), ("pmf", ["proto", "full"]), ("smat", ["proto"]), ("smat", ["flip", "full"])]
)
def test_results_are_those_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, adapts: list[str]) -> None:
    _, count = made(name, monkeypatch)
    recipe = {"name": name, "experts": 2} if name == "smat" else {"name": name}
    given = ["eval.episodes=10", "adapt.full.lr=0.001", "adapt.full.steps=1"]
    plain = evaluate(make_run(tmp_path, recipe, "plain"), adapts, ["near"], overrides=[*given, "eval.cache_features=false"])
    before, count.images = count.images, 0
    found = evaluate(make_run(tmp_path, recipe, "cached"), adapts, ["near"], overrides=given)
    for one, other in zip(plain, found, strict=True):
        assert one.name == other.name
        assert_equal(results(one), results(other))
    assert count.images < before


def test_an_image_is_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """near: 6 test classes of 12; far and farther: 9 classes of 12. Beside them the first episodes (12 + 24 images) and the padding."""
    _, count = made("pmf", monkeypatch)
    evaluate(make_run(tmp_path, {"name": "pmf"}), ["proto"], episodes=40)
    assert count.images == 3 * 36 + 2 * 64 + 2 * (2 * 64)
    count.images = 0
    evaluate(make_run(tmp_path, {"name": "pmf"}, "few"), ["proto"], episodes=1)
    assert count.images == 3 * 36


def test_few_episodes_of_many_images_make_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, count = made("pmf", monkeypatch)
    evaluate(make_run(tmp_path, {"name": "pmf"}), ["proto"], ["far"], 2)
    assert count.images == 2 * 36


def test_what_was_interrupted_is_continued_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("pmf", monkeypatch)
    (whole,) = evaluate(make_run(tmp_path, {"name": "pmf"}, "whole"), ["proto"], ["far"], 15)
    run = make_run(tmp_path, {"name": "pmf"})
    evaluate(run, ["proto"], ["far"], 9)
    (parts,) = evaluate(run, ["proto"], ["far"], 15)
    assert_equal(results(whole), results(parts))


@pytest.fixture
def bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method, count = made("pmf", monkeypatch)
    make_run(tmp_path, {"name": "pmf"})
    store = Store.open(tmp_path / "data/far.h5")
    sampler = EpisodeSampler({"far": store}, "all", EpisodeConfig(ways=4, shots=3, queries=6), 0)
    features = Features(method, torch.device("cpu"), 16)
    features.begin(store)
    return method, count, sampler, features


def test_a_table_of_limited_size_and_weights_that_change(bound) -> None:
    method, count, sampler, features = bound
    first, other = EpisodeLoader(sampler, [0, 1], image_size=16)
    plans = {i: sampler.plan(i) for i in range(1, 30)}
    features.limit = 64 * 32 * 4
    with torch.inference_mode(), features.attached():
        for episode in (first, other):
            features.bind(episode, joined=False)
            task = features.of(method.task(episode.support))
            expected = features.plain(episode.support.images, task.theta)
            found = task.embed(episode.support.images, task.theta)
            torch.testing.assert_close(found, expected)
            task.embed(episode.query_images, task.theta)
            if episode is first:
                assert not features.complete(plans)
                features.tabulate(plans, first)
                assert not features.complete(plans)  # 64 of 108 images are cached
        features.limit = 2**30
        features.tabulate(plans, first)
        assert features.complete(plans)
        before = count.images
        found = task.embed(other.support.images, task.theta)
        assert count.images == before
        with torch.no_grad():
            method.theta.mul_(1.5)
        assert not features.complete(plans)
        moved = task.embed(other.support.images, method.theta.detach())
        assert count.images == before + 12
        assert (moved - found).abs().max() > 0.01
    assert "embed" not in method.__dict__


def test_gradients_and_other_images_pass_through(bound) -> None:
    method, count, sampler, features = bound
    (first,) = EpisodeLoader(sampler, [0], image_size=16)
    with features.attached():
        features.bind(first, joined=False)
        task = features.of(method.task(first.support))
        theta = task.theta.clone().requires_grad_()
        for images in (first.support.images, first.support.images.clone()):
            (grad,) = torch.autograd.grad(task.embed(images, theta).square().sum(), [theta])
            assert grad.abs().sum() > 0
        assert count.calls == 2


def test_joined_features_are_those_of_two_passes(bound) -> None:
    method, count, sampler, features = bound
    (first,) = EpisodeLoader(sampler, [0], image_size=16)
    with torch.inference_mode(), features.attached():
        features.bind(first, joined=True)
        theta = method.theta_pre + 0.01  # as for a method with a different theta per task
        task = features.of(replace(method.task(first.support), theta=theta))
        known, asked = (task.embed(images, task.theta) for images in (first.support.images, first.query_images))
        assert (count.calls, count.images) == (1, 36)
        torch.testing.assert_close(known, features.plain(first.support.images, theta))
        torch.testing.assert_close(asked, features.plain(first.query_images, theta))
