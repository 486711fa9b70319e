"""Checks of weights from untrusted files: refuse headers, archives and tensors that exceed the file before memory is allocated for them."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from smatcli.safe.text import parse_json

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 2**24  # bytes; the header of a ViT with experts has about 50 KB
MAX_TENSORS = 100_000
RATIO, FREE_BYTES = 4, 2**26  # an archive may unpack to this many times its size plus these bytes, because weights hardly compress
_ZIP = b"PK\x03\x04"


class UnsafeWeights(ValueError):
    """A file of weights that claims more than it can contain; the message is a short reason."""


def safetensors_header(path: Path) -> dict[str, dict[str, object]]:
    """Return dtype, shape and offsets of the tensors of a safetensors file, by name.

    Raises UnsafeWeights if the header is too large or exceeds the file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        size = file.seek(0, 2)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= size - 8:
            raise UnsafeWeights(f"not a safetensors file: a header of {length:,} bytes in a file of {size:,}")
        if length > MAX_HEADER:
            raise UnsafeWeights(f"a header of {length:,} bytes, more than {MAX_HEADER:,}")
        file.seek(8)
        raw = file.read(length)
    try:
        header = parse_json(raw)
    except ValueError as error:
        raise UnsafeWeights(f"not a safetensors file: its header is not JSON ({str(error)[:80]})") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise UnsafeWeights(
            "not a safetensors file: its header is not an object" if not isinstance(header, dict) else f"{len(header):,} tensors"
        )
    header.pop("__metadata__", None)
    for name, facts in header.items():
        if not isinstance(facts, dict) or not _fits(facts, size - 8 - length):
            raise UnsafeWeights(f"its tensor {name[:60]!r} exceeds the file; it is truncated or damaged")
    return header


def check_archive(path: Path) -> None:
    """Raise UnsafeWeights if a PyTorch file (a ZIP) unpacks to far more than its size. Files from before PyTorch 1.6 are not archives."""
    with path.open("rb") as file:
        if file.read(4) != _ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise UnsafeWeights(f"truncated or damaged ({error})") from None
    packed = path.stat().st_size
    if total > RATIO * packed + FREE_BYTES:
        raise UnsafeWeights(f"it unpacks from {packed:,} to {total:,} bytes (decompression bomb)")


def check_tensors(path: Path, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
    """Raise UnsafeWeights for a tensor that is not a plain block of numbers in memory, or whose shape exceeds its storage."""
    import torch

    total = 0
    for name, tensor in tensors:
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized and not tensor.is_nested
        if not plain or tensor.is_complex() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise UnsafeWeights(f"{name[:60]!r} is not a plain tensor (layout {tensor.layout}, {tensor.device}, {tensor.dtype})")
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise UnsafeWeights(f"{name[:60]!r} claims {size:,} bytes and has {tensor.untyped_storage().nbytes():,}")
        total += size
    if total > RATIO * path.stat().st_size + FREE_BYTES:
        raise UnsafeWeights(f"its tensors claim {total:,} bytes")


def _fits(facts: dict[str, object], size: int) -> bool:
    shape, place = facts.get("shape"), facts.get("data_offsets")
    if not isinstance(shape, list) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        return False
    return isinstance(place, list) and len(place) == 2 and all(type(n) is int for n in place) and 0 <= place[0] <= place[1] <= size
