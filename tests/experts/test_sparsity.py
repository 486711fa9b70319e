import pytest
import torch

from smatcli.config.methods import SparsityConfig
from smatcli.experts.sparsity import SparsityController
from tests.experts.parity import Parity, close


def test_multipliers_follow_the_release() -> None:
    data = Parity("lagrangian")
    config = SparsityConfig(tau=float(data["target"][0]), measure="counted", weighting="alpha", project=False, lr=float(data["lr"]))
    controller = SparsityController(config, 8).double()
    controller.multipliers.data.copy_(data["multiplier_before"][0, 0])
    optimizer = torch.optim.SGD(controller.parameters(), config.lr)
    for step in range(8):
        optimizer.zero_grad()
        for task in range(4):
            l0 = data["expected_l0"][step, task].requires_grad_()
            counted, alpha = data["sparsity"][step, task], data["alpha"][step, task]
            assert close(controller.multipliers, data["multiplier_before"][step, task], 1e-5)
            sparsity = controller.measured(l0, counted)
            controller.reset(sparsity)
            assert close(controller.multipliers, data["multiplier_after_reset"][step, task], 1e-5)
            penalty, ascent = controller.terms(l0, sparsity, alpha)
            assert close(ascent, data["lagrangian"][step, task], 1e-4)
            assert close(penalty, data["sparsity_loss"][step, task], 1e-4)
            ((penalty + ascent) / 4).backward()
            assert l0.grad is not None
            assert close(4 * l0.grad, data["dsparsity_loss_dexpected_l0"][step, task], 1e-5)
        assert controller.multipliers.grad is not None
        assert close(controller.multipliers.grad, data["multiplier_grad"][step], 1e-5)
        optimizer.step()
        assert close(controller.multipliers, data["multiplier_after_step"][step], 1e-5)


def test_the_papers_rule_ascends_on_the_violation() -> None:
    controller = SparsityController(SparsityConfig(tau=0.8, lr=0.5), 3)
    l0 = torch.tensor([0.9, 0.2, 0.1], requires_grad=True)
    sparsity = controller.measured(l0, torch.zeros(3))
    assert torch.allclose(sparsity, torch.tensor([0.1, 0.8, 0.9]))
    sum(controller.terms(l0, sparsity, torch.ones(3))).backward()  # type: ignore[union-attr]
    torch.optim.SGD(controller.parameters(), 0.5).step()
    assert torch.allclose(controller.multipliers, torch.tensor([0.35, 0.0, -0.05]), atol=1e-6)
    controller.project()
    assert float(controller.multipliers.detach().min()) == 0
    controller.multipliers.data.fill_(1.0)
    controller.reset(sparsity)
    assert controller.multipliers.tolist() == [1.0, 1.0, 0.0] or controller.multipliers.tolist() == [1.0, 0.0, 0.0]


def test_penalty_pushes_only_the_masks() -> None:
    controller = SparsityController(SparsityConfig(tau=0.8), 2)
    controller.multipliers.data.copy_(torch.tensor([2.0, 3.0]))
    l0 = torch.tensor([0.5, 0.5], requires_grad=True)
    penalty, ascent = controller.terms(l0, torch.tensor([0.5, 0.5]), torch.ones(2))
    assert penalty.item() == pytest.approx(5 * 0.3)
    assert ascent.item() == pytest.approx(-5 * 0.3)
    assert torch.equal(torch.autograd.grad(penalty, l0)[0], torch.tensor([2.0, 3.0]))
    assert not penalty.requires_grad or torch.autograd.grad(ascent, l0, allow_unused=True)[0] is None


def test_options() -> None:
    controller = SparsityController(SparsityConfig(reset=False, project=False), 2)
    controller.multipliers.data.copy_(torch.tensor([-1.0, 2.0]))
    controller.reset(torch.ones(2))
    controller.project()
    assert controller.multipliers.tolist() == [-1.0, 2.0]


def test_multipliers_reach_a_target_that_a_mask_can_meet() -> None:
    """min f(p) = (p - 1)^2 subject to p <= 0.2: the multiplier converges to f' = 1.6."""
    controller = SparsityController(SparsityConfig(tau=0.8, reset=False), 1).double()
    p = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        penalty, ascent = controller.terms(p, controller.measured(p, p), torch.ones(1))
        grads = torch.autograd.grad(((p - 1) ** 2).sum() + penalty + ascent, (p, controller.multipliers))
        with torch.no_grad():
            p -= 0.1 * grads[0]
            controller.multipliers.sub_(0.2 * grads[1])
        controller.project()
    assert p.item() == pytest.approx(0.2, abs=1e-3)
    assert controller.multipliers.item() == pytest.approx(1.6, abs=1e-2)
