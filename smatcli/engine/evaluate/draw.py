"""Episodes to inspect or save: drawn from stores by a protocol, derived from a specification, or read from a list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smatcli.config.protocols import episode_config
from smatcli.data.episodes.lists import EpisodeList, ListSampler, draw_list, read_list
from smatcli.data.episodes.sampler import EpisodeSampler, protocol_tag
from smatcli.data.metadataset.spec import SPEC_FILE, read_spec
from smatcli.data.metadataset.spec_store import SpecStore
from smatcli.data.pictures import write_episode_picture
from smatcli.data.stores.opening import find_store
from smatcli.data.stores.store import Store
from smatcli.engine.evaluate.episodes import open_lists
from smatcli.errors import UserError


@dataclass(frozen=True)
class Drawn:
    """Sizes of a dataset's episodes: `ways`, `support` and `query` images [E], and the `hash` of the list (empty for a specification)."""

    dataset: str
    protocol: str
    ways: np.ndarray
    support: np.ndarray
    query: np.ndarray
    hash: str = ""


@dataclass(frozen=True)
class Episodes:
    """Episode lists by dataset, with their stores if available; `drawn` has their sizes, `notes` are lines for the user."""

    lists: Mapping[str, EpisodeList]
    stores: Mapping[str, Store]
    drawn: Sequence[Drawn]
    notes: Sequence[str]

    def show(self, index: int, out: str | Path, replace: bool = False) -> Path:
        """Draw a picture of episode `index` into the file `out`; there must be a single dataset."""
        if len(self.lists) != 1:
            names = ", ".join(self.lists) or "none has images"
            raise UserError(f"a picture shows an episode of one dataset; name one (there: {names})")
        ((name, own),) = self.lists.items()
        plan = ListSampler(self.stores[name], own).plan(index)
        title = f"{name}, {own.protocol}-{own.split}, seed {own.seed}, episode {index}"
        return write_episode_picture(self.stores[name], plan, title, out, replace)


def draw(
    names: Sequence[str],
    protocol: str = "meta-dataset",
    overrides: Sequence[str] = (),
    split: str = "test",
    episodes: int = 600,
    seed: int = 0,
    root: Path | None = None,
) -> Episodes:
    """Draw episodes 0 to `episodes` - 1 of each dataset in `names`: stores, or dataset_spec.json files (episodes without images).

    `protocol` is a name or the file of a list. With equal protocol, split and seed, `smat eval` draws the same episodes. Raises UserError
    for invalid arguments.
    """
    config = episode_config(protocol, overrides)
    specs = [name for name in names if _is_spec(name)]
    paths = [find_store(name, root) for name in names if name not in specs]
    stores = {path.stem: Store.open(path) for path in paths}
    if config.kind == "list":
        if specs or not stores:
            raise UserError(f"{config.file}: is a list of episodes; name the stores that they were drawn from")
        lists = open_lists(str(config.file), stores)
        return _from_lists({name: own for name, own in lists.items() if name in stores}, stores, [])
    outlines = {spec.name: SpecStore(spec) for spec in map(read_spec, specs)}
    described = EpisodeSampler(outlines, split, config, seed) if outlines else None
    sampler = EpisodeSampler(stores, split, config, seed) if stores else None
    drawn = _from_lists(draw_list(sampler, episodes), stores, sampler.notes) if sampler else Episodes({}, {}, [], [])
    if described is None:
        return drawn
    more = [_described(name, outlines[name], described, episodes) for name in described.names]
    return Episodes(drawn.lists, drawn.stores, [*drawn.drawn, *more], [*drawn.notes, *described.notes])


def read(file: str | Path, root: Path | None = None, stores: bool = False) -> Episodes:
    """Read a list of episodes; with `stores`, also open the stores below `root` that they were drawn from."""
    lists = read_list(file)
    return _from_lists(lists, {name: Store.open(find_store(name, root)) for name in lists} if stores else {}, [])


def _is_spec(name: str) -> bool:
    path = Path(name)
    return path.name.endswith(".json") or (path.is_dir() and (path / SPEC_FILE).is_file())


def _from_lists(lists: Mapping[str, EpisodeList], stores: Mapping[str, Store], notes: Sequence[str]) -> Episodes:
    def drawn(name: str, own: EpisodeList) -> Drawn:
        episode = np.repeat(np.arange(len(own)), own.ways)
        support, query = (np.bincount(episode, each, len(own)).astype(np.int64) for each in (own.shots, own.queries))
        return Drawn(name, f"{own.protocol}-{own.split}", own.ways, support, query, own.hash)

    return Episodes(dict(lists), dict(stores), [drawn(*item) for item in lists.items()], list(notes))


def _described(name: str, store: SpecStore, sampler: EpisodeSampler, episodes: int) -> Drawn:
    alone = EpisodeSampler({name: store}, sampler.split, sampler.config, sampler.seed)
    outlines = [alone.describe(i) for i in range(episodes)]
    ways = np.array([len(d.classes) for d in outlines])
    support = np.array([int(d.shots.sum()) for d in outlines])
    return Drawn(name, protocol_tag(sampler.config, sampler.split), ways, support, ways * np.array([d.queries for d in outlines]))
