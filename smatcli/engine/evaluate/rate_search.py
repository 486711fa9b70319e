"""Search of an adaptation's learning rate, once per dataset: on validation classes, on halves of support sets, or as in the papers.

All candidates, including rate 0 (no adaptation), are tried on the same tasks. On these tasks, the chosen rate is therefore never worse
than no adaptation. Only `--search paper` uses query labels of the evaluated episodes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, Self

import numpy as np
import torch

from smatcli.adaptation.finetune import FineTune
from smatcli.adaptation.grouped import Grouping, adapt_many
from smatcli.config.schema import EpisodeConfig
from smatcli.data.counted import counted_key
from smatcli.data.episodes.lists import ListSampler
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.engine.evaluate.episode_work import EvalSetup
from smatcli.engine.loop.distributed import ALONE, World
from smatcli.errors import SmatError, UserError
from smatcli.runs.rates import Choice
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted, StopRequest
from smatcli.seams import Adaptation, Classifier, Episode, Support, Task

DISJOINT = ("train", "test")  # splits without any class of the validation split


class Rated(Adaptation, Protocol):
    """An adaptation with a learning rate."""

    def at(self, rate: float) -> Self:
        """Return the adaptation with another learning rate."""
        ...


@dataclass(frozen=True)
class TaskSource:
    """The tasks of a search: the first `count` episodes of `sampler`, or (`split`) only their support sets."""

    label: str
    sampler: EpisodeSampler | ListSampler
    count: int
    split: bool = False


def support_halves(episode: Episode) -> Iterator[Episode]:
    """Make two episodes of a support set: split its images into halves class by class; each half is the query set of the other.

    A class with a single image is in both support sets and in no query set. The episode's own query set is not used.
    """
    support = episode.support
    key = counted_key("leave-out", episode.seed, episode.dataset, episode.index)
    order = torch.randperm(len(support.labels), generator=torch.Generator().manual_seed(key % 2**63)).to(support.labels.device)
    half = torch.full_like(support.labels, -1)
    for label in range(support.ways):
        members = order[support.labels[order] == label]
        if len(members) > 1:
            half[members] = torch.arange(len(members), device=half.device) % 2
    for fold in (0, 1):
        held_out = half == fold
        if bool(held_out.any()):
            kept = Support(support.images[~held_out], support.labels[~held_out], support.ways)
            yield replace(episode, support=kept, query_images=support.images[held_out], query_labels=support.labels[held_out], rows=None)


def candidates(
    adaptation: Rated, task: Task, support: Support, rates: Sequence[float], grouping: Grouping
) -> Iterator[tuple[Sequence[float], Callable[[], Sequence[Classifier]]]]:
    """Yield the candidates of a task in groups: their rates, and a function that adapts the task at these rates (together if faster).

    For fine-tuning, the support set is embedded with the task's own parameters once for all rates.
    """
    if not isinstance(adaptation, FineTune):
        for rate in rates:
            yield [rate], lambda rate=rate: [adaptation.at(rate).adapt(task, support)]  # type: ignore[misc]
        return
    tuning = adaptation
    start = cache(lambda: tuning.at(0.0).before(task, support))
    size = grouping.size(tuning, task, support) if len(rates) > 1 else 1
    still = [rate for rate in rates if not rate]
    moving = [rate for rate in rates if rate]
    # Rate 0 takes no steps and is tried alone.
    for part in [still, *(moving[i : i + size] for i in range(0, len(moving), size))]:
        count = len(part)
        if part:
            yield (
                part,
                lambda part=part, count=count: adapt_many(  # type: ignore[misc]
                    tuning, [task] * count, [support] * count, part, [start()] * count
                ),
            )


class RateSearch:
    """Search of the learning rates of one evaluation; `chosen(adapt, dataset)` returns an earlier choice, or None."""

    def __init__(self, setup: EvalSetup, reporter: Reporter, chosen: Callable[[str, str], Choice | None], world: World = ALONE) -> None:
        self.recipe, self.episodes, self.stores = setup.recipe, setup.episodes, setup.stores
        self.method, self.device = setup.method, setup.device
        self.features, self.grouping = setup.features, setup.grouping
        self.reporter, self.chosen, self.world = reporter, chosen, world
        self.rates = tuple(sorted({0.0, *self.recipe.adapt.search.rates}))
        self.sources = {name: self._source(name) for name in self.stores}

    def check(self, adapt: str, dataset: str) -> None:
        """Raise UserError if there are no tasks on which to choose a rate."""
        if self.chosen(adapt, dataset) is None and self.sources[dataset] is None and not self._other_datasets():
            raise UserError(
                f"{adapt} on {dataset}: no data to choose a learning rate on (no validation classes other than those evaluated, and "
                f"one support image per class); give adapt.{adapt}.lr, or also evaluate a dataset with validation classes"
            )

    def choose(self, adapt: str, adaptation: Rated, dataset: str, stop: StopRequest) -> Choice:
        """Choose the rate of a dataset. Raises `Interrupted` on a stop request, which discards the unfinished search."""
        source = self.sources[dataset]
        choice = self._search(adapt, adaptation, dataset, source, stop) if source else self._choose_on_others(adapt, adaptation, stop)
        self.reporter.line(f"{adapt} on {dataset}: {choice}")
        return choice

    def _choose_on_others(self, adapt: str, adaptation: Rated, stop: StopRequest) -> Choice:
        """Choose the best rate over the validation classes of the other datasets, with equal weights."""
        choices = {}
        for name in self._other_datasets():
            source = self.sources[name]
            assert source is not None
            choices[name] = self.chosen(adapt, name) or self._search(adapt, adaptation, name, source, stop)
        mean = np.mean([choice.accuracies for choice in choices.values()], 0)
        return Choice.best(f"valid:{'+'.join(choices)}", self.rates, mean.tolist(), sum(c.tasks for c in choices.values()))

    def _other_datasets(self) -> list[str]:
        return [name for name, source in self.sources.items() if source is not None and source.label == "valid"]

    def _source(self, dataset: str) -> TaskSource | None:
        config, sampler = self.recipe.adapt.search, self.episodes.samplers[dataset]
        # The count does not depend on the number of evaluated episodes: adding episodes later must not change the rate.
        count = min(config.episodes, len(sampler.episodes)) if isinstance(sampler, ListSampler) else config.episodes
        if config.kind == "paper":
            return TaskSource("paper", sampler, count)
        if self.episodes.splits[dataset] in DISJOINT:
            try:
                valid = EpisodeSampler({dataset: self.stores[dataset]}, "valid", self._protocol(), self.recipe.eval.seed)
                return TaskSource("valid", valid, config.episodes)
            except UserError:
                pass  # no validation classes, or too few for an episode
        several = any(bool((np.bincount(sampler.plan(i).support_labels) > 1).any()) for i in range(count))
        return TaskSource("support", sampler, count, split=True) if several else None

    def _protocol(self) -> EpisodeConfig:
        """Return the protocol of validation episodes: that of the evaluation or, for a fixed list, that of training."""
        return self.recipe.episode if self.recipe.eval.episode.kind == "list" else self.recipe.eval.episode

    def _search(self, adapt: str, adaptation: Rated, dataset: str, source: TaskSource, stop: StopRequest) -> Choice:
        self.reporter.line(f"{adapt} on {dataset}: searching its learning rate on {source.count} tasks ({source.label})")
        mine = [i for i in range(source.count) if self.world.owns(i)]
        loader = EpisodeLoader(source.sampler, mine, self.device, image_size=self.recipe.backbone.image_size)
        rows: list[list[float]] = []
        for episode in loader:
            tasks = support_halves(episode) if source.split else [episode]
            shares = [self._accuracies(adapt, adaptation, dataset, task, stop) for task in tasks]
            rows.append([len(shares), *(share for own in shares for share in own)])
        width = len(self.rates)
        table = self.world.gather_rows(source.count, mine, rows)
        by_task = [row[1 + k * width : 1 + (k + 1) * width] for row in table for k in range(int(row[0]))]
        return Choice.best(source.label, self.rates, np.mean(by_task, 0).tolist(), len(by_task))

    def _accuracies(self, adapt: str, adaptation: Rated, dataset: str, episode: Episode, stop: StopRequest) -> list[float]:
        """Return the query accuracy (fraction) of every candidate on one task."""
        noise = counted_key("search", episode.seed, episode.dataset, episode.index) % 2**63
        # All rates start at the same theta: compute its features once, including the query's, which rate 0 needs.
        self.features.bind(replace(episode, rows=None), joined=True)
        task = self.features.of(replace(self.method.task(episode.support), seed=noise))
        accuracies: list[float] = []
        for rates, adapted in candidates(adaptation, task, episode.support, self.rates, self.grouping):
            if stop:
                assert stop.signum is not None
                raise Interrupted(stop.signum, f"stopped in the rate search of {adapt} on {dataset}; run the same command to continue")
            try:
                logits = [classifier.predict(episode.query_images) for classifier in adapted()]
            except SmatError as error:
                named = ", ".join(f"{rate:g}" for rate in rates)
                raise type(error)(f"{adapt} at rate {named}, search on {episode}: {error}") from None
            accuracies += [float((scores.argmax(1) == episode.query_labels).double().mean()) for scores in logits]
        return accuracies
