"""The trained part of a tuner: build it, select its tensors, load a finished run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.backbones import create_backbone
from smatcli.config.tune import TuneRecipe
from smatcli.data.counted import counted_key
from smatcli.device import choose_device
from smatcli.engine.tune.task import TuningTask, open_task
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.safe.text import read_own_json
from smatcli.tuning import Tuner, build_tuner

RESULT = "tune.json"


def make_tuner(recipe: TuneRecipe, classes: int) -> Tuner:
    """Build the recipe's tuner over its backbones. New parameters (and backbones without weights) are initialised from the seed."""
    configs = [recipe.backbone, *getattr(recipe.tuner, "experts", [])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("tune-backbone", recipe.seed) % 2**63)
        backbones = [create_backbone(config) for config in configs]
        torch.manual_seed(counted_key("tune-model", recipe.seed) % 2**63)
        return build_tuner(recipe.tuner, backbones, classes)


def trained(tuner: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are saved: trained parameters and buffers."""
    return {n: p for n, p in tuner.named_parameters() if p.requires_grad} | dict(tuner.named_buffers())


def frozen_digest(tuner: nn.Module) -> str:
    """Return the SHA-256 of the frozen parameters, without which a checkpoint is useless."""
    digest = hashlib.sha256()
    for name, parameter in sorted(tuner.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_trained(tuner: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy saved tensors into the tuner. Raises SmatError if their names or shapes differ."""
    own = trained(tuner)
    if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
        raise SmatError(f"{where}: its parameters do not match the recipe's tuner; choose another run=")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def changed(recipe: TuneRecipe, values: dict[str, Any]) -> TuneRecipe:
    """Return a copy of the recipe with new values by dotted key."""
    data = recipe.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split(".")
        place = data
        for step in parents:
            place = place[step]
        place[last] = value
    return TuneRecipe.model_validate_json(json.dumps(data))


def load_tuned(
    folder: Path | str, reporter: Reporter | None = None, device: str | None = None
) -> tuple[TuneRecipe, TuningTask, Tuner, torch.device]:
    """Return the recipe (with the values chosen by the search), the task and the trained tuner of a finished run.

    Raises UserError for any other run.
    """
    run = RunDir.open(folder)
    if not isinstance(run.recipe, TuneRecipe):
        raise UserError(f"{folder}: is a run of smat {run.recipe.kind}, not of smat tune")
    if not (run.path / RESULT).is_file():
        raise UserError(f"{folder}: is not finished; `smat tune --resume` continues it")
    recipe = changed(run.recipe, read_own_json(run.path / RESULT)["searched"])
    where = choose_device(device or recipe.device)
    task = open_task(recipe)
    tuner = make_tuner(recipe, task.classes)
    saved = load_checkpoint(run.checkpoints / recipe.tune.select, reporter)
    load_trained(tuner, saved.model, saved.path)
    return recipe, task, tuner.to(where).eval(), where
