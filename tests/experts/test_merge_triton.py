"""The Triton merge: results in Triton's interpreter, compilation for absent GPUs, and a comparison with the reference on a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.experts import merge_kernels, merge_triton
from smatcli.experts.merge import merge
from smatcli.experts.merge_eager import Gate
from tests.experts.test_merge_native import SHAPE, by_definition, by_kernel, inputs

needs_triton = pytest.mark.skipif(merge_triton.triton is None, reason="Triton is not installed")  # type: ignore[attr-defined]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NUMBERS = {"columns": "i32", "experts": "i32", "gamma": "fp32", "stretch": "fp32", "odds_l0": "fp32"}
TENSORS = {"keys": "*i64", "dense": "*u8"}
ALIGNED = [["tt.divisibility", 16]]


@needs_triton
def test_interpreted_it_is_the_reference() -> None:
    script = Path(__file__).with_name("triton_interpreted.py")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def compiled(folder: Path, kernel: str, capability: int, tasks: int, gates: int, noisy: bool, dense: bool) -> tuple[str, str]:
    """Return (PTX, cuobjdump's report on the machine code's resources) of a kernel as launched on aligned tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(merge_triton, kernel)
    constants: dict[str, int | None] = {"TASKS": tasks, "GATES": gates, "BLOCK": merge_triton.block(tasks)}
    constants |= {name: None for name, there in (("keys", noisy), ("dense", dense)) if not there}
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(function.arg_names):
        several = name in ("thetas", "grads")
        signature[name] = "constexpr" if name in constants else NUMBERS.get(name) or TENSORS.get(name, "*fp32")
        if several:
            signature[name] = ("*fp32",) * tasks
            attributes |= {(i, b): ALIGNED for b in range(tasks)}
        elif name == "columns" or signature[name][0] == "*":
            attributes[(i,)] = ALIGNED
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": merge_triton.WARPS})
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
    return made.asm["ptx"], subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@needs_triton
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
@pytest.mark.parametrize(
    ("capability", "tasks", "gates", "noisy", "dense"),
    [(80, 1, 1, True, False), (90, 4, 4, True, True), (80, 4, 1, False, True), (90, 8, 8, True, False), (90, 3, 1, True, False)],
)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_it_compiles_without_spilling_registers(
    tmp_path: Path, kernel: str, capability: int, tasks: int, gates: int, noisy: bool, dense: bool
) -> None:
    ptx, resources = compiled(tmp_path, kernel, capability, tasks, gates, noisy, dense)
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", resources)
    assert (stack, local) == ("0", "0")
    assert int(registers) <= 192  # so that an SM of 65,536 registers holds ten programs or more
    assert "bar.sync" not in ptx
    assert "ld.global.v4" in ptx
    assert "shr.s32" not in ptx
    assert ("shr.u32" in ptx) >= noisy  # the noise's shifts are logical ones


def test_where_it_cannot_be_used_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if merge_triton.triton is not None:  # type: ignore[attr-defined]
        assert merge_triton.unavailable() == "there is no CUDA device"
        monkeypatch.setattr(merge_triton, "triton", None)
    assert merge_triton.unavailable() == "Triton is not installed"


@needs_triton
@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [1, 3, 4])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("case", ["plain", "dense", "unused"])
@pytest.mark.parametrize("size", [513, 65_536, 1_000_003])
def test_on_a_gpu_it_is_the_reference(tasks: int, noisy: bool, case: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(merge_kernels.VARIABLE, "fused")
    tensors, seeds = inputs(tasks, 8, size), list(range(tasks)) if noisy else None
    dense = torch.arange(size) > 0.9 * size if case == "dense" else None
    unused = (0,) if tasks > 1 and case == "unused" else ()
    expected = by_definition(tensors, seeds, dense, unused)
    found = by_kernel([t.cuda() for t in tensors], seeds, None if dense is None else dense.cuda(), unused)
    again = by_kernel([t.cuda() for t in tensors], seeds, None if dense is None else dense.cuda(), unused)
    bounds = [2e-6] * 5 + [3e-5]
    for ours, same, theirs, bound in zip(found, again, expected, bounds, strict=True):
        assert float((ours.cpu().double() - theirs).norm()) <= bound * float(theirs.norm()) + 1e-12
        assert torch.equal(ours, same)


@needs_triton
@needs_gpu
@pytest.mark.gpu
def test_on_a_gpu_tasks_can_share_one_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(merge_kernels.VARIABLE, "fused")
    tensors = inputs(3, 8, 5000)
    expected = by_definition(tensors, [7, 7, 7], None, ())
    pre, delta, log_alpha, alphas, weight, _ = (t.cuda() for t in tensors)
    leaves = [t.requires_grad_() for t in (delta, alphas)]
    found = merge(pre, delta, log_alpha, alphas, Gate(SHAPE, noise=7))
    grads = torch.autograd.grad((found.theta * weight).sum(), leaves)
    for ours, theirs in zip((found.theta, *grads), (expected[0], expected[3], expected[5]), strict=True):
        assert float((ours.detach().cpu().double() - theirs).norm()) <= 3e-5 * float(theirs.norm())
