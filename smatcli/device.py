"""Choice of device, precision and attention kernel. Nothing else in the package chooses them."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

from smatcli.errors import UserError

WIDE = 256  # embedding width from which bf16 pays on a CPU without AMX


@dataclass(frozen=True)
class Precision:
    """A precision on a device: its name, the reason for the choice, and whether attention is fused."""

    name: str
    device: torch.device
    why: str
    fused_attention: bool

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for forward passes; parameters and optimizer states stay in fp32."""
        if self.name in ("fp32", "tf32"):
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def apply(self, model: nn.Module) -> nn.Module:
        """Set the attention kernel of every timm attention block of `model`, and TF32 for the process; return `model`."""
        set_tf32(self.name == "tf32")
        for module in model.modules():
            if isinstance(getattr(module, "fused_attn", None), bool):
                module.fused_attn = self.fused_attention  # type: ignore[assignment]
        return model

    def __str__(self) -> str:
        attention = "" if self.fused_attention else "; unfused attention"
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' if count != 1 else ''}" if self.device.type == "cpu" else ""
        return f"precision {self.name} ({self.why}{attention}) on {self.device}{threads}"


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 (10 mantissa bits) for fp32 matrix products and convolutions on CUDA, regardless of torch's default.

    Uses torch's older switches: torch.export (ONNX) fails when the newer ones are set.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact_products() -> Iterator[None]:
    """Forbid TF32 inside the block, for masks and their gradients."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def reuse_memory() -> None:
    """Let glibc keep freed memory for the next tensor, process-wide: page faults took a quarter of the time of a merge.

    Tensors of 16 MiB and more are still returned to the system: gaps between them made up a third of a large model's peak memory.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    _libc("mallopt", m_mmap_threshold, 16 * 2**20)
    _libc("mallopt", m_trim_threshold, 2**31 - 1)


def give_back_memory() -> None:
    """Let glibc return freed memory to the system now."""
    _libc("malloc_trim", 0)


def _libc(name: str, *arguments: int) -> None:
    with suppress(OSError, AttributeError):  # without glibc, the program is only slower
        getattr(ctypes.CDLL(None), name)(*arguments)


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads; None keeps torch's choice (all cores)."""
    if threads is not None:
        torch.set_num_threads(threads)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device `name` ('auto': CUDA, else MPS, else CPU); UserError if it is not available."""
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
            raise UserError(f"device: {name!r} is not available: no CUDA device is visible; use device=auto or device=cpu")
        if (device.index or 0) >= count:
            raise UserError(f"device: {name!r} is not available: use cuda:0 to cuda:{count - 1}")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device: 'mps' is not available on this machine; use device=auto or device=cpu")
    elif device.type != "cpu":
        raise UserError(f"device: {name!r} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    return device


def choose_precision(name: str, device: torch.device, width: int) -> Precision:
    """Return the precision `name` for a model of this embedding width; 'auto' selects the fastest.

    Measured on a 2-core CPU with AMX: a ViT of width 128 trains at 250 images/s in fp32, 280 in bf16 with fused attention (whose
    backward pass is slow on CPUs) and 630 in bf16 with unfused attention.
    """
    unfused = device.type == "cpu" and name != "fp32"
    if name != "auto":
        if name not in ("fp32", "tf32", "bf16"):
            raise UserError(f"precision: {name!r} is not supported; use auto, fp32, tf32 or bf16")
        if name == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8):
            raise UserError(f"precision: tf32 needs a CUDA device of the Ampere generation or later, not {device}; use precision=fp32")
        if name == "bf16" and device.type == "mps":
            raise UserError("precision: bf16 is not supported on mps; use precision=fp32")
        return Precision(name, device, "as requested", fused_attention=not unfused)
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return Precision("bf16", device, "GPU with bf16 units", fused_attention=True)
        return Precision("fp32", device, "GPU without bf16 units", fused_attention=True)
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return Precision("bf16", device, "CPU with AMX", fused_attention=False)
        if torch.cpu._is_avx512_bf16_supported() and width >= WIDE:
            return Precision("bf16", device, f"CPU with AVX512-BF16, width {width}", fused_attention=False)
        return Precision("fp32", device, f"CPU, width {width}", fused_attention=True)
    return Precision("fp32", device, device.type, fused_attention=True)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
