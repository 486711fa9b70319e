"""Convert official checkpoints of other code to run directories (`smat import`)."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smatcli.backbones import create_backbone
from smatcli.config import Loaded, build_recipe
from smatcli.config.loader import vision
from smatcli.config.schema import TrainRecipe
from smatcli.engine.loop.loading import prepare_method, restore
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.errors import UserError, nearest
from smatcli.experts.space import ParameterSpace
from smatcli.importing.files import locate, read_tensors
from smatcli.importing.parsed import Parsed, check_backbone, check_heads, state_of
from smatcli.importing.pmf import is_pmf, parse_pmf
from smatcli.importing.smat_release import is_smat, parse_smat
from smatcli.methods.base import FlatMethod
from smatcli.runs.checkpoint import save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.safe.files import publish

ROUTES = ("learned", "uniform")
DATA: dict[str, Any] = {
    "root": "data/paper",
    "train": ["ilsvrc_2012", "omniglot", "aircraft", "cu_birds", "dtd", "quickdraw", "fungi", "vgg_flower"],
    "id": ["ilsvrc_2012", "omniglot", "aircraft", "cu_birds", "dtd", "quickdraw", "fungi", "vgg_flower"],
    "ood": ["traffic_sign", "mscoco"],
    "ood_split": "test",
}
"""The datasets with which the published checkpoints were trained and tested."""


def import_checkpoint(
    source: str, out: Path | str, overrides: Sequence[str] = (), route: str = "learned", reporter: Reporter | None = None
) -> RunDir:
    """Convert a SMAT or PMF checkpoint (a file, a folder with one, or a model id of the Hugging Face hub) to the run directory `out`.

    `overrides` set recipe values as `key=value` (data, evaluation, settings that are not in the file). The `route` "uniform" gives all
    experts the same score, for releases without router keys. Raises `UserError` before anything is written. Code in the file is never
    executed.
    """
    out, reporter = Path(out), reporter or SilentReporter()
    if route not in ROUTES:
        raise UserError(f"--route {route}: use {' or '.join(ROUTES)}{nearest(route, list(ROUTES))}")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} already exists; choose another folder")
    if any(text.partition("=")[0].strip() == "run" for text in overrides):
        raise UserError("run: cannot be set here; use --out")
    path = locate(source)
    parsed = parse(path, route)
    loaded = _recipe(path, out, parsed, overrides)
    method = _method(path, loaded, parsed)
    _describe(reporter, source, parsed, method)
    return _write(out, loaded, method, {"source": source, "file": path.name, "layout": parsed.layout, **parsed.facts})


def parse(path: Path, route: str = "learned") -> Parsed:
    """Parse the checkpoint at `path`. Raises UserError if it is neither a SMAT nor a PMF checkpoint."""
    tensors = read_tensors(path)
    if is_smat(tensors):
        return parse_smat(path, tensors, route)
    if is_pmf(tensors):
        if route != "learned":
            raise UserError(f"{path}: --route {route} is for SMAT checkpoints, but this is a PMF checkpoint without experts")
        return parse_pmf(path, tensors)
    first = ", ".join(list(tensors)[:2])
    raise UserError(
        f"{path}: is neither a SMAT nor a PMF checkpoint (it has {first}); use a plain backbone with backbone.weights=FILE in a recipe"
    )


def _recipe(path: Path, out: Path, parsed: Parsed, overrides: Sequence[str]) -> Loaded:
    data = {
        "kind": "train",
        "run": str(out),
        "backbone": parsed.backbone,
        "data": DATA,
        "method": parsed.method,
        "episode": {"kind": "meta-dataset"},
        "train": {"steps": 0},
        "eval": {"episode": {"kind": "meta-dataset"}},
    }
    loaded = build_recipe(data, path, overrides, kind="train")
    check_heads(path, vision(loaded.recipe).backbone)
    return loaded


def _method(path: Path, loaded: Loaded, parsed: Parsed) -> FlatMethod:
    recipe = loaded.recipe
    assert isinstance(recipe, TrainRecipe)
    if recipe.method.name != parsed.method["name"]:
        raise UserError(f"method.name={recipe.method.name}: {path} is a checkpoint of {parsed.method['name']}; remove method.name")
    with torch.device("meta"):  # creates only shapes, so that a wrong backbone is rejected before the experts are created
        space = ParameterSpace.of(create_backbone(recipe.backbone.model_copy(update={"weights": "none"})))
    check_backbone(path, space, parsed.flat["theta_pre"])
    method = prepare_method(recipe.model_copy(update={"device": "cpu"}), "none")
    restore(method, state_of(path, method, parsed), path)
    return method


def _describe(reporter: Reporter, source: str, parsed: Parsed, method: FlatMethod) -> None:
    facts = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in parsed.facts.items())
    reporter.line(f"{source}: {parsed.layout}, {method.space.size:,} backbone parameters, {facts}")
    for note in parsed.notes:
        reporter.line(note)


def _write(out: Path, loaded: Loaded, method: FlatMethod, imported: dict[str, Any]) -> RunDir:
    """Write the run under a temporary name and then rename it, so that it is never incomplete."""
    draft = out.parent / f".{out.name}.import-{os.getpid()}"
    groups = build_optimizers(method.groups(), loaded.recipe.train.groups, 1, method.default_groups()).state_dict()[1]  # type: ignore[union-attr]
    state = {"step": 0, "best": {"mean": -1.0, "step": -1}, "optimizers": groups}
    try:
        run = RunDir.create(draft, loaded.recipe, loaded.origins)
        save_checkpoint(run.checkpoints / "last", method.state_dict(), state)
        run.note(status="finished", imported=imported)
        publish(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return RunDir.open(out)
