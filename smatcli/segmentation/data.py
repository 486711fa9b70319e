"""Images and masks of a segmentation dataset by row: resized and kept in memory if they fit, and at full size for the metrics."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from smatcli.config.segment import SegmentData
from smatcli.data.counted import counted_rng
from smatcli.data.images import Unreadable, decode_whole, fit_image
from smatcli.errors import UserError
from smatcli.runs.reporter import Reporter
from smatcli.segmentation.lists import ImageMaskPair, list_pairs
from smatcli.segmentation.masks import IGNORE, check_binary, decode_mask
from smatcli.segmentation.synthetic import draw

KEPT_BYTES = 2 << 30
THREADS = 4


class SegmentSet:
    """A dataset at `size` pixels, with images squashed to a square (masks by nearest neighbour).

    Every file is read once at the start, so that damaged files are reported before training. Datasets over 2 GB in memory are read again
    when needed. Raises `UserError` with the name of an unusable file.
    """

    def __init__(self, data: SegmentData, size: int, seed: int, reporter: Reporter) -> None:
        self.data, self.size, self.seed = data, size, seed
        self.pairs = (
            [ImageMaskPair(f"{i:05d}", Path(), Path()) for i in range(data.count)] if data.layout == "synthetic" else list_pairs(data)
        )
        count = len(self.pairs)
        self._kept = count * size * size * 4 <= KEPT_BYTES
        held = count if self._kept else 0
        self._images, self._masks = np.empty((held, size, size, 3), np.uint8), np.empty((held, size, size), np.uint8)
        self.pixels, ignored = np.zeros(data.number, np.int64), 0
        reporter.start(count, "reading", unit="images")
        with ThreadPoolExecutor(THREADS) as pool:
            for i, (image, mask) in enumerate(pool.map(self._load, range(count))):
                if self._kept:
                    self._images[i], self._masks[i] = image, mask
                counts = np.bincount(mask.ravel(), minlength=256)
                self.pixels += counts[: data.number]
                ignored += int(counts[IGNORE])
                reporter.update(i + 1)
        reporter.finish()
        if data.kind == "index" and (said := check_binary(self.pixels, ignored, data.root)):
            raise UserError(said)
        if np.count_nonzero(self.pixels) < 2:
            raise UserError(f"{data.root or data.layout}: all pixels that are not ignored belong to one class; use masks with two or more")

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [B, S, S, 3] and masks uint8 [B, S, S]."""
        if self._kept:
            return self._images[rows], self._masks[rows]
        loaded = [self._load(int(row)) for row in rows]
        return np.stack([image for image, _ in loaded]), np.stack([mask for _, mask in loaded])

    def image_at(self, row: int, size: int) -> np.ndarray:
        """Return an image uint8 [size, size, 3], resized from its original size."""
        if size == self.size and self._kept:
            return np.asarray(self._images[row])
        return np.asarray(fit_image(self._whole(row)[0], size, "squash"))

    def mask_at(self, row: int, whole: bool) -> np.ndarray:
        """Return a mask uint8 [H, W] at its original size (`whole`), or [S, S]."""
        return self._whole(row)[1] if whole else self.read(np.array([row]))[1][0]

    def content_hash(self) -> str:
        """Return the SHA-256 over the names and the content of all image and mask files (for drawn images, over their names)."""
        total = hashlib.sha256()
        with ThreadPoolExecutor(THREADS) as pool:
            for pair, digests in zip(self.pairs, pool.map(self._digests, self.pairs), strict=True):
                total.update("\n".join([pair.name, *digests, ""]).encode())
        return total.hexdigest()

    def _digests(self, pair: ImageMaskPair) -> list[str]:
        files = [] if self.data.layout == "synthetic" else [pair.image, pair.mask]
        return [_decoded(path, lambda raw: hashlib.sha256(raw).hexdigest()) for path in files]

    def _load(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._whole(row)
        small = Image.fromarray(mask).resize((self.size, self.size), Image.Resampling.NEAREST)
        return np.asarray(fit_image(image, self.size, "squash")), np.asarray(small)

    def _whole(self, row: int) -> tuple[Image.Image, np.ndarray]:
        if self.data.layout == "synthetic":
            drawn, classes = draw(row, self.seed, self.size)
            return Image.fromarray(drawn), classes
        pair = self.pairs[row]
        image = _decoded(pair.image, decode_whole)
        mask = _decoded(pair.mask, lambda raw: decode_mask(raw, self.data.kind, self.data.number, self.data.layout == "ade20k"))
        if image.size != mask.shape[::-1]:
            own, theirs = (f"{w} x {h}" for w, h in (mask.shape[::-1], image.size))
            raise UserError(f"{pair.mask}: the mask has {own} pixels, its image {theirs}; they do not belong together")
        return image, mask


def _decoded(path: Path, how):  # type: ignore[no-untyped-def]
    try:
        return how(path.read_bytes())
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Split:
    """Rows of a dataset for training, for the choice of the best epoch, and for the test."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def splits(dataset: SegmentSet, folds: int, seed: int) -> list[Split]:
    """Return one split, or one per fold; equal for equal `seed`. Raises `UserError` if a part would be empty.

    Without folds, a published split is kept, with its test images, or with its validation images if it has no test images (ADE20K).
    """
    parts = np.array([pair.part for pair in dataset.pairs])
    order = counted_rng("segment-split", seed).permutation(len(dataset))
    data = dataset.data
    if folds:
        tests = np.array_split(order, folds)
        result = [_with_valid(np.setdiff1d(order, test), np.sort(test), data.valid, seed, k) for k, test in enumerate(tests)]
    elif parts[0]:
        train, valid, test = (np.flatnonzero(parts == name) for name in ("train", "valid", "test"))
        if len(valid) and len(test):
            result = [Split(train, valid, test)]
        else:
            result = [_with_valid(train, test if len(test) else valid, data.valid, seed, 0)]
    else:
        held = round(data.test * len(order))
        result = [_with_valid(order[held:], np.sort(order[:held]), data.valid, seed, 0)]
    if not all(len(s.train) and len(s.valid) and len(s.test) for s in result):
        raise UserError(f"{data.root or data.layout}: {len(dataset)} images are too few for training, validation and test; add images")
    return result


def _with_valid(rest: np.ndarray, test: np.ndarray, share: float, seed: int, fold: int) -> Split:
    shuffled = counted_rng("segment-valid", seed, fold).permutation(np.sort(rest))
    held = max(1, round(share * len(shuffled)))
    return Split(np.sort(shuffled[held:]), np.sort(shuffled[:held]), test)
