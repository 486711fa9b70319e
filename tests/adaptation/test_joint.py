"""Joint tuning: the parts of theta, their gradients, and that all of them change."""

import dataclasses

import pytest
import torch

from smatcli.adaptation.joint import Joint
from smatcli.config.finetune import JointConfig
from smatcli.errors import UserError
from smatcli.seams import Parts
from tests.adaptation.nets import CONFIGS, make_method, make_support

EXPERTS = [name for name in CONFIGS if name != "pretrained"]


def parts_of(name: str) -> tuple[Parts, torch.Tensor]:
    task = make_method(name).task(make_support())
    assert task.parts is not None
    return task.parts(), task.theta


@pytest.mark.parametrize("name", EXPERTS)
def test_composed_of_the_initial_tensors_it_is_the_task(name: str) -> None:
    parts, theta = parts_of(name)
    torch.testing.assert_close(parts.compose(parts.tensors), theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPERTS)
def test_gradients_by_finite_differences(name: str) -> None:
    method = make_method(name).double()
    support = make_support()
    task = method.task(dataclasses.replace(support, images=support.images.double()))
    assert task.parts is not None
    parts = task.parts()
    weight = torch.randn(len(task.theta), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = torch.Generator().manual_seed(5)
    for key, tensor in parts.tensors.items():
        direction = torch.randn(tensor.shape, generator=noise, dtype=torch.float64)
        leaf = tensor.clone().requires_grad_()
        (grad,) = torch.autograd.grad((parts.compose({**parts.tensors, key: leaf}) * weight).sum(), [leaf])
        step = 1e-6

        def at(t: float, key: str = key, tensor: torch.Tensor = tensor, direction: torch.Tensor = direction) -> float:
            return float((parts.compose({**parts.tensors, key: tensor + t * direction}) * weight).sum())

        measured = (at(step) - at(-step)) / (2 * step)
        assert float((grad * direction).sum()) == pytest.approx(measured, rel=2e-3, abs=1e-5), key


def test_router_masks_and_delta_are_all_tuned() -> None:
    method, support = make_method(), make_support()
    task = method.task(support)
    assert task.parts is not None
    parts = task.parts()
    kinds = {key.split(".")[0] for key in parts.tensors}
    assert kinds == {"delta", "masks", "router"}
    seen: dict[str, torch.Tensor] = {}

    def spy(tensors):
        seen.update({key: t.detach().clone() for key, t in tensors.items()})
        return parts.compose(tensors)

    Joint(JointConfig(lr=1e-2, steps=3)).adapt(dataclasses.replace(task, parts=lambda: Parts(parts.tensors, spy)), support)
    moved = {key for key in seen if not torch.equal(seen[key], parts.tensors[key])}
    assert moved >= {"delta", "masks", "router.keys"}


def test_a_method_without_experts_is_refused() -> None:
    support = make_support()
    with pytest.raises(UserError, match="joint needs a method with experts: use --adapt full"):
        Joint(JointConfig(lr=1e-3)).adapt(make_method("pretrained").task(support), support)
