"""All fast variants of a training step compared with the plain step in float64, on fresh inputs, with poisoned memory."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.config.methods import MaskConfig, RouterConfig, SmatConfig, TeacherConfig
from smatcli.device import choose_precision
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.errors import UserError
from smatcli.experts.masks import noise
from smatcli.methods.plain import plain_loss
from smatcli.methods.running import recompute
from smatcli.methods.running.execution import Execution, bucket
from smatcli.methods.smat import Injected, SmatMethod
from smatcli.seams import Episode, Support

WAYS, SUPPORT, QUERY, M = 3, 6, 9, 4
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])]
# Without noise, all tasks share their masks, which differs most from the plain implementation.
CONFIG = SmatConfig(experts=M, router=RouterConfig(heads=2, logit_l2=1e-3), masks=MaskConfig(noise="deterministic"))
FULL = CONFIG.model_copy(update={"teacher": TeacherConfig(steps=2, pretrained=True, direction="reverse")})


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN, so that missing writes are visible."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def build(config: SmatConfig, dtype: torch.dtype, device: str = "cpu") -> SmatMethod:
    torch.manual_seed(0)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    method = SmatMethod(config, net)
    with torch.no_grad():
        method.theta_delta.normal_(std=0.1)
        method.log_alpha.mul_(4).sub_(1)
        method.sparsity.multipliers.fill_(0.3)
    method.backbone.to(device, dtype)
    return method.to(device, dtype).eval()


def tasks(count: int, dtype: torch.dtype, device: str = "cpu") -> list[Episode]:
    """Return fresh random tasks, with a different seed in every test run."""
    images = torch.rand(count, SUPPORT + QUERY, 3, 16, 16, dtype=torch.float64).to(device, dtype)
    labels = (torch.arange(SUPPORT + QUERY) % WAYS).to(device)
    return [
        Episode(Support(x[:SUPPORT], labels[:SUPPORT], WAYS), x[SUPPORT:], labels[SUPPORT:], "random", i, 0) for i, x in enumerate(images)
    ]


def like(episodes: list[Episode], dtype: torch.dtype, device: str) -> list[Episode]:
    made = []
    for e in episodes:
        support = Support(e.support.images.to(device, dtype), e.support.labels.to(device), WAYS)
        made.append(Episode(support, e.query_images.to(device, dtype), e.query_labels.to(device), e.dataset, e.index, e.seed))
    return made


def gradients(method: SmatMethod) -> dict[str, Tensor]:
    return {name: p.grad.detach().cpu().double() for name, p in method.named_parameters() if p.grad is not None}


def router_noise(count: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return the noise that the router of task k draws from the generator of seed k."""
    like = torch.zeros(M, dtype=dtype, device=device)
    return [noise((M,), torch.Generator(device).manual_seed(k), like).cpu().double() for k in range(count)]


def plain(config: SmatConfig, episodes: list[Episode], dtype: torch.dtype, device: str) -> tuple[list[float], dict[str, Tensor]]:
    """Return losses and gradients of the mean by the plain path in float64 on the CPU, with noise drawn in `dtype` on `device`."""
    method, totals = build(config, torch.float64), []
    for episode, u in zip(like(episodes, torch.float64, "cpu"), router_noise(len(episodes), dtype, device), strict=True):
        total = plain_loss(method, episode, Injected(None, u))
        (total / len(episodes)).backward()
        totals.append(float(total.detach()))
    return totals, gradients(method)


def fast(method: SmatMethod, episodes: list[Episode]) -> tuple[list[float], dict[str, Tensor]]:
    """Return the same results, computed as in the engine."""
    device = method.theta_pre.device
    noises = [torch.Generator(device).manual_seed(k) for k in range(len(episodes))]
    totals = []
    method.begin(episodes, noises)
    for episode, generator in zip(episodes, noises, strict=True):
        total = method.loss(episode, generator).total
        (total / len(episodes)).backward()
        totals.append(float(total.detach()))
    method.end()
    return totals, gradients(method)


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert set(found) == set(expected)
    return max(float((found[n] - expected[n]).norm() / (expected[n].norm() + 1e-12)) for n in expected)


