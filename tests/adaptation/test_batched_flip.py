"""Batched flips: the same walk as one state at a time, with fewer passes of the network."""

import dataclasses

import pytest
import torch

from smatcli.adaptation.batched_flip import BatchedVisits, can_batch
from smatcli.adaptation.flip import Flip
from smatcli.adaptation.states import Measure
from smatcli.config.methods import SmatConfig
from smatcli.config.schema import FlipConfig
from smatcli.methods.smat import SmatMethod
from tests.adaptation import tasks
from tests.adaptation.nets import ROUTER, backbone, make_support


def sharp_method(experts: int = 4, seed: int = 0) -> SmatMethod:
    """Return a method whose experts change the features so much that flips are accepted."""
    method = SmatMethod(SmatConfig(experts=experts, router=ROUTER), backbone())
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        method.theta_delta.copy_(torch.randn(method.theta_delta.shape, generator=noise) * 0.3)
        method.log_alpha.copy_(torch.where(torch.rand(method.log_alpha.shape, generator=noise) < 0.3, 3.0, -4.0))
    method.after_step(1)
    return method.double().eval()


@pytest.mark.parametrize("loss", ["support", "leave-one-out", "augmented"])
def test_the_same_walk_in_float64(loss: str) -> None:
    accepted = 0
    for seed in range(4):
        method, support = sharp_method(seed=seed), make_support(seed, noise=2)
        support = dataclasses.replace(support, images=support.images.double())
        config = FlipConfig.model_validate({"rounds": 3, "loss": loss})
        found = []
        for batched in (False, True):
            task = dataclasses.replace(method.task(support), seed=seed)
            found.append(Flip(config, batched).adapt(task, support))
        one, other = found
        assert [bits for bits, _ in one.info["trace"]] == [bits for bits, _ in other.info["trace"]]
        assert [value for _, value in one.info["trace"]] == pytest.approx([value for _, value in other.info["trace"]], rel=1e-9)
        for key in ("bits", "evaluations", "passes", "accepted"):
            assert one.info[key] == other.info[key]
        torch.testing.assert_close(one.theta, other.theta, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.centres, other.centres, rtol=1e-9, atol=1e-9)
        accepted += one.info["accepted"]
    assert accepted


def test_the_network_runs_once_a_base_state() -> None:
    method, support = sharp_method(), make_support(0, noise=2)
    support = dataclasses.replace(support, images=support.images.double())
    task = method.task(support)
    run, calls = task.run, []
    assert run is not None

    def counting(*args):
        calls.append(1)
        return run(*args)

    found = Flip(FlipConfig(rounds=3), True).adapt(dataclasses.replace(task, run=counting), support)
    assert found.info["evaluations"] > 2 + len(calls)
    assert len(calls) <= found.info["accepted"] + 2


def test_what_cannot_be_batched_is_walked_one_by_one() -> None:
    task, embed, _, _ = tasks.make_task(0)
    support = tasks.make_support(0)
    assert not can_batch(Measure("flip", FlipConfig(), task, support))
    found = Flip(batched=True).adapt(task, support)
    assert found.info["evaluations"] == embed.calls
    method, large = sharp_method(), make_support(0, ways=3, shots=100)
    assert not can_batch(Measure("flip", FlipConfig(), method.task(dataclasses.replace(large, images=large.images.double())), large))


def test_states_that_are_left_are_forgotten() -> None:
    method, support = sharp_method(), make_support(0, noise=2)
    support = dataclasses.replace(support, images=support.images.double())
    measure = Measure("flip", FlipConfig(), method.task(support), support)
    ahead = BatchedVisits(measure)
    with torch.no_grad():
        here = ahead(measure.start(), (1, 0, 0, 0))
        there = ahead(here, (0, 0, 0, 0))
        assert len(measure.trace) == 3
        assert ahead(there, (0, 1, 0, 0)).bits == (0, 1, 0, 0)
    assert set(ahead._cached) == {(0, 0, 1, 0), (0, 0, 0, 1)}  # no neighbours of (1, 0, 0, 0); states seen before are not measured again
    assert [bits for bits, _ in measure.trace[1:]] == [(1, 0, 0, 0), (0, 0, 0, 0), (0, 1, 0, 0)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_faster_way_is_taken_and_the_walk_stays() -> None:
    method, support = sharp_method().float().to("cuda"), make_support(0, noise=2)
    method.backbone.to("cuda")
    support = dataclasses.replace(support, images=support.images.cuda(), labels=support.labels.cuda())
    with torch.inference_mode():
        one, other, own = (Flip(FlipConfig(), way).adapt(method.task(support), support) for way in (False, True, None))
    for found in (other, own):
        assert [bits for bits, _ in found.info["trace"]] == [bits for bits, _ in one.info["trace"]]
        torch.testing.assert_close(found.centres, one.centres, rtol=1e-3, atol=1e-3)
