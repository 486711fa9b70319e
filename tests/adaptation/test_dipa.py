"""DIPA compared with a module whose layers are scaled and shifted by hooks and a loss written as loops, in float64."""

import dataclasses
import math
from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from smatcli.adaptation.dipa import Dipa, Fused, Sites, proxy_anchor
from smatcli.adaptation.proto import Proto
from smatcli.backbones.layers import LastBlocks
from smatcli.config.methods import PmfConfig, PretrainedConfig, SmatConfig
from smatcli.config.schema import DipaConfig
from smatcli.errors import UserError
from smatcli.methods.pmf import PmfMethod
from smatcli.methods.pretrained import PretrainedMethod
from smatcli.methods.smat import SmatMethod
from smatcli.seams import Support, Task

WAYS, SHOTS = 3, 4
LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def vit(seed: int = 0, **changed: Any) -> Any:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0} | changed
    model = timm.models.vision_transformer.VisionTransformer(**arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.double().eval()


def make_support(seed: int = 0) -> Support:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAYS).repeat(SHOTS)
    means = torch.randn(WAYS, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Support(means[labels] + torch.randn(len(labels), 3, 16, 16, generator=generator, dtype=torch.float64), labels, WAYS)


def make_task(model: nn.Module | None = None) -> Task:
    return PretrainedMethod(PretrainedConfig(), model or vit()).task(make_support())


def dipa(**settings: object) -> Dipa:
    return Dipa(DipaConfig.model_validate({"steps": 5, "blocks": 2, "fuse": 2, "lr": 0.05, "anchor_lr": 0.1} | settings))


class Hooked:
    """A ViT whose last blocks are scaled and shifted by hooks; returns the blocks' features after the model's final norm."""

    def __init__(self, model: Any, blocks: int, fuse: int):
        self.model, self.fuse = model, fuse
        self.scale: OrderedDict[str, Tensor] = OrderedDict()
        self.shift: OrderedDict[str, Tensor] = OrderedDict()
        self.kept: list[Tensor] = []
        for depth, block in enumerate(model.blocks):
            block.register_forward_hook(lambda module, inputs, output: self.kept.append(output))
            for name in LAYERS if depth >= len(model.blocks) - blocks else ():
                layer, path = block.get_submodule(name), f"{depth}.{name}"
                size = layer.weight.shape[0]
                self.scale[path] = torch.ones(size, dtype=torch.float64, requires_grad=True)
                self.shift[path] = torch.zeros(size, dtype=torch.float64, requires_grad=True)
                layer.register_forward_hook(lambda module, inputs, output, path=path: output * self.scale[path] + self.shift[path])

    def __call__(self, images: Tensor) -> Tensor:
        self.kept.clear()
        self.model(images)
        tokens = torch.cat([self.model.norm(x)[:, 0] for x in self.kept[-self.fuse :]], 1)
        return tokens / tokens.norm(dim=1, keepdim=True)


def loss_by_loops(features: Tensor, labels: Tensor, anchors: Tensor, margin: float = 0.1, sharpness: float = 32.0) -> Tensor:
    pull = push = torch.zeros((), dtype=torch.float64)
    for c, anchor in enumerate(anchors):
        near = far = torch.ones((), dtype=torch.float64)
        for x, label in zip(features, labels, strict=True):
            cosine = x @ anchor / (x.norm() * anchor.norm())
            if label == c:
                near = near + torch.exp(-sharpness * (cosine - margin))
            else:
                far = far + torch.exp(sharpness * (cosine + margin))
        pull, push = pull + near.log() / len(anchors), push + far.log() / len(anchors)
    return pull + push


def test_proxy_anchor_loss_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    anchors = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(3).repeat(3)
    found, expected = proxy_anchor(features, labels, anchors, 0.2, 8.0), loss_by_loops(features, labels, anchors, 0.2, 8.0)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, [features, anchors]), torch.autograd.grad(expected, [features, anchors]), strict=True):
        torch.testing.assert_close(one, other)
    # features on their own anchors, which are orthogonal: every positive has cosine 1, every negative 0
    axes = torch.eye(3, dtype=torch.float64)
    assert float(proxy_anchor(axes[labels], labels, axes)) == pytest.approx(
        math.log1p(3 * math.exp(-32 * 0.9)) + math.log1p(6 * math.exp(3.2))
    )


