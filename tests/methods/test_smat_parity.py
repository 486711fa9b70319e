"""One whole meta-training task of the official release: forward, five loss terms, all gradients."""

from pathlib import Path

import pytest
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from smatcli.config.methods import SmatConfig
from smatcli.config.schema import TrainConfig
from smatcli.experts.merge import normalise
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.smat import Injected, SmatMethod
from smatcli.methods.teacher import distillation, teacher_logits
from smatcli.seams import Episode, Support
from tests.experts.parity import Parity, close, load_router, release_config, router_state

TOLERANCE = 1e-4


class ReleasedModel(nn.Module):
    """Encoder with a one-row head that the forward pass does not use, because the release replaces it by prototypes."""

    def __init__(self, image: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.encoder = VisionTransformer(img_size=image, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0)
        self.head = nn.Linear(dim, 1, bias=False)
        self.num_features = dim

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)


class Released(SmatMethod):
    """SMAT that counts sparsity like the release: the head's ones once per expert, the head once in N."""

    def measured_sparsity(self, nonzeros: Tensor) -> Tensor:
        assert self.dense is not None
        head = int(self.dense.sum())
        return super().measured_sparsity(nonzeros + (self.config.experts - 1) * head)


@pytest.fixture(scope="module")
def data() -> Parity:
    return Parity("task")


@pytest.fixture
def method(data: Parity) -> Released:
    image, patch, dim, depth, heads, experts = data["config"].tolist()
    backbone = ReleasedModel(image, patch, dim, depth, heads).double()
    assert [name for name, _ in backbone.named_parameters()] == data.names
    built = Released(release_config(experts), backbone, dense=("head.",)).double()
    load_router(built.router, data, "router.")
    with torch.no_grad():
        built.theta_pre.copy_(data.flat("theta_pre"))
        built.theta_delta.copy_(data.flat("theta_delta"))
        built.log_alpha.copy_(data.flat("log_alpha").clamp(-built.config.masks.clamp, built.config.masks.clamp))
        built.sparsity.multipliers.copy_(data["multiplier"])
        built.router.temperature.copy_(data["temperature"])
    return built


@pytest.fixture
def episode(data: Parity) -> Episode:
    return Episode(Support(data["x_s"], data["y_s"], 4), data["x_q"], data["y_q"], "parity", 0, 0)


@pytest.fixture
def injected(data: Parity) -> Injected:
    return Injected(data.flat("u_mask"), data["train.u_router"])


def test_inference_agrees_with_the_release(data: Parity, method: Released, episode: Episode) -> None:
    task = method.eval().task(episode.support)
    centres = prototypes(task.embed(episode.support.images, task.theta), episode.support.labels, 4)
    assert task.alpha is not None
    assert close(task.alpha, data["eval.alpha"], TOLERANCE)
    assert close(cosine_logits(task.embed(episode.query_images, task.theta), centres, task.scale), data["eval.query_logits"], TOLERANCE)
    counted = method.measured_sparsity(torch.tensor(method.compressed().nonzeros))
    assert close(counted, data["eval.expert_sparsity"], 1e-6)


def test_forward_agrees_with_the_release(data: Parity, method: Released, episode: Episode, injected: Injected) -> None:
    method.train()
    router_logits, frozen = method._frozen(episode)
    assert close(router_logits, data["train.router_logits"], TOLERANCE)
    assert frozen is not None
    assert close(frozen, data["train.pretrained_query_logits"], TOLERANCE)
    assert close(method.embed(episode.support.images, method.theta_pre), data["train.pretrained_support_features"], TOLERANCE)
    alpha = normalise(method.router.scores(router_logits, u=injected.router))
    assert close(alpha, data["train.alpha"], TOLERANCE)
    theta, nonzeros, _ = method.merge(alpha, training=True, noise=injected.masks)
    on = (alpha @ method.shape.train_gate(method.log_alpha, injected.masks) > 0) | method.dense  # type: ignore[operator]
    assert float(1 - on.double().mean()) == pytest.approx(float(data["train.merged_sparsity"]), abs=1e-7)
    assert close(method.measured_sparsity(nonzeros), data["train.expert_sparsity"], 1e-6)
    known = method.embed(episode.support.images, theta)
    support_logits = cosine_logits(known, prototypes(known, episode.support.labels, 4), 10.0)
    assert close(known, data["train.proto_support_features"], TOLERANCE)
    assert close(support_logits, data["train.support_logits"], TOLERANCE)
    assert close(F.cross_entropy(support_logits, episode.support.labels), data["train.support_ce"], TOLERANCE)
    student = method.student(theta, episode)
    assert close(student.logits, data["train.query_logits"], TOLERANCE)
    teacher = teacher_logits(student, episode, method.config.teacher, method.embed, 10.0)
    assert close(teacher, data["train.teacher_logits"], TOLERANCE)


