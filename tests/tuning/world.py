"""A tiny ViT, tiny stores (by class and by image) and a recipe for tests of tuning."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from timm.models.vision_transformer import VisionTransformer

from smatcli.config import Loaded, load_recipe
from smatcli.config.tuning import TunerConfig
from smatcli.data.stores.store import write_store
from smatcli.tuning import Tuner, build_tuner

AnyTuner = TypeVar("AnyTuner", bound=Tuner)
DIM, DEPTH, CLASSES = 16, 4, 5
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))

RECIPE = """
kind: tune
run: {root}/run
device: cpu
precision: fp32
threads: 1
backbone:
  name: vit_tiny_patch16_224
  args: {{patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}}
  image_size: 16
  weights: none
data: {{root: {root}, dataset: a, train: 20, valid: 10}}
tuner: {{name: mlae, rank: 4, p: 0.5}}
tune: {{epochs: 3, batch_size: 8, valid_every: 1, lr: 1.0e-2}}
"""


def vit(**more: Any) -> VisionTransformer:
    """Return a ViT with four blocks of width 16 for 16 px in four patches; weights are equal in every call."""
    torch.manual_seed(7)
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=DIM, depth=DEPTH, num_heads=2, num_classes=0, **more).eval()


def config(**settings: Any) -> TunerConfig:
    """Return settings of a tuner."""
    return TypeAdapter(TunerConfig).validate_python(settings)


def make(**settings: Any) -> Tuner:
    """Return a tuner of `vit()`; weights are equal in every call."""
    backbone = vit()
    torch.manual_seed(3)
    return build_tuner(config(**settings), [backbone], CLASSES)


def shake(tuner: AnyTuner, seed: int = 5) -> AnyTuner:
    """Change all trained parameters, so that none is zero."""
    torch.manual_seed(seed)
    for params in tuner.trainable().values():
        for parameter in params:
            torch.nn.init.normal_(parameter, std=0.3)
    return tuner


def write_stores(root: Path) -> None:
    """`a`, 24 px: four classes of colours, 8 to 20 images; `b`: the same split by image (5 a class to train, 3 valid, rest test);
    `c`: as b without validation images."""
    rng = np.random.default_rng(0)

    def images(colour: int, count: int) -> np.ndarray:
        base = np.eye(4, 3)[colour] * 160 + 40
        return np.clip(base + rng.normal(0, 40, (count, 24, 24, 3)), 0, 255).astype(np.uint8)

    sizes = (8, 12, 16, 20)
    write_store(root / "a.h5", "a", 24, [(f"a{i}", i % 3, images(i, n)) for i, n in enumerate(sizes)])
    for name, valid in (("b", 3), ("c", 0)):
        splits = [np.array([0] * 5 + [1] * valid + [2] * (n - 5 - valid), np.uint8) for n in sizes]
        made = [(f"{name}{i}", 0, images(i, n)) for i, n in enumerate(sizes)]
        write_store(root / f"{name}.h5", name, 24, made, image_split=np.concatenate(splits))


def load(root: Path, *overrides: str) -> Loaded:
    """Load the recipe, and write its stores next to it on the first call."""
    if not (root / "recipe.yaml").exists():
        write_stores(root)
        (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return load_recipe(root / "recipe.yaml", overrides, kind="tune")