# Float32 is held to the goal of 1e-5 of the gradient's norm, with room for the router, whose gradients are sums of tiny differences.
PRECISIONS = {"fp64": (torch.float64, "fp32", 1e-9), "fp32": (torch.float32, "fp32", 5e-5), "bf16": (torch.float32, "bf16", 0.2)}
WAYS_TO_RUN: dict[str, dict[str, Any]] = {
    "whole": {},
    "recomputed": {"recompute": True},
    "cheaply": {"recompute": "cheap"},
    "chunks": {"chunk": 4},
    "cheap-chunks": {"recompute": "auto", "chunk": 4},
    "lean": {"recompute": "auto", "lean": True},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("way", "batch"), [*itertools.product(WAYS_TO_RUN, (1, 3))])
@pytest.mark.usefixtures("poisoned")
def test_matrix(device: str, precision: str, way: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "SMALL", 0)
    dtype, name, tolerance = PRECISIONS[precision]
    episodes = tasks(batch, torch.float64)
    method = build(FULL, dtype, device)
    if name == "bf16":
        method.precision = choose_precision(name, torch.device(device), 16)
    method.execution = Execution(method.backbone, **WAYS_TO_RUN[way])
    found, expected = fast(method, like(episodes, dtype, device)), plain(FULL, episodes, dtype, device)
    assert found[0] == pytest.approx(expected[0], rel=min(tolerance, 0.05))
    assert worst(found[1], expected[1]) < tolerance


@pytest.mark.usefixtures("poisoned")
def test_compiled_blocks_of_padded_episodes() -> None:
    """Run two backward passes through compiled graphs; `aot_eager` traces like inductor but needs no compiler."""
    from torch._dynamo.backends.debugging import aot_eager

    episodes = tasks(2, torch.float64)
    method = build(FULL, torch.float64)
    method.execution = Execution(method.backbone, compile=True, recompute=True, chunk=11, backend=aot_eager)
    found, expected = fast(method, episodes), plain(FULL, episodes, torch.float64, "cpu")
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    assert worst(found[1], expected[1]) < 1e-9
    assert method.execution.compiled is not None
    assert set(method.execution.compiled.shapes) == {8, 12}  # 11 and 4 images


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_by_inductor(device: str) -> None:
    from smatcli.methods.running.execution import compiler_missing

    if missing := compiler_missing(torch.device(device)):
        pytest.skip(missing)
    if device == "cpu":
        pytest.skip("inductor's C++ takes minutes on a busy CPU; aot_eager traces the same graphs")
    episodes = tasks(2, torch.float64)
    method = build(FULL, torch.float32, device)
    method.execution = Execution(method.backbone, compile=True)
    found, expected = fast(method, like(episodes, torch.float32, device)), plain(FULL, episodes, torch.float32, device)
    assert worst(found[1], expected[1]) < 1e-4


def test_recompilations_are_bounded_by_buckets() -> None:
    sizes = {bucket(n) for n in range(1, 1025)}
    assert len(sizes) == 29
    assert all(bucket(n) >= n and bucket(n) <= max(8, 1.25 * n) for n in range(1, 1025))
    compiled = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=0).eval()
    execution, tensors = Execution(net, compile=True, backend=counting), dict(net.named_parameters())
    with torch.no_grad():
        for count in (3, 5, 8, 9, 10, 33, 40):
            images = torch.randn(count, 3, 16, 16)
            assert torch.allclose(execution(tensors, images), net(images), atol=1e-5)
    assert execution.compiled is not None
    assert len(compiled) == len(execution.compiled.shapes) == 3  # 8, 10 and 40; all blocks are one
    assert "3 graphs" in str(execution.compiled)


def test_a_backbone_without_uniform_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.compile: Linear has no transformer blocks"):
        Execution(nn.Linear(2, 2), compile=True)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    net.blocks[1].mlp.fc1 = nn.Linear(16, 8)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"train\.checkpoint_activations: the blocks .* differ"):
        Execution(net, recompute=True)


