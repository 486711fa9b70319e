"""Evaluation, generation and export of runs: reloaded weights give equal logits, results are complete, comparisons are paired."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.engine.llm.evaluation import LlmEvalOptions, LlmEvaluation, compare, evaluate
from smatcli.engine.llm.exporting import export_dense
from smatcli.engine.llm.generation import as_example, generate
from smatcli.engine.llm.loading import LanguageRun, load_language_run
from smatcli.errors import UserError
from smatcli.llm.base_model import load_base
from smatcli.llm.data.rows import Example, Message
from smatcli.llm.metrics import exact_match, normalised, rouge_l
from smatcli.runs.reporter import SilentReporter
from tests.engine.llm.tiny import METHODS, rows, run, write_rows

NO_TEXT = LlmEvalOptions(generate=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of each method."""
    folder = tmp_path_factory.mktemp("llm")
    for method in METHODS:
        run(folder, method)
    return folder


def logits(loaded: LanguageRun, example: Example) -> torch.Tensor:
    method = loaded.method
    prompt = torch.tensor([loaded.renderer.prompt(example)])
    scores = method.condition(method.features(prompt, torch.ones_like(prompt))) if method.needs_features else None
    with torch.no_grad():
        return method.logits(prompt, scores)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_reloads_to_equal_logits(root: Path, method: str) -> None:
    example = as_example("add 3")
    first, second = (load_language_run(root / method, "last") for _ in range(2))
    assert torch.equal(logits(first, example), logits(second, example))
    base = load_base(root / method / "base").model
    prompt = torch.tensor([first.renderer.prompt(example)])
    assert not torch.allclose(logits(first, example), base(prompt).logits, atol=1e-4), "the trained weights are in use"


