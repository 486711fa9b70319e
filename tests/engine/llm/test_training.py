"""Training of language models: accumulation, packing, pre-training, and what is refused before a run directory is made."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.config import load_recipe
from smatcli.config.llm import LlmTrain, SimoeConfig
from smatcli.device import choose_precision
from smatcli.engine.llm import training
from smatcli.engine.llm.learner import LlmLearner, Setting
from smatcli.errors import UserError
from smatcli.llm.base_model import base_hash, tiny_base
from smatcli.llm.data.batches import TokenSet, tokenise
from smatcli.llm.data.rows import Example, Message
from smatcli.llm.data.tokens import Renderer
from smatcli.llm.features import PromptFeatures
from smatcli.llm.methods.base import LanguageMethod
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted
from tests.engine.llm.tiny import METHODS, recipe_of, run

CPU = torch.device("cpu")


def examples(count: int) -> list[Example]:
    return [Example((Message("user", "x" * (n % 5 + 1)), Message("assistant", "y" * (n % 3 + 1)))) for n in range(count)]


def learner(row: int, packed: bool = False, scores: str = "softmax") -> LlmLearner:
    config = load_recipe("llm/quickstart/simoe", ["model={hidden: 16, layers: 2, heads: 2}"]).recipe
    base = tiny_base(config.model, 40, 0)  # type: ignore[union-attr, arg-type]
    data = tokenise(examples(12), Renderer(base.tokenizer), 40)
    method = training.method_of(base, SimoeConfig.model_validate({"experts": 3, "router": {"scores": scores}}), 0).train()
    setting = Setting(data, data, base.pad, packed, CPU, choose_precision("fp32", CPU, 16), 0)
    return LlmLearner(method, LlmTrain(steps=4, batch=8, row=row), setting, {})


def folder(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def gradients(made: LlmLearner) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for index, delta in enumerate(made.method.trainable()["delta"]):
            delta.add_(torch.randn(delta.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    numbers = made.backward([0, 1, 2, 3, 4, 5, 6, 7], 3)
    assert isinstance(numbers, dict)
    return {"loss": torch.tensor(numbers["loss"]), **{n: p.grad for n, p in made.method.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("scores", ["softmax", "gumbel-sigmoid"])
@pytest.mark.parametrize(("row", "packed"), [(12, False), (12, True), (2000, True)])
def test_the_update_does_not_depend_on_its_forward_passes(row: int, packed: bool, scores: str) -> None:
    """8 examples in a single pass give the loss and gradients of 8 passes, although their answers differ in length."""
    whole, parts = gradients(learner(2000, scores=scores)), gradients(learner(row, packed, scores))
    assert whole.keys() == parts.keys()
    assert {"log_alpha", "router.out.weight"} <= whole.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-6, msg=name)


def test_features_do_not_depend_on_which_example_is_first() -> None:
    made = learner(2000)
    other = PromptFeatures(made.method, made.setting.train, made.setting.pad, CPU, made.setting.precision)
    a, b = made.features.of([0, 7]), other.of([7])
    assert a is not None
    assert b is not None
    assert torch.equal(a[1:], b)
    assert PromptFeatures(LanguageMethod(None), TokenSet(), 0, CPU, made.setting.precision).of([0]) is None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(tmp_path: Path, method: str) -> None:
    made = run(tmp_path, method)
    assert made.finished
    assert [r["step"] for r in made.records("valid")] == [2, 4]
    assert made.records("valid")[-1]["nll"] < 6
    if method == "simoe":
        assert {"sparsity_parameters", "sparsity_entries", "sparsity_union", "overlap"} <= made.records("valid")[0].keys()


def test_the_tiny_base_is_pretrained_and_the_pretraining_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = ("model.pretrain_steps=4", "train.checkpoint_every=1")
    whole, without = run(folder(tmp_path, "whole"), "simoe", *extra), run(folder(tmp_path, "without"), "simoe")
    assert base_hash(whole.path / "base") != base_hash(without.path / "base")
    backward = LlmLearner.backward

    def stopped(self: LlmLearner, batch: Any, step: int) -> Any:
        if self.name == "pre-training" and step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, batch, step)

    monkeypatch.setattr(LlmLearner, "backward", stopped)
    root = folder(tmp_path, "resumed")
    with pytest.raises(Interrupted):
        run(root, "simoe", *extra)
    assert not (root / "simoe/base").exists()
    monkeypatch.undo()
    reporter = SilentReporter()
    resumed = run(root, "simoe", *extra, reporter=reporter, resume=True)
    assert any("at step 2 of 4" in line for line in reporter.lines)
    assert base_hash(resumed.path / "base") == base_hash(whole.path / "base")
    assert not (resumed.path / "pretraining").exists()


def test_a_resumed_run_refuses_another_base(tmp_path: Path) -> None:
    base = run(tmp_path, "full").path / "base"
    extra = (f"model={{path: {base}}}", "train.checkpoint_every=1")
    backward = LlmLearner.backward

    def stopped(self: LlmLearner, batch: Any, step: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, batch, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(LlmLearner, "backward", stopped)
        run(tmp_path, "simoe", *extra)
    weights = run(folder(tmp_path, "other"), "full", "seed=1").path / "base/model.safetensors"
    (base / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match=r"the weights of .*base changed since run"):
        run(tmp_path, "simoe", *extra, resume=True)


def test_packing_that_mixes_sequences_is_refused_or_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "packing_error", lambda *args: 0.3)
    reporter = SilentReporter()
    run(tmp_path, "simoe", reporter=reporter)
    assert any(line.startswith("packing: off; a packed row differs from its sequences by 3.0e-01") for line in reporter.lines)
    with pytest.raises(UserError, match=r"train\.packing: on, but a packed row differs"):
        run(tmp_path, "full", "train.packing=on")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.train=nowhere", "nowhere: does not exist; give a prepared folder"),
        ("model={path: nowhere}", "nowhere: is not the folder of a transformers model"),
        ("data.valid=24", "data.valid: 24 rows cannot be set aside from 24"),
        ("data.context=8", "examples are longer than 8 tokens"),
        ("train.groups.delat.lr=1", "train.groups.delat: no such optimizer group; did you mean 'delta'?"),
        ("method.upcycle=atention", "method.upcycle: expected"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_is_made(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        run(tmp_path, "simoe", override)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "simoe").exists()
    assert recipe_of(tmp_path).exists()
