"""Measure how fast images and episodes are read from a store, and how the cost grows with their number.

    python benchmarks/loader.py [--sizes 64,128,224] [--workers 1,2] [--seconds 1]

Episodes have 5 ways, 5 shots and 10 queries and are normalised on the CPU. All sources have the same images, drawn at 320 x 240 px:
- raw and JPEG stores ("uint8": not normalised, as if a GPU normalised them);
- image files, read one by one with torchvision's ImageFolder and Pillow;
- HDF5 files in PMF's layout, one per class with one group per image: files are opened in every episode, and images of 224 px are resized
  to 256/224 of the size, cropped and normalised one by one.
PyTorch uses one thread. "per CPU s" counts the CPU time of all threads of the process; use this column on a shared machine. All files are
in the page cache.
Goals: raw at 128 px above 8,000 images per second and core, and 20 times as fast as PMF; 1,000 classes opened in 50 ms.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store, write_store
from smatcli.engine.prepare.preparation import folder_jobs, prepare

CLASSES, EACH = 20, 30
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def draw_files(folder: Path) -> None:
    """Write JPEG files (quality 90) of noise at four scales, which compress about as well as photographs."""
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        (folder / f"c{c:02d}").mkdir(parents=True)
        for i in range(EACH):
            image = np.zeros((240, 320, 3))
            for side, strength in ((4, 90), (16, 40), (64, 20), (240, 6)):
                noise = Image.fromarray(rng.integers(0, 256, (side, side * 4 // 3, 3), dtype=np.uint8)).resize((320, 240))
                image += (np.asarray(noise) - 128.0) * strength / 128
            Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(folder / f"c{c:02d}" / f"{i:03d}.jpg", quality=90)


def write_pmf(source: Path, folder: Path) -> None:
    """Write the images in PMF's layout."""
    folder.mkdir()
    for label, path in enumerate(sorted(source.iterdir())):
        with h5py.File(folder / f"{label}.h5", "w") as file:
            for i, image in enumerate(sorted(path.iterdir())):
                group = file.create_group(str(i))
                group["image"] = np.asarray(Image.open(image).resize((224, 224), Image.Resampling.BILINEAR))
                group["label"] = np.array([label], np.int32)


