"""One merge for all tasks of a meta-batch compared with one merge per task and with the reference."""

import pytest
import torch
from torch import Tensor

from smatcli.experts import merge_eager
from smatcli.experts.masks import HardConcrete, expected_l0
from smatcli.experts.merge import merge, merge_reference, merge_tasks, normalise
from smatcli.experts.merge_eager import Gate
from smatcli.experts.merge_kernels import VARIABLE
from smatcli.experts.noise import logistic

SHAPE = HardConcrete()
TASKS, M, P = 3, 4, 1001


def inputs(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """Return theta_pre, theta_delta, log_alpha, alphas, and the gradients of theta [B, P] and E[L0] [B, M]."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(P,), (P,), (M, P), (TASKS, M), (TASKS, P), (TASKS, M)]
    found = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]
    found[3] = normalise(found[3].sigmoid())
    return found


def loop(tensors: list[Tensor], seeds: list[int] | None, dense: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    pre, delta, log_alpha, alphas, weight, l0_weight = tensors
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    thetas = []
    for b in range(len(alphas)):
        noise = None if seeds is None else seeds[b]
        found = merge(pre, leaves[0], leaves[1], leaves[2][b], Gate(SHAPE, noise=noise, dense=dense))
        ((found.theta * weight[b]).sum() + (found.expected_l0 * l0_weight[b]).sum()).backward()
        thetas += [found.theta.detach(), found.nonzeros, found.expected_l0.detach()]
    return thetas, [t.grad for t in leaves if t.grad is not None]


def at_once(tensors: list[Tensor], seeds: list[int] | None, dense: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    pre, delta, log_alpha, alphas, weight, l0_weight = tensors
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    found = merge_tasks(pre, leaves[0], leaves[1], leaves[2], SHAPE, seeds=seeds, dense=dense)
    torch.stack([(m.theta * weight[b]).sum() + (m.expected_l0 * l0_weight[b]).sum() for b, m in enumerate(found)]).sum().backward()
    return [t.detach() for m in found for t in m], [t.grad for t in leaves if t.grad is not None]


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("keep", [0, 10**6])
@pytest.mark.parametrize("head", [False, True])
def test_with_noise_every_bit_is_that_of_a_merge_for_each_task(kernel: str, keep: int, head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, kernel)
    monkeypatch.setattr(merge_eager, "_KEEP", keep)
    monkeypatch.setitem(merge_eager._CHUNK, "cpu", 4 * 99)
    dense = torch.arange(P) > 950 if head else None
    one, all_ = (run(inputs(), [5, 6, 7], dense) for run in (loop, at_once))
    assert all(torch.equal(a, b) for a, b in zip(one[0] + one[1], all_[0] + all_[1], strict=True))


@pytest.mark.parametrize("keep", [0, 10**6])
def test_without_noise_it_is_the_reference(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_eager, "_KEEP", keep)
    monkeypatch.setitem(merge_eager._CHUNK, "cpu", 4 * 99)
    pre, delta, log_alpha, alphas, weight, l0_weight = tensors = inputs(torch.float64)
    thetas, grads = at_once(tensors, None, None)
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    theta, l0 = merge_reference(pre, leaves[0], leaves[1], leaves[2], Gate(SHAPE)), expected_l0(leaves[1], SHAPE)
    expected = torch.autograd.grad((theta * weight).sum() + (l0 * l0_weight).sum(), leaves)
    for b in range(TASKS):
        assert torch.allclose(thetas[3 * b], theta[b], rtol=1e-12)
        assert torch.allclose(thetas[3 * b + 2], l0, rtol=1e-12)
        assert torch.equal(thetas[3 * b + 1], (SHAPE.train_gate(log_alpha) > 0).sum(1).double())
    for ours, theirs in zip(grads, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("seeds", [None, [1, 2, 3]])
def test_a_task_whose_theta_has_no_gradient(seeds: list[int] | None) -> None:
    """A task with an unused loss costs nothing and changes nothing; if all are unused, only E[L0] has a gradient."""
    pre, delta, log_alpha, alphas, weight, _ = inputs(torch.float64)
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    found = merge_tasks(pre, leaves[0], leaves[1], leaves[2], SHAPE, seeds=seeds)
    grads = torch.autograd.grad((found[1].theta * weight[1]).sum(), leaves, retain_graph=True)
    alone = merge(pre, leaves[0], leaves[1], leaves[2][1], Gate(SHAPE, noise=None if seeds is None else seeds[1]))
    expected = torch.autograd.grad((alone.theta * weight[1]).sum(), leaves)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-16) for a, b in zip(grads, expected, strict=True))
    (only,) = torch.autograd.grad(found[2].expected_l0.sum(), leaves[1])
    assert torch.allclose(only, torch.autograd.grad(expected_l0(leaves[1], SHAPE).sum(), leaves[1])[0], rtol=1e-12)


def test_noise_differs_between_tasks_and_is_that_of_the_seeds() -> None:
    pre, delta, log_alpha, alphas, *_ = inputs()
    found = merge_tasks(pre, delta, log_alpha, alphas, SHAPE, seeds=[3, 3, 4])
    u = logistic(3, M, P, log_alpha).sigmoid()
    expected = merge_reference(pre, delta, log_alpha, alphas[0], Gate(SHAPE, noise=u))
    assert torch.allclose(found[0].theta, expected, atol=1e-5)
    assert torch.equal(found[0].nonzeros, found[1].nonzeros)
    assert not torch.equal(found[1].nonzeros, found[2].nonzeros)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_reference() -> None:
    exact, found = at_once(inputs(torch.float64), None, None), at_once(inputs(device="cuda"), None, None)
    for ours, theirs in zip(found[0] + found[1], exact[0] + exact[1], strict=True):
        assert torch.allclose(ours.cpu().double(), theirs, rtol=1e-4, atol=1e-5)
    one, all_ = (run(inputs(device="cuda"), [5, 6, 7], None) for run in (loop, at_once))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one[0] + one[1], all_[0] + all_[1], strict=True))
