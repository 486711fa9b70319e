import pytest
import torch
from torch.nn import functional as F

from smatcli.config.methods import RouterConfig
from smatcli.errors import UserError
from smatcli.experts.merge import normalise
from smatcli.experts.router import Router, SpectralLinear
from smatcli.methods.prototypes import prototypes
from tests.experts.parity import RELEASE_ROUTER, Parity, close, load_router, router_state


@pytest.fixture
def data() -> Parity:
    return Parity("router")


def release_router(data: Parity) -> Router:
    """Return the released router in its state before the file's training-mode call.

    The file's `param.*_u` and `param.*_v` are those *after* that call (they equal `after_train_call.*`), so the power iteration
    v' = W^T u / |.|, u' = W v' / |.| is undone: u = W^-T v' / |.| and v = W^-1 u / |.|.
    """
    router = Router(RELEASE_ROUTER, 32, 8)
    load_router(router, data, "param.")
    for layer in (router.qkv, router.proj, router.fc1, router.fc2):
        layer.u.copy_(F.normalize(torch.linalg.pinv(layer.weight.detach().T) @ layer.v, dim=0))
        layer.v.copy_(F.normalize(torch.linalg.pinv(layer.weight.detach()) @ layer.u, dim=0))
    return router.eval()


def centres(data: Parity) -> torch.Tensor:
    return prototypes(data["support_features"], data["support_labels"], int(data["support_labels"].max()) + 1)


def test_embedding_and_logits_agree_with_the_release(data: Parity) -> None:
    router = release_router(data)
    assert close(router.embed(centres(data))[None], data["task_embedding"], 1e-5)
    assert close(router(centres(data)), data["logits"], 1e-5)


@pytest.mark.parametrize("temperature", [5.0, 0.5])
def test_scores_agree_with_the_release(data: Parity, temperature: float) -> None:
    router = release_router(data)
    router.temperature.fill_(temperature)
    logits = router(centres(data))
    scores = router.scores(logits)
    assert close(scores, data[f"scores_eval_T{temperature}"], 1e-5)
    assert close(normalise(scores), data[f"alpha_eval_T{temperature}"], 1e-5)
    if temperature == 0.5:
        assert torch.equal(scores.round(), data["scores_rounded_eval_T0.5"])
    noisy = router.scores(logits, u=data[f"u_train_T{temperature}"])
    assert close(noisy, data[f"scores_train_T{temperature}"], 1e-5)
    assert close(normalise(noisy), data[f"alpha_train_T{temperature}"], 1e-5)


def test_power_iteration_agrees_with_the_release(data: Parity) -> None:
    router = release_router(data).train()
    assert close(router.embed(centres(data))[None], data["task_embedding_train_mode"], 1e-5)
    state = router.state_dict()
    for name, expected in router_state(data, "after_train_call.").items():
        assert close(state[name], expected, 1e-5), name


def test_spectral_layer_has_norm_one() -> None:
    torch.manual_seed(0)
    layer = SpectralLinear(12, 20).eval()
    layer.iterate(300)
    matrix = (layer(torch.eye(12)) - layer.bias).detach()
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_scores_do_not_depend_on_the_order_of_the_classes(pool: str) -> None:
    torch.manual_seed(0)
    router = Router(RouterConfig(pool=pool, heads=2), 16, 5).eval()  # type: ignore[arg-type]
    points, order = torch.randn(7, 16), torch.randperm(7)
    same = torch.allclose(router(points), router(points[order]), atol=1e-5)
    assert same == (pool == "mean")


def test_everything_is_registered_and_trained() -> None:
    router = Router(RouterConfig(heads=2), 16, 5)
    router(torch.randn(4, 16)).square().sum().backward()
    assert {"keys", "skills", "qkv.weight"} <= set(dict(router.named_parameters()))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in router.parameters())
    assert {"temperature", "qkv.u", "fc2.v"} <= set(router.state_dict())


def test_options() -> None:
    plain = Router(RouterConfig(heads=2, spectral_norm=False, skill_tokens=0, sampling="none"), 16, 5)
    assert "skills" not in dict(plain.named_parameters())
    assert not isinstance(plain.qkv, SpectralLinear)
    logits = plain(torch.randn(4, 16))
    assert torch.equal(plain.scores(logits, torch.Generator()), plain.scores(logits))
    with pytest.raises(UserError, match="heads"):
        Router(RouterConfig(heads=3), 16, 5)


def test_temperature_falls_linearly_and_is_saved() -> None:
    router = Router(RouterConfig(heads=2), 16, 5)
    for tasks in (0, 4000, 18_000, 99_000):
        router.anneal(tasks)
        assert float(router.temperature) == pytest.approx(max(0.5, 5 - tasks / 4000))
    other = Router(RouterConfig(heads=2), 16, 5)
    other.load_state_dict(router.state_dict())
    assert float(other.temperature) == 0.5


def test_gumbel_noise_has_the_logistic_median() -> None:
    router = Router(RouterConfig(heads=2, temperature=(1.0, 1.0)), 16, 5)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([router.scores(torch.tensor([0.0, 1.0]), generator) for _ in range(4000)])
    # P(score > 1/2) = sigmoid(logit) for a relaxed Bernoulli of any temperature (Maddison et al. 2017).
    assert torch.allclose((draws > 0.5).float().mean(0), torch.sigmoid(torch.tensor([0.0, 1.0])), atol=0.03)
