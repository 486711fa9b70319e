"""The fused merge for CPUs: `merge_native.c`, compiled for this machine at its first use and kept in the user's cache folder."""

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

from smatcli.experts.masks import HardConcrete

SOURCE = Path(__file__).with_suffix(".c")
# As the source defines them.
BLOCK, CHUNK = 512, 32768
COMPILERS = ("cc", "gcc", "clang", "g++", "clang++", "c++")
# No -ffast-math: a NaN must stay one, and linking with it makes a process flush denormal numbers to zero.
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


class _Merge(ctypes.Structure):
    """The source's struct of the same name."""

    _fields_ = (
        *((name, c_int64) for name in ("columns", "start", "stop")),
        *((name, c_int32) for name in ("tasks", "experts", "gates", "noisy")),
        *((name, c_float) for name in ("gamma", "stretch", "odds_l0")),
        *((name, c_void_p) for name in ("delta", "log_alpha", "alphas", "keys", "dense")),
    )


def library() -> ctypes.CDLL | str:
    """The compiled source, or why there is none."""
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
        said = getattr(error, "stderr", None) or str(error)
        return f"{compiler} could not make it: {said.strip().splitlines()[0] if said.strip() else type(error).__name__}"


def _folder() -> Path:
    """A folder of this user alone: what lies there is run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smat" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK) and not folder.stat().st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="smat-native-"))


def _fingerprint(compiler: str) -> str:
    """Of the source, the compiler and the processor: another machine with the same home folder makes its own."""
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
        made = Path(folder) / "merge.so"
        for i, tuned in enumerate(TUNED):
            command = [compiler, *FLAGS, *tuned.split(), "-o", str(made), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode == 0:
                break
            if i == len(TUNED) - 1:
                done.check_returncode()
        os.replace(made, target)


class Native:
    """The kernel of `merge_kernels.Kernel`, on all threads that torch uses."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._forward, self._backward = library.smat_merge_forward, library.smat_merge_backward
        self._forward.restype = self._backward.restype = None

    def forward(
        self,
        theta_pre: Tensor,
        theta_delta: Tensor,
        log_alpha: Tensor,
        alphas: Tensor,
        keys: Tensor | None,
        dense: Tensor | None,
        shape: HardConcrete,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """See `Kernel`."""
        call = _Call(theta_delta, log_alpha, alphas, keys, dense, shape)
        thetas = [torch.empty_like(theta_pre) for _ in alphas]
        nonzeros, l0 = call.sums(call.gates, len(log_alpha)), call.sums(len(log_alpha))
        places = _pointers(thetas)
        call.run(lambda q, scratch: self._forward(byref(q), _at(theta_pre), places, _at(nonzeros), _at(l0), _at(scratch)))
        return thetas, nonzeros.sum(0).to(log_alpha.dtype), l0.sum(0).to(log_alpha.dtype)

    def backward(
        self,
        grads: Sequence[Tensor | None],
        theta_delta: Tensor,
        log_alpha: Tensor,
        alphas: Tensor,
        keys: Tensor | None,
        dense: Tensor | None,
        shape: HardConcrete,
        share: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        call = _Call(theta_delta, log_alpha, alphas, keys, dense, shape)
        grads = [None if grad is None else grad.to(torch.float32).contiguous() for grad in grads]
        if share is not None:
            share = (share if call.gates > 1 or len(alphas) == 1 else share.sum(0)).to(torch.float32).contiguous()
        d_delta, d_log_alpha, d_alphas = torch.empty_like(theta_delta), torch.empty_like(log_alpha), call.sums(*alphas.shape)
        places, out = _pointers(grads), (_at(d_delta), _at(d_log_alpha), _at(d_alphas))
        call.run(lambda q, scratch: self._backward(byref(q), places, _at(share), *out, _at(scratch)))
        return d_delta, d_log_alpha, d_alphas.sum(0).to(alphas.dtype)


class _Call:
    """One pass over all columns, by ranges of whole chunks on several threads (a foreign function runs without Python's lock)."""

    def __init__(
        self, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, keys: Tensor | None, dense: Tensor | None, shape: HardConcrete
    ) -> None:
        self.gates = 1 if keys is None else len(keys)
        self._size, self._experts, self._tasks = log_alpha.shape[1], len(log_alpha), len(alphas)
        self._chunks = -(-self._size // CHUNK)
        # Held here, because the call has their addresses alone. The low half of an int64 is the unsigned 32-bit key.
        self._keys = None if keys is None else keys.to(torch.int32).contiguous()
        self._dense = None if dense is None else dense.to(torch.uint8).contiguous()
        counts = (self._tasks, self._experts, self.gates, int(keys is not None))
        constants = (shape.gamma, shape.stretch, exp(shape.l0_shift))
        self._known = (*counts, *constants, *(_at(t) for t in (theta_delta, log_alpha, alphas, self._keys, self._dense)))

    def sums(self, *shape: int) -> Tensor:
        """Zeros [chunks, ...] for the sums of each chunk."""
        return torch.zeros(self._chunks, *shape, dtype=torch.float64)

    def run(self, work: Callable[[_Merge, Tensor], None]) -> None:
        """Calls `work` with the call's struct and scratch memory for each range."""
        workers = max(1, min(torch.get_num_threads(), self._chunks))
        borders = [self._chunks * i // workers * CHUNK for i in range(workers + 1)]
        ranges = [(start, min(stop, self._size)) for start, stop in pairwise(borders)]

        def one(place: tuple[int, int]) -> None:
            scratch = torch.empty((self._experts + 2 * self._tasks + 2) * BLOCK)
            work(_Merge(self._size, *place, *self._known), scratch)

        if workers == 1:
            one(ranges[0])
            return
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, ranges))


def _at(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(_at(t) for t in tensors))
