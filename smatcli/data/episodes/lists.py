"""Fixed episodes in a file, to evaluate on the same episodes anywhere; a hash identifies the episodes of a result.

The file (.npz: a ZIP of plain arrays with checksums, no pickle) contains `head` (JSON text as uint8: format, hash, and the name, split,
protocol, seed and content hash of each dataset) and, for dataset number d, the int64 arrays `d/ways` [E], `d/classes`, `d/shots`,
`d/queries` [sum of ways] and `d/rows`: for each episode the support rows, class by class, then the query rows.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.data.episodes.sampler import EpisodePlan, EpisodeSampler, plan_digest, protocol_tag
from smatcli.errors import UserError, nearest
from smatcli.safe.files import atomic_path, pointer_kind
from smatcli.safe.text import parse_json, refuse_special

FORMAT = "smat-episodes-1"
_ARRAYS = ("ways", "classes", "shots", "queries", "rows")
_TEXTS = ("dataset", "split", "protocol", "content")
_MAX_BYTES = 8 * 2**30  # of all arrays; 10 datasets of 600 episodes take 40 MB
_MAX_RATIO, _FREE_BYTES = 200, 2**26  # largest ratio of unpacked to packed size, checked above so many unpacked bytes


@dataclass(frozen=True, eq=False)
class EpisodeList:
    """Episodes 0, 1, ... of one dataset, as the arrays of the file format.

    `protocol` is the tag of the protocol without the split, `content` the content hash of the store that the rows refer to.
    """

    dataset: str
    split: str
    protocol: str
    seed: int
    content: str
    ways: np.ndarray = field(repr=False)
    classes: np.ndarray = field(repr=False)
    shots: np.ndarray = field(repr=False)
    queries: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, plans: Iterable[EpisodePlan], dataset: str, split: str, protocol: str, seed: int, content: str) -> "EpisodeList":
        """Build the list from `plans`, whose support and query rows are sorted by label."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
        for plan in plans:
            ways = len(plan.classes)
            columns = (np.array([ways]), plan.classes, np.bincount(plan.support_labels, minlength=ways))
            rows = np.concatenate([plan.support, plan.query])
            for name, part in zip(_ARRAYS, (*columns, np.bincount(plan.query_labels, minlength=ways), rows), strict=True):
                parts[name].append(np.asarray(part, np.int64))
        arrays = {name: np.concatenate(columns) if columns else np.zeros(0, np.int64) for name, columns in parts.items()}
        return cls(dataset, split, protocol, seed, content, **arrays)

    def __len__(self) -> int:
        return len(self.ways)

    def plan(self, index: int | np.integer) -> EpisodePlan:
        """Return episode `index`."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.dataset}: episode {index} does not exist; the list has {len(self)} episodes")
        first, last = int(self._class_ends[index]), int(self._class_ends[index + 1])
        shots, queries = self.shots[first:last], self.queries[first:last]
        labels, start, cut = np.arange(last - first), int(self._row_ends[index]), int(shots.sum())
        rows = self.rows[start : int(self._row_ends[index + 1])]
        return EpisodePlan(
            self.dataset, int(index), self.classes[first:last], rows[:cut], np.repeat(labels, shots), rows[cut:], np.repeat(labels, queries)
        )

    @cached_property
    def _class_ends(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.ways)])

    @cached_property
    def _row_ends(self) -> np.ndarray:
        per_class = np.concatenate([[0], np.cumsum(self.shots + self.queries)])
        return np.asarray(per_class[self._class_ends])

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the episodes, see `list_hash`."""
        return list_hash(self.dataset, self.content, [plan_digest(self.plan(i)) for i in range(len(self))])


def list_hash(dataset: str, content: str, digests: Sequence[np.uint64] | np.ndarray) -> str:
    """SHA-256 (hex) of a dataset's name, its content hash and the digests of its episodes in order: equal hashes mean equal episodes."""
    head = json.dumps([dataset, content, len(digests)], separators=(",", ":"))
    return hashlib.sha256(head.encode() + b"\n" + np.asarray(digests, "<u8").tobytes()).hexdigest()


def file_hash(lists: Mapping[str, EpisodeList]) -> str:
    """SHA-256 (hex) of the hashes of all datasets, sorted by name."""
    return hashlib.sha256(json.dumps([lists[name].hash for name in sorted(lists)]).encode()).hexdigest()


def draw_list(sampler: EpisodeSampler, episodes: int) -> dict[str, EpisodeList]:
    """Draw the first `episodes` episodes of each dataset of the sampler, the same as for a sampler of that dataset alone."""
    lists = {}
    for name in sampler.names:
        store, split = sampler.stores[name], sampler.split_of(name)
        alone = EpisodeSampler({name: store}, split, sampler.config, sampler.seed)
        tag = protocol_tag(sampler.config, split).removesuffix(f"-{split}")
        plans = (alone.plan(i) for i in range(episodes))
        lists[name] = EpisodeList.of(plans, name, split, tag, sampler.seed, str(getattr(store, "content_hash", "")))
    return lists


