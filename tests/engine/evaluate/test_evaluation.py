"""Meta-test of a run: results compared with a plain computation, continuation, and errors."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from smatcli.config import TrainRecipe, load_recipe
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store
from smatcli.engine.evaluate.evaluation import EvalOptions, evaluate, fingerprint
from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.results import Records, read_records, read_summary
from smatcli.runs.signals import Interrupted
from tests.engine.evaluate.evalruns import NO_CLOCK, FakeMethod, make_run, make_store, serve

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> FakeMethod:
    made = FakeMethod()
    serve(monkeypatch, made)
    return made


def recipe_of(run: Path) -> TrainRecipe:
    recipe = load_recipe(run / "recipe.yaml").recipe
    assert isinstance(recipe, TrainRecipe)
    return recipe


def results(folder: Path) -> dict[str, Records]:
    return read_records(folder / "results.h5")


def assert_same(first: Path, second: Path) -> None:
    """Check that results are equal except for times."""
    one, other = results(first), results(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys()
        for key in one[name].keys() - NO_CLOCK:
            np.testing.assert_array_equal(one[name][key], other[name][key], err_msg=f"{name} {key}")
    rows = [
        [{k: v for k, v in vars(r).items() if k not in ("seconds", "run")} for r in read_summary(f / "summary.csv")]
        for f in (first, second)
    ]
    assert rows[0] == rows[1]


def by_hand(store: Store, plan, theta: np.ndarray) -> float:
    """Return the accuracy of the nearest prototype by cosine, in float64, from the stored pixels."""

    def features(rows: np.ndarray) -> np.ndarray:
        pixels = (np.stack([store.images[r] for r in rows]) / 255 - MEAN) / STD
        return pixels.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(len(rows), -1) * theta

    known, asked = features(plan.support), features(plan.query)
    centres = np.stack([known[plan.support_labels == c].mean(0) for c in range(len(plan.classes))])
    cosine = (asked @ centres.T) / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(centres, axis=1)
    return float((cosine.argmax(1) == plan.query_labels).mean())


def test_accuracies_and_statistics_by_hand(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = FakeMethod(experts=False)
    serve(monkeypatch, method)
    (folder,) = evaluate(run, ["proto"])
    assert folder == run / "eval" / "proto-4w3s6q-test"
    recipe = recipe_of(run)
    summary = {row.dataset: row for row in read_summary(folder / "summary.csv")}
    assert list(summary) == ["near", "far", "farther"]
    for name, split, domain in (("near", "test", "ID"), ("far", "all", "OOD"), ("farther", "all", "OOD")):
        store = Store.open(Path(recipe.data.root) / f"{name}.h5")
        sampler = EpisodeSampler({name: store}, split, recipe.eval.episode, 0)
        expected = [by_hand(store, sampler.plan(i), method.theta_pre.numpy()) for i in range(5)]
        found = results(folder)[name]
        np.testing.assert_array_equal(found["index"], range(5))
        np.testing.assert_allclose(found["accuracy"], expected, atol=1e-9)
        assert 0.25 < np.mean(expected) < 1
        row = summary[name]
        assert row.mean == pytest.approx(np.mean(expected))
        assert row.half_width == pytest.approx(1.96 * np.std(expected, ddof=1) / np.sqrt(5))
        assert (row.domain, row.episodes, row.protocol, row.adapt, row.method) == (domain, 5, f"4w3s6q-{split}", "proto", "smat")
        assert (row.run, row.tau, row.experts) == ("smat", 0.9, 2)
        assert "alpha" not in found
        assert set(found["passes"]) == {2}


def test_adaptations_share_episodes_and_tasks(run: Path, method: FakeMethod) -> None:
    proto, flip = evaluate(run)
    assert method.tasks == 15
    for name, one in results(proto).items():
        other = results(flip)[name]
        for key in ("index", "ways", "support", "query", "alpha", "loss_start"):
            np.testing.assert_array_equal(one[key], other[key])
        assert (other["loss"] <= other["loss_start"]).all()
        assert (one["chosen"] == -1).all()
        assert one["alpha"].shape == (5, 2)
        assert set(other["chosen"].ravel()) <= {-1, 0, 1}
        on = other["chosen"].clip(0)
        expected = np.where(other["chosen"] < 0, other["alpha"], on / np.maximum(on.sum(1, keepdims=True), 1))
        np.testing.assert_allclose(other["scores"], expected, rtol=1e-6)
        np.testing.assert_array_equal(other["passes"], other["evaluations"] + 1)
    alone = evaluate(run, ["flip"], overrides=["eval.seed=7"])
    assert alone[0].name == "flip-4w3s6q-test-seed7"
    assert {row.protocol for row in read_summary(alone[0] / "summary.csv")} == {"4w3s6q-seed7-test", "4w3s6q-seed7-all"}


@pytest.mark.parametrize("at", [1, 8, 15])
def test_interrupted_and_continued_equals_uninterrupted(tmp_path: Path, method: FakeMethod, at: int) -> None:
    whole = evaluate(make_run(tmp_path, name="whole"))
    run = make_run(tmp_path, name="smat")
    method.tasks = 0

    def stop(number: int) -> None:
        if number == at:
            raise KeyboardInterrupt

    method.before = stop
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    assert not list(run.glob("eval/*/results.h5"))
    kept = [p.name for p in (run / "eval" / "flip-4w3s6q-test").rglob("*.h5")]
    assert len(kept) == (0 if at == 1 else at // 5 + 1 if at % 5 else 3)
    method.tasks, method.before = 0, lambda number: None
    reporter = SilentReporter()
    found = evaluate(run, reporter=reporter)
    assert method.tasks == 15 - (at - 1)
    assert at == 1 or any(f"{at - 1} of 15" in line for line in reporter.lines)
    for one, other in zip(whole, found, strict=True):
        assert_same(one, other)
        assert not (other / "parts").exists()


def test_sigterm_stops_after_the_episode_with_143(run: Path, method: FakeMethod) -> None:
    method.before = lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 3 else None
    with pytest.raises(Interrupted, match="3 of 15") as stopped:
        evaluate(run)
    assert stopped.value.exit_code == 143
    method.tasks, method.before = 0, lambda number: None
    evaluate(run)
    assert method.tasks == 12


def test_finished_is_not_repeated_and_more_episodes_extend(tmp_path: Path, method: FakeMethod) -> None:
    run = make_run(tmp_path)
    (folder,) = evaluate(run, ["proto"], datasets=["far"], episodes=3)
    method.tasks = 0
    reporter = SilentReporter()
    evaluate(run, ["proto"], datasets=["far"], episodes=3, reporter=reporter)
    assert method.tasks == 0
    assert any("evaluated already" in line for line in reporter.lines)
    evaluate(run, ["proto"])
    assert method.tasks == 2 + 5 + 5
    evaluate(run, ["proto", "flip"])
    assert method.tasks == 12 + 15
    (whole,) = evaluate(make_run(tmp_path, name="whole"), ["proto"])
    for name, records in results(whole).items():
        np.testing.assert_array_equal(records["accuracy"], results(folder)[name]["accuracy"])


def test_other_weights_or_settings_are_refused_and_nothing_changes(run: Path, method: FakeMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = evaluate(run, ["proto"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    serve(monkeypatch, FakeMethod(seed=1))
    with pytest.raises(UserError, match=r"other settings \(weights\)"):
        evaluate(run, ["proto"])
    serve(monkeypatch, method)
    recipe = recipe_of(run)
    os.remove(Path(recipe.data.root) / "far.h5")
    make_store(Path(recipe.data.root), "far", 99)
    with pytest.raises(UserError, match=r"dataset far \(content\)"):
        evaluate(run, ["proto"])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    os.remove(folder / "settings.json")
    with pytest.raises(UserError, match=r"no settings\.json"):
        evaluate(run, ["proto"])


def test_other_options_have_folders_of_their_own(run: Path, method: FakeMethod) -> None:
    asked = ["adapt.flip.loss=leave-one-out", "eval.episode.ways=3", "eval.episode.shots=[1, 2]"]
    (folder,) = evaluate(run, ["flip"], episodes=2, overrides=asked)
    assert folder.name == "flip-leave-one-out-3w1-2s6q-test"
    assert {row.adapt for row in read_summary(folder / "summary.csv")} == {"flip-leave-one-out"}
    (last,) = evaluate(run, ["proto"], episodes=2, options=EvalOptions("last"))
    assert last.name == "proto-4w3s6q-test-last"
    settings = json.loads((folder / "settings.json").read_text())["settings"]
    assert settings["adapt"] == {"name": "flip", "rounds": 2, "rho": 0.0, "loss": "leave-one-out"}


def test_refusals_before_anything_is_written(tmp_path: Path, run: Path, method: FakeMethod) -> None:
    cases: list[tuple[dict, str]] = [
        ({"adapts": ["flop"]}, "did you mean 'flip'"),
        ({"datasets": ["farthest"]}, "did you mean 'farther'"),
        ({"overrides": ["train.steps=3"]}, r"train\.steps: cannot be changed"),
        ({"overrides": ["eval.episods=3"]}, "episodes"),
        ({"overrides": ["eval.episode.ways=20"]}, "20 ways"),
        ({"overrides": ["data.ood=[near]"]}, "one or the other"),
        ({"overrides": ["data.id=[]", "data.ood=[]"]}, "no dataset"),
        ({"overrides": ["data.ood=[nowhere]"]}, "nowhere"),
        ({"overrides": ["eval.adapt=[]"]}, "--adapt proto"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(run, **arguments)
    pmf = make_run(tmp_path, {"name": "pmf"}, name="pmf")
    with pytest.raises(UserError, match=r"flip needs a method with experts; .*pmf is pmf: use --adapt proto"):
        evaluate(pmf, ["proto", "flip"])
    with pytest.raises(UserError, match="does not exist"):
        evaluate(tmp_path / "nothing")
    assert not (run / "eval").exists()
    assert method.tasks == 0


def test_logits_that_are_not_finite_name_the_episode(run: Path, method: FakeMethod) -> None:
    def broken(number: int) -> None:
        if number == 7:
            method.theta_pre[0] = torch.nan

    good = method.theta_pre.clone()
    method.before = broken
    with pytest.raises(SmatError, match=r"far episode 1 \(seed 0\): the logits of proto are not finite"):
        evaluate(run, ["proto"])
    assert not (run / "eval" / "proto-4w3s6q-test" / "results.h5").exists()
    method.theta_pre, method.before, method.tasks = good, lambda number: None, 0
    evaluate(run, ["proto"])
    assert method.tasks == 9


def test_damaged_part_is_named(run: Path, method: FakeMethod) -> None:
    method.before = lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 2 else None
    with pytest.raises(Interrupted):
        evaluate(run, ["proto"])
    (part,) = (run / "eval").rglob("near-000000-000001.h5")
    part.write_bytes(part.read_bytes()[:700])
    with pytest.raises(UserError, match=r"near-000000-000001\.h5.*move it away"):
        evaluate(run, ["proto"])


def test_fingerprint_sees_every_tensor() -> None:
    one, other = FakeMethod(), FakeMethod()
    assert fingerprint(one) == fingerprint(other)
    other.steps[1, 5] += 1e-6
    assert fingerprint(one) != fingerprint(other)


def test_a_single_episode_has_no_interval(run: Path, method: FakeMethod) -> None:
    (folder,) = evaluate(run, ["proto"], datasets=["far"], episodes=1)
    (row,) = read_summary(folder / "summary.csv")
    assert np.isnan(row.half_width)
    assert "nan" not in (folder / "summary.csv").read_text()
