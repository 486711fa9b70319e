from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from smatcli.config.methods import MaskConfig, RouterConfig, SmatConfig, TeacherConfig
from smatcli.experts.merge import merge_reference
from smatcli.experts.merge_eager import Gate
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.smat import Injected, SmatMethod
from smatcli.methods.teacher import distillation, teacher_logits
from smatcli.seams import Episode, Support
from tests.experts.parity import close, release_config

WAYS, SHOTS, M = 3, 2, 4
PAPER = SmatConfig(experts=M, router=RouterConfig(heads=2))
RELEASE = release_config(M, heads=2)


def build(config: SmatConfig = PAPER, trained: bool = True) -> SmatMethod:
    torch.manual_seed(0)
    method = SmatMethod(config, VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0))
    if trained:
        with torch.no_grad():
            method.theta_delta.normal_(std=0.1)
            method.sparsity.multipliers.fill_(0.3)
            method.log_alpha.mul_(4).sub_(2)
    return method


def episode(seed: int = 1) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAYS).repeat_interleave(SHOTS)
    images = torch.randn(2, len(labels), 3, 16, 16, generator=generator)
    return Episode(Support(images[0], labels, WAYS), images[1], labels, "random", 0, seed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", [PAPER, RELEASE], ids=["paper", "release"])
def test_every_trainable_tensor_is_registered_saved_and_in_one_group(config: SmatConfig) -> None:
    method = build(config)
    grouped = [p for group in method.groups().values() for p in group]
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters() if p.requires_grad}
    assert len({id(p) for p in grouped}) == len(grouped)
    assert set(dict(method.named_parameters())) <= set(method.state_dict())
    assert set(method.default_groups()) == set(method.groups())
    method.train().loss(episode(), generator()).total.backward()
    assert all(p.grad is not None for p in grouped)
    assert all(p.grad.abs().max() > 0 for p in grouped if p is not method.sparsity.multipliers)  # type: ignore[union-attr]


def test_state_gives_the_same_task_in_another_method() -> None:
    method, support = build(), episode().support
    method.after_step(1000)
    other = SmatMethod(PAPER, VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0))
    other.eval().task(support)
    other.load_state_dict({name: tensor.clone() for name, tensor in method.state_dict().items()})
    ours, theirs = method.eval().task(support), other.task(support)
    assert torch.equal(ours.theta, theirs.theta)
    assert torch.equal(ours.alpha, theirs.alpha)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours.embed(images, ours.theta), theirs.embed(images, theirs.theta))


def test_untrained_task_is_the_pre_trained_model() -> None:
    method = build(trained=False)
    assert torch.equal(method.task(episode().support).theta, method.theta_pre)


def test_task_merges_scores_of_any_scale_and_all_off() -> None:
    method = build().eval()
    task = method.task(episode().support)
    assert task.merge is not None
    assert task.delta is not None
    assert task.alpha is not None
    assert torch.equal(task.merge(torch.zeros(M)), method.theta_pre)
    dense, *_ = method.merge(task.alpha, training=False)
    assert torch.allclose(task.theta, dense, atol=1e-6)
    on = torch.tensor([1.0, 0, 1, 0])
    assert torch.equal(task.merge(on), task.merge(on / 2))
    assert torch.equal(task.delta(task.alpha, on / 2, task.theta), task.merge(on))
    assert not task.theta.requires_grad
    assert not task.merge(on).requires_grad


def test_a_task_keeps_its_parameters_when_the_method_is_trained_on() -> None:
    method = build().eval()
    first = method.task(episode().support).theta.clone()
    with torch.no_grad():
        method.log_alpha.add_(2.0)
    assert not torch.equal(method.task(episode().support).theta, first)


def test_scores_do_not_depend_on_the_labelling() -> None:
    method, support = build().eval(), episode().support
    order = torch.tensor([2, 0, 1])
    same = method.task(Support(support.images, order[support.labels], WAYS))
    assert torch.allclose(same.alpha, method.task(support).alpha, atol=1e-6)  # type: ignore[arg-type]


