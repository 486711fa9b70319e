"""The subject of an analysis: a run's method, its datasets, the episodes of its meta-test, and the evaluated adaptations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from smatcli.adaptation import build_adaptation, facts, has_search, variant
from smatcli.config.schema import TrainRecipe
from smatcli.data.counted import counted_key
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.store import Store
from smatcli.engine.analyze.options import AnalysisOptions
from smatcli.engine.evaluate.episodes import Dataset, EvalEpisodes
from smatcli.engine.evaluate.rate_search import Rated
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.runs.analysis import Analysis
from smatcli.runs.rates import read_choices
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted, StopRequest
from smatcli.seams import Adaptation, Episode, Task


@dataclass(frozen=True)
class AnalysisJob:
    """An analysis to compute: its name and settings, the function that fills it, and its number of steps (for the progress bar)."""

    analysis: Analysis
    fill: Callable[[], None]
    steps: int = 1


@dataclass
class Subject:
    """The meta-trained run that is analysed; `weights` is the fingerprint of its checkpoint, `done` counts finished steps of a job."""

    run: Path
    recipe: TrainRecipe
    method: FlatMethod
    datasets: list[Dataset]
    weights: str
    options: AnalysisOptions
    reporter: Reporter
    stop: StopRequest
    done: int = 0

    def step(self, **numbers: float | str) -> None:
        """Report one finished step of the current job."""
        self.done += 1
        self.reporter.update(self.done, **numbers)

    @cached_property
    def stores(self) -> dict[str, Store]:
        """The stores of `datasets`."""
        return open_stores(Path(self.recipe.data.root), [d.name for d in self.datasets])

    @cached_property
    def eval_episodes(self) -> EvalEpisodes:
        """The episodes of the run's meta-test."""
        return EvalEpisodes(self.recipe.eval, self.datasets, self.stores)

    @property
    def adapts(self) -> list[str]:
        """The adaptations to analyse."""
        return list(self.recipe.eval.adapt)

    def variant(self, adapt: str) -> str:
        """Return the name of an adaptation with its settings, as in the folder of its evaluation."""
        return variant(adapt, self.recipe.adapt)

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings that identify an analysis among those of the same kind."""
        return {"weights": self.weights, "which": self.options.which, **more}

    def episode_settings(self, episodes: int | None, adapt: str | None = None) -> dict[str, Any]:
        """Return the settings of an analysis over episodes of the meta-test."""
        splits = self.eval_episodes.splits
        settings = {
            "episode": self.eval_episodes.settings,
            "seed": self.eval_episodes.seed,
            "episodes": episodes,
            "precision": str(getattr(self.method.precision, "name", "fp32")),
            "datasets": {d.name: {"content": self.stores[d.name].content_hash, "split": splits[d.name]} for d in self.datasets},
        }
        if adapt is not None:
            settings["adapt"] = {"name": adapt, **facts(adapt, self.recipe.adapt)}
        return self.settings(**settings)

    def adaptation(self, adapt: str, dataset: str) -> Adaptation:
        """Build an adaptation, with the learning rate that the evaluation chose for the dataset.

        Raises UserError if there is no such rate.
        """
        adaptation = build_adaptation(adapt, self.recipe.adapt)
        if not has_search(adapt, self.recipe.adapt):
            return adaptation
        suffix = "-last" if self.options.which == "last" else ""
        choice = read_choices(self.run / "eval" / f"{self.variant(adapt)}-{self.eval_episodes.folder}{suffix}").get(dataset)
        if choice is None:
            raise UserError(
                f"{adapt}: no learning rate has been chosen for {dataset}; run `smat eval {self.run} --adapt {adapt}` first, "
                f"or give adapt.{adapt}.lr=0.001"
            )
        return cast(Rated, adaptation).at(choice.rate)

    def check(self, adapt: str) -> None:
        """Raise UserError if an adaptation cannot be used for one of the datasets."""
        for dataset in self.datasets:
            self.adaptation(adapt, dataset.name)

    def episodes(self, dataset: str, count: int, first: int = 0) -> Iterator[Episode]:
        """Yield `count` meta-test episodes of a dataset, starting at number `first`; fewer if a fixed list ends before."""
        last = first + count if self.recipe.eval.episode.kind != "list" else min(first + count, self.eval_episodes.counts[dataset])
        return self._load(self.eval_episodes.samplers[dataset], range(first, last))

    def training_episodes(self, dataset: str, count: int) -> Iterator[Episode]:
        """Yield `count` episodes of a dataset's training classes, drawn as in meta-training but not augmented."""
        stores = open_stores(Path(self.recipe.data.root), [dataset])
        return self._load(EpisodeSampler(stores, "train", self.recipe.episode, self.recipe.seed), range(count))

    def _load(self, sampler: Any, indices: range) -> Iterator[Episode]:
        loader = EpisodeLoader(sampler, indices, self.method.theta_pre.device, image_size=self.recipe.backbone.image_size)
        for episode in loader:
            yield episode
            if self.stop:
                assert self.stop.signum is not None
                raise Interrupted(self.stop.signum, f"stopped at {episode}; finished analyses are kept")

    def task(self, episode: Episode) -> Task:
        """Return the task of an episode, with the same random noise as in the meta-test."""
        noise = counted_key("adaptation", episode.seed, episode.dataset, episode.index) % 2**63
        return replace(self.method.task(episode.support), seed=noise)
