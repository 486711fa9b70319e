"""Mixed layers against an explicit dense merge, sequence by sequence, in float64."""

import copy

import pytest
import torch
from torch.func import functional_call

from smatcli.errors import UserError
from smatcli.llm import mixed as mixed_module
from smatcli.llm.find import find_segments, members_of, row_count
from smatcli.llm.mixed import MergedProduct, Mixing, mix_layers, mixed_layers
from tests.llm.nets import FAMILIES, VOCABULARY, mixtral, model


def prepared(family):
    """A base model, its mixed copy with random deltas, and the place of the mixing."""
    base = model(family)
    net = copy.deepcopy(base)
    segments = find_segments(net)
    place = mix_layers(net, segments)
    net.double()
    with torch.no_grad():
        for layer in mixed_layers(net).values():
            for delta in (layer.delta, layer.delta_bias):
                if delta is not None:
                    delta.copy_(0.2 * torch.randn_like(delta))
    return base, net, place, segments


def dense(base, net, w):
    """Parameters of the base model merged for one sequence's row weights w [G], with graph."""
    values = dict(base.named_parameters())
    for name, layer in mixed_layers(net).items():
        rows = w[layer.segment.start : layer.segment.stop]
        if layer.segment.kind == "norm":
            values[f"{name}.weight"] = values[f"{name}.weight"] + rows * layer.delta
        else:
            change = rows[:, None] * layer.delta
            values[f"{name}.weight"] = values[f"{name}.weight"] + (change.T if layer.segment.kind == "conv1d" else change)
        if layer.delta_bias is not None:
            values[f"{name}.bias"] = values[f"{name}.bias"] + rows * layer.delta_bias
    return values


def trained(net):
    return [d for layer in mixed_layers(net).values() for d in (layer.delta, layer.delta_bias) if d is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("merge_from", [1, 1000], ids=["merged", "products"])
def test_equals_the_dense_merge(family, merge_from, monkeypatch):
    monkeypatch.setattr(mixed_module, "MERGE_FROM", merge_from)
    base, net, place, segments = prepared(family)
    ids = torch.randint(3, VOCABULARY, (3, 7))
    w = torch.rand(3, row_count(segments), dtype=torch.float64, requires_grad=True)
    with place.set(Mixing(w)):
        logits = net(ids).logits
    expected = torch.cat([functional_call(base, dense(base, net, row), (ids[s : s + 1],)).logits for s, row in enumerate(w)])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    probe = torch.randn_like(logits)
    ours = torch.autograd.grad((logits * probe).sum(), [w, *trained(net)])
    theirs = torch.autograd.grad((expected * probe).sum(), [w, *trained(net)])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("merge_from", [1, 1000], ids=["merged", "products"])
def test_packed_sequences_equal_single_ones(merge_from, monkeypatch):
    monkeypatch.setattr(mixed_module, "MERGE_FROM", merge_from)
    _, net, place, segments = prepared("llama")
    net.set_attn_implementation("sdpa")
    lengths = [5, 8, 3]
    rows = [torch.randint(3, VOCABULARY, (1, n)) for n in lengths]
    w = torch.rand(3, row_count(segments), dtype=torch.float64)
    single = []
    for s, ids in enumerate(rows):
        with place.set(Mixing(w[s : s + 1])):
            single.append(net(ids).logits[0])
    bounds = [(0, 5), (5, 13), (13, 16)]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with place.set(Mixing(w, bounds)):
        packed = net(torch.cat(rows, 1), position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(packed, torch.cat(single), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pieces", [None, [(0, 3), (3, 4), (4, 8)]], ids=["batch", "packed"])
def test_gradients_of_the_merged_product(pieces):
    torch.manual_seed(0)
    x = torch.randn(*((3, 4) if pieces is None else (1, 8)), 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 5, dtype=torch.float64)
    delta = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    w = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    mixing = Mixing(w.detach(), pieces)
    assert torch.autograd.gradcheck(lambda x, d, w: MergedProduct.apply(x, weight, d, w, mixing), (x, delta, w))
    # One of the three may need no gradient: the first layer's input, say.
    assert torch.autograd.gradcheck(lambda d: MergedProduct.apply(x.detach(), weight, d, w.detach(), mixing), (delta,))


@pytest.mark.parametrize("family", FAMILIES)
def test_is_the_base_model_without_a_delta_and_without_a_mixing(family):
    base = model(family).float()
    net = copy.deepcopy(base)
    segments = find_segments(net)
    place = mix_layers(net, segments)
    ids = torch.randint(3, VOCABULARY, (2, 70))
    with torch.no_grad():
        expected, plain = base(ids).logits, net(ids).logits
        with place.set(Mixing(torch.rand(2, row_count(segments)))):
            mixed = net(ids).logits
    assert torch.equal(plain, expected)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=2e-6)


def test_weights_of_one_sequence_are_merged_once():
    _, net, place, segments = prepared("llama")
    ids = torch.randint(3, VOCABULARY, (1, 6))
    w = torch.rand(1, row_count(segments), dtype=torch.float64)
    mixing = Mixing(w, keep=True)
    with torch.no_grad():
        with place.set(Mixing(w)):
            expected = net(ids).logits
        with place.set(mixing):
            first, again = net(ids).logits, net(ids).logits
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(first, again)
    assert len(mixing.merged) == sum(s.kind != "norm" for s in segments)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_members_count_the_parameters_of_the_layers(family):
    net = model(family)
    segments = find_segments(net)
    assert [s.start for s in segments[1:]] == [s.stop for s in segments[:-1]]
    counted = sum(p.numel() for s in segments for p in net.get_submodule(s.name).parameters())
    assert members_of(segments).sum() == counted
    assert "other" not in {s.type for s in segments}
    assert {s.layer for s in segments} == {0, 1}


def test_parts_of_a_model():
    net = model("llama")
    kinds = {which: {s.type for s in find_segments(net, which)} for which in ("ffn", "attention", "norms")}
    assert kinds == {"ffn": {"gate", "up", "down"}, "attention": {"q", "k", "v", "o"}, "norms": {"norm1", "norm2"}}


def test_refusals():
    with pytest.raises(UserError, match="is a mixture of 4 experts already"):
        find_segments(mixtral())
    with pytest.raises(UserError, match="no linear layer or norm"):
        find_segments(torch.nn.Linear(3, 3))
    net = model("llama")
    net.model.layers[1].mlp.up_proj.weight = net.model.layers[0].mlp.up_proj.weight
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj: shares its weight with model\.layers\.0\.mlp\.up_proj"):
        find_segments(net)
