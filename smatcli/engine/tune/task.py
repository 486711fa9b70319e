"""Images of a tuning task: their split, batches from memory or from the store, preprocessing and scores."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smatcli.config.schema import AugmentConfig
from smatcli.config.tune import TuneRecipe
from smatcli.data.augment import MEAN, STD, augment, normalise
from smatcli.data.counted import counted_rng
from smatcli.data.episodes.loader import gather, prefetched
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.store import Store
from smatcli.errors import UserError

PARTS = ("train", "valid", "test")
GIB = 2**30
TEST_BATCH = 256


@dataclass(frozen=True, eq=False)
class TuningTask:
    """A dataset as a tuning task: the rows of the store in each part, and the class of every row."""

    store: Store
    rows: dict[str, np.ndarray]
    labels: np.ndarray  # int64 [N]

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.store.class_names)

    def fitted(self, recipe: TuneRecipe) -> np.ndarray:
        """Return the rows to train on (data.fit)."""
        if recipe.data.fit == "train":
            return self.rows["train"]
        return np.concatenate([self.rows["train"], self.rows["valid"]])


def open_task(recipe: TuneRecipe) -> TuningTask:
    """Open the task of a recipe. Raises UserError if it has too few images, or no images in a part that the recipe needs."""
    data, axes = recipe.data, recipe.tune.search.axes
    store = open_stores(data.root, [data.dataset])[data.dataset]
    if data.split == "store" and store.image_split is None:
        raise UserError(
            f"data.split: {store.path} is split by class, not by image; set data.split to counted, or prepare vtab or fgvc lists"
        )
    drawn = data.split == "counted" or store.image_split is None
    if not drawn:
        rows = {part: store.image_rows(part) for part in PARTS}
    else:
        rows = draw_split(store, data.train, data.valid, data.test, data.split_seed)
    task = TuningTask(store, rows, np.repeat(np.arange(len(store.class_names)), store.counts))
    for part in ("train", "test"):
        if not len(rows[part]):
            raise UserError(f"{store.path}: has no {part} images; prepare it again with all lists")
    if not len(rows["valid"]) and (axes or recipe.tune.select == "best"):
        why = f"tune.search.{next(iter(axes)).rpartition('.')[2]}" if axes else "tune.select best"
        hint = "set data.valid" if drawn else "prepare the store with its list of validation images"
        raise UserError(f"{store.path}: has no validation images, which {why} needs; {hint}")
    return task


def draw_split(store: Store, train: int, valid: int, test: int | None, seed: int) -> dict[str, np.ndarray]:
    """Draw `train`, `valid` and up to `test` images, stratified by class, from `seed`. Raises UserError if there are too few."""
    total = len(store)
    if train + valid >= total:
        raise UserError(
            f"{store.path}: has {total} images, {train} + {valid} to train and validate leave none to test; lower data.train or valid"
        )
    places = []
    for index, count in enumerate(store.counts):
        rng = counted_rng("tune-split", seed, store.name, index)
        places.append((rng.permutation(int(count)) + rng.random()) / count)  # image k of a class gets the position (k + u) / count
    order = np.argsort(np.concatenate(places), kind="stable")
    last = total if test is None else min(total, train + valid + test)
    cuts = {"train": order[:train], "valid": order[train : train + valid], "test": order[train + valid : last]}
    return {part: np.sort(rows) for part, rows in cuts.items()}


class View:
    """Some rows of a task, as batches of raw images on the device. `keep`: keep all images in the device's memory."""

    def __init__(self, task: TuningTask, rows: np.ndarray, device: torch.device, keep: bool) -> None:
        self.task, self.rows, self.device = task, rows, device
        self.labels = torch.from_numpy(task.labels[rows]).to(device)
        self.kept = self._read(np.arange(len(rows))).to(device) if keep else None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bytes(self) -> int:
        """Size of all images."""
        return len(self.rows) * self.task.store.image_size**2 * 3

    def batches(self, chunks: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions [B], raw images uint8 [B, H, W, 3]) for each chunk of positions."""
        if self.kept is not None:
            for chunk in chunks:
                chosen = torch.from_numpy(chunk).to(self.device)
                yield chosen, self.kept[chosen]
            return
        loaded = prefetched(self._read, chunks, 2, 4)
        try:
            for chunk, raw in zip(chunks, loaded, strict=True):
                yield torch.from_numpy(chunk).to(self.device), raw.to(self.device)
        finally:
            loaded.close()  # type: ignore[attr-defined]

    def _read(self, chosen: np.ndarray) -> Tensor:
        images = self.task.store.images
        raw = np.empty((len(chosen), *images.shape[1:]), np.uint8)
        gather(images, self.rows[chosen], raw)
        return torch.from_numpy(raw)


def in_order(count: int, size: int = TEST_BATCH) -> list[np.ndarray]:
    """Return the positions 0 ... count - 1 in chunks of `size`."""
    return [np.arange(i, min(i + size, count)) for i in range(0, count, size)]


def shuffled(count: int, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the positions of an epoch in chunks of `size`, shuffled by (seed, epoch). A single image at the end joins the last chunk."""
    order = counted_rng("tune-batches", seed, epoch).permutation(count)
    chunks = [order[i : i + size] for i in range(0, count, size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [np.concatenate(chunks[-2:])]
    return chunks


def network_input(raw: Tensor, recipe: TuneRecipe, generator: torch.Generator | None = None) -> Tensor:
    """Convert raw images to normalised float32 [B, 3, size, size]: augmented if a generator is given, else the central crop."""
    size, config = recipe.backbone.image_size, recipe.tune.augment
    if generator is not None and config != AugmentConfig():
        pixels = augment(raw, config, generator, size)
    else:
        side = raw.shape[1]
        kept = side if generator is not None else round(side * recipe.tune.centre)
        first = (side - kept) // 2
        pixels = normalise(raw[:, first : first + kept, first : first + kept], size)
    if recipe.tune.normalise == "imagenet":
        return pixels
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels * std + mean - 0.5) / 0.5


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1 `accuracy`, `per-class` accuracy (mean over the classes that occur) and `auc` (NaN if only one class occurs)."""
    right = logits.argmax(1) == labels
    totals = np.bincount(labels, minlength=logits.shape[1])
    hits = np.bincount(labels, weights=right, minlength=logits.shape[1])
    there = totals > 0
    return {"accuracy": float(right.mean()), "per-class": float((hits[there] / totals[there]).mean()), "auc": auc(logits, labels)}


def auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve of the softmax: for class 1 of two, else one-vs-rest, averaged over the classes that occur."""
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(1, keepdims=True))
    chances = shifted / shifted.sum(1, keepdims=True)
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    areas = [_binary(chances[:, c], labels == c) for c in classes if 0 < np.count_nonzero(labels == c) < len(labels)]
    return float(np.mean(areas)) if areas else float("nan")


def _binary(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs in the right order, ties counted half: Mann-Whitney U / (n+ n-)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ahead = int(positive.sum())
    return float((ranks[positive].sum() - ahead * (ahead + 1) / 2) / (ahead * (len(values) - ahead)))
