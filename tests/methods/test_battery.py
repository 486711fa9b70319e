"""Requirements on every meta-tuning method. To add a method, or a new switch of one, add one row to `CONFIGS`."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from smatcli.config.methods import (
    MaskConfig,
    MethodConfig,
    MlpExpertsConfig,
    PmfConfig,
    PretrainedConfig,
    RouterConfig,
    SmatConfig,
    SoftMergeConfig,
    SparsityConfig,
    TeacherConfig,
)
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.errors import SmatError
from smatcli.methods import METHODS, build_method
from smatcli.methods.base import FlatMethod
from smatcli.seams import Episode, Support

ROUTER, NO_ZEROS = RouterConfig(heads=2), SparsityConfig(tau=0)
CONFIGS: dict[str, MethodConfig] = {
    "pretrained": PretrainedConfig(),
    "pmf": PmfConfig(),
    "softmerge": SoftMergeConfig(experts=3, router=ROUTER),
    "mlp_experts": MlpExpertsConfig(experts=3, router=ROUTER),
    "smat": SmatConfig(experts=3, router=ROUTER),
    "smat, one expert": SmatConfig(experts=1, router=ROUTER),
    "smat, no teacher": SmatConfig(experts=3, router=ROUTER, teacher=TeacherConfig(steps=0)),
    "smat, no split": SmatConfig(experts=3, router=ROUTER, query_split=False),
    "smat, own sparse": SmatConfig(experts=3, router=ROUTER, interpolated=False),
    "smat, own dense": SmatConfig(experts=3, router=ROUTER, interpolated=False, masks=MaskConfig(kind="dense"), sparsity=NO_ZEROS),
    "smat, random": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(kind="random")),
    "smat, magnitude": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(kind="magnitude")),
    "smat, inputs": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(group="input")),
    "smat, outputs": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(group="output")),
    "smat, random outputs": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(kind="random", group="output")),
}
WAYS, SHOTS = 3, 2


def make(name: str) -> FlatMethod:
    torch.manual_seed(0)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    return build_method(CONFIGS[name], net)


def episode(seed: int = 1) -> Episode:
    noise = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAYS).repeat(SHOTS)
    images = torch.randn(2, len(labels), 3, 16, 16, generator=noise) + labels[None, :, None, None, None]
    return Episode(Support(images[0], labels, WAYS), images[1], labels, "random", 0, seed)


def trained(name: str, steps: int = 3) -> FlatMethod:
    method = make(name).train()
    optimizers = build_optimizers(method.groups(), {}, steps, method.default_groups())
    for step in range(steps):
        optimizers.zero_grad()
        method.loss(episode(step), torch.Generator().manual_seed(step)).total.backward()
        optimizers.step()
        method.after_step(step + 1)
    return method.eval()


def test_every_registered_method_is_in_the_battery() -> None:
    assert {config.name for config in CONFIGS.values()} == set(METHODS)


@pytest.mark.parametrize("name", [n for n, config in CONFIGS.items() if hasattr(config, "experts")])
def test_a_task_of_experts_merges_scores_of_any_scale(name: str) -> None:
    method = trained(name)
    task = method.task(episode().support)
    assert task.alpha is not None
    assert task.merge is not None
    assert task.alpha.sum() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(task.merge(3 * task.alpha), task.theta, atol=1e-6)
    on = torch.ones_like(task.alpha)
    on[0] = 0.0
    if len(on) > 1:
        assert torch.allclose(task.merge(on), task.merge(on / 4), atol=1e-6)
        assert not torch.equal(task.merge(on), task.theta)
    off = task.merge(torch.zeros_like(on))
    assert torch.equal(off, method.theta_pre) or name == "softmerge"  # methods that also tune the other parameters
    assert not task.theta.requires_grad
    assert not off.requires_grad
    if task.delta is not None:
        assert torch.equal(task.delta(task.alpha, on, task.theta), task.merge(on))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_untrained_method_is_the_pretrained_model(name: str) -> None:
    method = make(name).eval()
    task = method.task(episode().support)
    assert torch.equal(task.theta, method.theta_pre)
    wanted = method.backbone(episode().query_images)
    assert torch.allclose(task.embed(episode().query_images, task.theta), wanted, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_trainable_tensor_is_registered_saved_and_in_one_group(name: str) -> None:
    method = make(name)
    trainable = {id(p): n for n, p in method.named_parameters() if p.requires_grad}
    grouped = [id(p) for params in method.groups().values() for p in params]
    assert sorted(grouped) == sorted(trainable)
    assert set(trainable.values()) <= set(method.state_dict())
    assert set(method.default_groups()) == set(method.groups())


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "pretrained"])
def test_training_moves_it_and_its_state_restores_it(name: str) -> None:
    method, support = trained(name), episode(9).support
    theta = method.task(support).theta
    assert not torch.equal(theta, method.theta_pre)
    other = make(name)
    other.load_state_dict(method.state_dict(), strict=True)
    assert torch.equal(other.eval().task(support).theta, theta)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "pretrained"])
def test_the_generator_is_the_only_source_of_noise(name: str) -> None:
    method = trained(name).train()
    state = {k: v.clone() for k, v in method.state_dict().items()}

    def value(seed: int) -> float:
        method.load_state_dict(state)
        torch.manual_seed(seed)  # the global generator must not matter
        return float(method.loss(episode(), torch.Generator().manual_seed(5)).total.detach())

    assert value(0) == value(1)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_task_does_not_depend_on_how_the_classes_are_numbered(name: str) -> None:
    method, support = (trained(name) if name != "pretrained" else make(name).eval()), episode().support
    permuted = Support(support.images, (support.labels + 1) % WAYS, WAYS)
    assert torch.allclose(method.task(support).theta, method.task(permuted).theta, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_terms_add_up_and_numbers_are_numbers(name: str) -> None:
    if name == "pretrained":
        with pytest.raises(SmatError, match="nothing to train"):
            make(name).loss(episode(), torch.Generator())
        return
    losses = trained(name).train().loss(episode(), torch.Generator().manual_seed(0))
    assert sum(losses.terms.values()) == pytest.approx(float(losses.total.detach()), rel=1e-5)
    assert 0 <= losses.logs["accuracy"] <= 1
    assert all(isinstance(v, float) for v in (*losses.terms.values(), *losses.logs.values(), *make(name).statistics().values()))
