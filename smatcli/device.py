"""Where and in which precision a run computes: the one place that chooses device, dtype and attention kernel."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

from smatcli.errors import UserError

WIDE = 256  # narrower models gain from bf16 on a CPU only with AMX


@dataclass(frozen=True)
class Precision:
    """A precision, why it was chosen, and whether fused attention pays with it."""

    name: str
    device: torch.device
    why: str
    fused_attention: bool

    def autocast(self) -> AbstractContextManager[None]:
        """Context for forward passes; parameters and optimizer states stay fp32."""
        if self.name in ("fp32", "tf32"):
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def apply(self, model: nn.Module) -> nn.Module:
        """Choose the attention kernel of every timm attention block of `model`, and whether fp32 products may use TF32; returns `model`."""
        set_tf32(self.name == "tf32")
        for module in model.modules():
            if isinstance(getattr(module, "fused_attn", None), bool):
                module.fused_attn = self.fused_attention  # type: ignore[assignment]
        return model

    def __str__(self) -> str:
        attention = "" if self.fused_attention else "; unfused attention"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"precision {self.name} ({self.why}{attention}) on {self.device}{threads}"


def set_tf32(allowed: bool) -> None:
    """Whether CUDA computes fp32 products and convolutions in TF32 (10 mantissa bits); never left to torch's default.

    By torch's older switches: with the newer ones set, torch.export (ONNX) refuses to work.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 inside, whatever the precision: for masks and their gradients."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def reuse_memory() -> None:
    """Let glibc keep freed memory for the next tensor instead of giving it back: page faults were a quarter of a merge. Process-wide.

    Tensors of 16 MiB and more are given back: kept in the heap, the holes between them took a third of a large model's peak.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    _libc("mallopt", m_mmap_threshold, 16 * 2**20)
    _libc("mallopt", m_trim_threshold, 2**31 - 1)


def give_back_memory() -> None:
    """Let glibc give freed memory back to the system now."""
    _libc("malloc_trim", 0)


def _libc(name: str, *arguments: int) -> None:
    with suppress(OSError, AttributeError):  # another C library: a matter of speed alone
        getattr(ctypes.CDLL(None), name)(*arguments)


def set_threads(threads: int | None) -> None:
    """Use this many CPU threads; None leaves torch's choice (all cores)."""
    if threads is not None:
        torch.set_num_threads(threads)


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name` ('auto': CUDA, then MPS, then CPU); UserError when it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device: {name!r} asked for, but no CUDA device is visible; use device=auto or device=cpu")
        if (device.index or 0) >= count:
            raise UserError(f"device: {name!r} asked for, but only cuda:0 to cuda:{count - 1} are visible")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device: 'mps' asked for, but this machine has no MPS; use device=auto or device=cpu")
    elif device.type != "cpu":
        raise UserError(f"device: {name!r} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    return device


def choose_precision(name: str, device: torch.device, width: int) -> Precision:
    """The precision called `name` for a model of this embedding width; 'auto' takes the one measured to be faster.

    On a 2-core CPU with AMX a ViT of width 128 trains at 250 images/s in fp32, 280 in bf16 with fused attention (whose backward
    is slow on CPUs) and 630 in bf16 without it.
    """
    unfused = device.type == "cpu" and name != "fp32"
    if name != "auto":
        if name not in ("fp32", "tf32", "bf16"):
            raise UserError(f"precision: {name!r} is not supported; use auto, fp32, tf32 or bf16")
        if name == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8):
            raise UserError(f"precision: tf32 needs a CUDA device of the Ampere generation or later, not {device}; use precision=fp32")
        if name == "bf16" and device.type == "mps":
            raise UserError("precision: bf16 is not supported on mps; use precision=fp32")
        return Precision(name, device, "as asked", not unfused)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return Precision("bf16", device, "GPU with bf16 units", True)
        return Precision("fp32", device, "GPU without bf16 units", True)
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return Precision("bf16", device, "CPU with AMX", False)
        if torch.cpu._is_avx512_bf16_supported() and width >= WIDE:
            return Precision("bf16", device, f"CPU with AVX512-BF16, width {width}", False)
        return Precision("fp32", device, f"CPU, width {width}", True)
    return Precision("fp32", device, device.type, True)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """`set_threads` for a block: the number of before comes back."""
    before = torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
