"""The fine-tuning loop compared with a plain loop and another optimizer object, and requirements on all fine-tuning adaptations."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from smatcli.adaptation import build_adaptation
from smatcli.adaptation.finetune import FineTune
from smatcli.adaptation.full import Full
from smatcli.adaptation.proto import Proto
from smatcli.config.finetune import FullConfig
from smatcli.config.schema import AdaptConfig
from smatcli.errors import UserError
from smatcli.seams import Task
from tests.adaptation.nets import CONFIGS, assert_untouched, backbone, make_method, make_support, snapshot

NAMES = ("full", "lora", "joint")


def make(name: str, lr: float | None = 1e-3, steps: int = 4, **settings) -> FineTune:
    config = AdaptConfig.model_validate({name: {"lr": lr, "steps": steps, **settings}})
    made = build_adaptation(name, config)
    assert isinstance(made, FineTune)
    return made


def make_task(seed: int = 0, **settings) -> Task:
    return dataclasses.replace(make_method(**settings).task(make_support(seed)), seed=seed)


def test_full_is_adam_on_all_parameters_of_the_module() -> None:
    """Compare with torch's Adam on a module's own parameters, without augmentation, in float64."""
    net = backbone().double()
    method = make_method("pretrained")
    method.double()
    support = make_support()
    images = support.images.double()
    plain = dict(net.named_parameters())
    method.theta_pre.copy_(torch.cat([p.detach().flatten() for p in plain.values()]))
    optimizer = torch.optim.Adam(list(plain.values()), lr=3e-3, fused=False, foreach=False)
    losses = []
    for _ in range(5):
        features = F.normalize(net(images), dim=1)
        raw = net(images)
        centres = torch.stack([raw[support.labels == c].mean(0) for c in range(3)])
        loss = F.cross_entropy(10 * features @ F.normalize(centres, dim=1).T, support.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    double = dataclasses.replace(support, images=images)
    found = make("full", 3e-3, 5, probability=0).adapt(method.task(double), double)
    torch.testing.assert_close(found.theta, torch.cat([p.detach().flatten() for p in plain.values()]), rtol=1e-6, atol=1e-8)
    assert found.info["trace"] == pytest.approx(losses, rel=1e-8)
    tuned: dict[str, torch.Tensor] = {**plain}
    with torch.no_grad():
        asked = F.normalize(functional_call(net, tuned, (images,)), dim=1)
        centre = torch.stack([functional_call(net, tuned, (images[support.labels == c],)).mean(0) for c in range(3)])
        torch.testing.assert_close(found.predict(images), 10 * asked @ F.normalize(centre, dim=1).T, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name: str) -> None:
    support = make_support(noise=3)
    task = make_method().task(support)
    found = make(name, 1e-3, 15, probability=0).adapt(task, support).info
    assert found["loss"] < 0.9 * found["loss_start"]
    assert found["loss_start"] == pytest.approx(Proto().adapt(task, support).info["loss"])
    assert (found["steps"], found["rate"], found["passes"], len(found["trace"])) == (15, 1e-3, 17, 15)


@pytest.mark.parametrize("name", NAMES)
def test_rate_zero_is_no_adaptation(name: str) -> None:
    support, query = make_support(), make_support(5).images
    task = make_method().task(support)
    found, proto = make(name).at(0).adapt(task, support), Proto().adapt(task, support)
    assert torch.equal(found.predict(query), proto.predict(query))
    assert (found.info["steps"], found.info["rate"], found.info["passes"]) == (0, 0, 2)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_from_task_to_task(name: str) -> None:
    method, adaptation = make_method(), make(name)
    supports = [make_support(seed) for seed in (1, 2)]
    tasks = [dataclasses.replace(method.task(s), seed=7) for s in supports]
    fresh = make(name).adapt(tasks[1], supports[1])
    first = adaptation.adapt(tasks[0], supports[0])
    kept = first.theta.clone()
    adaptation.at(1.0).adapt(tasks[0], supports[0])
    again = adaptation.adapt(tasks[1], supports[1])
    assert torch.equal(again.theta, fresh.theta)
    assert torch.equal(first.theta, kept)
    assert not torch.equal(first.theta, again.theta)


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_the_task_s_seed_and_global_generators_are_left_alone(name: str) -> None:
    support = make_support()
    task = dataclasses.replace(make_method().task(support), seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(name).adapt(task, support)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = make(name).adapt(task, support)
    assert torch.equal(one.theta, other.theta)
    assert not torch.equal(one.theta, make(name).adapt(dataclasses.replace(task, seed=4), support).theta)


@pytest.mark.parametrize("name", NAMES)
def test_inside_inference_mode_as_outside(name: str) -> None:
    method = make_method()
    outside = make_support()
    expected = make(name).adapt(method.task(outside), outside).theta
    with torch.inference_mode():
        inside = make_support()
        found = make(name).adapt(method.task(inside), inside)
        assert torch.equal(found.theta, expected)
        assert found.predict(inside.images).shape == (12, 3)


@pytest.mark.parametrize("method_name", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_left_as_it_was(name: str, method_name: str) -> None:
    if name == "joint" and method_name == "pretrained":
        return
    method, support = make_method(method_name), make_support()
    images, labels = support.images.clone(), support.labels.clone()
    task = method.task(support)
    theta, before = task.theta.clone(), snapshot(method)
    found = make(name, steps=2).adapt(task, support)
    assert not torch.equal(found.theta, theta)
    assert found.info["steps"] == 2
    found.predict(images)
    assert torch.equal(task.theta, theta)
    assert torch.equal(support.images, images)
    assert torch.equal(support.labels, labels)
    assert_untouched(method, before)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_anywhere_it_leaves_the_model_and_the_generators_as_they_were(name: str) -> None:
    method, support = make_method(), make_support()
    task = method.task(support)
    adaptation = make(name)
    expected = adaptation.adapt(task, support).theta
    before, theta, state = snapshot(method), task.theta.clone(), torch.get_rng_state()
    for at in range(1, 6):
        calls = 0

        def stopping(*arguments, inner, at=at):
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return inner(*arguments)

        broken = dataclasses.replace(
            task,
            embed=lambda *a, f=stopping: f(*a, inner=task.embed),
            run=lambda *a, f=stopping: f(*a, inner=task.run),
        )
        with pytest.raises(KeyboardInterrupt):
            adaptation.adapt(broken, support)
        assert_untouched(method, before)
        assert torch.equal(task.theta, theta)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_inference_mode_enabled() is False
    assert torch.equal(adaptation.adapt(task, support).theta, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_blows_up_gives_the_result_of_no_step(name: str) -> None:
    support = make_support()
    task = make_method().task(support)
    found = make(name, 1e30).adapt(task, support)
    assert found.info["steps"] == 0
    assert torch.equal(found.predict(support.images), Proto().adapt(task, support).predict(support.images))


@pytest.mark.parametrize("name", NAMES)
def test_many_images_in_parts_are_the_same(name: str) -> None:
    support = make_support()
    support = dataclasses.replace(support, images=support.images.double())
    task = make_method().double().task(support)
    settings: dict[str, Any] = {"dropout": 0.0} if name == "lora" else {}  # its draws depend on the parts
    whole = make(name, **settings).adapt(task, support)
    parts = make(name, batch=7, **settings).adapt(task, support)
    torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_watching_changes_nothing_and_sees_every_step(name: str) -> None:
    support, query = make_support(), make_support(9).images
    task = make_method().task(support)
    seen = []
    watched = make(name).adapt(task, support, lambda classifier: seen.append(classifier.predict(query)))
    assert torch.equal(watched.theta, make(name).adapt(task, support).theta)
    assert len(seen) == 5
    assert torch.equal(seen[0], Proto().adapt(task, support).predict(query))
    torch.testing.assert_close(seen[-1], watched.predict(query), rtol=1e-4, atol=1e-5)
    assert watched.info["passes"] == 7


def test_what_it_may_see_by_type() -> None:
    assert list(inspect.signature(Full.adapt).parameters) == ["self", "task", "support", "watch"]
    assert {f.name for f in dataclasses.fields(make_support())} == {"images", "labels", "ways"}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rate_it_says_what_to_do(name: str) -> None:
    support = make_support()
    with pytest.raises(UserError, match=rf"adapt\.{name}\.lr.*--search valid"):
        make(name, None).adapt(make_method().task(support), support)


def test_augmentation_off_and_settings() -> None:
    support = make_support()
    task = make_method().task(support)
    plain = Full(FullConfig(lr=1e-3, steps=3, probability=0)).adapt(task, support)
    again = Full(FullConfig(lr=1e-3, steps=3, probability=0)).adapt(dataclasses.replace(task, seed=99), support)
    assert torch.equal(plain.theta, again.theta)
    assert not torch.equal(plain.theta, Full(FullConfig(lr=1e-3, steps=3)).adapt(task, support).theta)


@pytest.mark.parametrize(("name", "images"), [("full", 12), ("joint", 12), ("lora", 24)])
def test_a_batch_that_is_not_augmented_is_embedded_once(name: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except where the network draws noise of its own."""
    support = make_support()
    task, found = make_method().task(support), []
    original = FineTune._features

    def counting(self, tunable, images, network):
        found.append(len(images))
        return original(self, tunable, images, network)

    monkeypatch.setattr(FineTune, "_features", counting)
    make(name, steps=3, probability=0).adapt(task, support)
    assert found == [images] * 3
    found.clear()
    make("lora", steps=1, probability=0, dropout=0).adapt(task, support)
    make(name, steps=1, probability=1).adapt(task, support)
    assert found == [12, 24]
