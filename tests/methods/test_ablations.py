"""SoftMerge, MLP experts and the switches of SMAT compared with explicit definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from smatcli.config.methods import (
    MaskConfig,
    MethodConfig,
    MlpExpertsConfig,
    RouterConfig,
    SmatConfig,
    SoftMergeConfig,
    SparsityConfig,
    TeacherConfig,
)
from smatcli.methods import build_method
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.routed import Injected, RoutedMethod
from smatcli.methods.smat import SmatMethod
from smatcli.seams import Episode, Support
from tests.experts.parity import close
from tests.methods.test_battery import episode

M, WAYS = 3, 3
ROUTER = RouterConfig(heads=2)


def build(config: MethodConfig, moved: bool = True) -> RoutedMethod:
    """Return the method in double precision; with `moved`, its experts have random values."""
    torch.manual_seed(0)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    method = build_method(config, net).double().eval()
    method.backbone.double()
    assert isinstance(method, RoutedMethod)
    if moved:
        with torch.no_grad():
            for name in ("theta_delta", "experts"):
                if hasattr(method, name):
                    getattr(method, name).normal_(std=0.1)
    return method


def double(seed: int = 1) -> Episode:
    task = episode(seed)
    return Episode(
        Support(task.support.images.double(), task.support.labels, WAYS), task.query_images.double(), task.query_labels, "x", 0, 0
    )


def logits(method: RoutedMethod, theta: Tensor, task: Episode) -> Tensor:
    centres = prototypes(method.embed(task.support.images, theta), task.support.labels, WAYS)
    return cosine_logits(method.embed(task.query_images, theta), centres, 10.0)


def scores(method: RoutedMethod, task: Episode, noise: Tensor) -> Tensor:
    centres = prototypes(method.embed(task.support.images, method.theta_pre), task.support.labels, WAYS)
    s = torch.sigmoid((method.router(centres) + torch.log(noise / (1 - noise))) / 5.0)
    return s / s.sum()


def written_out(method: RoutedMethod, theta: Tensor, task: Episode, distilled: bool) -> Tensor:
    """Return 0.75 CE + 0.25 KD of Algorithm 1 (one teacher step), or CE alone."""
    student = logits(method, theta, task)
    ce = F.cross_entropy(student, task.query_labels)
    if not distilled:
        return ce
    (grad,) = torch.autograd.grad(ce, theta, retain_graph=True)
    teacher = F.softmax(logits(method, theta.detach() - 5e-3 * grad, task) / 2, -1).detach()
    return 0.75 * ce + 0.25 * 4 * (teacher * (teacher.log() - F.log_softmax(student / 2, -1))).sum(-1).mean()


def agree(method: RoutedMethod, task: Episode, injected: Injected, expected: Tensor) -> None:
    """Check that the method's loss and all its gradients equal those of `expected`."""
    losses = method.loss(task, torch.Generator(), injected)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    params = [p for n, group in method.groups().items() if n != "multipliers" for p in group]
    found = torch.autograd.grad(losses.total, params)
    for ours, theirs in zip(found, torch.autograd.grad(expected, params), strict=True):
        assert close(ours, theirs, 1e-6)
        assert theirs.norm() > 0


NOISE = torch.tensor([0.3, 0.8, 0.6], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["random", "magnitude"])
def test_fixed_masks_written_out(kind: Any) -> None:
    method, task = build(SmatConfig(experts=M, router=ROUTER, masks=MaskConfig(kind=kind))), double()
    assert isinstance(method, SmatMethod)
    assert method.fixed is not None
    assert set(method.groups()) == {"delta", "router"}
    assert method.feasible()
    z = method.fixed.double()
    assert z.mean().item() == pytest.approx(0.1, abs=1e-4)
    theta = method.theta_pre + method.theta_delta * (scores(method, task, NOISE)[:, None] * z).sum(0)
    agree(method, task, Injected(None, NOISE), written_out(method, theta, task, True))
    assert method.statistics()["sparsity_inference"] == pytest.approx(0.9, abs=1e-4)
    restored = build(method.config, moved=False)
    restored.load_state_dict(method.state_dict())
    assert torch.equal(restored.task(task.support).theta, method.task(task.support).theta)


