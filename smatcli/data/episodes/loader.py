"""Loaders of episodes and pre-training batches: threads read uint8 images from the stores, the device normalises and augments them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from smatcli.config.schema import AugmentConfig
from smatcli.data.augment import augment, normalise, resize
from smatcli.data.counted import counted_key, counted_rng
from smatcli.data.episodes.lists import ListSampler
from smatcli.data.episodes.sampler import EpisodePlan, EpisodeSampler
from smatcli.data.stores.encoded import EncodedImages, MappedImages
from smatcli.errors import SmatError, UserError
from smatcli.phases import phase
from smatcli.seams import Episode, Support


def gather(images: np.ndarray | EncodedImages, rows: np.ndarray, out: np.ndarray, places: np.ndarray | None = None) -> None:
    """Copy out[places[i]] = images[rows[i]] (uint8 [N, H, W, 3]; places None: i), reading in file order."""
    order = np.argsort(rows, kind="stable")
    where = order if places is None else places[order]
    if isinstance(images, EncodedImages) or (isinstance(images, MappedImages) and images.rows is not None):
        images.read(rows[order], out, where)
    else:
        out[where] = images.view(np.ndarray)[rows[order]]  # indexing a memmap returns a memmap, which is slow


def _buffer(count: int, images: np.ndarray | EncodedImages, pinned: bool) -> Tensor:
    return torch.empty((count, *images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)


class _RawEpisode(NamedTuple):
    plan: EpisodePlan
    images: Tensor  # uint8 [S + Q, H, W, 3]
    support_labels: Tensor
    query_labels: Tensor


class EpisodeLoader:
    """Iterate over the episodes `indices` of `sampler` (may be endless), in order; `workers` and `prefetch` do not change the result.

    On a GPU, the next episode is copied and augmented on a separate stream while the current one is processed.
    Images are normalised float32 [.., 3, image_size, image_size] on `device` (image_size None: the store's size). With `augment`, they
    are augmented with noise that depends only on (seed, split, dataset, index). Error messages name the episode.
    """

    def __init__(
        self,
        sampler: EpisodeSampler | ListSampler,
        indices: Iterable[int],
        device: torch.device | str = "cpu",
        augment: AugmentConfig | None = None,
        image_size: int | None = None,
        prefetch: int = 4,
        workers: int = 1,
    ) -> None:
        if augment is not None and augment.mixup > 0:
            raise UserError("train.augment.mixup: episodes have hard labels, so mixup is for pretraining only; set it to 0")
        self.sampler, self.indices = sampler, indices
        self.device = torch.device(device)
        self.augment = None if augment == AugmentConfig() else augment
        self.image_size, self.prefetch, self.workers = image_size, prefetch, workers
        self._pinned = self.device.type == "cuda"

    def __len__(self) -> int:
        return len(self.indices)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Episode]:
        loaded = prefetched(self._load, self.indices, self.workers, self.prefetch)
        episodes = on_stream(loaded, self._episode, self.device) if self._pinned else map(self._episode, loaded)
        try:
            while True:
                with phase("data"):
                    episode = next(episodes, None)
                if episode is None:
                    return
                yield episode
        finally:
            loaded.close()  # type: ignore[attr-defined]

    def _load(self, index: int) -> _RawEpisode:
        """Read the plan and its raw images; runs in a background thread."""
        where = f"episode {index} (seed {self.sampler.seed})"
        try:
            plan = self.sampler.plan(index)
            where = f"{plan.dataset} {where}"
            images = self.sampler.stores[plan.dataset].images
            raw = _buffer(len(plan.support) + len(plan.query), images, self._pinned)
            gather(images, np.concatenate([plan.support, plan.query]), raw.numpy())
            labels = [torch.from_numpy(plan.support_labels), torch.from_numpy(plan.query_labels)]
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except Exception as error:
            raise SmatError(f"{where}: cannot read its images: {type(error).__name__}: {error}") from error
        return _RawEpisode(plan, raw, *labels)

    def _episode(self, loaded: _RawEpisode) -> Episode:
        """Move to the device and normalise or augment support and query as one batch; runs in the caller's thread."""
        plan = loaded.plan
        raw = loaded.images.to(self.device, non_blocking=self._pinned)
        if self.augment is None:
            images = normalise(raw, self.image_size)
        else:
            key = counted_key("augment", self.sampler.seed, self.sampler.split_of(plan.dataset), plan.dataset, plan.index)
            generator = torch.Generator().manual_seed(key % 2**63)
            images = augment(raw, self.augment, generator, self.image_size)
        cut = len(plan.support)
        return Episode(
            support=Support(images[:cut], loaded.support_labels.to(self.device), len(plan.classes)),
            query_images=images[cut:],
            query_labels=loaded.query_labels.to(self.device),
            dataset=plan.dataset,
            index=plan.index,
            seed=self.sampler.seed,
            rows=(*plan.support.tolist(), *plan.query.tolist()) if self.augment is None else None,
        )


def on_stream(
    items: Iterator[_RawEpisode], make: Callable[[_RawEpisode], Episode], device: torch.device, ahead: int = 1
) -> Iterator[Episode]:
    """Yield `make(item)` per item, computed on a separate CUDA stream `ahead` items early; the caller's stream waits for each result."""
    stream = torch.cuda.Stream(device)
    waiting: deque[tuple[Episode, torch.cuda.Event]] = deque()

    def pop() -> Episode:
        episode, ready = waiting.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        for tensor in (episode.support.images, episode.support.labels, episode.query_images, episode.query_labels):
            tensor.record_stream(current)  # otherwise its memory could be reused while the caller's stream still reads it
        return episode

    for item in items:
        with torch.cuda.stream(stream):
            waiting.append((make(item), stream.record_event()))
        if len(waiting) > ahead:
            yield pop()
    while waiting:
        yield pop()


class LoadingOptions(TypedDict, total=False):
    """Options of a loader: target device and prefetching."""

    device: torch.device | str  # default cpu
    prefetch: int  # batches, default 4
    workers: int  # threads, default 1


class BatchLoader:
    """Batches of images for pre-training: `.epoch(k)` yields (images uint8 [B, H, W, 3], labels int64 [B]), shuffled by (seed, k).

    `images[i]` is a store or its array [N_i, H, W, 3], `rows[i]` the rows to use, `labels[i]` their labels.
    Stores with different image sizes need `image_size`; their images are resized to it (antialiased). With `shuffle`, an incomplete last
    batch is dropped unless it is the only one; without it, every image is used once, in the given order.
    """

    def __init__(
        self,
        images: Sequence[Any],
        rows: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        image_size: int | None = None,
        **loading: Unpack[LoadingOptions],
    ) -> None:
        self.images = [getattr(array, "images", array) for array in images]
        if not len(self.images) == len(rows) == len(labels) or any(len(r) != len(y) for r, y in zip(rows, labels, strict=False)):
            raise ValueError("images, rows and labels must have one entry per store, rows and labels of equal length")
        sizes = sorted({array.shape[1] for array in self.images})
        if image_size is None and len(sizes) > 1:
            raise UserError(f"the stores have images of different sizes ({', '.join(map(str, sizes))} px); choose one image size")
        self.image_size = image_size if image_size is not None else sizes[0]
        self.source = np.concatenate([np.full(len(r), i, np.int64) for i, r in enumerate(rows)])
        self.rows = np.concatenate([np.asarray(r, np.int64) for r in rows])
        self.labels = np.concatenate([np.asarray(y, np.int64) for y in labels])
        if not len(self.rows):
            raise UserError("no images to load: the chosen datasets and classes are empty")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.device = torch.device(loading.get("device", "cpu"))
        self.prefetch, self.workers = loading.get("prefetch", 4), loading.get("workers", 1)

    @property
    def samples(self) -> int:
        """Total number of images."""
        return len(self.rows)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        if self.shuffle:
            return max(1, self.samples // self.batch_size)
        return -(-self.samples // self.batch_size)

    def epoch(self, k: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches `start`, `start` + 1, ... of epoch `k`, on the device."""
        order = counted_rng("batches", self.seed, k).permutation(self.samples) if self.shuffle else np.arange(self.samples)
        chunks = (order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(start, len(self)))
        loaded = prefetched(self._load, chunks, self.workers, self.prefetch)
        pinned = self.device.type == "cuda"
        try:
            for images, labels in loaded:
                yield images.to(self.device, non_blocking=pinned), labels.to(self.device, non_blocking=pinned)
        finally:
            loaded.close()  # type: ignore[attr-defined]

    def _load(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        pinned = self.device.type == "cuda"
        size = self.image_size
        batch = torch.empty((len(chosen), size, size, 3), dtype=torch.uint8, pin_memory=pinned)
        labels = torch.from_numpy(self.labels[chosen])
        for i in np.unique(self.source[chosen]):
            places = np.flatnonzero(self.source[chosen] == i)
            images, rows = self.images[i], self.rows[chosen[places]]
            if images.shape[1] == size:
                gather(images, rows, batch.numpy(), places)
                continue
            raw = _buffer(len(places), images, pinned=False)
            gather(images, rows, raw.numpy())
            batch[torch.from_numpy(places)] = resize(raw.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        return batch, labels.pin_memory() if pinned else labels


Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(work: Callable[[Item], Result], items: Iterable[Item], workers: int = 1, ahead: int = 4) -> Iterator[Result]:
    """Yield `work(item)` for each item in order, computed up to `ahead` items early; `items` may be endless.

    An exception in `work` is raised when its item is due. Closing the generator early waits for running items and ends the threads.
    With `ahead` 0, `work` runs in the caller's thread.
    """
    if ahead < 1:
        yield from map(work, items)
        return
    remaining = iter(items)
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="smat-loader")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in remaining:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
