"""Algorithm 2 on small tasks, compared with brute force over all 2^M states and a literal replay."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from smatcli.adaptation import build_adaptation, variant
from smatcli.adaptation.flip import Flip, nearest_bits
from smatcli.adaptation.proto import Proto
from smatcli.adaptation.states import normalised
from smatcli.config.schema import AdaptConfig, FlipConfig
from smatcli.errors import SmatError, UserError
from smatcli.seams import Support, Task
from tests.adaptation.tasks import PIXELS, Counted, all_states, binary_theta, make_support, make_task, state_loss


def flip(**settings) -> Flip:
    return Flip(FlipConfig.model_validate(settings))


def replay(losses: dict, start_bits: tuple, soft: float, rounds: int, rho: float) -> tuple[float, tuple | None]:
    """Run Algorithm 2 as written on a table of all losses: no cache, no early end."""
    best, answer, at = soft, None, start_bits
    if losses[at] < best:
        best, answer = losses[at], at
    for _ in range(rounds):
        for m in range(len(at)):
            other = tuple(1 - b if k == m else b for k, b in enumerate(at))
            if losses[other] < best:
                best, answer = losses[other], other
            if losses[other] < losses[at] - rho:
                at = other
    return best, answer


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_agrees_with_brute_force(leave_one_out: bool, rho: float) -> None:
    reached = 0
    for seed in range(12):
        task, _, pre, steps = make_task(seed)
        support = make_support(seed)
        table = {bits: state_loss(support, binary_theta(bits, pre, steps), leave_one_out) for bits in all_states(4)}
        soft = state_loss(support, task.theta, leave_one_out)
        assert task.alpha is not None
        expected, answer = replay(table, nearest_bits(task.alpha), soft, 3, rho)
        found = flip(rounds=3, rho=rho, loss="leave-one-out" if leave_one_out else "support").adapt(task, support).info
        assert found["loss"] == pytest.approx(expected, abs=1e-5)
        assert found["bits"] == answer
        assert found["loss_start"] == pytest.approx(soft, abs=1e-5)
        assert min(*table.values(), soft) - 1e-5 <= found["loss"] <= found["loss_start"]
        for bits, loss in found["trace"]:
            assert loss == pytest.approx(soft if bits is None else table[bits], abs=1e-5)
        reached += found["loss"] == pytest.approx(min(*table.values(), soft), abs=1e-5)
    assert reached >= (6 if rho == 0 else 1)


def test_no_state_is_measured_twice_and_every_pass_is_counted() -> None:
    for seed in range(6):
        task, embed, _, _ = make_task(seed)
        support = make_support(seed)
        classifier = flip(rounds=50).adapt(task, support)
        info = classifier.info
        states = [bits for bits, _ in info["trace"]]
        assert len(set(states)) == len(states) == info["evaluations"] == info["passes"] == embed.calls <= 2**4 + 1
        assert embed.images == embed.calls * len(support.labels)
        classifier.predict(support.images[:5])
        assert embed.calls == info["passes"] == info["evaluations"] + 1


def test_ends_early_once_a_round_keeps_nothing() -> None:
    task, _, _, _ = make_task(3)
    info = flip(rounds=1000).adapt(task, make_support(3)).info
    best = [loss for bits, loss in info["trace"] if bits is not None]
    at = info["trace"][int(np.argmin(best)) + 1][0]
    measured = {bits for bits, _ in info["trace"]}
    assert {tuple(1 - b if k == m else b for k, b in enumerate(at)) for m in range(4)} <= measured


def test_all_experts_off_is_reached_and_is_the_pretrained_model() -> None:
    support = make_support(1)
    pre = torch.zeros(PIXELS)
    pre[:3] = 1
    labels = torch.nn.functional.one_hot(support.labels, 3).float()
    images = torch.cat([labels, support.images.flatten(1)[:, 3:]], 1).view(-1, 3, 2, 2)  # theta_pre sees the label, the experts add noise
    support = Support(images, support.labels, 3)
    steps = torch.cat([torch.zeros(3, 3), torch.tensor([9.0, 3.0, 1.0])[:, None].expand(3, PIXELS - 3)], 1)
    embed = Counted()
    task = Task(pre + torch.full((3,), 1 / 3) @ steps, embed, 10.0, torch.full((3,), 1 / 3), lambda scores: pre + scores @ steps)
    classifier = flip(rounds=2).adapt(task, support)
    assert classifier.info["bits"] == (0, 0, 0)
    assert torch.equal(classifier.theta, pre)
    assert torch.equal(classifier.info["scores"], torch.zeros(3))
    pretrained = Proto().adapt(dataclasses.replace(task, theta=pre), support)
    assert torch.equal(classifier.predict(images), pretrained.predict(images))


def test_keeps_the_routers_scores_when_no_binary_state_is_better() -> None:
    support = make_support(2)
    pre = torch.ones(PIXELS)
    good = torch.tensor([0.7, 0.3])

    def merge(scores: torch.Tensor) -> torch.Tensor:  # only the soft scores separate the features
        return pre if torch.equal(scores, good) else torch.zeros(PIXELS)

    classifier = flip().adapt(Task(pre, Counted(), 10.0, good, merge), support)
    assert classifier.info["bits"] is None
    assert torch.equal(classifier.info["scores"], good)
    assert classifier.info["loss"] == classifier.info["loss_start"]


def test_delta_gives_the_same_search_as_merge() -> None:
    for seed in range(4):
        support = make_support(seed)
        plain = flip().adapt(make_task(seed)[0], support)
        moved = flip().adapt(make_task(seed, delta=True)[0], support)
        assert moved.info["bits"] == plain.info["bits"]
        torch.testing.assert_close(moved.theta, plain.theta)


def test_answer_does_not_depend_on_the_order_of_the_support_set() -> None:
    support = make_support(5)
    order = torch.randperm(len(support.labels), generator=torch.Generator().manual_seed(0))
    shuffled = Support(support.images[order], support.labels[order], support.ways)
    task = make_task(5)[0]
    assert flip().adapt(task, support).info["bits"] == flip().adapt(task, shuffled).info["bits"]


def test_nearest_bits_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        alpha = torch.rand(5, generator=generator) ** 3
        alpha = alpha / alpha.sum()
        gap = {bits: float((alpha - normalised(bits, alpha)).square().sum()) for bits in all_states(5)}
        assert gap[nearest_bits(alpha)] == pytest.approx(min(gap.values()), abs=1e-6)
    assert nearest_bits(torch.full((4,), 0.25)) == (1, 1, 1, 1)
    assert nearest_bits(torch.zeros(3)) == (0, 0, 0)
    assert nearest_bits(torch.tensor([0.02, 0.96, 0.02])) == (0, 1, 0)


def test_refuses_tasks_without_experts_and_broken_ones() -> None:
    support = make_support(0)
    with pytest.raises(UserError, match="method with experts"):
        flip().adapt(Task(torch.ones(PIXELS), Counted()), support)
    with pytest.raises(UserError, match="merged"):
        flip().adapt(Task(torch.ones(PIXELS), Counted(), alpha=torch.ones(2) / 2), support)
    broken = Task(torch.full((PIXELS,), torch.nan), Counted(), alpha=torch.ones(2) / 2, merge=lambda scores: torch.ones(PIXELS))
    with pytest.raises(SmatError, match="not finite"):
        flip().adapt(broken, support)


def test_query_labels_cannot_be_reached_by_type() -> None:
    for name in ("proto", "flip"):
        adapt = build_adaptation(name, AdaptConfig()).adapt
        assert list(inspect.signature(adapt).parameters) == ["task", "support"]
    assert {f.name for f in dataclasses.fields(Support)} == {"images", "labels", "ways"}
    assert not any("quer" in f.name for f in dataclasses.fields(Task))


def test_names_and_variants() -> None:
    with pytest.raises(UserError, match="did you mean 'flip'"):
        build_adaptation("flop", AdaptConfig())
    assert variant("proto", AdaptConfig()) == "proto"
    assert variant("flip", AdaptConfig()) == "flip"
    loo = AdaptConfig(flip=FlipConfig.model_validate({"loss": "leave-one-out", "rounds": 3, "rho": 0.01}))
    assert variant("flip", loo) == "flip-rounds3-rho0.01-leave-one-out"


def test_smat_method_flips_by_non_zeros_and_starts_from_its_own_scores() -> None:
    timm = pytest.importorskip("timm")
    from smatcli.config.methods import SmatConfig
    from smatcli.methods.smat import SmatMethod

    torch.manual_seed(0)
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    vit = timm.models.vision_transformer.VisionTransformer(**arguments)
    method = SmatMethod(SmatConfig.model_validate({"experts": 3, "router": {"heads": 2}}), vit).eval()
    with torch.no_grad():
        method.theta_delta.normal_(std=0.2)
    support = Support(torch.randn(9, 3, 8, 8), torch.arange(3).repeat(3), 3)
    task = method.task(support)
    one = flip(rounds=3).adapt(task, support)
    other = flip(rounds=3).adapt(dataclasses.replace(method.task(support), delta=None), support)
    assert one.info["trace"] == other.info["trace"]
    assert one.info["loss_start"] == Proto().adapt(task, support).info["loss"]
    assert one.info["loss"] <= one.info["loss_start"]
    assert task.merge is not None
    assert torch.equal(task.merge(torch.zeros(3)), method.theta_pre)