def write_list(path: str | Path, lists: Mapping[str, EpisodeList]) -> str:
    """Write a file of fixed episodes atomically and return its hash."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: give a file name that ends in .npz")
    heads = [{**{key: getattr(lists[n], key) for key in _TEXTS}, "seed": lists[n].seed} for n in sorted(lists)]
    total_hash = file_hash(lists)
    head = json.dumps({"format": FORMAT, "hash": total_hash, "datasets": heads})
    arrays = {f"{d}/{key}": getattr(lists[name], key) for d, name in enumerate(sorted(lists)) for key in _ARRAYS}
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, head=np.frombuffer(head.encode(), np.uint8), **arrays)
    return total_hash


def read_list(path: str | Path) -> dict[str, EpisodeList]:
    """Read the lists of a file, by dataset. Raises UserError if it is missing, damaged, modified, or not a list of episodes."""
    path = Path(path)
    try:
        refuse_special(path)
        with path.open("rb") as file:
            start = file.read(512)
        if kind := pointer_kind(start):
            raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")
        if not start.startswith(b"PK"):
            raise UserError(f"{path}: is not a list of episodes; `smat data episodes NAME --out FILE.npz` writes one")
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _MAX_BYTES or (size > _FREE_BYTES and size > _MAX_RATIO * path.stat().st_size):
            raise UserError(f"{path}: unpacks to {size:,} bytes, too large for a list of episodes")
        with np.load(path, allow_pickle=False) as data:
            return _lists(path, data)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: list of episodes does not exist; `smat data episodes NAME --out {path}` writes one") from None
    except Exception as error:  # damaged archives make zipfile and numpy raise nearly anything
        raise UserError(f"{path}: damaged list of episodes ({(str(error) or type(error).__name__).splitlines()[0][:120]})") from None


def _lists(path: Path, data: Mapping[str, np.ndarray]) -> dict[str, EpisodeList]:
    if "head" not in data:
        raise UserError(f"{path}: is not a list of episodes; `smat data episodes NAME --out FILE.npz` writes one")
    head = parse_json(np.asarray(data["head"], np.uint8).tobytes())
    if head["format"] != FORMAT:
        raise UserError(f"{path}: unknown format {str(head['format'])[:40]!r}, expected {FORMAT}; update smat")
    lists = {}
    for d, facts in enumerate(head["datasets"]):
        arrays = [np.asarray(data[f"{d}/{key}"]) for key in _ARRAYS]
        dataset, split, protocol, content = (str(facts[key]) for key in _TEXTS)
        episodes = EpisodeList(dataset, split, protocol, int(facts["seed"]), content, *arrays)
        _check(path, episodes)
        lists[episodes.dataset] = episodes
    if file_hash(lists) != head["hash"]:
        raise UserError(f"{path}: the episodes do not match the hash in the file; write it again")
    return lists


def _check(path: Path, episodes: EpisodeList) -> None:
    arrays = [getattr(episodes, key) for key in _ARRAYS]
    valid = all(a.dtype == np.int64 and a.ndim == 1 and bool((a >= 0).all()) for a in arrays)
    valid = valid and all(bool((a > 0).all()) for a in (episodes.ways, episodes.shots, episodes.queries))
    valid = valid and {len(a) for a in (episodes.classes, episodes.shots, episodes.queries)} == {int(episodes.ways.sum())}
    if not valid or len(episodes.rows) != int((episodes.shots + episodes.queries).sum()):
        raise UserError(f"{path}: the arrays of {episodes.dataset} are inconsistent; write it again")


class ListSampler:
    """Sampler of the episodes in a list, for `EpisodeLoader`. Raises UserError if the store does not match the list."""

    def __init__(self, store: Any, episodes: EpisodeList) -> None:
        self.stores, self.split, self.seed = {episodes.dataset: store}, episodes.split, episodes.seed
        self.names, self.episodes = (episodes.dataset,), episodes
        self.notes: list[str] = []
        content = str(getattr(store, "content_hash", ""))
        images, classes = int(store.class_offsets[-1]), len(store.counts)
        if content != episodes.content:
            raise UserError(
                f"{episodes.dataset}: the list of episodes was drawn from a store with other content (sha256 {episodes.content[:12]}, "
                f"this store has {content[:12]}); draw it again, or use the original store"
            )
        if (episodes.rows >= images).any() or (episodes.classes >= classes).any():
            raise UserError(f"{episodes.dataset}: the list of episodes has images or classes that are not in the store; draw it again")

    def plan(self, index: int | np.integer) -> EpisodePlan:
        """Return episode `index` of the list."""
        return self.episodes.plan(index)

    def split_of(self, dataset: str) -> str:
        """Return the split that the list was drawn from."""
        return self.split


def choose(lists: Mapping[str, EpisodeList], name: str, where: str | Path) -> EpisodeList:
    """Return the list of dataset `name`. Raises UserError, with the nearest name, if it does not exist."""
    if name not in lists:
        raise UserError(f"{where}: no episodes of {name}{nearest(name, list(lists))} (available: {', '.join(list(lists)[:20])})")
    return lists[name]
