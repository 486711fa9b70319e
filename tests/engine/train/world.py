"""Two tiny stores and a recipe for meta-training tests: coloured noise, a ViT of width 16."""

from pathlib import Path

import numpy as np

from smatcli.config import Loaded, load_recipe
from smatcli.data.stores.store import write_store

RECIPE = """
kind: train
run: {root}/run
device: cpu
precision: fp32
backbone:
  name: vit_tiny_patch16_224
  args: {{patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}}
  image_size: 16
  weights: none
data: {{root: {root}, train: [a, b], id: [a, b], ood: [c]}}
episode: {{kind: fixed, ways: 3, shots: 2, queries: 2}}
method:
  name: smat
  experts: 3
  router: {{heads: 2}}
train:
  steps: 6
  meta_batch: 2
  valid_every: 3
  valid_episodes: 2
  checkpoint_every: 2
  augment: {{flip: 0.5, jitter: 0.2}}
eval: {{episodes: 3, episode: {{kind: fixed, ways: 3, shots: 2, queries: 2}}}}
"""


def write_stores(root: Path) -> None:
    """Write `a` and `b` (five training, three validation and three test classes of 6 images) and `c` (four test classes)."""
    rng = np.random.default_rng(0)

    def images() -> np.ndarray:
        return np.clip(rng.integers(0, 256, 3) + rng.normal(0, 30, (6, 16, 16, 3)), 0, 255).astype(np.uint8)

    splits = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    for name in ("a", "b"):
        write_store(root / f"{name}.h5", name, 16, [(f"{name}{i}", split, images()) for i, split in enumerate(splits)])
    write_store(root / "c.h5", "c", 16, [(f"c{i}", 2, images()) for i in range(4)])


def load(root: Path, *overrides: str) -> Loaded:
    """Load the recipe, and write its stores next to it on the first call."""
    if not (root / "a.h5").exists():
        write_stores(root)
        (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return load_recipe(root / "recipe.yaml", overrides)
