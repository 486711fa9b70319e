"""The episodes of an evaluation: drawn by a protocol or read from a fixed list, with their names and hashes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.adaptation import check_adaptation, has_search, needs_experts
from smatcli.adaptation.exhaustive import check_experts
from smatcli.config import load_recipe
from smatcli.config.schema import EpisodeConfig, EvalConfig, TrainRecipe
from smatcli.data.episodes.lists import EpisodeList, ListSampler, choose, file_hash, read_list
from smatcli.data.episodes.sampler import EpisodePlan, EpisodeSampler, plan_digest, protocol_tag
from smatcli.data.stores.store import Store
from smatcli.errors import UserError, nearest
from smatcli.runs.directory import RunDir

FREE = ("eval", "adapt", "data.id", "data.ood", "data.ood_split", "data.allow_overlap", "data.root", "threads")


@dataclass(frozen=True)
class Dataset:
    """A dataset of the meta-test: its `domain`, ID or OOD, and the split of classes that is used."""

    name: str
    domain: str
    split: str


def plan(run: Path | str, adapts: Sequence[str] | None = None, episodes: int | None = None, overrides: Sequence[str] = ()) -> TrainRecipe:
    """Return the run's recipe with the settings of the evaluation. Raises UserError for all errors that can be found without weights."""
    path = RunDir.open(run).path
    for text in overrides:
        key = text.partition("=")[0].strip()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            raise UserError(f"{key}: cannot be changed after training; smat eval takes {', '.join(FREE)}{nearest(key, list(FREE))}")
    given = [*overrides] + ([f"eval.episodes={episodes}"] if episodes is not None else [])
    if adapts:
        for name in adapts:
            check_adaptation(name)
        given.append(f"eval.adapt=[{', '.join(dict.fromkeys(adapts))}]")
    recipe = load_recipe(path / "recipe.yaml", given).recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(
            f"{run}: is a {recipe.kind} run; meta-test a run of `smat train` (method 'pretrained' evaluates a backbone without training)"
        )
    if not recipe.eval.adapt:
        raise UserError("no adaptation is given; add --adapt proto")
    for name in recipe.eval.adapt:
        check_adaptation(name)
        experts: int | None = getattr(recipe.method, "experts", None)
        if needs_experts(name) and experts is None:
            raise UserError(f"{name} needs a method with experts; {run} is {recipe.method.name}: use --adapt proto")
        if name == "exhaustive" and experts is not None:
            check_experts(experts)
    _check_rates(recipe, overrides)
    return recipe


def _check_rates(recipe: TrainRecipe, overrides: Sequence[str]) -> None:
    """Raise UserError for a missing learning rate, and for options of fine-tuning if no adaptation fine-tunes."""
    adapts, settings = recipe.eval.adapt, recipe.adapt
    asked = {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in overrides)}
    for name in adapts:
        if settings.search.kind == "none" and getattr(getattr(settings, name, None), "lr", 0) is None:
            raise UserError(f"{name} needs a learning rate: give adapt.{name}.lr=0.001, or let it be chosen by --search valid")
    if asked.get("adapt.search.kind") == "paper" and not any(has_search(name, settings) for name in adapts):
        raise UserError(f"search paper: {', '.join(adapts)} has no learning rate to search (set adapt.NAME.lr to null to search it)")
    watched = [name for name in adapts if getattr(getattr(settings, name, None), "trajectory", False)]
    if not watched and any(key.endswith(".trajectory") and value == "true" for key, value in asked.items()):
        raise UserError(f"trajectory: {', '.join(adapts)} takes no gradient steps; add --adapt full, lora, joint or dipa")


def choose_datasets(recipe: TrainRecipe, names: Sequence[str] | None = None) -> list[Dataset]:
    """Return the recipe's datasets, or only those in `names`, in-domain ones first.

    Raises UserError, with the nearest valid name, for other names.
    """
    data = recipe.data
    datasets = [Dataset(n, "ID", "test") for n in data.id] + [Dataset(n, "OOD", data.ood_split) for n in data.ood]
    if not datasets:
        raise UserError("the recipe names no dataset to meta-test on; add data.id=[...] or data.ood=[...]")
    roles = [d.name for d in datasets]
    for name in names or []:
        if name not in roles:
            if (Path(data.root) / f"{name}.h5").is_file():
                hint = f"; add it as out-of-domain: data.ood=[{', '.join([*data.ood, name])}]"
            else:
                hint = nearest(name, roles) or f"; they are {', '.join(roles)} (add it by data.ood=[{name}])"
            raise UserError(f"dataset {name}: not in data.id or data.ood of this run{hint}")
    return [d for d in datasets if not names or d.name in names]