@pytest.mark.parametrize("method", ["simoe", "softmerge", "full", "lora"])
def test_a_dense_export_has_the_logits_of_the_run(root: Path, tmp_path: Path, method: str) -> None:
    example = as_example("add 3")
    expected = logits(load_language_run(root / method, "last"), example)
    prompt = "add 3" if method in ("simoe", "softmerge") else None
    export_dense(load_language_run(root / method, "last"), prompt, tmp_path / "dense")
    plain = load_base(tmp_path / "dense")
    assert type(plain.model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([load_language_run(root / method).renderer.prompt(example)])
    with torch.no_grad():
        torch.testing.assert_close(plain.model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert plain.tokenizer.chat_template


def test_exports_that_cannot_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its weights depend on the prompt; give --prompt"):
        export_dense(load_language_run(root / "simoe"), None, tmp_path / "x")
    with pytest.raises(UserError, match="do not depend on the prompt; remove --prompt"):
        export_dense(load_language_run(root / "full"), "hi", tmp_path / "x")
    with pytest.raises(UserError, match="chooses experts by token"):
        export_dense(load_language_run(root / "upcycle"), None, tmp_path / "x")
    with pytest.raises(UserError, match="exists; choose another folder"):
        export_dense(load_language_run(root / "full"), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_by_task_and_category(root: Path) -> None:
    pytest.importorskip("rouge_score")
    result = evaluate(str(root / "simoe"), LlmEvalOptions(), SilentReporter())
    assert result.folder == root / "simoe/eval/heldout"
    body: dict[str, Any] = json.loads((result.folder / "results.json").read_text())
    assert body == result.body
    assert [(t["task"], t["category"], t["examples"]) for t in body["tasks"]] == [
        ("add0", "add", 3), ("add1", "add", 3), ("sub0", "sub", 3), ("sub1", "sub", 3)
    ]  # fmt: skip
    assert all(0 <= t["exact"] <= 1 and 0 <= t["rouge"] <= 1 and t["nll"] > 0 for t in body["tasks"])
    first = body["categories"][0]
    assert first["nll"] == pytest.approx((body["tasks"][0]["nll"] + body["tasks"][1]["nll"]) / 2)
    assert body["macro"]["nll"] == pytest.approx(sum(c["nll"] for c in body["categories"]) / 2)
    table = list(csv.DictReader((result.folder / "tasks.csv").open()))
    assert float(table[0]["nll"]) == pytest.approx(body["tasks"][0]["nll"], abs=1e-6)
    answers = [json.loads(line) for line in (result.folder / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12
    assert answers[0]["prompt"] == "add 0"


def test_the_nll_is_that_of_single_examples(root: Path) -> None:
    result = evaluate(str(root / "simoe"), NO_TEXT, SilentReporter())
    loaded = load_language_run(root / "simoe")
    total, count = 0.0, 0
    for row in [r for r in rows(6, "add") if r["task"] == "add0"]:
        example = Example((Message("user", row["prompt"]), Message("assistant", row["answer"])))
        tokens = loaded.renderer.tokens(example)
        prompt = torch.tensor([tokens.ids[: tokens.prompt]])
        ids = torch.tensor([tokens.ids])
        with torch.no_grad():
            scores = loaded.method.condition(loaded.method.features(prompt, torch.ones_like(prompt)))
            log = torch.log_softmax(loaded.method.logits(ids, scores)[0], -1)
        for place in range(tokens.prompt, len(tokens.ids)):
            total -= float(log[place - 1, tokens.ids[place]])
            count += 1
    task = result.body["tasks"][0]
    assert task["tokens"] == count
    assert task["nll"] == pytest.approx(total / count, rel=1e-5)
    assert task["exact"] is None


def test_runs_are_compared_on_the_same_rows_only(root: Path, tmp_path: Path) -> None:
    one, two = (evaluate(str(root / name), NO_TEXT, SilentReporter()) for name in ("simoe", "full"))
    gap = compare(one, two, "nll")
    differences = [a["nll"] - b["nll"] for a, b in zip(one.body["tasks"], two.body["tasks"], strict=True)]
    assert gap["difference"] == pytest.approx(sum(differences) / 4)
    assert min(differences) <= gap["low"] <= gap["difference"] <= gap["high"] <= max(differences)
    assert compare(one, one, "nll")["high"] == 0
    path = write_rows(tmp_path / "other.jsonl", *rows(4, "add"))
    other = evaluate(str(root / "full"), LlmEvalOptions(data=str(path), generate=False), SilentReporter())
    assert other.folder == root / "full/eval/other"
    with pytest.raises(UserError, match="measured on different rows"):
        compare(one, other, "nll")
    assert isinstance(other, LlmEvaluation)


def test_batches_of_prompts_answer_as_single_ones(root: Path) -> None:
    loaded = load_language_run(root / "simoe")
    examples = [as_example(text) for text in ("add 3", "a much longer one: sub 12", "mul 7")]
    together = generate(loaded, examples, tokens=5, batch=3)
    assert together == [generate(loaded, [example], tokens=5, batch=1)[0] for example in examples]
    with pytest.raises(UserError, match=r"exceed the 2048 tokens of the model"):
        generate(loaded, examples, tokens=5000, batch=3)
    with pytest.raises(UserError, match="--prompt: is empty"):
        as_example("  ")


def test_a_changed_or_missing_base_is_refused(root: Path) -> None:
    weights = root / "lora/base/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\x00\x00\x00\x40")
    with pytest.raises(UserError, match=r"its base model .* changed since the run began"):
        load_language_run(root / "lora")
    weights.write_bytes(whole)
    load_language_run(root / "lora")


def test_scores_of_answers() -> None:
    assert normalised("The  Cat's, hat!") == "cats hat"
    assert exact_match("A cat.", ["dog", "cat"]) == 1
    assert exact_match("cats", ["cat"]) == 0
    assert exact_match("!", ["?"]) == 0
    assert exact_match("?", ["?"]) == 1


def test_rouge_is_that_of_its_definition() -> None:
    pytest.importorskip("rouge_score")
    # Longest common subsequence "polic the gunman" (stemmed): precision 3/4, recall 3/3.
    assert rouge_l("police killed the gunman", ["police the gunmen", "nothing"]) != 1
    assert rouge_l("police killed the gunman", ["police the gunman"]) == pytest.approx(2 * 0.75 / 1.75)
    assert rouge_l("", ["police"]) == 0
