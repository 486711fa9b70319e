"""Meta-test of a run: every adaptation is evaluated on the same numbered episodes of the test classes.

An interrupted meta-test continues.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from smatcli.adaptation import build_adaptation, facts, has_search, variant
from smatcli.adaptation.grouped import Grouping
from smatcli.adaptation.proto import Proto
from smatcli.config.methods import method_facts
from smatcli.config.schema import TrainRecipe
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.overlap import contents, copies
from smatcli.data.stores.store import Store
from smatcli.device import threads
from smatcli.engine.evaluate.episode_work import EpisodeWork, EvalSetup, PendingEpisode
from smatcli.engine.evaluate.episodes import Dataset, EvalEpisodes, choose_datasets, plan
from smatcli.engine.evaluate.features import Features, plans_of, without_images
from smatcli.engine.evaluate.folder import EvalFolder
from smatcli.engine.evaluate.rate_search import Rated, RateSearch
from smatcli.engine.loop.determinism import deterministic
from smatcli.engine.loop.distributed import ALONE, World, world
from smatcli.runs.directory import RunDir
from smatcli.runs.manifest import Damaged, read_state
from smatcli.runs.rates import Choice
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.runs.signals import Interrupted, StopRequest
from smatcli.safe.links import refuse_outside_links
from smatcli.seams import Adaptation, Episode, Method

PART_EPISODES, PART_SECONDS = 100, 30.0


@dataclass(frozen=True)
class EvalOptions:
    """Options of a meta-test. `which`: the checkpoint, best or last; `device`: by default the recipe's."""

    which: str = "best"
    device: str | None = None


