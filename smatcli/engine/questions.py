"""Which episodes a meta-test asks: drawn by a protocol, or read from a fixed list; their name, and the hash of each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.config.schema import EpisodeConfig, EvalConfig
from smatcli.data.episode_list import EpisodeList, ListSampler, choose, file_hash, read_list
from smatcli.data.episodes import EpisodePlan, EpisodeSampler, plan_digest, protocol_tag
from smatcli.data.store import Store
from smatcli.engine.evalplan import Dataset
from smatcli.errors import UserError

# Settings of later versions: left out where they are the default, so that folders which were written before them are continued.
_LATER = ("balanced", "min_images", "ontology", "ignore_hierarchy", "file")


class Questions:
    """The episodes of a meta-test: `samplers`, `counts` and `splits` by dataset, `name` the protocol's tag without split.

    `folder` names the evaluation's folder, `settings` and `seed` must be equal for everything in it, `notes` are for the user. Raises
    UserError for a dataset that cannot give the episodes asked for, and for a list that is none of these datasets'.
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
        """The tag that stands in the dataset's results."""
        return f"{self.name}-{self.splits[dataset]}"

    def plan_of(self, dataset: str) -> Callable[[int], EpisodePlan]:
        """The plans of a dataset's episodes, by number; those of one dataset are remembered."""
        if self._planned[0] != dataset:
            self._planned = (dataset, {})
        known, sampler = self._planned[1], self.samplers[dataset]

        def plan(index: int) -> EpisodePlan:
            if index not in known:
                known[index] = sampler.plan(index)
            return known[index]

        return plan

    def digest(self, dataset: str, index: int) -> np.uint64:
        """Hash of what episode `index` asks."""
        return plan_digest(self.plan_of(dataset)(index))


def settings_of(config: EpisodeConfig) -> dict[str, Any]:
    """The settings as an evaluation's folder keeps them."""
    default = EpisodeConfig()
    same = {key for key in _LATER if getattr(config, key) == getattr(default, key)}
    return config.model_dump(mode="json", exclude=same)


def open_lists(file: str | Path, stores: Mapping[str, Store]) -> dict[str, EpisodeList]:
    """The lists of a file by dataset: one of ours, or PMF's fixed validation episodes (.h5) of which `stores` was prepared."""
    if Path(file).suffix != ".h5":
        return read_list(file)
    from smatcli.data.sources.pmf_episodes import PmfEpisodesSource

    source = PmfEpisodesSource(file)
    try:
        return {name: source.episodes(store) for name, store in stores.items()}
    finally:
        source.close()
