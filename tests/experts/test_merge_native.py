"""The compiled merge compared with the float64 reference; how it is compiled, chosen, and replaced where unavailable."""

import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.experts import merge_kernels, merge_native
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import merge, merge_reference, merge_tasks, normalise
from smatcli.experts.merge_eager import Gate
from smatcli.experts.noise import logistic

SHAPE = HardConcrete()
COMPILER = not isinstance(merge_native.library(), str)
compiled = pytest.mark.skipif(not COMPILER, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(merge_kernels.VARIABLE, "fused" if COMPILER else "auto")
    merge_kernels._kernel.cache_clear()


def inputs(tasks: int, experts: int, size: int) -> list[Tensor]:
    """Return theta_pre, theta_delta, log_alpha, alphas, and gradients of theta [B, P] and of E[L0] [B, M] in fp32."""
    generator = torch.Generator().manual_seed(tasks + experts + size)
    shapes = [(size,), (size,), (experts, size), (tasks, experts), (tasks, size), (tasks, experts)]
    found = [torch.randn(*shape, generator=generator) for shape in shapes]
    found[2] *= 3
    found[3] = normalise(found[3].sigmoid())
    return found


def by_definition(tensors: list[Tensor], seeds: list[int] | None, dense: Tensor | None, unused: tuple[int, ...]) -> list[Tensor]:
    """Return thetas, non-zeros, E[L0] and the three gradients, by autograd through the definition in float64."""
    pre, delta, log_alpha, alphas, weight, l0_weight = (t.double() for t in tensors)
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    thetas, counts, total = [], [], torch.zeros((), dtype=torch.float64)
    l0 = SHAPE.expected_l0_element(leaves[1]).mean(1)
    for b in range(len(alphas)):
        u = None if seeds is None else logistic(seeds[b], len(log_alpha), log_alpha.shape[1], log_alpha).sigmoid()
        theta = merge_reference(pre, leaves[0], leaves[1], leaves[2][b], Gate(SHAPE, noise=u, dense=dense))
        thetas.append(theta.detach())
        kept = SHAPE.train_gate(log_alpha, u) > 0
        counts.append((kept if dense is None else kept | dense).sum(1).double())
        total = total + (l0 * l0_weight[b]).sum() + (0 if b in unused else (theta * weight[b]).sum())
    grads = torch.autograd.grad(total, leaves)
    return [torch.stack(thetas), torch.stack(counts), l0.detach().repeat(len(alphas), 1), *grads]


def by_kernel(tensors: list[Tensor], seeds: list[int] | None, dense: Tensor | None, unused: tuple[int, ...]) -> list[Tensor]:
    pre, delta, log_alpha, alphas, weight, l0_weight = tensors
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    found = merge_tasks(pre, leaves[0], leaves[1], leaves[2], SHAPE, seeds=seeds, dense=dense)
    terms = [(m.expected_l0 * l0_weight[b]).sum() for b, m in enumerate(found)]
    terms += [(m.theta * weight[b]).sum() for b, m in enumerate(found) if b not in unused]
    grads = torch.autograd.grad(torch.stack(terms).sum(), leaves)
    return [torch.stack([m[i].detach() for m in found]) for i in range(3)] + list(grads)


@compiled
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("experts", [1, 8, 17])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [7, 512, 70_001])
@pytest.mark.parametrize("case", ["plain", "dense", "unused"])
def test_it_is_the_reference(tasks: int, experts: int, noisy: bool, size: int, case: str) -> None:
    tensors, seeds = inputs(tasks, experts, size), list(range(5, 5 + tasks)) if noisy else None
    dense = torch.arange(size) > 0.9 * size if case == "dense" else None
    unused = (0,) if tasks > 1 and case == "unused" else ()
    expected = by_definition(tensors, seeds, dense, unused)
    # By the norm: a gate within a rounding of the clamp's edge has one of two gradients. alpha's is a sum of P terms of both signs.
    bounds = [2e-6] * 5 + [3e-5]
    for ours, theirs, bound in zip(by_kernel(tensors, seeds, dense, unused), expected, bounds, strict=True):
        assert float((ours.double() - theirs).norm()) <= bound * float(theirs.norm()) + 1e-12
        assert ours.shape == theirs.shape


@compiled
def test_several_scores_may_share_one_noise() -> None:
    pre, delta, log_alpha, alphas, weight, _ = tensors = inputs(3, 4, 700)
    leaves = [t.clone().requires_grad_() for t in (delta, log_alpha, alphas)]
    found = merge(pre, leaves[0], leaves[1], leaves[2], Gate(SHAPE, noise=9))
    grads = torch.autograd.grad((found.theta * weight).sum(), leaves)
    unweighted = [*tensors[:5], torch.zeros(3, 4)]
    expected = by_definition(unweighted, [9, 9, 9], None, ())
    assert torch.allclose(found.theta.double(), expected[0], atol=1e-5)
    assert torch.equal(found.nonzeros.double(), expected[1][0])
    for ours, theirs in zip(grads, expected[3:], strict=True):
        assert float((ours.double() - theirs).norm()) <= 1e-5 * float(theirs.norm())