# Settings added later. They are omitted at their defaults, so that older folders can be continued.
_LATER = ("balanced", "min_images", "ontology", "ignore_hierarchy", "file")


class EvalEpisodes:
    """The episodes of a meta-test: `samplers`, `counts` and `splits` by dataset, `name` the protocol's tag without split.

    `folder` is the suffix of the folder's name; all episodes in it have the same `settings` and `seed`; `notes` are lines for the user.
    Raises UserError for a dataset from which the episodes cannot be drawn, and for a list of other datasets.
    """

    def __init__(self, config: EvalConfig, datasets: Sequence[Dataset], stores: Mapping[str, Store]) -> None:
        self.samplers: dict[str, EpisodeSampler | ListSampler] = {}
        self.counts = {d.name: config.episodes for d in datasets}
        self.splits = {d.name: d.split for d in datasets}
        self.notes: list[str] = []
        self._planned: tuple[str, dict[int, EpisodePlan]] = ("", {})
        if config.episode.kind == "list":
            self._read(config, stores)
        else:
            self._draw(config, datasets, stores)

    def _draw(self, config: EvalConfig, datasets: Sequence[Dataset], stores: Mapping[str, Store]) -> None:
        for d in datasets:
            sampler = EpisodeSampler({d.name: stores[d.name]}, d.split, config.episode, config.seed)
            self.samplers[d.name] = sampler
            self.notes.extend(sampler.notes)
        tag, suffix = protocol_tag(config.episode, "test").removesuffix("-test"), f"-seed{config.seed}" if config.seed else ""
        self.name, self.folder = tag + suffix, f"{tag}-test{suffix}"
        self.seed, self.settings = config.seed, settings_of(config.episode)

    def _read(self, config: EvalConfig, stores: Mapping[str, Store]) -> None:
        file = config.episode.file
        if file is None:
            raise UserError("eval.episode.kind=list needs eval.episode.file: the file that smat data episodes wrote")
        lists = open_lists(file, stores)
        for name in self.counts:
            chosen = choose(lists, name, file)
            self.samplers[name] = ListSampler(stores[name], chosen)
            self.splits[name] = chosen.split
            if len(chosen) < self.counts[name]:
                self.notes.append(f"{name}: {file} has {len(chosen)} episodes (eval.episodes: {self.counts[name]}); all are used")
                self.counts[name] = len(chosen)
        if config.seed:
            self.notes.append(f"eval.seed={config.seed} is not used: the episodes are those of {file}")
        found = file_hash(lists)
        self.name = self.folder = f"list-{found[:12]}"
        self.seed, self.settings = 0, {"kind": "list", "hash": found}

    def protocol(self, dataset: str) -> str:
        """Return the name of the protocol for the dataset's results."""
        return f"{self.name}-{self.splits[dataset]}"

    def plan_of(self, dataset: str) -> Callable[[int], EpisodePlan]:
        """Return a function that maps an episode number to its plan; the plans of one dataset are cached."""
        if self._planned[0] != dataset:
            self._planned = (dataset, {})
        plans, sampler = self._planned[1], self.samplers[dataset]

        def plan(index: int) -> EpisodePlan:
            if index not in plans:
                plans[index] = sampler.plan(index)
            return plans[index]

        return plan

    def digest(self, dataset: str, index: int) -> np.uint64:
        """Return the hash of the classes and images of episode `index`."""
        return plan_digest(self.plan_of(dataset)(index))


def settings_of(config: EpisodeConfig) -> dict[str, Any]:
    """Return the settings of the evaluation as they are stored in its folder."""
    default = EpisodeConfig()
    same = {key for key in _LATER if getattr(config, key) == getattr(default, key)}
    return config.model_dump(mode="json", exclude=same)


def open_lists(file: str | Path, stores: Mapping[str, Store]) -> dict[str, EpisodeList]:
    """Return the episode lists in a file by dataset.

    The file is in our format, or contains PMF's fixed validation episodes (.h5), from which `stores` must have been prepared.
    """
    if Path(file).suffix != ".h5":
        return read_list(file)
    from smatcli.data.sources.pmf_episodes import PmfEpisodesSource

    source = PmfEpisodesSource(file)
    try:
        return {name: source.episodes(store) for name, store in stores.items()}
    finally:
        source.close()
