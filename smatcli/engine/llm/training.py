"""`smat llm train`: adapt a language model to instruction rows."""

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smatcli.config.llm import LlmFullConfig, LlmMethodConfig, LlmRecipe, LlmTrain
from smatcli.config.schema import GroupConfig
from smatcli.data.counted import counted_key
from smatcli.device import Precision, choose_device, choose_precision
from smatcli.engine.llm.learner import LlmLearner, Setting, make_optimizers, tokens_hash
from smatcli.engine.loop.session import Prepared, Session, Setup, run_session
from smatcli.errors import UserError
from smatcli.llm.base_model import Base, base_hash, load_base, save_base, tiny_base
from smatcli.llm.data.batches import TokenSet, tokenise
from smatcli.llm.data.sources import read_source, split_rows
from smatcli.llm.data.synthetic import pretraining_examples
from smatcli.llm.data.tokens import Renderer
from smatcli.llm.methods import build_method
from smatcli.llm.methods.base import LanguageMethod
from smatcli.llm.packed import TOLERANCE, packing_error
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter

if TYPE_CHECKING:
    from smatcli.config import Loaded

PRETRAIN_ROWS, PRETRAIN_VALID = 4096, 64  # most rows of the pre-training; rows set aside
BASE = "base"  # folder of a tiny base model in its run


def train(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Train as the recipe says; a tiny base model is pre-trained first, and saved in RUN/base.

    Every random number is derived from (seed, step), so a resumed run continues exactly. Raises UserError for what cannot work
    (rows, model, groups), before the run directory is made; SmatError after train.spike.in_a_row skipped updates in a row; Interrupted on a
    signal.
    """
    return run_session(loaded, LlmRecipe, reporter, resume, _prepare)


def _prepare(recipe: LlmRecipe, setup: Setup) -> Prepared:
    device = choose_device(recipe.device)
    tiny = recipe.model.path is None
    base = tiny_base(recipe.model, recipe.data.context, recipe.seed) if tiny else load_base(str(recipe.model.path))
    rows, valid = token_sets(recipe, base)
    # Refuses models and groups that cannot work. A tiny base model is not trained yet: its copy is thrown away.
    method = method_of(Base(copy.deepcopy(base.model), base.tokenizer) if tiny else base, recipe.method, recipe.seed)
    make_optimizers(method, recipe.train)
    precision = choose_precision(recipe.precision, device, int(base.model.config.hidden_size))
    setup.reporter.line(f"{len(rows)} training examples, {len(valid)} for validation{_dropped(rows, valid)}")

    def work(session: Session) -> None:
        session.reporter.line(str(precision))
        folder = session.run.path / BASE
        if tiny and not folder.exists():
            _pretrain(recipe, base, session, device, precision)
        here = load_base(folder) if tiny else base
        learned = method_of(here, recipe.method, recipe.seed) if tiny else method
        learned.to(device)
        precision.apply(learned)
        packed = _packing(recipe.train, learned, rows, device, precision, session.reporter)
        setting = Setting(rows, valid, base.pad, packed, device, precision, recipe.seed)
        weights = base_hash(folder if tiny else str(recipe.model.path))
        data = {recipe.data.train: f"{tokens_hash(rows)}-{tokens_hash(valid)}", str(recipe.model.path or "the tiny Llama"): weights}
        session.run.note(base=BASE if tiny else str(recipe.model.path), base_sha256=weights, packed=packed)
        counts = {name: sum(p.numel() for p in group) for name, group in learned.trainable().items()}
        session.reporter.line(f"{recipe.method.name}; trained: {', '.join(f'{name} {n:,}' for name, n in counts.items())} parameters")
        session.train(LlmLearner(learned, recipe.train, setting, data))
        if not learned.feasible():
            session.reporter.line("the target of method.sparsity was not reached; raise train.groups.masks.lr or train.steps")

    return {"device": str(device), "precision": precision.name, "examples": len(rows)}, work


def token_sets(recipe: LlmRecipe, base: Base) -> tuple[TokenSet, TokenSet]:
    """Return the tokens of the training and of the validation rows."""
    data = recipe.data
    if base.longest is not None and data.context > base.longest:
        raise UserError(f"data.context: {data.context} tokens are more than the {base.longest} of the model; lower data.context")
    renderer = Renderer(base.tokenizer, data.template)
    parts = split_rows(read_source(data.train, "train", data.per_category), data.valid, data.limit, recipe.seed)
    rows, valid = (tokenise(part, renderer, data.context, data.too_long) for part in parts)
    return rows, valid


def method_of(base: Base, config: LlmMethodConfig, seed: int) -> LanguageMethod:
    """Build the method around the base model; its new parameters are initialised from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("llm-method", seed) % 2**63)
        return build_method(base.model, config)


