"""The search of learning rates: its episodes and criterion, that it runs once, and that it cannot use test query labels."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from smatcli.adaptation import variant
from smatcli.adaptation.full import Full
from smatcli.config import TrainRecipe, load_recipe
from smatcli.config.finetune import FullConfig
from smatcli.config.schema import AdaptConfig
from smatcli.data.counted import counted_key
from smatcli.data.episodes.lists import draw_list, write_list
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store, write_store
from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.engine.evaluate.rate_search import RateSearch, support_halves
from smatcli.errors import SmatError, UserError
from smatcli.runs.rates import Choice, read_choices
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.results import read_records, read_summary
from smatcli.runs.signals import Interrupted
from smatcli.seams import Episode, Support
from tests.engine.evaluate.evalruns import FakeMethod, make_run, serve
from tests.engine.evaluate.test_evaluation import assert_same

FAST = ["adapt.full.steps=3", "adapt.search.episodes=4", "adapt.search.rates=[0.001, 0.03, 1.0]", "eval.episodes=3"]


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> FakeMethod:
    made = FakeMethod()
    serve(monkeypatch, made)
    return made


def with_validation_classes(folder: Path, name: str) -> None:
    """Write a store with 1 training class, 5 validation classes and 5 test classes."""
    rng = np.random.default_rng(5)
    (folder / "data").mkdir(exist_ok=True)
    splits = [0] + [1] * 5 + [2] * 5
    patterns = [np.kron(rng.uniform(100, 150, (4, 4, 3)), np.ones((4, 4, 1))) for _ in splits]
    images = [np.clip(p + rng.normal(0, 60, (12, 16, 16, 3)), 0, 255).astype(np.uint8) for p in patterns]
    write_store(folder / "data" / f"{name}.h5", name, 16, [(f"c{i}", s, x) for i, (s, x) in enumerate(zip(splits, images, strict=True))])


@pytest.fixture
def run(tmp_path: Path, method: FakeMethod) -> Path:
    """Return a run in which `near` has validation classes; `far` and `farther` are evaluated on all of their classes."""
    with_validation_classes(tmp_path, "near")
    return make_run(tmp_path)


def recipe_of(run: Path) -> TrainRecipe:
    recipe = load_recipe(run / "recipe.yaml").recipe
    assert isinstance(recipe, TrainRecipe)
    return recipe


def by_hand(episodes: list[Episode], method: FakeMethod, rates: list[float]) -> np.ndarray:
    """Return the mean accuracy of each rate."""
    table = []
    for episode in episodes:
        noise = counted_key("search", episode.seed, episode.dataset, episode.index) % 2**63
        task = dataclasses.replace(method.task(episode.support), seed=noise)
        found = [Full(FullConfig(lr=rate, steps=3)).adapt(task, episode.support) for rate in rates]
        table.append([float((c.predict(episode.query_images).argmax(1) == episode.query_labels).float().mean()) for c in found])
    return np.mean(table, 0)


def test_valid_is_the_mean_over_episodes_of_the_validation_classes(run: Path, method: FakeMethod) -> None:
    reporter = SilentReporter()
    (folder,) = evaluate(run, ["full"], ["near"], overrides=FAST, reporter=reporter)
    recipe = recipe_of(run)
    store = Store.open(Path(recipe.data.root) / "near.h5")
    sampler = EpisodeSampler({"near": store}, "valid", recipe.eval.episode, 0)
    rates = [0.0, 0.001, 0.03, 1.0]
    expected = by_hand(list(EpisodeLoader(sampler, range(4), image_size=16)), method, rates)
    choice = read_choices(folder)["near"]
    assert choice.label == "valid"
    assert choice.rates == tuple(rates)
    np.testing.assert_allclose(choice.accuracies, expected, atol=1e-7)
    assert choice.rate == rates[int(np.argmax(expected))]
    assert len(set(expected)) > 1
    (row,) = read_summary(folder / "summary.csv")
    assert (row.adapt, row.lr, row.search) == ("full-steps3-search-episodes4-rates0.001+0.03+1", choice.rate, "valid")
    with h5py.File(folder / "results.h5") as file:
        assert dict(file["near"].attrs)["search"] == "valid"
        assert set(file["near"]["rate"]) == {choice.rate}
    assert any("search valid, 4 tasks" in line for line in reporter.lines)


def test_without_validation_classes_images_are_left_out_of_the_support_sets(run: Path, method: FakeMethod) -> None:
    (folder,) = evaluate(run, ["full"], ["far"], overrides=FAST)
    recipe = recipe_of(run)
    store = Store.open(Path(recipe.data.root) / "far.h5")
    sampler = EpisodeSampler({"far": store}, "all", recipe.eval.episode, 0)
    tasks = [half for episode in EpisodeLoader(sampler, range(4), image_size=16) for half in support_halves(episode)]
    choice = read_choices(folder)["far"]
    assert (choice.label, choice.tasks) == ("support", 8)
    np.testing.assert_allclose(choice.accuracies, by_hand(tasks, method, list(choice.rates)), atol=1e-7)


def episode(labels: list[int], ways: int) -> Episode:
    y = torch.tensor(labels)
    images = torch.arange(len(y)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).float()
    # neither query images nor labels can be read
    return Episode(Support(images, y, ways), None, None, "x", 3, 0)  # type: ignore[arg-type]


def test_support_halves_deals_a_support_set_to_two_halves() -> None:
    labels = [0, 1, 2, 0, 1, 0, 1, 0, 3, 0]
    halves = list(support_halves(episode(labels, 4)))
    assert len(halves) == 2
    asked = torch.cat([half.query_images[:, 0, 0, 0] for half in halves]).long()
    assert sorted(asked.tolist()) == [i for i, y in enumerate(labels) if y in (0, 1)]
    for half in halves:
        kept = half.support.images[:, 0, 0, 0].long()
        assert sorted([*kept.tolist(), *half.query_images[:, 0, 0, 0].long().tolist()]) == list(range(10))
        assert half.support.labels.tolist() == [labels[i] for i in kept]
        assert half.query_labels.tolist() == [labels[i] for i in half.query_images[:, 0, 0, 0].long()]
        assert set(half.support.labels.tolist()) == {0, 1, 2, 3}
        assert half.support.ways == 4
        sizes = torch.bincount(half.query_labels, minlength=4).tolist()
        assert sizes[0] in (2, 3)
        assert sizes[1] in (1, 2)
        assert sizes[2:] == [0, 0]
    assert list(support_halves(episode([0, 1, 2], 3))) == []


def test_query_labels_of_the_evaluation_are_read_by_paper_alone(run: Path, method: FakeMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    """When test query labels are permuted, only the choices of `paper` change."""
    original = EpisodeLoader._episode

    def permuted(self, loaded):
        made = original(self, loaded)
        if self.sampler.split_of(made.dataset) == "valid":
            return made
        return dataclasses.replace(made, query_labels=(made.query_labels + 1) % made.support.ways)

    paper = [*FAST, "adapt.search.kind=paper"]
    first = [read_choices(f) for f in (*evaluate(run, ["full"], overrides=FAST), *evaluate(run, ["full"], overrides=paper))]
    for folder in (run / "eval").iterdir():
        folder.rename(run / f"old-{folder.name}")
    monkeypatch.setattr(EpisodeLoader, "_episode", permuted)
    second = [read_choices(f) for f in (*evaluate(run, ["full"], overrides=FAST), *evaluate(run, ["full"], overrides=paper))]
    assert first[0] == second[0]
    assert {choice.label for choice in first[0].values()} == {"valid", "support"}
    assert all(first[1][name].accuracies != second[1][name].accuracies for name in ("near", "far", "farther"))


def test_paper_is_labelled_everywhere(run: Path, method: FakeMethod) -> None:
    (folder,) = evaluate(run, ["full"], ["near"], overrides=[*FAST, "adapt.search.kind=paper"])
    assert folder.name.startswith("full-steps3-search-paper-episodes4")
    (row,) = read_summary(folder / "summary.csv")
    assert row.search == "paper"
    assert "search-paper" in row.adapt
    with h5py.File(folder / "results.h5") as file:
        assert file["near"].attrs["search"] == "paper"
        assert json.loads(file.attrs["settings"])["adapt"]["search"]["kind"] == "paper"
    choice = read_choices(folder)["near"]
    assert (choice.label, choice.tasks) == ("paper", 4)
    found = {float(r): a for r, a in zip(choice.rates, choice.accuracies, strict=True)}
    assert found[choice.rate] == max(found.values())


def test_one_image_a_class_takes_the_rate_of_other_validation_classes(run: Path, method: FakeMethod) -> None:
    one = [*FAST, "eval.episode.shots=1"]
    with pytest.raises(UserError, match=r"full on far: no data to choose .* adapt\.full\.lr"):
        evaluate(run, ["full"], ["far"], overrides=one)
    assert not (run / "eval").exists()
    (folder,) = evaluate(run, ["full"], ["near", "far"], overrides=one)
    choices = read_choices(folder)
    assert choices["far"].label == "valid:near"
    assert choices["far"].accuracies == choices["near"].accuracies
    assert choices["far"].rate == choices["near"].rate


def test_a_continued_evaluation_does_not_search_again(tmp_path: Path, method: FakeMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    with_validation_classes(tmp_path, "near")
    (whole,) = evaluate(make_run(tmp_path, name="whole"), ["full"], overrides=FAST)
    run = make_run(tmp_path, name="smat")
    original, calls = RateSearch._search, []

    def counted(self, adapt, adaptation, dataset, *rest):
        calls.append(dataset)
        return original(self, adapt, adaptation, dataset, *rest)

    monkeypatch.setattr(RateSearch, "_search", counted)
    method.tasks = 0
    # near's search takes 4 tasks and its evaluation 3: the next is the first of far's search
    method.before = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 6 else None
    with pytest.raises(Interrupted, match="2 of 9") as stopped:
        evaluate(run, ["full"], overrides=FAST)
    assert stopped.value.exit_code == 130
    method.before = lambda number: None
    (found,) = evaluate(run, ["full"], overrides=FAST)
    assert calls == ["near", "far", "farther"]
    assert_same(whole, found)
    assert read_choices(whole) == read_choices(found)
    evaluate(run, ["full"], overrides=FAST)
    evaluate(run, ["full"], overrides=[*FAST[:-1], "eval.episodes=4"])
    assert calls == ["near", "far", "farther"]


def test_stopped_within_a_search_nothing_is_kept_of_it(run: Path, method: FakeMethod) -> None:
    method.before = lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 9 else None
    with pytest.raises(Interrupted, match="rate search of full on far") as stopped:
        evaluate(run, ["full"], overrides=FAST)
    assert stopped.value.exit_code == 143
    (folder,) = (run / "eval").iterdir()
    assert list(read_choices(folder)) == ["near"]
    method.before = lambda number: None
    evaluate(run, ["full"], overrides=FAST)
    assert list(read_choices(folder)) == ["near", "far", "farther"]


def test_given_rates_are_not_searched_and_bad_questions_are_refused(run: Path, method: FakeMethod) -> None:
    (folder,) = evaluate(run, ["full"], overrides=["adapt.full.lr=0.01", "adapt.full.steps=2", "eval.episodes=2"])
    assert folder.name == "full-lr0.01-steps2-4w3s6q-test"
    assert not (folder / "search.json").exists()
    assert {(row.lr, row.search) for row in read_summary(folder / "summary.csv")} == {(0.01, "given")}
    cases = [
        (["adapt.search.kind=none"], ["full"], r"full needs a learning rate: give adapt\.full\.lr"),
        (["adapt.search.kind=paper", "adapt.full.lr=0.1"], ["full", "proto"], "full, proto has no learning rate to search"),
        (["adapt.search.kind=test"], ["full"], "adapt.search.kind"),
        (["adapt.search.rates=[-1]"], ["full"], "adapt.search.rates"),
        (["adapt.full.trajectory=true"], ["proto"], "takes no gradient steps"),
        (["adapt.full.stepz=2"], ["full"], "steps"),
    ]
    for overrides, adapts, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(run, adapts, overrides=overrides)
    assert len(list((run / "eval").iterdir())) == 1


def test_a_damaged_search_is_named(run: Path, method: FakeMethod) -> None:
    (folder,) = evaluate(run, ["full"], ["near"], overrides=FAST)
    for text in ("{", '{"near": {"rate": 0.5}}', '{"near": 3}', "[]"):
        (folder / "search.json").write_text(text)
        with pytest.raises(UserError, match=r"search\.json is damaged; move its folder away"):
            evaluate(run, ["full"], ["near"], overrides=FAST)


def test_an_error_names_rate_and_episode(run: Path, method: FakeMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self, task, support, start, watch=None):
        raise SmatError("it broke")

    monkeypatch.setattr(Full, "tuned", broken)
    with pytest.raises(SmatError, match=r"full at rate 0, search on near episode 0 \(seed 0\): it broke"):
        evaluate(run, ["full"], ["near"], overrides=FAST)


def test_of_equal_accuracies_the_smallest_rate_is_best() -> None:
    assert Choice.best("valid", (0.0, 0.1, 0.2), (0.5, 0.5, 0.5), 3).rate == 0.0
    assert Choice.best("valid", (0.0, 0.1, 0.2), (0.4, 0.6, 0.6), 3).rate == 0.1
    assert Choice.best("valid", (0.0, 0.1, 0.2), (0.4, 0.3, 0.6), 3).rate == 0.2


def test_trajectories_are_recorded_and_change_nothing(run: Path, method: FakeMethod) -> None:
    given = [*FAST[:1], "adapt.full.lr=0.3", "eval.episodes=3"]
    (plain,) = evaluate(run, ["full"], overrides=given)
    (folder,) = evaluate(run, ["full"], overrides=[*given, "adapt.full.trajectory=true"])
    assert folder.name.startswith("full-lr0.3-steps3-trajectory-")
    (proto,) = evaluate(run, ["proto"], overrides=["eval.episodes=3"])
    one, other, none = (read_records(f / "results.h5") for f in (plain, folder, proto))
    moved = False
    for name in one:
        np.testing.assert_array_equal(one[name]["accuracy"], other[name]["accuracy"])
        np.testing.assert_array_equal(one[name]["passes"], other[name]["passes"])
        path = other[name]["trajectory"]
        assert path.shape == (3, 4)
        np.testing.assert_allclose(path[:, 0], none[name]["accuracy"], atol=1e-6)
        np.testing.assert_allclose(path[:, -1], one[name]["accuracy"], atol=1e-6)
        moved |= bool((path != path[:, :1]).any())
        assert "trajectory" not in one[name]
    assert moved
    (searched,) = evaluate(run, ["full"], ["near"], overrides=FAST)
    (watched,) = evaluate(run, ["full"], ["near"], overrides=[*FAST, "adapt.full.trajectory=true"])
    assert read_choices(searched) == read_choices(watched)
    assert read_records(watched / "results.h5")["near"]["trajectory"].shape == (3, 4)  # also at rate 0


def test_variants_name_what_is_not_the_default() -> None:
    def named(**settings) -> str:
        return variant("lora", AdaptConfig.model_validate(settings))

    assert named() == "lora"
    assert named(search={"kind": "paper"}) == "lora-search-paper"
    assert named(lora={"lr": 0.01}, search={"kind": "paper"}) == "lora-lr0.01"
    assert named(lora={"rank": 4, "colour": False}) == "lora-no-colour-rank4"
    assert named(full={"steps": 3}) == "lora"


def test_a_fixed_list_of_episodes(run: Path, method: FakeMethod, tmp_path: Path) -> None:
    """Validation episodes are drawn as in training; `paper` uses as many episodes as the list has."""
    recipe = recipe_of(run)
    stores = {"near": Store.open(Path(recipe.data.root) / "near.h5")}
    write_list(tmp_path / "list.npz", draw_list(EpisodeSampler(stores, "test", recipe.eval.episode, 0), 2))
    asked = ["eval.episode.kind=list", f"eval.episode.file={tmp_path / 'list.npz'}", *FAST]
    (folder,) = evaluate(run, ["full"], ["near"], overrides=asked)
    choice = read_choices(folder)["near"]
    assert (choice.label, choice.tasks) == ("valid", 4)
    sampler = EpisodeSampler(stores, "valid", recipe.episode, 0)
    expected = by_hand(list(EpisodeLoader(sampler, range(4), image_size=16)), method, list(choice.rates))
    np.testing.assert_allclose(choice.accuracies, expected, atol=1e-7)
    (folder,) = evaluate(run, ["full"], ["near"], overrides=[*asked, "adapt.search.kind=paper"])
    assert read_choices(folder)["near"].tasks == 2
