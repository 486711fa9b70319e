"""Tokens dealt to updates and rows: counted, whole, and with the same loss however they are batched."""

import pytest
import torch

from smatcli.config.llm import SimoeConfig
from smatcli.errors import UserError
from smatcli.llm.data.batches import Dealing, TokenSet, prompts_of, rows_of, tokenise
from smatcli.llm.data.bytes import byte_tokenizer
from smatcli.llm.data.rows import Example, Message
from smatcli.llm.data.tokens import Renderer
from smatcli.llm.loss import IGNORED, answer_nll
from smatcli.llm.methods.simoe import Simoe
from tests.llm.nets import model

PAIRS = [("ab", "c"), ("abcdef", "gh"), ("x", "yzyz"), ("hello", "w")]


def examples(pairs=PAIRS):
    return [Example((Message("user", prompt), Message("assistant", answer))) for prompt, answer in pairs]


def small(length=9, count=6):
    """Tokens below the tiny models' vocabulary, of unequal lengths."""
    torch.manual_seed(0)
    data = TokenSet()
    for i in range(count):
        n = length - i % 4
        ids = tuple(torch.randint(3, 48, (n,)).tolist())
        from smatcli.llm.data.tokens import Tokens

        data.tokens.append(Tokens(ids, tuple(k >= n - 2 - i % 2 for k in range(n)), n - 2 - i % 2))
    return data


def test_every_epoch_deals_every_example_once():
    schedule = Dealing(10, 4, seed=3)
    epochs = [[i for u in range(e * 3, e * 3 + 3) for i in schedule.examples(u)] for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert Dealing(10, 4, seed=3).examples(4) == schedule.examples(4)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_hold_every_token_once(packed):
    data = small()
    rows = rows_of(data, range(len(data)), 20, packed=packed, pad=0)
    assert sorted(i for row in rows for i in row.examples) == list(range(len(data)))
    assert all(row.ids.numel() <= 20 for row in rows)
    assert sum(int((row.labels != IGNORED).sum()) for row in rows) == data.answers(range(len(data)))


def test_the_loss_does_not_depend_on_the_batching():
    data, everything = small(), range(6)
    torch.manual_seed(1)
    net = Simoe(model("llama"), SimoeConfig(experts=3)).double().eval()
    net.base.set_attn_implementation("sdpa")
    losses = []
    for packed, capacity in ((True, 100), (True, 9), (False, 100), (False, 9)):
        total = 0.0
        for row in rows_of(data, everything, capacity, packed=packed, pad=0):
            scores = net.condition(net.features(*prompts_of(data, row.examples, 0)))
            total += float(answer_nll(net.logits(row.ids, scores, row.pieces, **row.inputs(torch.device("cpu"))), row.labels)[0])
        losses.append(total)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)


def test_long_examples():
    renderer = Renderer(byte_tokenizer())
    with pytest.raises(UserError, match=r"1 of 4 examples are longer than 11 tokens \(the longest has 12\)"):
        tokenise(examples(), renderer, 11)
    dropped = tokenise(examples(), renderer, 11, "drop")
    assert (len(dropped), dict(dropped.dropped)) == (3, {"too long": 1})
    cut = tokenise(examples(), renderer, 11, "truncate-prompt-left")
    assert len(cut) == 4
    tokens = cut.tokens[1]
    assert (len(tokens.ids), tokens.prompt, tokens.answers) == (11, 8, 3)
    assert byte_tokenizer().decode(tokens.ids) == "abcdef<end><assistant>gh<end>"
    with pytest.raises(UserError, match=r"no example is left to train on \(4 too long\)"):
        tokenise(examples(), renderer, 2, "truncate-prompt-left")


def test_prompts_are_padded_on_the_left():
    ids, mask = prompts_of(small(), [0, 2], pad=0)
    assert mask.tolist() == [[1] * 7, [0, 0, 1, 1, 1, 1, 1]]
    assert (ids[1, :2] == 0).all()
