"""Runs without training, and photographs of coloured patterns, for tests of deployment."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smatcli.config.schema import PretrainRecipe, TrainRecipe
from smatcli.engine.loop.loading import prepare_method
from smatcli.runs.checkpoint import save_checkpoint
from smatcli.runs.directory import RunDir

SIZE = 16
BACKBONE = {
    "name": "vit_tiny_patch16_224",
    "args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "image_size": SIZE,
    "weights": "none",
}
SMAT = {"name": "smat", "experts": 3, "router": {"heads": 2}}
COLOURS = {"blue": (40, 60, 220), "green": (50, 200, 60), "red": (220, 50, 40)}


def make_run(folder: Path, method: dict[str, Any] | None = None, name: str = "run", **backbone: Any) -> Path:
    """Write a finished run whose parameters differ from the pre-trained ones."""
    recipe = TrainRecipe.model_validate(
        {
            "kind": "train",
            "run": str(folder / name),
            "device": "cpu",
            "precision": "fp32",
            "backbone": {**BACKBONE, **backbone},
            "data": {"root": "nowhere", "train": ["a"], "id": ["a"]},
            "method": method or SMAT,
            "train": {"steps": 1},
        }
    )
    made = prepare_method(recipe, "none")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameters in made.groups().values():
            for parameter in parameters:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    run = RunDir.create(folder / name, recipe, {}, ["smat", "train"])
    save_checkpoint(run.checkpoints / "last", made.state_dict(), {"step": 1, "best": {}, "optimizers": {}})
    run.note(status="finished", pid=1)
    return run.path


def make_pretrain_run(folder: Path) -> Path:
    """Write a pre-training run with its backbone."""
    from smatcli.backbones import create_backbone
    from smatcli.backbones.weights import save_backbone

    recipe = PretrainRecipe.model_validate(
        {
            "kind": "pretrain",
            "run": str(folder / "pre"),
            "device": "cpu",
            "precision": "fp32",
            "backbone": BACKBONE,
            "data": {"root": "nowhere", "datasets": ["a"]},
            "pretrain": {"epochs": 1},
        }
    )
    run = RunDir.create(folder / "pre", recipe, {}, ["smat", "pretrain"])
    save_backbone(run.path, create_backbone(recipe.backbone), recipe.backbone, {})
    run.note(status="finished")
    return run.path


def photo(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Return a noisy picture of one colour, `size` wide and high."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def make_support(folder: Path, shots: int = 4) -> Path:
    """Write class folders blue, green and red with mixed formats and modes."""
    for k, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for i in range(shots):
            picture = photo(colour, 10 * k + i, (20 + 3 * i, 24))
            if i % 4 == 1:
                picture.convert("RGBA").save(folder / name / f"{i}.png")
            elif i % 4 == 2:
                picture.convert("P").save(folder / name / f"{i}.gif")
            else:
                picture.save(folder / name / f"{i}.{'jpg' if i % 4 == 0 else 'bmp'}")
    return folder


def make_queries(folder: Path, each: int = 3) -> Path:
    """Write `each` images per colour, named after the colour, some in a subfolder."""
    (folder / "more").mkdir(parents=True)
    for k, (name, colour) in enumerate(COLOURS.items()):
        for i in range(each):
            photo(colour, 1000 + 10 * k + i).save((folder / "more" if i == 0 else folder) / f"{name}{i}.png")
    return folder


def pictures(shots: int = 3) -> tuple[list[Image.Image], list[str]]:
    """Return `shots` square pictures per colour, and the name of each colour."""
    made = [(photo(colour, 10 * k + i, (SIZE, SIZE)), name) for k, (name, colour) in enumerate(COLOURS.items()) for i in range(shots)]
    return [picture for picture, _ in made], [name for _, name in made]
