"""The fused merge for CPUs: `merge_native.c`, compiled for this machine on first use and kept in the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from itertools import pairwise
from math import exp
from pathlib import Path

import torch
from torch import Tensor

from smatcli.experts.merge_inputs import MergeInputs

SOURCE = Path(__file__).with_suffix(".c")
# Must equal the definitions in the C source.
BLOCK, CHUNK = 512, 32768
COMPILERS = ("cc", "gcc", "clang", "g++", "clang++", "c++")
# No -ffast-math: NaN must stay NaN, and linking with it makes a process flush denormal numbers to zero.
FLAGS = (
    "-x",
    "c",
    "-std=gnu11",
    "-O3",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fassociative-math",
    "-fno-signed-zeros",
)
TUNED = ("-march=native -mprefer-vector-width=512", "-march=native", "-mcpu=native", "")


class _Range(ctypes.Structure):
    """The struct `Merge` of the C source: the inputs, and the range of columns that a call processes."""

    _fields_ = (
        *((name, c_int64) for name in ("columns", "start", "stop")),
        *((name, c_int32) for name in ("tasks", "experts", "gates", "noisy")),
        *((name, c_float) for name in ("gamma", "stretch", "odds_l0")),
        *((name, c_void_p) for name in ("delta", "log_alpha", "alphas", "keys", "dense")),
    )


def library() -> ctypes.CDLL | str:
    """Return the compiled library, or the reason why it is not available."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        return "there is no C compiler (install gcc or clang)"
    try:
        folder = _folder()
        target = folder / f"merge-{_fingerprint(compiler)}.so"
        if not target.exists():
            _compile(compiler, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        message = (getattr(error, "stderr", None) or str(error)).strip()
        return f"{compiler} failed: {message.splitlines()[0] if message else type(error).__name__}"


def _folder() -> Path:
    """Return a folder that only this user can write to, because its files are executed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smat" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK) and not folder.stat().st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="smat-native-"))


def _fingerprint(compiler: str) -> str:
    """Return a hash of source, compiler and processor, so that machines with a shared home folder do not share the library."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    cpu = platform.processor() + platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        pass
    return hashlib.sha256("\0".join([SOURCE.read_text(), " ".join(FLAGS), compiler, version, cpu]).encode()).hexdigest()[:24]


def _compile(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = Path(folder) / "merge.so"
        for i, tuned in enumerate(TUNED):
            command = [compiler, *FLAGS, *tuned.split(), "-o", str(draft), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                break
            if i == len(TUNED) - 1:
                done.check_returncode()
        os.replace(draft, target)


class Native:
    """`merge_kernels.Kernel` in C, on as many threads as torch uses."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._forward, self._backward = library.smat_merge_forward, library.smat_merge_backward
        self._forward.restype = self._backward.restype = None

    def forward(self, theta_pre: Tensor, inputs: MergeInputs) -> tuple[list[Tensor], Tensor, Tensor]:
        """See `Kernel`."""
        call, log_alpha = _Call(inputs), inputs.log_alpha
        thetas = [torch.empty_like(theta_pre) for _ in inputs.alphas]
        nonzeros, l0 = call.sums(inputs.gates, len(log_alpha)), call.sums(len(log_alpha))
        places = _pointers(thetas)
        call.run(lambda q, scratch: self._forward(byref(q), _at(theta_pre), places, _at(nonzeros), _at(l0), _at(scratch)))
        return thetas, nonzeros.sum(0).to(log_alpha.dtype), l0.sum(0).to(log_alpha.dtype)

    def backward(self, grads: Sequence[Tensor | None], inputs: MergeInputs, share: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        call, alphas = _Call(inputs), inputs.alphas
        grads = [None if grad is None else grad.to(torch.float32).contiguous() for grad in grads]
        share = inputs.share_per_gate(share)
        d_delta, d_log_alpha, d_alphas = torch.empty_like(inputs.theta_delta), torch.empty_like(inputs.log_alpha), call.sums(*alphas.shape)
        places, out = _pointers(grads), (_at(d_delta), _at(d_log_alpha), _at(d_alphas))
        call.run(lambda q, scratch: self._backward(byref(q), places, _at(share), *out, _at(scratch)))
        return d_delta, d_log_alpha, d_alphas.sum(0).to(alphas.dtype)


class _Call:
    """One pass over all columns: several threads process ranges of whole chunks (ctypes releases the GIL)."""

    def __init__(self, inputs: MergeInputs) -> None:
        log_alpha, keys, dense, shape = inputs.log_alpha, inputs.keys, inputs.dense, inputs.shape
        self._size, self._experts, self._tasks = log_alpha.shape[1], len(log_alpha), len(inputs.alphas)
        self._chunks = -(-self._size // CHUNK)
        # Kept alive here, because the struct has only their addresses. The low half of an int64 is the unsigned 32-bit key.
        self._keys = None if keys is None else keys.to(torch.int32).contiguous()
        self._dense = None if dense is None else dense.to(torch.uint8).contiguous()
        counts = (self._tasks, self._experts, inputs.gates, int(keys is not None))
        constants = (shape.gamma, shape.stretch, exp(shape.l0_shift))
        tensors = (inputs.theta_delta, log_alpha, inputs.alphas, self._keys, self._dense)
        self._fields = (*counts, *constants, *(_at(t) for t in tensors))

    def sums(self, *shape: int) -> Tensor:
        """Return zeros [chunks, ...], to which each chunk adds its own sums."""
        return torch.zeros(self._chunks, *shape, dtype=torch.float64)

    def run(self, work: Callable[[_Range, Tensor], None]) -> None:
        """Call `work` with the struct and scratch memory of each range."""
        workers = max(1, min(torch.get_num_threads(), self._chunks))
        borders = [self._chunks * i // workers * CHUNK for i in range(workers + 1)]
        ranges = [(start, min(stop, self._size)) for start, stop in pairwise(borders)]

        def call(columns: tuple[int, int]) -> None:
            scratch = torch.empty((self._experts + 2 * self._tasks + 2) * BLOCK)
            work(_Range(self._size, *columns, *self._fields), scratch)

        if workers == 1:
            call(ranges[0])
            return
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(call, ranges))


def _at(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(_at(t) for t in tensors))