def _pretrain(recipe: LlmRecipe, base: Base, session: Session, device: torch.device, precision: Precision) -> None:
    """Train the tiny base model on text in the form of the tasks, and save it as RUN/base; checkpoints are kept until then."""
    steps = recipe.model.pretrain_steps
    folder, checkpoints = session.run.path / BASE, session.run.path / "pretraining"
    if steps:
        settings = LlmTrain(
            steps=steps,
            batch=recipe.train.batch,
            row=recipe.train.row,
            valid_every=steps,
            checkpoint_every=recipe.train.checkpoint_every,
            groups={"delta": GroupConfig(lr=recipe.model.pretrain_lr, clip=1.0)},
        )
        count = min(PRETRAIN_ROWS, steps * settings.batch) + PRETRAIN_VALID
        rows, valid = split_rows(list(pretraining_examples(count, recipe.seed)), PRETRAIN_VALID, None, recipe.seed)
        renderer = Renderer(base.tokenizer, recipe.data.template)
        sets = [tokenise(part, renderer, recipe.data.context, "drop") for part in (rows, valid)]
        method = method_of(base, LlmFullConfig(), recipe.seed).to(device)
        setting = Setting(sets[0], sets[1], base.pad, packed=False, device=device, precision=precision, seed=recipe.seed)
        learner = LlmLearner(method, settings, setting, {"the tiny Llama": str(recipe.seed)})
        learner.name = "pre-training"
        session.reporter.line(f"pre-training of a tiny Llama, {sum(p.numel() for p in method.parameters()) / 1e6:.1f} M parameters")
        session.trial(learner, checkpoints)
        base.model.to("cpu")
    save_base(Base(base.model.eval(), base.tokenizer), folder)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _packing(
    settings: LlmTrain, method: LanguageMethod, rows: TokenSet, device: torch.device, precision: Precision, reporter: Reporter
) -> bool:
    """Decide whether examples are packed: as the recipe says, or where a packed row gives the logits of its sequences."""
    if settings.packing == "off":
        return False
    error = packing_error(method.eval().base, rows, settings.row, device, precision)
    limit = TOLERANCE[precision.name]
    if error <= limit:
        reporter.line(f"packing: on; a packed row differs from its sequences by {error:.1e} of the largest logit")
        return True
    what = f"a packed row differs from its sequences by {error:.1e} of the largest logit, more than {limit:.0e}"
    if settings.packing == "on":
        raise UserError(f"train.packing: on, but {what}: this model's attention ignores the borders; set train.packing: auto or off")
    reporter.line(f"packing: off; {what}")
    return False


def _dropped(*sets: TokenSet) -> str:
    reasons: dict[str, int] = {}
    for data in sets:
        for reason, count in data.dropped.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return "".join(f"; {count} dropped ({reason})" for reason, count in reasons.items())


def run_base(run: Path, info: dict[str, Any]) -> Path:
    """Return the folder of a run's base model."""
    name = str(info.get("base", BASE))
    return run / BASE if name == BASE else Path(name)
