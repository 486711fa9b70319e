"""Building a recipe's method, with initial weights or with those of a run."""

from pathlib import Path

import torch
from torch import nn

from smatcli.backbones import create_backbone
from smatcli.config.schema import TrainRecipe
from smatcli.data.counted import counted_key
from smatcli.device import choose_device, choose_precision
from smatcli.errors import UserError
from smatcli.methods import build_method
from smatcli.methods.base import FlatMethod
from smatcli.methods.running.execution import Execution
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter


def prepare_method(recipe: TrainRecipe, weights: str) -> FlatMethod:
    """Build the recipe's method over a backbone with `weights`, on the recipe's device and in its precision."""
    device = choose_device(recipe.device)
    torch.manual_seed(counted_key("initialisation", recipe.seed) % 2**63)
    backbone = create_backbone(recipe.backbone.model_copy(update={"weights": weights}))
    precision = choose_precision(recipe.precision, device, int(backbone.num_features))  # type: ignore[arg-type]
    method = build_method(recipe.method, precision.apply(backbone)).to(device)
    method.backbone.to(device)
    method.precision = precision
    method.execution = Execution(method.backbone, lean=True)
    return method


def load_method(
    run: Path | str, which: str = "best", reporter: Reporter | None = None, device: str | None = None
) -> tuple[FlatMethod, TrainRecipe]:
    """Load the method of a training run for inference, and its recipe. Raises UserError if the run has no checkpoint.

    `which` is 'last' or 'best' (which falls back to 'last' if there is no best checkpoint).
    """
    opened = RunDir.open(run)
    recipe = opened.recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(f"{run}: is a {recipe.kind} run, not a `smat train` run (for a backbone itself, use method 'pretrained')")
    folder = opened.checkpoints / which
    if which == "best" and not has_checkpoint(folder):
        folder = opened.checkpoints / "last"
    if not has_checkpoint(folder):
        raise UserError(f"{run}: has no checkpoint yet; finish it with `smat train {run}/recipe.yaml --resume`")
    if device is not None:
        recipe = recipe.model_copy(update={"device": device})
    method = prepare_method(recipe, "none")
    restore(method, load_checkpoint(folder, reporter, strict=True).model, folder)
    return method.eval(), recipe


def restore(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Load saved tensors into a model. Raises UserError, naming the differences, unless they are exactly the model's tensors."""
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"{where}: the checkpoint does not fit the recipe: {' '.join(str(error).split())[:300]}") from None