@pytest.mark.parametrize("arguments", [{}, {"qkv_bias": False}, {"init_values": 0.1}, {"reg_tokens": 2}])
def test_merged_scale_and_shift_are_those_of_the_outputs(arguments: dict) -> None:
    model, support = vit(**arguments), make_support()
    task = make_task(vit(**arguments))
    fused = Fused(task, 2, 1024)
    sites = Sites.of(fused.space, 2)
    hooked = Hooked(model, 2, 2)
    assert [name.removeprefix("blocks.") for name in sites.names] == list(hooked.scale)
    assert sum(sites.sizes) == 2 * 16 * (1 + 3 + 1 + 1 + 4 + 1)
    generator = torch.Generator().manual_seed(1)
    scale, shift = (torch.randn(sum(sites.sizes), generator=generator, dtype=torch.float64) for _ in range(2))
    for k, path in enumerate(hooked.scale):
        hooked.scale[path] = scale.split(sites.sizes)[k]
        without_bias = "qkv_bias" in arguments and "qkv" in path  # a layer without bias is only scaled
        hooked.shift[path] = 0 * shift.split(sites.sizes)[k] if without_bias else shift.split(sites.sizes)[k]
    found = fused.named(support.images, sites.merged(fused.space.unflatten(task.theta), scale, shift))
    torch.testing.assert_close(found, hooked(support.images))


def test_last_layer_is_the_backbones_own_output() -> None:
    images = make_support().images
    for model in (vit(), vit(global_pool="avg"), vit(class_token=False, global_pool="avg"), vit(reg_tokens=3)):
        layers = LastBlocks(model, 9)(images)
        assert layers.shape == (3, len(images), 16)
        torch.testing.assert_close(layers[-1], model(images))
        assert torch.equal(LastBlocks(model, 2)(images), layers[1:])


@pytest.mark.parametrize("anchors", ["class-means", "random"])
def test_five_steps_agree_with_a_hooked_module(anchors: str) -> None:
    support = make_support()
    adaptation = dipa(anchors=anchors)
    task = dataclasses.replace(make_task(), seed=11)
    found = adaptation.adapt(task, support)

    hooked = Hooked(vit().requires_grad_(False), 2, 2)
    first = hooked(support.images).detach()
    centres = torch.stack([first[support.labels == c].mean(0) for c in range(WAYS)])
    noise = torch.randn(WAYS, first.shape[1], generator=torch.Generator().manual_seed(11))
    start = centres if anchors == "class-means" else math.sqrt(2 / WAYS) * noise.double()
    learned = start.clone().requires_grad_()
    ours = torch.optim.NAdam([*hooked.scale.values(), *hooked.shift.values()], lr=0.05)
    theirs = torch.optim.NAdam([learned], lr=0.1)
    trace = []
    for _ in range(5):
        ours.zero_grad()
        theirs.zero_grad()
        loss = loss_by_loops(hooked(support.images), support.labels, learned)
        loss.backward()
        ours.step()
        theirs.step()
        trace.append(loss.item())
    # The optimizer divides a gradient by its own size: where it is nearly zero, the order of a sum shows (1.3e-8 seen without AVX).
    assert found.info["trace"] == pytest.approx(trace, rel=1e-6)
    with torch.no_grad():
        known = hooked(support.images)
        asked = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        query = hooked(asked)
        expected = torch.stack(
            [10 * torch.cosine_similarity(query, known[support.labels == c].mean(0)[None], dim=1) for c in range(WAYS)], 1
        )
    torch.testing.assert_close(found.predict(asked), expected, rtol=1e-6, atol=1e-6)
    assert (found.info["steps"], found.info["passes"]) == (5, 8)  # prototypes before, five steps, prototypes after, query
    assert (found.info["rate"], found.info["tuned"], found.info["fused"]) == (0.05, 2 * 2 * 16 * 11, 2)


