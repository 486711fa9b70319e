from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from smatcli.experts import merge_eager as module
from smatcli.experts.masks import HardConcrete, expected_l0
from smatcli.experts.merge import merge, merge_reference, normalise
from smatcli.experts.merge_eager import Gate
from tests.experts.parity import Parity, close

SHAPE = HardConcrete()


def inputs(experts: int = 3, size: int = 11, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(experts * size)
    pre, delta = torch.randn(2, size, dtype=torch.float64, generator=generator)
    log_alpha = torch.randn(experts, size, dtype=torch.float64, generator=generator) * 2
    alpha = normalise(torch.rand(*batch, experts, dtype=torch.float64, generator=generator))
    return pre, delta, log_alpha, alpha


def merged(tensors: Sequence[Tensor], training: bool, u: Tensor) -> Tensor:
    pre, delta, log_alpha, alpha = tensors
    return merge(pre, delta, log_alpha, alpha, Gate(SHAPE, training=training, noise=u))[0]


def plain(tensors: Sequence[Tensor], training: bool, u: Tensor) -> Tensor:
    pre, delta, log_alpha, alpha = tensors
    return merge_reference(pre, delta, log_alpha, alpha, Gate(SHAPE, training=training, noise=u))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("closed_form", [True, False])
def test_merge_and_gradients_agree_with_the_release(mode: str, closed_form: bool) -> None:
    data = Parity("merge")
    head = torch.cat([torch.full((data[f"{i}.theta_pre"].numel(),), "head" in name) for i, name in enumerate(data.names)])
    pre, delta, log_alpha = data.flat("theta_pre"), data.flat("theta_delta").requires_grad_(), data.flat("log_alpha").requires_grad_()
    alpha, training = data["alpha"].requires_grad_(), mode == "train"
    u = data.flat("u_train") if training else None
    if closed_form:
        theta, nonzeros, *_ = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, training=training, noise=u, dense=head))
        counted_twice = (len(alpha) - 1) * head.sum() / len(pre)
        assert close(1 - nonzeros / len(pre) - counted_twice, data[f"{mode}.expert_sparsity"], 1e-5)
    else:
        theta = merge_reference(pre, delta, log_alpha, alpha, Gate(SHAPE, training=training, noise=u, dense=head))
    loss = (theta * data.flat("W")).sum()
    grads = torch.autograd.grad(loss, (delta, log_alpha, alpha))
    assert close(theta, data.flat(f"{mode}.theta"), 1e-6)
    mask = data.flat(f"{mode}.mask")
    assert close((theta - pre) / delta, mask, 1e-5)
    assert float((mask == 0).double().mean()) == pytest.approx(float(data[f"{mode}.merged_sparsity"]), abs=1e-7)
    assert close(loss, data[f"{mode}.loss"], 1e-5)
    assert close(grads[0], data.flat(f"{mode}.theta_delta_grad"), 1e-5)
    assert close(grads[1], data.flat(f"{mode}.log_alpha_grad"), 1e-5)
    assert close(grads[2], data[f"{mode}.alpha_grad"], 1e-5)


@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("training", [True, False])
def test_closed_form_equals_the_reference(batch: tuple[int, ...], training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._CHUNK, "cpu", 12)
    arguments = inputs(3, 101, batch)
    u = torch.rand(3, 101, dtype=torch.float64) * 0.98 + 0.01
    weight = torch.randn(*batch, 101, dtype=torch.float64)
    results = []
    for fast in (True, False):
        leaves = [t.clone().requires_grad_() for t in arguments]
        theta = (merged if fast else plain)(leaves, training, u)
        results.append((theta, *torch.autograd.grad((theta * weight).sum(), leaves)))
    for fast_one, defined in zip(*results, strict=True):
        assert torch.allclose(fast_one, defined, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("keep", [0, 10**6])
def test_gradcheck(batch: tuple[int, ...], keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP", keep)
    arguments = [t.requires_grad_() for t in inputs(3, 7, batch)]
    u = torch.rand(3, 7, dtype=torch.float64) * 0.8 + 0.1

    def both(pre: Tensor, delta: Tensor, log_alpha: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        found = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=u))
        return found.theta, found.expected_l0

    assert torch.autograd.gradcheck(both, arguments)


@pytest.mark.parametrize("training", [True, False])
def test_expected_l0_comes_with_the_merge(training: bool) -> None:
    pre, delta, log_alpha, alpha = inputs(3, 40)
    log_alpha.requires_grad_()
    found = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, training=training)).expected_l0
    if not training:
        assert not found.any()
        return
    expected = expected_l0(log_alpha, SHAPE)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-12)
    (ours,) = torch.autograd.grad((found * weight).sum(), log_alpha)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), log_alpha)
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_all_off_is_exactly_the_pre_trained_model() -> None:
    pre, delta, log_alpha, _ = inputs()
    theta, *_ = merge(pre, delta, log_alpha, normalise(torch.zeros(3, dtype=torch.float64)), Gate(SHAPE, training=False))
    assert torch.equal(theta, pre)


def test_nonzeros_are_counted() -> None:
    pre, delta, log_alpha, alpha = inputs(4, 50)
    nonzeros = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, training=False)).nonzeros
    assert torch.equal(nonzeros, (SHAPE.eval_gate(log_alpha) > 0).sum(1).double())


@pytest.mark.parametrize("keep", [0, 10**6])
def test_a_seed_gives_the_same_noise_forward_and_backward(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP", keep)
    monkeypatch.setitem(module._CHUNK, "cpu", 3 * 999)
    pre, delta, log_alpha, alpha = inputs(3, 5000)
    delta.requires_grad_()
    log_alpha.requires_grad_()
    theta, *_ = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=7))
    again, *_ = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=7))
    other, *_ = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, noise=8))
    assert torch.equal(theta, again)
    assert not torch.equal(theta, other)
    (grad,) = torch.autograd.grad(theta.sum(), delta)
    assert torch.allclose(grad, (theta.detach() - pre) / delta.detach(), atol=1e-9)


def test_autocast_does_not_reach_the_merge() -> None:
    pre, delta, log_alpha, alpha = (t.float() for t in inputs(3, 200))
    outside, *_ = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, training=False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, *_ = merge(pre, delta, log_alpha, alpha, Gate(SHAPE, training=False))
    assert torch.equal(outside, inside)