def test_own_dense_experts_written_out() -> None:
    config = SmatConfig(experts=M, router=ROUTER, interpolated=False, masks=MaskConfig(kind="dense"), sparsity=SparsityConfig(tau=0))
    method, task = build(config), double()
    assert isinstance(method, SmatMethod)
    assert method.theta_delta.shape == (M, method.space.size)
    alpha = scores(method, task, NOISE)
    theta = method.theta_pre + alpha[0] * method.theta_delta[0] + alpha[1] * method.theta_delta[1] + alpha[2] * method.theta_delta[2]
    agree(method, task, Injected(None, NOISE), written_out(method, theta, task, True))
    found = method.task(task.support)
    assert found.alpha is not None
    assert torch.allclose(found.theta, method.theta_pre + found.alpha @ method.theta_delta.detach(), rtol=1e-9)


@pytest.mark.parametrize("group", ["element", "output"])
def test_own_sparse_experts_written_out(group: Any) -> None:
    """Every expert has its own theta_delta, with the same masks and constraint."""
    method, task = build(SmatConfig(experts=M, router=ROUTER, interpolated=False, masks=MaskConfig(group=group))), double()
    assert isinstance(method, SmatMethod)
    with torch.no_grad():
        method.sparsity.multipliers.fill_(0.3)
    u = torch.rand(method.log_alpha.shape, dtype=torch.float64) * 0.9 + 0.05
    s = torch.sigmoid((torch.log(u / (1 - u)) + method.log_alpha) / (2 / 3))
    z, l0 = (1.2 * s - 0.1).clamp(0, 1), torch.sigmoid(method.log_alpha - 2 / 3 * np.log(0.1 / 1.1))
    if method.masks.groups is not None:
        index = method.masks.groups.expand(torch.arange(method.masks.entries))
        z, l0 = z[:, index], l0[:, index]
    theta = method.theta_pre + (scores(method, task, NOISE)[:, None] * z * method.theta_delta).sum(0)
    penalty = (0.3 * (l0.mean(1) - 0.1)).sum()
    agree(method, task, Injected(u, NOISE), written_out(method, theta, task, True) + penalty - penalty.detach())
    zeros = (1.2 * torch.sigmoid(method.log_alpha.detach()) - 0.1).clamp(0, 1)
    z = zeros if method.masks.groups is None else zeros[:, index]
    found = method.task(task.support)
    assert found.alpha is not None
    assert found.delta is None
    assert torch.allclose(found.theta, method.theta_pre + (found.alpha[:, None] * z * method.theta_delta.detach()).sum(0), rtol=1e-9)


def test_without_a_split_all_images_are_support_and_query() -> None:
    """The loss equals that of an episode whose support and query are both the union; each image is embedded once."""
    whole = double()
    images, labels = torch.cat([whole.support.images, whole.query_images]), torch.cat([whole.support.labels, whole.query_labels])
    union = Episode(Support(images, labels, WAYS), images.clone(), labels, "x", 0, 0)
    config = SmatConfig(experts=M, router=ROUTER, masks=MaskConfig(noise="deterministic"), teacher=TeacherConfig(steps=2, pretrained=True))
    split, pooled = build(config), build(config.model_copy(update={"query_split": False}))
    injected = Injected(None, NOISE)
    ours, theirs = pooled.loss(whole, torch.Generator(), injected), split.loss(union, torch.Generator(), injected)
    assert ours.terms == pytest.approx(theirs.terms, rel=1e-9)
    ours.total.backward()
    theirs.total.backward()
    for a, b in zip(pooled.parameters(), split.parameters(), strict=True):
        assert close(a.grad, b.grad, 1e-9)  # type: ignore[arg-type]
    seen: list[int] = []
    embed = pooled.embed

    def counting(images: Tensor, theta: Tensor) -> Tensor:
        seen.append(len(images))
        return embed(images, theta)

    pooled.embed = counting  # type: ignore[method-assign]
    pooled.loss(whole, torch.Generator(), injected)
    assert seen == [len(images)] * 4  # frozen, student, two teacher steps


