"""`smat llm export`: a plain transformers folder with the weights of one prompt."""

from pathlib import Path

import torch

from smatcli.engine.llm.generation import as_example
from smatcli.engine.llm.loading import LanguageRun
from smatcli.errors import UserError
from smatcli.llm.base_model import Base, save_base


@torch.no_grad()
def export_dense(run: LanguageRun, prompt: str | None, out: Path) -> None:
    """Write the base model's class with the weights merged in fp32 for `prompt`; the run cannot be used after it.

    A method whose weights do not depend on the prompt takes none. Raises UserError otherwise, and if `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder for --out")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: this folder does not exist; create it first")
    method = run.method
    if method.needs_features != (prompt is not None):
        depend, act = ("depend", "give") if prompt is None else ("do not depend", "remove")
        raise UserError(f"{run.path}: its weights {depend} on the prompt; {act} --prompt")
    features = None
    if prompt is not None:
        ids = torch.tensor([run.renderer.prompt(as_example(prompt))], device=run.device)
        features = method.features(ids, torch.ones_like(ids)).float()
    model = method.merged(features)
    save_base(Base(model.to("cpu").eval(), run.base.tokenizer), out)
