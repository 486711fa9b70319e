"""How many images a second does one core load from a store, and how many by a plain per-image h5py loop?

    python benchmarks/loader.py [--store FILE.h5] [--size 64] [--images 20000] [--seconds 2]

Without --store it writes a temporary one of random images. The process is pinned to one core and PyTorch to one thread, so that every
number is images a second per core, the background thread included. Goal at 64 px: 5,000 on the raw path (uint8 rows out of the store).
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F

from smatcli.config.schema import AugmentConfig, EpisodeConfig
from smatcli.data.augment import augment, mixup, normalise
from smatcli.data.episodes import EpisodeSampler
from smatcli.data.loader import BatchLoader, EpisodeLoader
from smatcli.data.store import Store, write_store

PRETRAIN = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, mixup=0.2)
EVERYTHING = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, grayscale=0.2, rotate=15, erase=0.25)


def rate(step: Callable[[], int], seconds: float) -> float:
    """Images a second of `step`, which returns how many it loaded; one call is not counted."""
    step()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        done += step()
    return done / passed


def milliseconds(step: Callable[[], object], repeats: int = 30) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[2:]))


def random_store(folder: Path, images: int, size: int) -> Store:
    classes = max(5, images // 100)
    rng = np.random.default_rng(0)
    blocks = ((f"class{c}", 0, rng.integers(0, 256, (100, size, size, 3), dtype=np.uint8)) for c in range(classes))
    return Store.open(write_store(folder / "random.h5", "random", size, blocks))


def episodes(sampler: EpisodeSampler, **settings) -> Callable[[], int]:
    stream = iter(EpisodeLoader(sampler, count(), **settings))

    def step() -> int:
        episode = next(stream)
        return len(episode.support.labels) + len(episode.query_labels)

    return step


def raw_episodes(sampler: EpisodeSampler) -> Callable[[], int]:
    """Plan and rows, without normalisation."""
    loader, index = EpisodeLoader(sampler, ()), count()
    return lambda: len(loader._load(next(index)).images)


def raw_batches(store: Store) -> Callable[[], int]:
    rows = np.arange(len(store))
    loader = BatchLoader([store], [rows], [rows], 128)
    stream = (batch for k in count() for batch in loader.epoch(k))
    return lambda: len(next(stream)[0])


def plain_h5py(sampler: EpisodeSampler, store: Store, normal: bool) -> Callable[[], int]:
    """What is usually written: open the file, read image by image by its row, stack."""
    file, index = h5py.File(store.path, "r"), count()
    images = file["images"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def step() -> int:
        plan = sampler.plan(next(index))
        rows = np.concatenate([plan.support, plan.query])
        read = [torch.from_numpy(images[row]) for row in rows]
        if normal:
            read = [(image.permute(2, 0, 1).float() / 255 - mean) / std for image in read]
        return len(torch.stack(read))

    return step


def grid_sample(images: torch.Tensor, size: int) -> Callable[[], object]:
    """The usual way to crop on the device, for comparison with the crop by interpolation matrices (which antialiases)."""
    theta = torch.eye(2, 3).repeat(len(images), 1, 1) * torch.empty(len(images), 1, 1).uniform_(0.5, 1)
    pixels = images.permute(0, 3, 1, 2).float().contiguous()
    shape = [len(images), 3, size, size]
    return lambda: F.grid_sample(pixels, F.affine_grid(theta, shape, align_corners=False), align_corners=False)


def throughput(store: Store, seconds: float) -> None:
    five = EpisodeSampler({store.name: store}, "all", EpisodeConfig(), 0)
    varied = EpisodeSampler({store.name: store}, "all", EpisodeConfig(kind="variable"), 0)
    rows: list[tuple[str, float]] = [
        ("plain h5py loop, raw", rate(plain_h5py(five, store, False), seconds)),
        ("episodes 5w5s10q, raw", rate(raw_episodes(five), seconds)),
        ("episodes variable, raw", rate(raw_episodes(varied), seconds)),
        ("batches of 128, raw", rate(raw_batches(store), seconds)),
        ("plain h5py loop, normalised", rate(plain_h5py(five, store, True), seconds)),
        ("episodes 5w5s10q, normalised", rate(episodes(five), seconds)),
        ("episodes variable, normalised", rate(episodes(varied), seconds)),
        ("episodes 5w5s10q, augmented", rate(episodes(five, augment=EVERYTHING), seconds)),
    ]
    base = {"raw": rows[0][1], "other": rows[4][1]}
    print(f"{'images/s on one core':32} {'images/s':>10} {'x h5py':>8}")
    for name, value in rows:
        print(f"{name:32} {value:10,.0f} {value / base['raw' if name.endswith('raw') else 'other']:8.1f}")
    goal, got = 5000, min(value for name, value in rows[1:4])
    print(f"raw path, slowest of three: {got:,.0f} images/s per core, goal {goal:,}: {'met' if got >= goal else 'MISSED'}")


def planning(seconds: float) -> None:
    class Sizes:
        def __init__(self, counts: np.ndarray) -> None:
            self.counts, self.class_offsets = counts, np.concatenate([[0], np.cumsum(counts)])

        def classes(self, split: str) -> np.ndarray:
            return np.arange(len(self.counts))

    sizes = Sizes(np.random.default_rng(0).integers(20, 3000, 300))
    print("\nplanning an episode (300 classes of 20 to 3000 images)")
    for name, config in (("5w5s10q", EpisodeConfig()), ("variable", EpisodeConfig(kind="variable"))):
        sampler, index = EpisodeSampler({"x": sizes}, "all", config, 0), count()

        def plan(sampler: EpisodeSampler = sampler, index: count = index) -> int:
            sampler.plan(next(index))
            return 1

        print(f"  {name:10} {1e3 / rate(plan, seconds):.3f} ms")


def augmentation(size: int) -> None:
    images = torch.randint(0, 256, (128, size, size, 3), dtype=torch.uint8)
    generator, floats, labels = torch.Generator().manual_seed(0), normalise(images), torch.arange(128)
    print(f"\n128 images of {size} px, one thread (median)")
    for name, step in {
        "normalise": lambda: normalise(images),
        "augment as in pretraining": lambda: augment(images, PRETRAIN, generator),
        "augment, everything on": lambda: augment(images, EVERYTHING, generator),
        "mixup": lambda: mixup(floats, labels, 275, 0.2, generator),
        "crop alone, matrices": lambda: augment(images, AugmentConfig(crop_scale=(0.3, 1.0)), generator),
        "crop alone, grid_sample (aliases)": grid_sample(images, size),
    }.items():
        print(f"  {name:34} {milliseconds(step):7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(chosen.store) if chosen.store else random_store(Path(folder), chosen.images, chosen.size)
        megabytes = math.prod(store.images.shape) / 1e6
        print(f"{store.name}: {len(store):,} images of {store.image_size} px ({megabytes:,.0f} MB)\n")
        throughput(store, chosen.seconds)
        planning(chosen.seconds / 2)
        augmentation(store.image_size)


if __name__ == "__main__":
    main()
