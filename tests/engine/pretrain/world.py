"""A tiny store and recipe for pre-training tests: eight classes of coloured noise, a ViT of width 32."""

from pathlib import Path

import numpy as np
import torch

from smatcli.config import Loaded, load_recipe
from smatcli.data.stores.store import write_store

torch.set_num_threads(1)

RECIPE = """
kind: pretrain
run: {root}/run
device: cpu
precision: fp32
threads: 1
backbone:
  name: vit_tiny_patch16_224
  args: {{patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, drop_path_rate: 0.1}}
  image_size: 16
  weights: none
data:
  root: {root}
  datasets: [a, b]
  split: {{b: all}}
  holdout: 0.25
pretrain:
  epochs: 4
  batch_size: 12
  optimizer: {{lr: 3.0e-3, weight_decay: 0.05, clip: 1.0}}
  augment: {{crop_scale: [0.5, 1.0], flip: 0.5, jitter: 0.2, mixup: 0.2}}
"""


def write_stores(root: Path) -> None:
    """Write `a` (16 px, five training classes and a test class of 8 images) and `b` (24 px, three classes of 8 images)."""
    rng = np.random.default_rng(0)

    def images(size: int) -> np.ndarray:
        colour = rng.integers(0, 256, 3)
        return np.clip(colour + rng.normal(0, 30, (8, size, size, 3)), 0, 255).astype(np.uint8)

    write_store(root / "a.h5", "a", 16, [(f"a{i}", 0 if i < 5 else 2, images(16)) for i in range(6)])
    write_store(root / "b.h5", "b", 24, [(f"b{i}", i, images(24)) for i in range(3)])


def load(root: Path, *overrides: str) -> Loaded:
    """Load the recipe, and write its stores next to it on the first call."""
    if not (root / "a.h5").exists():
        write_stores(root)
        (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return load_recipe(root / "recipe.yaml", overrides)
