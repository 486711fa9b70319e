"""A trained run of `smat llm train`, loaded for evaluation, generation and export."""

from dataclasses import dataclass
from pathlib import Path

import torch

from smatcli.config.llm import LlmRecipe
from smatcli.config.loader import verb
from smatcli.device import Precision, choose_device, choose_precision
from smatcli.engine.llm.learner import load_trained
from smatcli.engine.llm.training import method_of, run_base
from smatcli.errors import UserError
from smatcli.llm.base_model import Base, base_hash, load_base
from smatcli.llm.data.tokens import Renderer
from smatcli.llm.methods.base import LanguageMethod
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter


@dataclass(frozen=True)
class LanguageRun:
    """A method with trained weights, in evaluation mode, and what it needs to read and write text."""

    path: Path
    recipe: LlmRecipe
    base: Base
    method: LanguageMethod
    renderer: Renderer
    device: torch.device
    precision: Precision
    checkpoint: str
    step: int


def open_language_run(path: str | Path) -> RunDir:
    """Open a run directory; UserError unless `smat llm train` made it and a checkpoint exists."""
    run = RunDir.open(path)
    if not isinstance(run.recipe, LlmRecipe):
        raise UserError(f"{path}: is a run of `smat {verb(run.recipe.kind)}`, not of `smat llm train`")
    if not (has_checkpoint(run.checkpoints / "best") or has_checkpoint(run.checkpoints / "last")):
        raise UserError(f"{path}: has no checkpoint yet; finish it with `smat llm train {path}/recipe.yaml --resume`")
    return run


def load_language_run(path: str | Path, which: str = "best", device: str | None = None, reporter: Reporter | None = None) -> LanguageRun:
    """Load a run; `which` is 'best' (or else 'last', with a line, if no checkpoint is the best one) or 'last'.

    UserError if the base model is no longer the one that was trained on.
    """
    run = open_language_run(path)
    recipe = run.recipe
    assert isinstance(recipe, LlmRecipe)
    if which == "best" and not has_checkpoint(run.checkpoints / "best"):
        which = "last"
        if reporter is not None:
            reporter.line(f"{path}: has no best checkpoint; the last one is used")
    saved = load_checkpoint(run.checkpoints / which, reporter, strict=True)
    folder = run_base(run.path, run.info)
    if not folder.is_dir():
        raise UserError(f"{path}: its base model {folder} does not exist; put it back")
    if base_hash(folder) != run.info.get("base_sha256"):
        raise UserError(f"{path}: its base model {folder} changed since the run began; put the original back")
    base = load_base(folder)
    method = method_of(base, recipe.method, recipe.seed)
    load_trained(method, saved.model, saved.path)
    step = int(saved.state["step"])
    method.after_update(step / recipe.train.steps)
    where = choose_device(device or recipe.device)
    precision = choose_precision(recipe.precision, where, int(base.model.config.hidden_size))
    precision.apply(method.to(where))
    return LanguageRun(run.path, recipe, base, method.eval(), Renderer(base.tokenizer, recipe.data.template), where, precision, which, step)
