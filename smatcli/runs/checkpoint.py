"""Checkpoints: a directory of safetensors and JSON that is always whole, with the one before as a fall-back.

    NAME/          model.safetensors  optim.safetensors  state.json  manifest.json (format, versions, SHA-256 and bytes of the others)
    NAME.new/      a finished one that a killed process had no time to put in place: the newest
    NAME.old/      the one before, kept with `keep_before`

A new one is written under a hidden name, flushed, read back and compared; only then does it move the others. Format 1 had no manifest and
CRC-32 sums in state.json; it is still read.
"""

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smatcli.errors import SmatError, UserError
from smatcli.runs.manifest import FORMAT, PARTS, Damaged, check, read_state, seal, sync_folder
from smatcli.runs.reporter import Reporter
from smatcli.safe.tensors import Refused, safetensors_header

__all__ = ["FORMAT", "Checkpoint", "Damaged", "has_checkpoint", "kept_checkpoints", "load_checkpoint", "save_checkpoint"]

PIECE = 2**24  # bytes that are compared at a time


@dataclass
class Checkpoint:
    """What was saved: `model` and `optim` tensors by name, `state` plain data, `path` where it was read from."""

    model: dict[str, Tensor]
    state: dict[str, Any]
    optim: dict[str, Tensor] = field(default_factory=dict)
    path: Path = Path()


def save_checkpoint(
    path: Path, model: dict[str, Tensor], state: dict[str, Any], optim: dict[str, Tensor] | None = None, keep_before: bool = False
) -> None:
    """Write a checkpoint directory; older ones go only after the new one was read back and found equal.

    With `keep_before` the checkpoint that stood there stays as NAME.old. Raises SmatError when it cannot be written (full disk) or does not
    read back; what was there before is then untouched.
    """
    path = Path(path)
    draft = path.parent / f".{path.name}.tmp-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        _settle(path)
        draft.mkdir()
        for name, tensors in zip(PARTS, (model, optim or {}), strict=True):
            _write(draft / name, tensors)
        seal(draft, state)
        draft.rename(_new(path))
        sync_folder(path.parent)
        _rotate(path)
        if not keep_before:
            shutil.rmtree(_old(path), ignore_errors=True)
    except (OSError, SafetensorError, Damaged) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "no space left on the device; make room and continue with --resume" if full else str(error)
        raise SmatError(f"checkpoint {path} cannot be written: {reason} (the checkpoint before it is kept)") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_checkpoint(
    path: Path,
    reporter: Reporter | None = None,
    device: str | torch.device = "cpu",
    others: Sequence[Path] = (),
    strict: bool = False,
) -> Checkpoint:
    """Read a checkpoint; where it is damaged the one before it, or else the first whole one of `others`, with a line that says so.

    With `strict` no older one stands in for a damaged one (a measurement must be of what it is named after). Raises UserError when there is
    none.
    """
    path = Path(path)
    while True:
        seen = _stamp(path)
        said: list[str] = []
        for place in (*_places(path)[: 1 if strict else None], *others):
            try:
                found = _load(place, device)
            except Damaged as error:
                said.append(str(error))
                continue
            if said and reporter is not None:
                reporter.line(f"{'; '.join(said)}; using the one before it ({found.path})")
            return found
        if _stamp(path) == seen:  # else another process has just put a new one in place
            raise UserError("; ".join(said) or f"checkpoint {path} does not exist")


def has_checkpoint(path: Path) -> bool:
    """Is there a checkpoint (or the one before it) to load?"""
    return bool(_places(Path(path)))


def kept_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints `step-N` in a folder, newest first."""
    steps = sorted((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdecimal()), reverse=True)
    return [folder / f"step-{step}" for step in steps]


def _old(path: Path) -> Path:
    return path.parent / f"{path.name}.old"


def _new(path: Path) -> Path:
    return path.parent / f"{path.name}.new"


def _places(path: Path) -> list[Path]:
    """Where the checkpoint can be, newest first."""
    return [place for place in (_new(path), path, _old(path)) if place.is_dir()]


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    found = []
    for place in _places(path):
        try:
            facts = place.stat()
        except OSError:
            continue
        found.append((place.name, facts.st_ino, facts.st_mtime_ns))
    return found


def _settle(path: Path) -> None:
    """Finish what a killed process had begun; a NAME.new that is damaged goes."""
    if not _new(path).is_dir():
        return
    try:
        check(_new(path))
    except Damaged:
        if not (path.is_dir() or _old(path).is_dir()):
            return
        shutil.rmtree(_new(path), ignore_errors=True)
        return
    _rotate(path)


def _rotate(path: Path) -> None:
    """NAME.new -> NAME -> NAME.old; whenever it is cut short, NAME.new is there and whole."""
    if path.is_dir():
        shutil.rmtree(_old(path), ignore_errors=True)
        path.rename(_old(path))
    _new(path).rename(path)
    sync_folder(path.parent)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, flush them, and read them back."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if place in seen else value  # the format knows no tensors that share memory
        seen.add(place)
    save_file(plain, file)
    with file.open("rb+") as handle:
        os.fchmod(handle.fileno(), 0o666 & ~_umask())  # safetensors would keep a group from reading its runs
        os.fsync(handle.fileno())
    if not _reads_back(file, plain):
        raise Damaged(f"{file.name} does not read back as it was written; the disk may be failing")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _reads_back(file: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Does the file hold the tensors, bit for bit? Read piece by piece: whole, or mapped, it would double the memory of a training run."""
    try:
        header = safetensors_header(file)
    except Refused:
        return False
    piece = bytearray(PIECE)
    with file.open("rb") as handle:
        data = 8 + int.from_bytes(handle.read(8), "little")
        for name, tensor in tensors.items():
            facts: Any = header.pop(name, None)
            wanted = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            if facts is None or facts["shape"] != list(tensor.shape) or facts["data_offsets"][1] - facts["data_offsets"][0] != len(wanted):
                return False
            handle.seek(data + facts["data_offsets"][0])
            for start in range(0, len(wanted), PIECE):
                part = wanted[start : start + PIECE]
                into = memoryview(piece)[: len(part)]
                if handle.readinto(into) != len(part) or into != part:
                    return False
    return not header


def _load(path: Path, device: str | torch.device) -> Checkpoint:
    if not path.is_dir():
        raise Damaged(f"checkpoint {path} does not exist")
    check(path)
    try:
        for name in PARTS:
            safetensors_header(path / name)
        model, optim = (load_file(path / name, device=str(device)) for name in PARTS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise Damaged(f"checkpoint {path} is damaged: {error}") from None
    return Checkpoint(model, read_state(path), optim, path)
