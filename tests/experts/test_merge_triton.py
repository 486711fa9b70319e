"""The Triton merge: its numbers by Triton's interpreter, that it compiles for GPUs that are not there, and the reference where one is."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.experts import merge_kernels, merge_triton
from tests.experts.test_merge_native import by_definition, by_kernel, inputs

triton = pytest.importorskip("triton", reason="Triton is not installed")

NUMBERS = {"columns": "i32", "experts": "i32", "tasks": "i32", "gates": "i32", "gamma": "fp32", "stretch": "fp32", "odds_l0": "fp32"}
TENSORS = {"keys": "*i32", "dense": "*u8", "thetas": "*i64", "grads": "*i64"}
CONSTANTS = ("ROWS", "NOISY", "DENSE", "BLOCK")


def test_interpreted_it_is_the_closed_form() -> None:
    script = Path(__file__).with_name("triton_interpreted.py")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
@pytest.mark.parametrize(("capability", "rows", "noisy", "dense"), [(80, 1, True, False), (90, 4, True, True), (90, 1, False, False)])
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_it_compiles_without_spilling_registers(kernel: str, capability: int, rows: int, noisy: bool, dense: bool) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(merge_triton, kernel)
    signature = {name: NUMBERS.get(name) or TENSORS.get(name, "*fp32") for name in function.arg_names}
    signature |= dict.fromkeys(CONSTANTS, "constexpr")
    values: dict[str, Any] = {"ROWS": rows, "NOISY": noisy, "DENSE": dense, "BLOCK": max(128, merge_triton.ENTRIES // rows)}
    source = ASTSource(function, signature=signature, constexprs=values)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert len(made.asm["cubin"]) > 0 and ".local" not in made.asm["ptx"]


def test_without_a_gpu_it_says_why() -> None:
    assert torch.cuda.is_available() or merge_triton.available() == "there is no CUDA device"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [513, 1_000_003])
def test_on_a_gpu_it_is_the_reference(tasks: int, noisy: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(merge_kernels.VARIABLE, "fused")
    tensors, seeds = inputs(tasks, 8, size), list(range(tasks)) if noisy else None
    expected = by_definition(tensors, seeds, None, ())
    bounds = [2e-6] * 5 + [3e-5]
    for ours, theirs, bound in zip(by_kernel([t.cuda() for t in tensors], seeds, None, ()), expected, bounds, strict=True):
        assert float((ours.cpu().double() - theirs).norm()) <= bound * float(theirs.norm()) + 1e-12