def test_cheap_recomputation_changes_no_bit_and_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "SMALL", 0)
    episodes, found, kept = tasks(1, torch.float32), [], []
    for how in (False, "auto"):
        method = build(FULL, torch.float32)
        method.execution = Execution(method.backbone, recompute=how)  # type: ignore[arg-type]
        saved: dict[int, int] = {}

        def pack(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        theta = method.theta_pre.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            features = method.embed(episodes[0].query_images, theta)
        kept.append(sum(saved.values()))
        # Twice, as the teacher and the loss go through one graph.
        grads = [torch.autograd.grad(features.square().sum(), theta, retain_graph=True)[0] for _ in range(2)]
        found.append((features.detach(), *grads, *fast(method, episodes)[1].values()))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert kept[1] < 0.9 * kept[0]
    assert not any("forward" in m.__dict__ for m in method.backbone.modules())


def test_cheap_recomputation_is_refused_where_it_cannot_be() -> None:
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    with pytest.raises(UserError, match=r"train\.checkpoint_activations=cheap: with train\.compile"):
        Execution(net, compile=True, recompute="cheap")
    net.blocks[1].mlp.norm = nn.LayerNorm(64)  # type: ignore[union-attr,method-assign]
    with pytest.raises(UserError, match="are not those of a plain ViT; use true"):
        Execution(net, recompute="cheap")
    Execution(net, recompute="auto")  # nothing is recomputed


@pytest.mark.parametrize("kind", ["stochastic", "deterministic"])
def test_tasks_of_a_meta_batch_share_their_merge_and_nothing_else(kind: Any) -> None:
    """With noise, results equal those of separate tasks bit for bit, so they do not depend on the number of tasks per process."""
    config = SmatConfig(experts=M, router=RouterConfig(heads=2), masks=MaskConfig(noise=kind))
    episodes, found = tasks(3, torch.float32), []
    for shared in (False, True):
        method = build(config, torch.float32).train()
        if not shared:
            method.begin = lambda episodes, generators: None  # type: ignore[method-assign]
        found.append((*fast(method, episodes), method.router.state_dict()))
    alone, together = found
    assert alone[0] == together[0]
    assert all(torch.equal(alone[2][name], value) for name, value in together[2].items())
    if kind == "stochastic":
        assert all(torch.equal(alone[1][name], grad) for name, grad in together[1].items())
    assert worst(together[1], alone[1]) < 1e-5


def test_an_episode_that_was_not_begun_stands_alone() -> None:
    method, episodes = build(CONFIG, torch.float32), tasks(3, torch.float32)
    expected = float(method.loss(episodes[2], torch.Generator().manual_seed(0)).total.detach())
    method.begin(episodes[:2], [torch.Generator().manual_seed(k) for k in (1, 2)])
    assert float(method.loss(episodes[2], torch.Generator().manual_seed(0)).total.detach()) == expected
    method.begin(episodes[:2], [torch.Generator().manual_seed(k) for k in (1, 2)])  # an abandoned update leaves no state
    method.end()
    assert all(p.grad is None for p in method.parameters())


def test_curves_of_the_fast_and_the_plain_path_coincide() -> None:
    """Compare 50 updates of two tasks on a micro ViT in fp32."""
    curves = []
    for kind in ("plain", "fast"):
        torch.manual_seed(3)
        pool = tasks(6, torch.float32)
        method = build(CONFIG, torch.float32).train()
        optimizers = build_optimizers(method.groups(), {}, 50, method.default_groups())
        curve = []
        for step in range(50):
            batch = [pool[(2 * step + k) % 6] for k in range(2)]
            optimizers.zero_grad()
            if kind == "fast":
                totals, _ = fast(method, batch)
            else:
                totals = []
                for episode, u in zip(batch, router_noise(2, torch.float32, "cpu"), strict=True):
                    total = plain_loss(method, episode, Injected(None, u.float()))
                    (total / 2).backward()
                    totals.append(float(total.detach()))
            optimizers.step()
            method.after_step(2 * step + 2)
            curve.append(sum(totals) / 2)
        curves.append(torch.tensor(curve))
    assert (curves[0] - curves[1]).abs().max() < 1e-4
    assert (curves[0][:5].mean() - curves[0][-5:].mean()) > 1e-3  # the losses changed
