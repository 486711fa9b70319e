"""A language method and its instruction data, as a `Learner` of the training loop."""

import hashlib
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smatcli.config.llm import LlmTrain
from smatcli.data.counted import counted_key
from smatcli.device import Precision
from smatcli.engine.loop.guard import Problem, nonfinite
from smatcli.engine.loop.learner import Learner, Schedule, Score
from smatcli.engine.loop.optimizers import Optimizers, build_optimizers
from smatcli.errors import UserError
from smatcli.llm.data.batches import Dealing, Rows, TokenSet, rows_of
from smatcli.llm.features import PromptFeatures
from smatcli.llm.loss import answer_nll
from smatcli.llm.methods.base import LanguageMethod

LOG_EVERY = 10  # steps per training record


@dataclass(frozen=True)
class Setting:
    """The data of a training, and where it runs. `pad`: token id of padding; `packed`: whether examples are packed into rows."""

    train: TokenSet
    valid: TokenSet
    pad: int
    packed: bool
    device: torch.device
    precision: Precision
    seed: int


def make_optimizers(method: LanguageMethod, settings: LlmTrain) -> Optimizers:
    """Build the optimizers of the method's groups; biases, norms and scalars get no weight decay."""
    no_decay = [p for p in method.parameters() if p.ndim <= 1]
    return build_optimizers(method.trainable(), settings.groups, settings.steps, method.defaults(), no_decay)


class LlmLearner(Learner[list[int]]):
    """Answer likelihood averaged over the answer tokens of an update, plus the method's penalties. A batch is a list of examples."""

    name, data_kind = "language model", "the rows or the weights of"

    def __init__(self, method: LanguageMethod, settings: LlmTrain, setting: Setting, data: dict[str, str]) -> None:
        self.method = self.model = method
        self.settings, self.setting, self.data = settings, setting, data
        self.schedule = Schedule(
            settings.steps, settings.valid_every, settings.checkpoint_every, settings.spike, settings.keep_every, LOG_EVERY
        )
        self.optimizers = make_optimizers(method, settings)
        self.dealing = Dealing(len(setting.train), settings.batch, setting.seed)
        self.features = self._features(setting.train)
        self.valid_features = self._features(setting.valid)
        method.after_update(0.0)

    def _features(self, data: TokenSet) -> PromptFeatures:
        return PromptFeatures(self.method, data, self.setting.pad, self.setting.device, self.setting.precision)

    def noise(self, step: int) -> int:
        """Seed gates, scores and dropout."""
        return counted_key("llm-noise", self.setting.seed, step) % 2**63

    def batches(self, step: int) -> Generator[list[int], None, None]:
        """Yield the examples of each update."""
        while True:
            yield self.dealing.examples(step)
            step += 1

    def backward(self, batch: list[int], step: int) -> dict[str, float] | Problem:
        """Sum the gradients of all rows of the update, each divided by the number of answer tokens of the update.

        Merging scores are computed once per update: the rows add up their gradients, which then pass through the router in one piece.
        """
        method, data = self.method, self.setting.train
        method.begin_update(self.noise(step))
        answers = data.answers(batch)
        features = self.features.of(batch)
        scores = None if features is None else method.condition(features)
        leaf = None if scores is None else scores.detach().requires_grad_(scores.requires_grad)
        place = {example: n for n, example in enumerate(batch)}
        rows = rows_of(data, batch, self.settings.row, packed=self.setting.packed, pad=self.setting.pad)
        total, terms = 0.0, {}
        for number, row in enumerate(rows):
            own = None if leaf is None else leaf[[place[example] for example in row.examples]]
            loss = self.nll(row, own) / answers
            total += float(loss.detach())
            if number == len(rows) - 1:
                penalties = method.penalties()
                terms = {name: float(term.detach()) for name, term in penalties.items()}
                loss = loss + sum(penalties.values())
            if bad := nonfinite(total + sum(terms.values()), {"nll": total, **terms}):
                return Problem(f"{bad}; examples {_few(row.examples)} of the training rows")
            loss.backward()
        if scores is not None and leaf is not None and leaf.grad is not None:
            scores.backward(leaf.grad)
        return {"loss": total, **terms}

    def nll(self, row: Rows, scores: Tensor | None) -> Tensor:
        """Return the summed negative log-likelihood of a row's answers."""
        device = self.setting.device
        with self.setting.precision.autocast():
            logits = self.method.logits(row.ids.to(device), scores, row.pieces, **row.inputs(device))
        return answer_nll(logits, row.labels.to(device))[0]

    def after_step(self, step: int) -> None:
        """Advance the method's schedules."""
        self.method.after_update(step / self.settings.steps)

    @torch.no_grad()
    def validate(self, step: int) -> Score:
        """Measure exp(-NLL per answer token): the geometric mean of the probabilities of the right tokens."""
        data = self.setting.valid
        chosen = range(len(data))
        total = 0.0
        for row in rows_of(data, chosen, self.settings.row, packed=self.setting.packed, pad=self.setting.pad):
            features = self.valid_features.of(row.examples)
            total += float(self.nll(row, None if features is None else self.method.condition(features)))
        nll = total / data.answers(chosen)
        value = math.exp(-nll) if math.isfinite(nll) else 0.0
        line = f"step {step}: validation NLL {nll:.4f} per answer token"
        return Score(value, {"mean": value, "nll": nll, **self.method.statistics()}, line)

    def feasible(self) -> bool:
        """Whether the constraint of the method holds."""
        return self.method.feasible()

    def position(self, step: int) -> dict[str, Any]:
        """Return the epoch."""
        return {"epoch": round(step / self.dealing.per_epoch, 4)}

    def train_record(self, means: dict[str, float], norms: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """Return the means, gradient norms and learning rates."""
        return {**means, "gradients": norms, "lr": rates}

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors; the base model is saved once, or stays where it is."""
        return self.method.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Keep the step, by which `load` sets the method's schedules."""
        self._step = int(state["step"])

    def load(self, tensors: dict[str, Tensor], where: Path) -> None:
        """Load trained tensors, and set the schedules to their step."""
        load_trained(self.method, tensors, where)
        self.method.after_update(getattr(self, "_step", 0) / self.settings.steps)

    def advice(self, problem: Problem | None) -> str:
        """Name the settings that make training more stable."""
        return "lower the learning rates in train.groups, or set their clip, in a new run"


@torch.no_grad()
def load_trained(method: LanguageMethod, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy saved tensors into the method; UserError, naming the file `where`, unless they are exactly its trained ones."""
    own = method.state()
    wrong = sorted(own.keys() ^ tensors.keys()) or sorted(name for name in own if own[name].shape != tensors[name].shape)
    if wrong:
        raise UserError(f"{where}: the checkpoint does not fit the recipe: {', '.join(wrong[:3])}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def tokens_hash(data: TokenSet) -> str:
    """Return a hash of the tokens, of their order and of the flags of the trained ones."""
    digest = hashlib.sha256()
    for tokens in data.tokens:
        digest.update(repr((tokens.ids, tokens.trained)).encode())
    return digest.hexdigest()[:16]


def _few(examples: Sequence[int]) -> str:
    return ", ".join(map(str, examples[:5])) + (", ..." if len(examples) > 5 else "")
