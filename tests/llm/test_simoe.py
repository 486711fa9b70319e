"""SIMoE as a whole: the router sees the prompt alone, generation with and without a cache, padding, beams, packing."""

import pytest
import torch

from smatcli.config.llm import LlmSparsityConfig, SimoeConfig
from smatcli.errors import UserError
from smatcli.llm.loss import IGNORED, answer_nll
from smatcli.llm.methods.simoe import Simoe
from smatcli.llm.mixed import mixed_layers
from tests.llm.nets import VOCABULARY, model


@pytest.fixture
def simoe():
    return made()


def made(family="llama", **settings):
    torch.manual_seed(1)
    net = Simoe(model(family), SimoeConfig(experts=3, **settings)).double().eval()
    with torch.no_grad():
        for layer in mixed_layers(net.base).values():
            layer.delta.copy_(0.3 * torch.randn_like(layer.delta))
        net.router.out.weight.mul_(20)  # scores that differ between prompts
    return net


def prompts(*lengths):
    torch.manual_seed(2)
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(3, VOCABULARY, (length,))
        mask[row, width - length :] = 1
    return ids, mask


def test_every_trainable_tensor_is_in_one_group(simoe):
    grouped = [p for group in simoe.trainable().values() for p in group]
    assert {id(p) for p in grouped} == {id(p) for p in simoe.parameters() if p.requires_grad}
    assert len({id(p) for p in grouped}) == len(grouped)


def test_scores_differ_between_prompts_and_see_no_padding(simoe):
    ids, mask = prompts(6, 4)
    alpha = simoe.condition(simoe.features(ids, mask))
    alone = simoe.condition(simoe.features(ids[1:, 2:], mask[1:, 2:]))
    torch.testing.assert_close(alpha[1:], alone)
    assert (alpha[0] - alpha[1]).abs().max() > 0.01
    torch.testing.assert_close(alpha.sum(-1), torch.ones(2, dtype=alpha.dtype))


def test_generation_with_a_cache_equals_generation_without(simoe):
    ids, mask = prompts(5)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(simoe.generate(ids, mask, **options), simoe.generate(ids, mask, use_cache=False, **options))


def test_a_padded_batch_equals_single_prompts(simoe):
    ids, mask = prompts(6, 3, 5)
    batch = simoe.generate(ids, mask, max_new_tokens=6, do_sample=False)
    for row, length in enumerate((6, 3, 5)):
        single = simoe.generate(ids[row : row + 1, 6 - length :], mask[row : row + 1, 6 - length :], max_new_tokens=6, do_sample=False)
        assert batch[row, 6:].tolist()[: single.shape[1] - length] == single[0, length:].tolist()


def test_beams_share_the_scores_of_their_prompt(simoe):
    ids, mask = prompts(6, 4)
    batch = simoe.generate(ids, mask, max_new_tokens=5, do_sample=False, num_beams=3)
    single = simoe.generate(ids[1:, 2:], mask[1:, 2:], max_new_tokens=5, do_sample=False, num_beams=3)
    assert batch[1, 6:].tolist()[: single.shape[1] - 4] == single[0, 4:].tolist()


def test_assisted_decoding_is_refused(simoe):
    ids, mask = prompts(4)
    with pytest.raises(UserError, match="assisted decoding"):
        simoe.generate(ids, mask, assistant_model=simoe.base)


def test_a_packed_row_has_the_loss_and_gradients_of_its_sequences(simoe):
    simoe.base.set_attn_implementation("sdpa")
    lengths = [5, 7, 4]
    torch.manual_seed(3)
    rows = [torch.randint(3, VOCABULARY, (1, n)) for n in lengths]
    labels = [torch.cat([torch.full((1, 2), IGNORED), ids[:, 2:]], 1) for ids in rows]
    alpha = torch.softmax(torch.randn(3, 3, dtype=torch.float64), -1)
    deltas = simoe.trainable()["delta"]
    single = torch.zeros((), dtype=torch.float64)
    for s, (ids, want) in enumerate(zip(rows, labels, strict=True)):
        single = single + answer_nll(simoe.logits(ids, alpha[s : s + 1]), want)[0]
    bounds = [(0, 5), (5, 12), (12, 16)]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed, count = answer_nll(simoe.logits(torch.cat(rows, 1), alpha, bounds, position_ids=positions), torch.cat(labels, 1))
    assert count == sum(n - 2 for n in lengths)
    torch.testing.assert_close(packed, single)
    for a, b in zip(torch.autograd.grad(packed, deltas), torch.autograd.grad(single, deltas), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scope", ["each", "all", "union"])
def test_the_constraint_reaches_its_target(scope):
    net = made(sparsity=LlmSparsityConfig(tau=0.8, scope=scope, lr=2.0)).train()
    masks, multipliers = [net.log_alpha], [net.controller.multipliers]
    optimizers = [torch.optim.Adam(masks, lr=0.05), torch.optim.SGD(multipliers, lr=2.0)]
    for step in range(400):
        net.begin_update(step)
        terms = net.penalties()
        for optimizer in optimizers:
            optimizer.zero_grad()
        (terms["sparsity"] + terms["ascent"]).backward()
        for optimizer in optimizers:
            optimizer.step()
        net.after_update(1.0)
    reached = 1 - net.gates.density(net.gates.expected(net.log_alpha), scope)
    assert reached.min() > 0.79


def test_without_a_target_there_is_no_multiplier():
    net = made(sparsity=LlmSparsityConfig(tau=0))
    assert "multipliers" not in net.trainable()
    assert set(net.penalties()) == {"orthogonality"}