@compiled
def test_every_bit_is_the_same_on_any_number_of_threads() -> None:
    tensors, before = inputs(2, 4, 100_003), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(by_kernel(tensors, [1, 2], None, ()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@compiled
def test_extremes_are_finite_and_nan_stays_nan() -> None:
    pre, delta, log_alpha, alphas, *_ = inputs(1, 3, 600)
    log_alpha[0], log_alpha[1], log_alpha[2] = 1e4, -1e4, 0.0
    leaves = [t.requires_grad_() for t in (delta, log_alpha, alphas)]
    found = merge(pre, delta, log_alpha, alphas[0], Gate(SHAPE, noise=1))
    grads = torch.autograd.grad(found.theta.sum() + found.expected_l0.sum(), leaves)
    assert all(bool(torch.isfinite(t).all()) for t in (found.theta, found.expected_l0, *grads))
    assert found.nonzeros[0] == 600
    assert found.nonzeros[1] == 0
    assert found.expected_l0[0] == 1
    with torch.no_grad():
        log_alpha[1, 17] = float("nan")
    theta = merge(pre, delta, log_alpha, alphas[0], Gate(SHAPE, noise=1)).theta
    assert theta[17].isnan()
    assert theta.isnan().sum() == 1


@compiled
def test_what_it_cannot_do_is_left_to_eager_torch() -> None:
    pre, delta, log_alpha, alphas, *_ = inputs(1, 3, 40)
    gate = Gate(SHAPE, True, None, None)

    def has_kernel(gate: Gate = gate, **changed: Tensor) -> bool:
        named = {"theta_pre": pre, "theta_delta": delta, "log_alpha": log_alpha, "alphas": alphas} | changed
        return merge_kernels.fused_kernel(**named, gates=[gate]) is not None

    assert has_kernel()
    assert has_kernel(Gate(SHAPE, True, 5, None))
    assert not has_kernel(Gate(HardConcrete(beta=0.5), True, None, None))
    assert not has_kernel(Gate(SHAPE, False, None, None))
    assert not has_kernel(Gate(SHAPE, True, torch.rand(3, 40), None))
    assert not has_kernel(log_alpha=log_alpha.double())
    assert not has_kernel(log_alpha=torch.randn(40, 3).T)


def test_without_a_compiler_one_line_says_so_and_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = inputs(2, 3, 1000)
    expected = by_kernel(tensors, [1, 2], None, ())
    monkeypatch.setenv(merge_kernels.VARIABLE, "auto")
    monkeypatch.setattr(merge_native, "COMPILERS", ("no-such-compiler",))
    merge_kernels._kernel.cache_clear()
    found = by_kernel(tensors, [1, 2], None, ())
    by_kernel(tensors, [1, 2], None, ())
    assert [record.message for record in caplog.records] == [
        "experts are merged in eager torch, which is several times slower: there is no C compiler (install gcc or clang)"
    ]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, expected, strict=True))
    monkeypatch.setenv(merge_kernels.VARIABLE, "fused")
    with pytest.raises(UserError, match="SMAT_MERGE=fused: there is no C compiler"):
        by_kernel(tensors, None, None, ())
    monkeypatch.setenv(merge_kernels.VARIABLE, "quick")
    with pytest.raises(UserError, match="SMAT_MERGE=quick: unknown"):
        by_kernel(tensors, None, None, ())


@compiled
def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && echo 1 && exit 0\necho 'cannot find crt1.o' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert merge_native.library() == f"{broken} failed: cannot find crt1.o"
    assert not list((tmp_path / "cache").rglob("*.so"))


@compiled
def test_it_is_compiled_once_into_a_folder_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not isinstance(merge_native.library(), str)
    (made,) = (tmp_path / "smat" / "native").iterdir()
    stamp = made.stat().st_mtime_ns
    assert not isinstance(merge_native.library(), str)
    assert made.stat().st_mtime_ns == stamp
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "smat" / "native").chmod(0o777)  # others could write to this folder
    assert merge_native._folder() != tmp_path / "smat" / "native"


@compiled
def test_the_source_has_no_warnings(tmp_path: Path) -> None:
    command = [
        "cc",
        "-x",
        "c",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O2",
        "-c",
        "-o",
        str(tmp_path / "a.o"),
        str(merge_native.SOURCE),
    ]
    subprocess.run(command, check=True, timeout=60)