def evaluate(
    run: Path | str,
    adapts: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    episodes: int | None = None,
    overrides: Sequence[str] = (),
    options: EvalOptions | None = None,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Meta-test a run and return the folders `eval/<adapt>-<protocol>` (results.h5, summary.csv), one per adaptation.

    `adapts`, `datasets` (of data.id and data.ood) and `episodes` default to the recipe's. `overrides` are `key=value` settings of eval.*,
    adapt.*, data.id, data.ood, data.ood_split, data.root and threads. Episodes on disk are not evaluated again. Episode k of
    (eval.seed, dataset) is the same for every run and adaptation. Raises `UserError` before anything is written, `SmatError` if logits are
    not finite (naming the episode) and `Interrupted` after SIGINT or SIGTERM. Finished episodes are kept.
    """
    options = options or EvalOptions()
    recipe = plan(run, adapts, episodes, overrides)
    chosen = choose_datasets(recipe, datasets)
    here = world(options.device or recipe.device)
    main_reporter = here.reporter(reporter or SilentReporter())
    with threads(recipe.threads), deterministic(recipe.deterministic):
        with here.fail_together():
            evaluation = Evaluation(Path(run), recipe, chosen, options, main_reporter, here)
        return evaluation.execute()


def fingerprint(method: nn.Module) -> str:
    """Return a hash of the tensors of a method: names, shapes, types and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(method.state_dict().items()):
        raw = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(raw.shape)} {raw.dtype}".encode())
        digest.update(raw.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Evaluation:
    """A meta-test of a run. The constructor loads and checks everything; `execute` runs it."""

    def __init__(
        self,
        run: Path,
        recipe: TrainRecipe,
        datasets: list[Dataset],
        options: EvalOptions,
        reporter: Reporter,
        here: World = ALONE,
    ):
        from smatcli.engine.loop.loading import load_method

        which = options.which
        self.world = here
        self.run, self.recipe, self.datasets, self.reporter = run, recipe, datasets, reporter
        opened = RunDir.open(run)
        refuse_outside_links(run)
        if not opened.finished:
            reporter.line(f"{run} is not finished ({opened.info.get('status')}): evaluating its {which} checkpoint so far")
        stores = open_stores(Path(recipe.data.root), [d.name for d in datasets], reporter.line)
        self.copies = self._copies(opened, which, stores)
        self.episodes = EvalEpisodes(recipe.eval, datasets, stores)
        method, _ = load_method(run, which, reporter, options.device)
        self.method = cast(Method, method)
        self.device = method.theta_pre.device
        self.precision = str(getattr(method.precision, "name", "fp32"))
        reporter.line(f"{run} ({recipe.method.name}, {which} checkpoint): {method.precision}")
        self.adaptations: dict[str, Adaptation] = {name: build_adaptation(name, recipe.adapt) for name in recipe.eval.adapt}
        self.stores = stores
        self.features = Features(self.method, self.device, recipe.backbone.image_size, recipe.eval.cache_features)
        self.folders = {name: self._folder(name, which, fingerprint(method), stores) for name in self.adaptations}
        for folder in self.folders.values():
            folder.check()
        self.searched = [name for name in self.adaptations if has_search(name, recipe.adapt)]
        grouping = Grouping(recipe.adapt.group, reporter.line)
        setup = EvalSetup(recipe, self.episodes, stores, self.method, self.device, self.features, grouping)
        self.work = EpisodeWork(setup)
        self.search = RateSearch(setup, reporter, self._chosen, here)
        for name in self.searched:
            for d in datasets:
                self.search.check(name, d.name)

    def _copies(self, opened: RunDir, which: str, stores: Mapping[str, Store]) -> dict[str, str]:
        """Return the datasets that are copies, see `copies`; training datasets are those of the checkpoint and of the folder of stores."""
        data = self.recipe.data
        trained = contents(data.root, data.train)
        with suppress(Damaged, OSError):
            recorded = read_state(opened.checkpoints / which).get("data") or {}
            trained |= {str(name): str(content) for name, content in recorded.items() if name in data.train}
        hashes = {domain: {d.name: stores[d.name].content_hash for d in self.datasets if d.domain == domain} for domain in ("ID", "OOD")}
        return copies(trained, hashes["ID"], hashes["OOD"], data.allow_overlap)

    def _chosen(self, adapt: str, dataset: str) -> Choice | None:
        return self.folders[adapt].choices.get(dataset)

    def _with_rate(self, adapt: str, dataset: str, stop: StopRequest) -> Adaptation:
        """Return an adaptation with the learning rate of a dataset, after a search if no rate was chosen before."""
        adaptation = self.adaptations[adapt]
        if adapt not in self.searched:
            return adaptation
        rated, choice = cast(Rated, adaptation), self._chosen(adapt, dataset)
        if choice is None:
            choice = self.search.choose(adapt, rated, dataset, stop)
            self.folders[adapt].choose(dataset, choice, write=self.world.is_main)
        return rated.at(choice.rate)

    def _folder(self, adapt: str, which: str, weights: str, stores: Mapping[str, Store]) -> EvalFolder:
        recipe = self.recipe
        suffix = "-last" if which == "last" else ""
        path = self.run / "eval" / f"{variant(adapt, recipe.adapt)}-{self.episodes.folder}{suffix}"
        settings = {
            "weights": weights,
            "precision": self.precision,
            "method": method_facts(recipe.method),
            "image_size": recipe.backbone.image_size,
            "episode": self.episodes.settings,
            "seed": self.episodes.seed,
            "adapt": {"name": adapt, **facts(adapt, recipe.adapt)},
        }
        about = {
            d.name: {
                "domain": d.domain,
                "split": self.episodes.splits[d.name],
                "content": stores[d.name].content_hash,
                "protocol": self.episodes.protocol(d.name),
                **({"copy_of": self.copies[d.name]} if d.name in self.copies else {}),
            }
            for d in self.datasets
        }
        return EvalFolder(path, settings, about)

    def execute(self) -> list[Path]:
        """Evaluate the missing episodes, then join the results."""
        with ExitStack() as stack:
            with self.world.fail_together():
                if self.world.is_main:
                    for folder in self.folders.values():
                        stack.enter_context(folder.opened())
            for folder in self.folders.values():
                if not self.world.is_main:
                    folder.read()
            todo = [(d, index, missing) for d in self.datasets for index, missing in self._missing(d.name)]
            self.world.wait()  # all processes have now read the existing parts
            if todo:
                self._evaluate(todo)
                self.world.wait()
            else:
                each = " or ".join(str(n) for n in sorted(set(self.episodes.counts.values())))
                self.reporter.line(f"{self.run}: all {each} episodes of {len(self.datasets)} datasets are evaluated already")
            with self.world.fail_together():  # no process may read results before they are written
                for name, folder in self.folders.items() if self.world.is_main else ():
                    if self.world.size > 1:
                        folder.read()
                    folder.merge(self._facts(name))
        return [folder.path for folder in self.folders.values()]

    def _facts(self, adapt: str) -> dict[str, Any]:
        method = self.recipe.method
        sparsity = getattr(method, "sparsity", None)
        return {
            "run": self.run.resolve().name,
            "method": method.name,
            "adapt": variant(adapt, self.recipe.adapt),
            "tau": None if sparsity is None else sparsity.tau,
            "experts": getattr(method, "experts", None),
        }

    def _missing(self, dataset: str) -> list[tuple[int, list[str]]]:
        """Return the missing episodes of a dataset: their indices, with the adaptations to evaluate."""
        done = {name: folder.done(dataset) for name, folder in self.folders.items()}
        wanted = [(i, [n for n in done if i not in done[n]]) for i in range(self.episodes.counts[dataset])]
        return [(i, names) for i, names in wanted if names]

    def _evaluate(self, todo: list[tuple[Dataset, int, list[str]]]) -> None:
        for note in dict.fromkeys(self.episodes.notes):
            self.reporter.line(note)
        total = sum(self.episodes.counts.values())
        before = done = total - len(todo)
        if before:
            self.reporter.line(f"{self.run}: {before} of {total} episodes are evaluated already, continuing")
        needed = {d.name: {name for one, _, names in todo if one is d for name in names} for d in self.datasets}
        todo = [one for one in todo if self.world.owns(one[1])]
        total = before + len(todo)
        self.reporter.start(total, "meta-test", done=before, unit="episodes")
        try:
            with StopRequest() as stop, torch.inference_mode(), self.features.attached():
                for dataset in self.datasets:
                    work = {index: names for d, index, names in todo if d is dataset}
                    done = self._dataset(dataset.name, work, needed[dataset.name], done, total, stop)
        finally:
            self.reporter.finish()

    def _dataset(self, name: str, work: dict[int, list[str]], needed: set[str], done: int, total: int, stop: StopRequest) -> int:
        """Evaluate the episodes `work` (index -> adaptations) of a dataset, and store the records in parts.

        `needed`: the adaptations that at least one process evaluates. All processes take part in the search of their rates.
        """
        adaptations = {a: self._with_rate(a, name, stop) for a in self.adaptations if a in needed}
        episodes = self._episodes(name, {i: [adaptations[a] for a in names] for i, names in work.items()}, stop)
        rows: dict[str, list[dict[str, Any]]] = {a: [] for a in self.adaptations}
        means: dict[str, list[float]] = {a: [] for a in self.adaptations}
        written = time.monotonic()
        try:
            for group, last in self._groups(adaptations, work, episodes):
                for one in self.work.close(group) if group else ():
                    for adapt, row in one.items():
                        rows[adapt].append(row)
                        means[adapt].append(row["accuracy"])
                    done += 1
                    self.reporter.update(done, dataset=name, **{a: 100 * float(np.mean(m)) for a, m in means.items() if m})
                if stop:
                    assert stop.signum is not None
                    raise Interrupted(
                        stop.signum, f"stopped at {last}; {done} of {total} episodes are kept, run the same command to continue"
                    )
                if max(map(len, rows.values())) >= PART_EPISODES or time.monotonic() - written > PART_SECONDS:
                    self._store(name, rows)
                    written = time.monotonic()
        finally:
            self._store(name, rows)
        return done

    def _groups(
        self, adaptations: Mapping[str, Adaptation], work: Mapping[int, list[str]], episodes: Iterator[Episode]
    ) -> Iterator[tuple[list[PendingEpisode], Episode]]:
        """Yield groups of episodes to fine-tune together (usually one; none while more are needed), and the last episode read."""
        waiting: list[PendingEpisode] = []
        for episode in episodes:
            opened = self.work.open(episode, {a: adaptations[a] for a in work[episode.index]})
            if waiting and not waiting[0].joins(opened):
                yield waiting, waiting[-1].episode
                waiting = []
            waiting.append(opened)
            full = len(waiting) >= opened.size
            yield (waiting if full else []), episode
            waiting = [] if full else waiting
        if waiting:
            yield waiting, waiting[-1].episode

    def _episodes(self, name: str, work: Mapping[int, list[Adaptation]], stop: StopRequest) -> Iterator[Episode]:
        """Yield the episodes of a dataset. If the tables of `features` cover them, all but the first come without images."""
        features, sampler, size = self.features, self.episodes.samplers[name], self.recipe.backbone.image_size
        features.begin(self.stores[name])
        self.work.spread = 0.0
        loaded = iter(EpisodeLoader(sampler, list(work), self.device, image_size=size))
        try:
            for first in loaded:
                yield first
                break
            rest = [i for i in work if i != first.index] if work else []
            if rest and features.enabled:
                plans = plans_of(self.episodes.plan_of(name), rest)
                features.tabulate(plans, first, stop)
                self.work.spread = features.seconds / len(rest)
                proto = all(type(one) is Proto for found in work.values() for one in found)
                if proto and features.complete(plans):
                    shape = tuple(first.query_images.shape[1:])
                    yield from (without_images(plan, first.seed, shape, self.device) for plan in plans.values())
                    return
            yield from loaded
        finally:
            loaded.close()  # type: ignore[attr-defined]

    def _store(self, dataset: str, rows: dict[str, list[dict[str, Any]]]) -> None:
        for adapt, found in rows.items():
            self.folders[adapt].add(dataset, found)
            found.clear()
