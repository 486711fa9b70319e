"""Time the augmentation of a batch on one CPU thread.

python benchmarks/augment.py [--size 64]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from smatcli.config.schema import AugmentConfig
from smatcli.data.augment import augment, mixup, normalise

PRETRAIN = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, mixup=0.2)
EVERYTHING = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, grayscale=0.2, rotate=15, erase=0.25)


def milliseconds(step: Callable[[], object], repeats: int = 30) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[2:]))


def grid_sample(images: torch.Tensor, size: int) -> Callable[[], object]:
    """Return a function that crops by `grid_sample`, for comparison with the crop by interpolation matrices (which antialiases)."""
    theta = torch.eye(2, 3).repeat(len(images), 1, 1) * torch.empty(len(images), 1, 1).uniform_(0.5, 1)
    pixels = images.permute(0, 3, 1, 2).float().contiguous()
    shape = [len(images), 3, size, size]
    return lambda: F.grid_sample(pixels, F.affine_grid(theta, shape, align_corners=False), align_corners=False)


def augmentation(size: int) -> None:
    """Print the time of each kind of augmentation."""
    images = torch.randint(0, 256, (128, size, size, 3), dtype=torch.uint8)
    generator, floats, labels = torch.Generator().manual_seed(0), normalise(images), torch.arange(128)
    print(f"128 images of {size} px, one thread (median)")
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
    parser.add_argument("--size", type=int, default=64)
    torch.set_num_threads(1)
    augmentation(parser.parse_args().size)


if __name__ == "__main__":
    main()