def test_without_a_teacher_the_loss_is_the_query_loss_and_the_constraint() -> None:
    config = SmatConfig(experts=M, router=ROUTER, masks=MaskConfig(noise="deterministic"), teacher=TeacherConfig(steps=0))
    method, task = build(config), double()
    assert isinstance(method, SmatMethod)
    z = (1.2 * torch.sigmoid(method.log_alpha / (2 / 3)) - 0.1).clamp(0, 1)
    theta = method.theta_pre + method.theta_delta * (scores(method, task, NOISE) @ z)
    agree(method, task, Injected(None, NOISE), written_out(method, theta, task, False) + 0 * method.log_alpha.sum())


@pytest.mark.parametrize("name", ["softmerge", "mlp_experts"])
def test_mlp_experts_written_out(name: str) -> None:
    """MLP tensors are averages of the experts' copies; the rest is shared (softmerge) or pre-trained (mlp_experts)."""
    configs: dict[str, MethodConfig] = {
        "softmerge": SoftMergeConfig(experts=M, router=ROUTER),
        "mlp_experts": MlpExpertsConfig(experts=M, router=ROUTER),
    }
    method, task = build(configs[name]), double()
    alpha: Tensor = scores(method, task, NOISE)
    own, pre = dict(method.named_parameters()), method.space.unflatten(method.theta_pre)
    tensors, at, rest = {}, 0, 0
    for tensor, value in pre.items():
        if ".mlp." in tensor:
            copies = value + own["experts"][:, at : at + value.numel()].view(M, *value.shape)
            tensors[tensor] = torch.einsum("m,m...->...", alpha, copies)
            at += value.numel()
        elif name == "softmerge":
            tensors[tensor] = own["shared"][rest : rest + value.numel()].view(value.shape)
            rest += value.numel()
        else:
            tensors[tensor] = value
    theta = torch.cat([t.reshape(-1) for t in tensors.values()])
    agree(method, task, Injected(None, NOISE), written_out(method, theta, task, name == "mlp_experts"))

    per_expert = 2 * (16 * 64 + 64 + 64 * 16 + 16)
    router = sum(p.numel() for p in method.router.parameters())
    trained = M * per_expert + router + (method.space.size - per_expert if name == "softmerge" else 0)
    statistics = method.statistics()
    assert (statistics["parameters_expert"], statistics["parameters_trained"]) == (per_expert, trained)
    found = method.task(task.support)
    outside = torch.tensor([".mlp." not in n for n, size in zip(method.space.names, method.space.sizes, strict=True) for _ in range(size)])
    assert torch.equal(found.theta[outside], method.theta_pre[outside])
    assert not torch.equal(found.theta, method.theta_pre)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": {"kind": "random", "noise": "deterministic"}}, "masks.noise has no effect with masks.kind random"),
        ({"masks": {"kind": "magnitude"}, "sparsity": {"lr": 0.1}}, "sparsity.lr has no effect with masks.kind magnitude"),
        ({"masks": {"kind": "dense"}, "experts": 1}, "set sparsity.tau to 0"),
        ({"masks": {"kind": "dense"}, "sparsity": {"tau": 0}}, "all experts are equal"),
        ({"masks": {"kind": "dense", "group": "input"}, "sparsity": {"tau": 0}, "experts": 1}, "masks.group has no effect"),
    ],
)
def test_options_that_would_not_be_read_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SmatConfig.model_validate(options)
