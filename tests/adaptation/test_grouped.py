"""Fine-tunings side by side: each gives the same result and noise as alone, and `Grouping` decides whether to group."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from smatcli.adaptation import grouped
from smatcli.adaptation.full import Full
from smatcli.adaptation.grouped import Grouping, adapt_many, alike, can_group
from smatcli.adaptation.lora import LoraAdaptation
from smatcli.adaptation.proto import Proto
from smatcli.adaptation.steps import Steps, take
from smatcli.config.finetune import FullConfig, LoraAdaptConfig
from smatcli.errors import UserError
from smatcli.seams import Support, Task
from tests.adaptation import tasks as by_hand
from tests.adaptation.nets import assert_untouched, make_method, make_support, snapshot
from tests.adaptation.test_finetune import make

NAMES = ("full", "lora")
RATES = [1e-3, 3e-2, 3e-3]


def world(
    dtype: torch.dtype = torch.float64, count: int = 3, device: str = "cpu", **settings: Any
) -> tuple[Any, list[Task], list[Support]]:
    """Return a method, and tasks with different supports and seeds."""
    method = make_method(**settings).to(dtype).to(device)
    method.backbone.to(device)
    supports = [make_support(seed, noise=2) for seed in range(count)]
    supports = [Support(s.images.to(device, dtype), s.labels.to(device), s.ways) for s in supports]
    return method, [dataclasses.replace(method.task(s), seed=10 + i) for i, s in enumerate(supports)], supports


def assert_equal(one: Any, other: Any, tolerance: float) -> None:
    torch.testing.assert_close(one.theta, other.theta, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.centres, other.centres, rtol=tolerance, atol=tolerance)
    assert one.info["trace"] == pytest.approx(other.info["trace"], rel=tolerance, abs=tolerance, nan_ok=True)
    assert one.info.keys() == other.info.keys()
    for key in ("passes", "rate", "steps"):
        assert one.info[key] == other.info[key]
    assert [one.info[k] for k in ("loss_start", "loss")] == pytest.approx([other.info[k] for k in ("loss_start", "loss")], rel=tolerance)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_episodes_side_by_side_are_episodes_one_after_the_other(name: str, probability: float) -> None:
    """Compare in float64; with probability 0.5, a step augments the copies of some members but not of others."""
    _, tasks, supports = world()
    alone = [make(name, rate, 6, probability=probability).adapt(t, s) for t, s, rate in zip(tasks, supports, RATES, strict=True)]
    found = adapt_many(make(name, None, 6, probability=probability), tasks, supports, RATES)
    for one, other, task in zip(found, alone, tasks, strict=True):
        assert_equal(one, other, 1e-9)
        assert float((one.theta - task.theta).abs().max()) > 1e-3
    assert not torch.allclose(found[0].theta - tasks[0].theta, found[1].theta - tasks[1].theta, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_in_fp32(name: str) -> None:
    """Adam divides small gradients by their size and amplifies rounding: allow 1e-2 of the distance that theta moved in 6 steps."""
    _, tasks, supports = world(torch.float32)
    rates = [1e-3, 1e-3, 3e-3]
    alone = [make(name, rate, 6).adapt(t, s) for t, s, rate in zip(tasks, supports, rates, strict=True)]
    for one, other, task in zip(adapt_many(make(name, None, 6), tasks, supports, rates), alone, tasks, strict=True):
        assert float((one.theta - other.theta).norm() / (other.theta - task.theta).norm()) < 1e-2
        assert one.info["trace"] == pytest.approx(other.info["trace"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_rates_of_a_search_side_by_side(name: str) -> None:
    """Use one episode and one seed: rate 0 takes no steps, and a rate that diverges falls back to none without affecting others."""
    _, (task, *_), (support, *_) = world()
    rates = [0.0, 1e-3, 1e300, 3e-2]
    start = Proto().adapt(task, support)
    adaptation = make(name, None, 5)
    found = adapt_many(adaptation, [task] * 4, [support] * 4, rates, [start] * 4)
    for one, rate in zip(found, rates, strict=True):
        assert_equal(one, adaptation.at(rate).adapt(task, support), 1e-9)
    assert [one.info["steps"] for one in found] == [0, 5, 0, 5]
    assert torch.equal(found[2].theta, task.theta)
    assert start.info["passes"] == 1
    (again,) = adapt_many(adaptation, [task], [support], [1e-3])
    assert torch.equal(again.theta, adaptation.at(1e-3).adapt(task, support).theta)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_and_nothing_is_touched(name: str) -> None:
    method, tasks, supports = world(torch.float32)
    before, state = snapshot(method), torch.get_rng_state()
    adaptation = make(name, None)
    with torch.inference_mode():
        first = adapt_many(adaptation, tasks, supports, RATES)
        kept = [one.theta.clone() for one in first]
        adapt_many(adaptation, tasks[::-1], supports[::-1], [1.0, 1.0, 1.0])
        again = adapt_many(adaptation, tasks, supports, RATES)
        assert [float(one.predict(supports[0].images).sum()) for one in first] == [
            float(one.predict(supports[0].images).sum()) for one in again
        ]
    assert all(
        torch.equal(one.theta, theta) and torch.equal(other.theta, theta) for one, other, theta in zip(first, again, kept, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert_untouched(method, before)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_anywhere_it_leaves_the_model_and_the_generators_as_they_were(name: str) -> None:
    method, tasks, supports = world(torch.float32)
    adaptation = make(name, None)
    expected = [one.theta for one in adapt_many(adaptation, tasks, supports, RATES)]
    before, thetas, state = snapshot(method), [t.theta.clone() for t in tasks], torch.get_rng_state()
    for at in range(1, 5):
        calls = 0

        def stopping(*arguments: Any, at: int = at) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return tasks[0].run(*arguments)  # type: ignore[misc]

        other = make(name, None)
        with pytest.raises(KeyboardInterrupt):
            adapt_many(other, [dataclasses.replace(t, run=stopping) for t in tasks], supports, RATES)
        assert_untouched(method, before)
        assert all(torch.equal(t.theta, theta) for t, theta in zip(tasks, thetas, strict=True))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one.theta, theta) for one, theta in zip(adapt_many(adaptation, tasks, supports, RATES), expected, strict=True))
    # steps can be reused after an interruption
    assert all(
        torch.equal(one.theta, theta)
        for one, theta in zip(adapt_many(other, [dataclasses.replace(t) for t in tasks], supports, RATES), expected, strict=True)
    )


def test_static_steps_of_one_member_are_the_loop() -> None:
    """Run without a capture the steps that are captured on CUDA."""
    for adaptation in (Full(FullConfig(lr=1e-3, steps=5)), LoraAdaptation(LoraAdaptConfig(lr=1e-3, steps=5))):
        _, (task, *_), (support, *_) = world()
        expected = adaptation.adapt(task, support)
        tunable = adaptation.tunable(task)
        member = tunable.member(support, 1e-3 * adaptation.factor, task.seed)
        assert tunable.pure is not None
        steps = Steps(tunable.pure, task.scale, member, 1, True, noisy=adaptation.noisy)
        with adaptation.noise([task]):
            (trace,) = take(steps, [member], adaptation.config)
        torch.testing.assert_close(tunable.theta(steps.values[0].detach()), expected.theta, rtol=1e-9, atol=1e-9)
        assert trace == pytest.approx(expected.info["trace"], rel=1e-9)


def test_what_may_be_grouped() -> None:
    _, tasks, supports = world()
    pairs = list(zip(tasks, supports, strict=True))
    assert alike(pairs[0], pairs[1])
    other = make_support(0, ways=2, shots=6)
    assert not alike(pairs[0], (tasks[0], other))
    assert not alike(pairs[0], (world()[1][0], supports[0]))
    assert can_group(make("full"), tasks[0])
    assert can_group(make("lora"), tasks[0])
    assert not can_group(make("joint"), tasks[0])
    assert not can_group(Proto(), tasks[0])
    assert not can_group(make("full"), by_hand.make_task(0)[0])
    with pytest.raises(UserError, match=r"adapt\.full\.lr"):
        make("full", None).adapt(tasks[0], supports[0])


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (task, *_), (support, *_) = world()  # 12 images
    full = make("full")
    assert Grouping().size(full, task, support) == 1  # on a CPU
    assert Grouping(1).size(full, task, support) == 1
    assert Grouping(4).size(full, task, support) == 4
    assert Grouping(4).size(Proto(), task, support) == 1
    assert Grouping(4).size(make("full", batch=60), task, support) == 2
    assert Grouping(4).size(make("full", batch=12), task, support) == 1
    lines: list[str] = []
    asked: list[int] = []
    for ratio, expected in ((0.5, 16), (1.5, 1), (float("inf"), 1)):
        chosen = Grouping("auto", lines.append)

        def measured(*arguments: Any, ratio: float = ratio) -> float:
            asked.append(arguments[3])
            return ratio

        monkeypatch.setattr(grouped, "measured", measured)
        device = dataclasses.replace(task, theta=torch.empty_like(task.theta, device="meta"))
        monkeypatch.setattr(grouped, "MEASURED", ("meta",))
        assert [chosen.size(full, device, support) for _ in range(2)] == [expected] * 2
    assert asked == [16] * 3
    assert lines == [
        "full: fine-tunings on 12 images run 16 side by side (16 side by side: 0.50 of the time)",
        "full: fine-tunings on 12 images run one after the other (16 side by side: 1.50 of the time)",
        "full: fine-tunings on 12 images run one after the other (16 side by side: out of memory)",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured(name: str) -> None:
    _, (task, *_), (support, *_) = world(torch.float32)
    assert 0.02 < grouped.measured(make(name, None), task, support, 3) < 50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_captured_steps_and_groups_are_eager_ones(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Steps are captured at the second task of a shape; with probability 0.5, both graphs of `full` are used."""
    method, tasks, supports = world(torch.float64, device="cuda")
    before = snapshot(method)
    settings: dict[str, Any] = {"probability": 0.5}
    eager, captured = make(name, 1e-3, 8, **settings), make(name, 1e-3, 8, **settings)
    eager.graphs = False
    with torch.inference_mode():
        expected = [eager.adapt(t, s) for t, s in zip(tasks, supports, strict=True)]
        found = [captured.adapt(t, s) for t, s in zip(tasks, supports, strict=True)]
        together = adapt_many(captured, tasks, supports, [1e-3] * 3)
    assert not caplog.records  # no capture failed
    assert any(steps is not None and steps.graphs for steps in captured._steps.values())
    for one, other, third in zip(found, expected, together, strict=True):
        assert_equal(one, other, 1e-9)
        assert_equal(third, other, 1e-9)
    assert_untouched(method, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_capture_that_fails_leaves_the_loop(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Steps, once: bool) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Steps, "_captured", broken)
    _, tasks, supports = world(torch.float64, device="cuda")
    adaptation = make("full")
    found = [adaptation.adapt(t, s) for t, s in zip(tasks, supports, strict=True)]
    assert len(caplog.records) == 1
    for one, task, support in zip(found, tasks, supports, strict=True):
        assert_equal(one, make("full").adapt(task, support), 1e-9)