def rates(step: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Return images per second and per CPU second, after two warm-up calls."""
    step(), step()
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - start) < seconds or not done:
        done += step()
    return done / passed, done / (time.process_time() - cpu)


def from_store(store: Store, workers: int) -> Callable[[], int]:
    """Return a function that reads one normalised episode and returns its number of images."""
    stream = iter(EpisodeLoader(EpisodeSampler({store.name: store}, "all", EpisodeConfig(), 0), count(), workers=workers))

    def step() -> int:
        episode = next(stream)
        return len(episode.support.labels) + len(episode.query_labels)

    return step


def uint8_rows(store: Store) -> Callable[[], int]:
    """Return a function that reads one episode without normalising it."""
    loader, index = EpisodeLoader(EpisodeSampler({store.name: store}, "all", EpisodeConfig(), 0), ()), count()
    return lambda: len(loader._load(next(index)).images)


def from_files(folder: Path, size: int) -> Callable[[], int]:
    """Return a function that reads 75 image files with torchvision."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    kept = Compose([Resize(size), CenterCrop(size), ToTensor(), Normalize(MEAN.flatten().tolist(), STD.flatten().tolist())])
    dataset, rng = ImageFolder(str(folder), kept), np.random.default_rng(0)
    return lambda: len(torch.stack([dataset[int(i)][0] for i in rng.integers(0, len(dataset), 75)]))


def from_pmf(folder: Path, size: int) -> Callable[[], int]:
    """Return a function that reads one episode from PMF's layout."""
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    normal = Normalize(MEAN.flatten().tolist(), STD.flatten().tolist())
    change, rng = Compose([Resize(size * 256 // 224), CenterCrop(size), ToTensor(), normal]), np.random.default_rng(0)

    def step() -> int:
        images = []
        for label in rng.permutation(CLASSES)[:5]:
            with h5py.File(folder / f"{label}.h5") as file:
                images += [change(Image.fromarray(file[str(i)]["image"][()])) for i in rng.permutation(EACH)[:15]]
        return len(torch.stack(images))

    return step


def throughput(folder: Path, sizes: list[int], workers: list[int], seconds: float) -> None:
    """Print the reading speed of every source and image size."""
    draw_files(folder / "images")
    write_pmf(folder / "images", folder / "pmf")
    print(f"{'px':>4} {'from':22} {'images/s':>9} {'per CPU s':>13} {'episodes/s':>11} {'x PMF':>6} {'kB per image':>12}")
    for size in sizes:
        files, classes = sum(p.stat().st_size for p in (folder / "images").rglob("*.jpg")), CLASSES * EACH
        rows: list[tuple[str, Callable[[], int], float]] = [
            ("PMF's layout", from_pmf(folder / "pmf", size), sum(p.stat().st_size for p in (folder / "pmf").iterdir())),
            ("ImageFolder, Pillow", from_files(folder / "images", size), files),
        ]
        for encoding in ("raw", "jpeg"):
            out = folder / f"{encoding}{size}"
            store = Store.open(prepare(folder_jobs([folder / "images"]), out, size=size, encoding=encoding)[0].path)
            held = store.path.stat().st_size
            rows.append((f"{encoding}, uint8", uint8_rows(store), held))
            rows += [(f"{encoding}, {n} worker{'s' * (n > 1)}", from_store(store, n), held) for n in workers]
        base = 0.0
        for name, step, space in rows:
            wall, cpu = rates(step, seconds)
            base = base or cpu
            print(f"{size:4} {name:22} {wall:9,.0f} {cpu:13,.0f} {wall / 75:11.1f} {cpu / base:6.1f} {space / classes / 1e3:12.1f}")


def milliseconds(step: Callable[[], Any], repeats: int = 20) -> tuple[float, float]:
    """Return the median wall-clock and CPU milliseconds of a call."""
    times = []
    for _ in range(repeats + 2):
        start, cpu = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    wall, busy = np.median(times[2:], axis=0)
    return 1e3 * float(wall), 1e3 * float(busy)


def many_classes(folder: Path) -> None:
    """Print the time to open a store and to read an episode with images, for growing numbers of classes."""
    print(f"\n{'classes':>8} {'open, ms':>9} {'(CPU)':>7} {'5w5s10q episode, ms':>20} {'(CPU)':>7} {'variable, ms':>13} {'(CPU)':>7}")
    rng = np.random.default_rng(0)
    for classes in (10, 100, 1_000, 10_000):
        blocks = ((f"class {c}", 0, rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)) for c in range(classes))
        path = write_store(folder / f"many{classes}.h5", "many", 16, blocks)
        opened = milliseconds(partial(Store.open, path))
        store, cells = Store.open(path), []
        # at most 10 ways, so that episodes of 10 and of 10,000 classes have the same shape
        for config in (EpisodeConfig(), EpisodeConfig(kind="variable", max_ways=10)):
            sampler = EpisodeSampler({"many": store}, "all", config, 0)
            stream = iter(EpisodeLoader(sampler, count(), prefetch=0))
            cells.append(milliseconds(partial(next, stream), 200))
        print(
            f"{classes:8,} {opened[0]:9.1f} {opened[1]:7.1f} {cells[0][0]:20.2f} {cells[0][1]:7.2f} {cells[1][0]:13.2f} {cells[1][1]:7.2f}"
        )


def resident() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def read_all(path: str) -> None:
    """Read episodes with twice as many images as the store has, and print the growth of resident memory."""
    store = Store.open(path)
    stream = iter(EpisodeLoader(EpisodeSampler({"x": store}, "all", EpisodeConfig(), 0), count()))
    next(stream)
    before = resident()
    for _ in range(2 * len(store) // 75):
        next(stream)
    size, after = store.path.stat().st_size / 1e6, resident()
    print(f"{size:9.0f} MB on disk: {before:6.0f} MB resident at first, {after:6.0f} MB after reading it twice")


def memory(folder: Path) -> None:
    """Measure the memory of reading a small and a large store, each in a new process."""
    print("\nresident memory of a process that reads a raw store of 64 px")
    rng = np.random.default_rng(0)
    for classes in (50, 500):
        blocks = ((f"c{c}", 0, rng.integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)) for c in range(classes))
        path = write_store(folder / f"memory{classes}.h5", "memory", 64, blocks)
        subprocess.run([sys.executable, __file__, "--read", path], check=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=numbers, default=[64, 128, 224])
    parser.add_argument("--workers", type=numbers, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.read:
        read_all(chosen.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        throughput(Path(folder), chosen.sizes, chosen.workers, chosen.seconds)
        many_classes(Path(folder))
        memory(Path(folder))


if __name__ == "__main__":
    main()
