from math import log

import pytest
import torch
from torch import Tensor

from smatcli.config.methods import MaskConfig
from smatcli.experts.masks import HardConcrete, counted_sparsity, expected_l0, initial_log_alpha, noise
from tests.experts.parity import Parity, close

SHAPE = HardConcrete()


def cdf(shape: HardConcrete, log_alpha: Tensor, value: float) -> Tensor:
    """Return P(z <= value) in training, for value in [0, 1) (Louizos et al. 2018, eq. 11-12)."""
    stretched = (value - shape.gamma) / shape.stretch
    return torch.sigmoid(shape.beta * (log(stretched) - log(1 - stretched)) - log_alpha)


@pytest.fixture(scope="module")
def data() -> Parity:
    return Parity("hard_concrete")


def test_gates_agree_with_the_release(data: Parity) -> None:
    log_alpha = data["log_alpha"]
    assert close(SHAPE.eval_gate(log_alpha), data["z_eval"], 1e-6)
    assert close(SHAPE.train_gate(log_alpha, data["u_train"]), data["z_train"], 1e-6)
    assert close(SHAPE.train_gate(log_alpha), data["z_train"], 1e-5)
    assert close(SHAPE.train_gate(log_alpha, data["u_wide"]), data["z_wide"], 1e-5)


@pytest.mark.parametrize("mode", ["eval", "train", "wide"])
def test_counted_zeros_agree_with_the_release(data: Parity, mode: str) -> None:
    log_alpha = data["log_alpha"]
    z = SHAPE.eval_gate(log_alpha) if mode == "eval" else SHAPE.train_gate(log_alpha, data[f"u_{mode}"])
    assert close((z == 0).double().mean(0), data[f"sparsity_{mode}"], 1e-6)
    if mode != "wide":
        assert close(counted_sparsity(log_alpha.T.contiguous(), SHAPE, mode == "train"), data[f"sparsity_{mode}"], 1e-6)


def test_gate_gradients_agree_with_the_release(data: Parity) -> None:
    for mode in ("eval", "train"):
        log_alpha = data["log_alpha"].requires_grad_()
        z = SHAPE.eval_gate(log_alpha) if mode == "eval" else SHAPE.train_gate(log_alpha, data["u_train"])
        (grad,) = torch.autograd.grad(z.sum(), log_alpha)
        assert close(grad, data[f"dz_{mode}_dlog_alpha"], 1e-5)


def test_distribution_agrees_with_the_release(data: Parity) -> None:
    log_alpha = data["log_alpha"]
    assert close(cdf(SHAPE, log_alpha, 0.0), data["cdf_at_0"], 1e-5)
    assert close(cdf(SHAPE, log_alpha, 0.5), data["cdf_at_half"], 1e-5)
    assert close(SHAPE.expected_l0_element(log_alpha), data["expected_l0_element"], 1e-5)


def test_expected_l0_and_its_gradient_agree_with_the_release(data: Parity) -> None:
    log_alpha = data["log_alpha"].T.contiguous().requires_grad_()
    found = expected_l0(log_alpha, SHAPE)
    (grad,) = torch.autograd.grad(found.sum(), log_alpha)
    assert close(found, data["expected_l0_mean"], 1e-6)
    assert close(grad.T, data["dexpected_l0_dlog_alpha"], 1e-5)


def test_clamp_is_the_releases(data: Parity) -> None:
    clamp = MaskConfig().clamp
    assert close(data["log_alpha"].clamp(-clamp, clamp), data["log_alpha_clipped"], 1e-6)


def test_expected_l0_gradcheck() -> None:
    log_alpha = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expected_l0(x, SHAPE), (log_alpha,))


@pytest.mark.parametrize("shape", [SHAPE, HardConcrete(beta=0.4, gamma=-0.2, zeta=1.3)])
def test_sampled_masks_have_the_closed_forms_mass(shape: HardConcrete) -> None:
    generator = torch.Generator().manual_seed(0)
    log_alpha = torch.linspace(-4, 4, 9)[:, None].expand(9, 40_000)
    z = shape.train_gate(log_alpha, noise((9, 40_000), generator, log_alpha))
    for value, share in ((0.0, (z <= 0).float().mean(1)), (0.5, (z <= 0.5).float().mean(1))):
        assert torch.allclose(share, cdf(shape, log_alpha[:, 0], value), atol=4 * 0.5 / 40_000**0.5)
    assert torch.allclose((z > 0).float().mean(1), shape.expected_l0_element(log_alpha[:, 0]), atol=0.01)


def test_thresholds_of_the_noise_free_gates() -> None:
    for training, gate in ((True, SHAPE.train_gate), (False, SHAPE.eval_gate)):
        edge = torch.tensor(SHAPE.zero_below(training))
        assert gate(edge - 1e-3) == 0
        assert gate(edge + 1e-3) > 0
    assert SHAPE.zero_below(True) == pytest.approx(-1.5986, abs=1e-4)
    assert SHAPE.zero_below(False) == pytest.approx(-2.3979, abs=1e-4)


def test_initial_values_have_the_asked_moments() -> None:
    torch.manual_seed(0)
    log_alpha = initial_log_alpha(4, 20_000, MaskConfig(init_mean=1.0, init_std=0.5))
    assert log_alpha.mean() == pytest.approx(1.0, abs=0.01)
    assert log_alpha.std() == pytest.approx(0.5, abs=0.01)
    assert initial_log_alpha(2, 10, MaskConfig(init_mean=9.0)).max() == pytest.approx(MaskConfig().clamp)