def test_noise_comes_from_the_generator_alone() -> None:
    method = build().eval()
    totals = []
    for seed in (5, 5, 6):
        torch.rand(3)
        totals.append(method.loss(episode(), generator(seed)).total.item())
    assert totals[0] == totals[1] != totals[2]


def test_loss_is_algorithm_1_written_out() -> None:
    """Compute the paper's loss from its parts: autograd merge, teacher step by autograd.grad, KL from the definition."""
    method = build().double().eval()
    task = episode()
    support = Support(task.support.images.double(), task.support.labels, WAYS)
    task = Episode(support, task.query_images.double(), task.query_labels, "x", 0, 0)
    u = torch.rand(M, method.space.size, dtype=torch.float64) * 0.98 + 0.01
    noise = torch.rand(M, dtype=torch.float64)
    losses = method.loss(task, generator(), Injected(u, noise))

    def logits(theta: torch.Tensor) -> torch.Tensor:
        centres = prototypes(method.embed(task.support.images, theta), task.support.labels, WAYS)
        return cosine_logits(method.embed(task.query_images, theta), centres, 10.0)

    centres = prototypes(method.embed(task.support.images, method.theta_pre), task.support.labels, WAYS)
    scores = torch.sigmoid((method.router(centres) + torch.log(noise / (1 - noise))) / 5.0)
    theta = merge_reference(method.theta_pre, method.theta_delta, method.log_alpha, scores / scores.sum(), Gate(method.shape, noise=u))
    student = logits(theta)
    ce = F.cross_entropy(student, task.query_labels)
    (grad,) = torch.autograd.grad(ce, theta, retain_graph=True)
    teacher = F.softmax(logits(theta.detach() - 5e-3 * grad) / 2, -1).detach()
    kd = 4 * (teacher * (teacher.log() - F.log_softmax(student / 2, -1))).sum(-1).mean()
    l0 = torch.sigmoid(method.log_alpha - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))).mean(1)
    penalty = (0.3 * (l0 - 0.1)).sum()
    total = 0.75 * ce + 0.25 * kd + penalty
    assert losses.terms["ce"] == pytest.approx(0.75 * ce.item(), rel=1e-6)
    assert losses.terms["kd"] == pytest.approx(0.25 * kd.item(), rel=1e-6)
    assert losses.terms["sparsity"] == pytest.approx(penalty.item(), rel=1e-6)
    assert losses.terms["lagrangian"] == pytest.approx(-penalty.item(), rel=1e-6)
    losses.total.backward()
    expected = torch.autograd.grad(total, (method.theta_delta, method.log_alpha, method.router.keys))
    found = (method.theta_delta.grad, method.log_alpha.grad, method.router.keys.grad)
    for ours, theirs in zip(found, expected, strict=True):
        assert close(ours, theirs, 1e-6)  # type: ignore[arg-type]
    assert torch.allclose(method.sparsity.multipliers.grad, -(l0.detach() - 0.1))  # type: ignore[arg-type]


def test_no_gradient_flows_through_the_teacher() -> None:
    method, task = build().eval(), episode()
    theta, *_ = method.merge(torch.full((M,), 1 / M), training=False)
    student = method.student(theta, task)
    for prototype_rule in ("student", "recomputed"):
        config = TeacherConfig(steps=2, prototypes=prototype_rule)  # type: ignore[arg-type]
        assert not teacher_logits(student, task, config, method.embed, 10.0).requires_grad
    target = torch.randn(4, 3, requires_grad=True)
    for direction in ("forward", "reverse"):
        distillation(torch.randn(4, 3, requires_grad=True), target, 2.0, direction).backward()
    assert target.grad is None