def test_loss_terms_and_all_gradients_agree_with_the_release(data: Parity, method: Released, episode: Episode, injected: Injected) -> None:
    losses = method.train().loss(episode, torch.Generator(), injected)
    names = {"ce": "query_ce", "kd": "query_kd", "sparsity": "sparsity_loss", "lagrangian": "lagrangian", "l2": "l2"}
    for ours, theirs in names.items():
        assert close(losses.terms[ours], data[f"loss.{theirs}"], TOLERANCE), ours
    assert close(losses.total, data["loss.total"], TOLERANCE)
    assert losses.logs["accuracy"] == pytest.approx(float(data["train.query_accuracy"]))
    losses.total.backward()
    assert close(method.sparsity.multipliers, data["multiplier_after_reset"], 1e-6)
    assert close(method.theta_delta.grad, data.flat("theta_delta_grad"), TOLERANCE)  # type: ignore[arg-type]
    assert close(method.log_alpha.grad, data.flat("log_alpha_grad"), TOLERANCE)  # type: ignore[arg-type]
    assert close(method.sparsity.multipliers.grad, data["multiplier_grad"], TOLERANCE)  # type: ignore[arg-type]
    expected = router_state(data, "router_grad.")
    for name, parameter in method.router.named_parameters():
        assert close(parameter.grad, expected.pop(name), TOLERANCE), name  # type: ignore[arg-type]
    assert not expected
    state = method.router.state_dict()
    assert all(close(state[name], value, 1e-5) for name, value in router_state(data, "router_after.").items())


def test_a_paper_option_differs_from_the_release(data: Parity, method: Released, episode: Episode, injected: Injected) -> None:
    """The comparison above is sensitive: changing one option changes the loss."""
    for changed in (
        {"inner_steps": 0},
        {"teacher": method.config.teacher.model_copy(update={"direction": "forward"})},
        {"teacher": method.config.teacher.model_copy(update={"prototypes": "recomputed"})},
        {"teacher": method.config.teacher.model_copy(update={"pretrained": False})},
    ):
        config = method.config
        method.config = config.model_copy(update=changed)
        method.eval()
        total = method.loss(episode, torch.Generator(), injected).total
        assert not close(total, data["loss.total"], TOLERANCE), changed
        method.config = config


def test_the_documented_recipe_is_the_one_that_is_tested(repo: Path) -> None:
    text = (repo / "docs" / "fidelity.md").read_text()
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert SmatConfig.model_validate(recipe["method"]) == release_config(8)
    TrainConfig.model_validate({"steps": 1, **recipe["train"]})


def test_distillation_agrees_with_the_release() -> None:
    data = Parity("kd")
    student, temperature, weight = data["student_logits"].requires_grad_(), float(data["T"]), float(data["lam"])
    parts = [distillation(student, data[f"{name}_logits"], temperature, "reverse") / 2 for name in ("teacher", "pretrained")]
    assert close(parts[0], data["kd_teacher"], 1e-5)
    assert close(parts[1], data["kd_pretrained"], 1e-5)
    ce = F.cross_entropy(student, data["labels"])
    assert close(ce, data["cross_entropy"], 1e-5)
    kd = parts[0] + parts[1]
    (grad,) = torch.autograd.grad(kd, student, retain_graph=True)
    assert close(grad, data["dkd_dstudent"], 1e-5)
    assert close((1 - weight) * ce, data["query_ce_weighted"], 1e-5)
    assert close(weight * kd, data["query_kd_weighted"], 1e-5)
    (grad,) = torch.autograd.grad((1 - weight) * ce + weight * kd, student)
    assert close(grad, data["dtotal_dstudent"], 1e-5)


def test_prototype_head_agrees_with_the_release() -> None:
    data = Parity("proto")
    query, labels = data["query_features"].requires_grad_(), data["query_labels"]
    centres = prototypes(data["support_features"], data["support_labels"], 7).requires_grad_()
    logits = cosine_logits(query, centres, float(data["scale"]))
    ce = F.cross_entropy(logits, labels)
    grads = torch.autograd.grad(ce, (query, centres))
    assert close(centres, data["prototypes"], 1e-5)
    assert close(logits, data["logits"], 1e-5)
    assert close(ce, data["cross_entropy"], 1e-5)
    # Row 0 is all zeros: its gradient is 1 / eps times that of a unit vector, in the release too.
    assert close(grads[0][1:], data["query_features_grad"][1:], 1e-5)
    assert close(grads[0][:1], data["query_features_grad"][:1], 1e-4)
    assert close(grads[1], data["prototypes_grad"], 1e-5)
    assert float((logits.argmax(1) == labels).double().mean()) == float(data["accuracy"])
