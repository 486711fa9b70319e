"""What every analysis works on: a run's method, its datasets, and counted episodes with the adaptations as they were evaluated."""

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
from smatcli.engine.evaluate.questions import Dataset, Questions
from smatcli.engine.evaluate.rate_search import Rated
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.runs.analysis import Analysis
from smatcli.runs.rates import read_choices
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted, StopRequest
from smatcli.seams import Adaptation, Episode, Task


@dataclass(frozen=True)
class Job:
    """An analysis that is still empty (name and settings), what fills it, and of how many steps (for the progress) that is."""

    found: Analysis
    fill: Callable[[], None]
    steps: int = 1


@dataclass
class Subject:
    """A run under analysis. `episodes` is None where each analysis takes its own number; `index` the episode that is looked at closely."""

    run: Path
    recipe: TrainRecipe
    method: FlatMethod
    datasets: list[Dataset]
    which: str
    weights: str
    episodes: int | None
    index: int
    chosen: bool  # datasets were named by the user
    reporter: Reporter
    stop: StopRequest
    done: int = 0  # steps of the job at work

    def step(self, **numbers: float | str) -> None:
        """One step of the job is done."""
        self.done += 1
        self.reporter.update(self.done, **numbers)

    @cached_property
    def stores(self) -> dict[str, Store]:
        """The stores of `datasets`."""
        return open_stores(Path(self.recipe.data.root), [d.name for d in self.datasets])

    @cached_property
    def questions(self) -> Questions:
        """The episodes that a meta-test would ask."""
        return Questions(self.recipe.eval, self.datasets, self.stores)

    @property
    def adapts(self) -> list[str]:
        """The adaptations to look at."""
        return list(self.recipe.eval.adapt)

    def variant(self, adapt: str) -> str:
        """An adaptation with its settings, as its folder of results is called."""
        return variant(adapt, self.recipe.adapt)

    def settings(self, **more: Any) -> dict[str, Any]:
        """What decides an analysis, besides its kind."""
        return {"weights": self.weights, "which": self.which, **more}

    def asked(self, episodes: int | None, adapt: str | None = None) -> dict[str, Any]:
        """Settings of an analysis over episodes of the meta-test."""
        splits = self.questions.splits
        found = {
            "episode": self.questions.settings,
            "seed": self.questions.seed,
            "episodes": episodes,
            "precision": str(getattr(self.method.precision, "name", "fp32")),
            "datasets": {d.name: {"content": self.stores[d.name].content_hash, "split": splits[d.name]} for d in self.datasets},
        }
        if adapt is not None:
            found["adapt"] = {"name": adapt, **facts(adapt, self.recipe.adapt)}
        return self.settings(**found)

    def adaptation(self, adapt: str, dataset: str) -> Adaptation:
        """An adaptation as it was evaluated: at the rate that was searched for the dataset. UserError where none was."""
        made = build_adaptation(adapt, self.recipe.adapt)
        if not has_search(adapt, self.recipe.adapt):
            return made
        suffix = "-last" if self.which == "last" else ""
        choice = read_choices(self.run / "eval" / f"{self.variant(adapt)}-{self.questions.folder}{suffix}").get(dataset)
        if choice is None:
            raise UserError(
                f"{adapt}: no learning rate is known for {dataset}; run `smat eval {self.run} --adapt {adapt}` first, "
                f"or give adapt.{adapt}.lr=0.001"
            )
        return cast(Rated, made).at(choice.rate)

    def check(self, adapt: str) -> None:
        """UserError where an adaptation cannot be used for one of the datasets."""
        for dataset in self.datasets:
            self.adaptation(adapt, dataset.name)

    def each(self, dataset: str, count: int, first: int = 0) -> Iterator[Episode]:
        """Episodes `first` ... of the meta-test of a dataset, fewer where a fixed list ends."""
        last = first + count if self.recipe.eval.episode.kind != "list" else min(first + count, self.questions.counts[dataset])
        return self._load(self.questions.samplers[dataset], range(first, last))

    def training(self, dataset: str, count: int) -> Iterator[Episode]:
        """Episodes of the training classes of a dataset, as meta-training draws them, without augmentation."""
        stores = open_stores(Path(self.recipe.data.root), [dataset])
        return self._load(EpisodeSampler(stores, "train", self.recipe.episode, self.recipe.seed), range(count))

    def _load(self, sampler: Any, indices: range) -> Iterator[Episode]:
        loader = EpisodeLoader(sampler, indices, self.method.theta_pre.device, image_size=self.recipe.backbone.image_size)
        for episode in loader:
            yield episode
            if self.stop:
                assert self.stop.signum is not None
                raise Interrupted(self.stop.signum, f"stopped at {episode}; analyses that were finished are kept")

    def task(self, episode: Episode) -> Task:
        """The task of an episode, with the noise of its meta-test."""
        noise = counted_key("adaptation", episode.seed, episode.dataset, episode.index) % 2**63
        return replace(self.method.task(episode.support), seed=noise)