@pytest.mark.parametrize("prototype_rule", ["student", "recomputed"])
def test_more_teacher_steps_lower_the_query_loss(prototype_rule: Any) -> None:
    method, task = build().eval(), episode()
    theta, *_ = method.merge(torch.full((M,), 1 / M), training=False)
    student = method.student(theta, task)
    losses = [student.ce.item()]
    for steps in (1, 2, 4):
        config = TeacherConfig(steps=steps, lr=0.01, prototypes=prototype_rule)
        losses.append(F.cross_entropy(teacher_logits(student, task, config, method.embed, 10.0), task.query_labels).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_teacher_can_be_left_out() -> None:
    method = build(PAPER.model_copy(update={"teacher": TeacherConfig(steps=0)}))
    losses = method.loss(episode(), generator())
    assert "kd" not in losses.terms
    assert losses.total.item() == pytest.approx(sum(losses.terms.values()), rel=1e-5)


@pytest.mark.parametrize(("config", "rate"), [(PAPER, 0.5), (RELEASE, 0.5 * M)], ids=["paper", "release"])
def test_training_lowers_the_loss_and_reaches_the_sparsity(config: SmatConfig, rate: float) -> None:
    """The release weights each expert by its alpha, about 1/M, so multipliers need M times the learning rate."""
    config = config.model_copy(update={"sparsity": config.sparsity.model_copy(update={"tau": 0.6, "lr": rate})})
    method = build(config, trained=False)
    rates = {"delta": 3e-3, "masks": 0.05, "router": 1e-3, "multipliers": rate}
    optimizers = [
        (torch.optim.SGD if name == "multipliers" else torch.optim.Adam)(group, rates[name]) for name, group in method.groups().items()
    ]
    history = []
    assert not method.feasible()
    for step in range(60):
        losses = method.train().loss(episode(step % 3), generator(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.total.backward()
        for optimizer in optimizers:
            optimizer.step()
        method.after_step(step + 1)
        history.append(losses.terms["ce"])
        assert float(method.log_alpha.detach().abs().max()) <= config.masks.clamp + 1e-6
    assert sum(history[-6:]) < 0.7 * sum(history[:6])
    statistics = method.statistics()
    reached = statistics["sparsity_counted" if config.sparsity.measure == "counted" else "sparsity_expected"]
    assert 0.55 < reached < 0.9


def test_statistics_are_those_of_the_masks() -> None:
    method = build(PAPER.model_copy(update={"masks": MaskConfig(noise="deterministic")}))
    statistics = method.statistics()
    z = method.shape.train_gate(method.log_alpha.detach())
    assert statistics["sparsity_counted"] == pytest.approx((z == 0).float().mean().item(), abs=1e-6)
    z = method.shape.eval_gate(method.log_alpha.detach())
    assert statistics["sparsity_inference"] == pytest.approx((z == 0).float().mean().item(), abs=1e-6)
    assert statistics["sparsity_min"] <= statistics["sparsity_expected"] <= statistics["sparsity_max"]
    assert statistics["multiplier_mean"] == pytest.approx(0.3)
    assert statistics["temperature"] == 5.0


def test_stochastic_masks_have_the_expected_sparsity() -> None:
    method = build()
    counts = torch.stack([method.merge(torch.ones(M), training=True, noise=seed)[1] for seed in range(20)])
    expected = method.shape.expected_l0_element(method.log_alpha.detach()).mean(1)
    assert torch.allclose(counts.mean(0) / method.space.size, expected, atol=0.005)


def test_precision_of_the_backbone_is_the_callers() -> None:
    class Half:
        def autocast(self) -> torch.autocast:
            return torch.autocast("cpu", dtype=torch.bfloat16)

    method, task = build().eval(), episode()
    exact = method.loss(task, generator()).total
    method.precision = Half()
    half = method.loss(task, generator()).total
    assert half.dtype == torch.float32
    assert half.item() != exact.item()
    assert half.item() == pytest.approx(exact.item(), rel=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.loss(task, generator()).total.item() == half.item()