def test_first_blocks_and_the_model_stay_as_they_were() -> None:
    model, support = vit(), make_support()
    method = PmfMethod(PmfConfig(), model)
    before = {name: tensor.clone() for name, tensor in [*method.state_dict().items(), *model.state_dict().items()]}
    images, state = support.images.clone(), torch.get_rng_state()
    task = method.task(support)

    class Stopped(Exception):
        pass

    seen = []

    def stop(classifier: object, error: type[BaseException]) -> None:
        seen.append(classifier)
        if len(seen) % 3 == 0:
            raise error

    found = dipa().adapt(task, support)
    for error in (Stopped, KeyboardInterrupt):
        with pytest.raises(error):
            dipa().adapt(task, support, watch=partial(stop, error=error))
    after = [*method.state_dict().items(), *model.state_dict().items()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in after)
    assert torch.equal(support.images, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in [*method.parameters(), *model.parameters()])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not model.training
    assert not found.theta.requires_grad
    changed = found.theta != task.theta
    for segment in method.space.segments:
        assert bool(changed[segment.slice].any()) == (segment.depth in (1, 2))


def test_every_method_and_inference_mode() -> None:
    support = make_support()
    smat = SmatMethod(SmatConfig.model_validate({"experts": 3, "router": {"heads": 2}}), vit()).double().eval()
    with torch.no_grad():
        smat.theta_delta.normal_(std=0.1)
    for method in (PretrainedMethod(PretrainedConfig(), vit()), PmfMethod(PmfConfig(), vit()), smat):
        plain = dipa().adapt(method.task(support), support)
        with torch.inference_mode():
            inside = Support(support.images.clone(), support.labels.clone(), WAYS)
            found = dipa().adapt(method.task(inside), inside)
            logits = found.predict(inside.images)
        assert found.info["trace"] == plain.info["trace"]
        assert torch.equal(logits, plain.predict(support.images))
        assert found.info["trace"][-1] < found.info["trace"][0]


def test_rate_zero_and_lost_tunings_are_no_adaptation() -> None:
    support, task = make_support(), make_task()
    features = vit()(support.images).detach()
    centres = torch.stack([features[support.labels == c].mean(0) for c in range(WAYS)])
    for found in (dipa().at(0.0).adapt(task, support), dipa(lr=0.0).adapt(task, support), dipa(lr=1e300).adapt(task, support)):
        assert found.info["steps"] == 0
        assert found.info["loss"] == found.info["loss_start"]
        assert torch.equal(found.theta, task.theta)
        torch.testing.assert_close(found.centres, centres)
        assert torch.equal(found.predict(support.images), Proto().adapt(task, support).predict(support.images))


def test_watch_sees_no_adaptation_and_every_step() -> None:
    support, task = make_support(), make_task()
    seen: list[Tensor] = []
    found = dipa().adapt(task, support, watch=lambda classifier: seen.append(classifier.predict(support.images)))
    assert len(seen) == 6
    assert torch.equal(seen[0], Proto().adapt(task, support).predict(support.images))
    torch.testing.assert_close(seen[2], dipa(steps=2).adapt(task, support).predict(support.images))
    torch.testing.assert_close(seen[-1], found.predict(support.images))
    assert found.info["trace"] == dipa().adapt(task, support).info["trace"]


def test_parts_of_a_batch_give_the_same_tuning() -> None:
    support, task = make_support(), make_task()
    whole, parts = dipa().adapt(task, support), dipa(batch=5).adapt(task, support)
    torch.testing.assert_close(parts.theta, whole.theta)


def test_refusals() -> None:
    support = make_support()
    with pytest.raises(UserError, match="learning rate"):
        dipa(lr=None).adapt(make_task(), support)
    with pytest.raises(UserError, match="use a timm ViT"):
        dipa().adapt(dataclasses.replace(make_task(), module=nn.Linear(2, 2)), support)
    with pytest.raises(UserError, match="block by block"):
        dipa().adapt(Task(torch.ones(3), lambda images, theta: images), support)
