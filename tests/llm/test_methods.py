"""What holds for every method of `smat llm`. A new one adds one row to `CONFIGS`."""

import copy
from typing import Any

import pytest
import torch

from smatcli.config.llm import LlmFullConfig, LlmLoraConfig, SimoeConfig, SoftMergeLlmConfig, UpcycleConfig
from smatcli.errors import UserError
from smatcli.llm.loss import IGNORED, answer_nll
from smatcli.llm.methods import METHODS, build_method
from tests.llm.nets import VOCABULARY, model

CONFIGS: dict[str, Any] = {
    "simoe": SimoeConfig(experts=3),
    "full": LlmFullConfig(),
    "lora": LlmLoraConfig(rank=2),
    "upcycle": UpcycleConfig(experts=3, top=2),
    "softmerge": SoftMergeLlmConfig(experts=3),
}
FAMILY = ("llama", "gpt2", "gpt-neox")


def batch():
    torch.manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (2, 9))
    labels = torch.cat([torch.full((2, 4), IGNORED), ids[:, 4:]], 1)
    return ids, labels, torch.ones(2, 4, dtype=torch.long)


def loss_of(method, seed=0):
    ids, labels, mask = batch()
    method.begin_update(seed)
    scores = method.condition(method.features(ids[:, :4], mask)) if method.needs_features else None
    total, count = answer_nll(method.logits(ids, scores), labels)
    return total / count + sum(method.penalties().values())


def test_every_method_has_a_row():
    assert CONFIGS.keys() == METHODS.keys()


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("name", CONFIGS)
def test_starts_as_the_base_model(name, family):
    base = model(family).float()
    ids, _, mask = batch()
    with torch.no_grad():
        expected = base(ids).logits
        method = build_method(copy.deepcopy(base), CONFIGS[name]).eval()
        scores = method.condition(method.features(ids[:, :4], mask)) if method.needs_features else None
        torch.testing.assert_close(method.logits(ids, scores), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trainable_tensor_is_in_one_group_and_in_the_state(name):
    method = build_method(model("llama").float(), CONFIGS[name])
    grouped = [id(p) for group in method.trainable().values() for p in group]
    wanted = {id(p) for p in method.parameters() if p.requires_grad}
    assert set(grouped) == wanted
    assert len(grouped) == len(wanted)
    assert {id(p) for p in method.state().values()} == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_and_moves_only_what_is_declared(name):
    method = build_method(model("llama").float(), CONFIGS[name]).train()
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    optimizer = torch.optim.Adam([p for group in method.trainable().values() for p in group], lr=5e-3)
    first = loss_of(method).item()
    for step in range(12):
        optimizer.zero_grad()
        loss_of(method, step).backward()
        optimizer.step()
        method.after_update(step / 12)
    assert loss_of(method).item() < first - 0.1
    moved = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= set(method.state())


@pytest.mark.parametrize("name", CONFIGS)
def test_generates(name):
    method = build_method(model("llama").float(), CONFIGS[name]).eval()
    ids, _, mask = batch()
    out = method.generate(ids[:, :4], mask, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= 7
    assert torch.equal(out[:, :4], ids[:, :4])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_answer_does_not_reach_the_scores(name):
    method = build_method(model("llama").float(), CONFIGS[name]).eval()
    if not method.needs_features:
        pytest.skip("no scores")
    ids, _, mask = batch()
    other = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % VOCABULARY], 1)
    first, second = (method.condition(method.features(x[:, :4], mask)) for x in (ids, other))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_upcycling_needs_enough_experts():
    with pytest.raises(UserError, match="5 experts per token of 3"):
        build_method(model("llama"), UpcycleConfig(experts=3, top=5))
