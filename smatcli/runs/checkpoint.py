"""Checkpoints: directories of safetensors and JSON files, written atomically, with the previous one kept as a fallback.

    NAME/          model.safetensors  optim.safetensors  state.json  manifest.json (format, version, size and SHA-256 of the others)
    NAME.new/      a newer, complete one that a killed process had no time to rename
    NAME.old/      the previous one, kept with `keep_before`

A new checkpoint is written under a hidden name, flushed to disk, read back and compared, and only then renamed.
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
from smatcli.safe.tensors import UnsafeWeights, safetensors_header

__all__ = ["FORMAT", "Checkpoint", "Damaged", "has_checkpoint", "kept_checkpoints", "load_checkpoint", "save_checkpoint"]

PIECE = 2**24  # bytes compared at a time


@dataclass
class Checkpoint:
    """A loaded checkpoint: `model` and `optim` map names to tensors, `state` is plain data, `path` is the directory that was read."""

    model: dict[str, Tensor]
    state: dict[str, Any]
    optim: dict[str, Tensor] = field(default_factory=dict)
    path: Path = Path()


def save_checkpoint(
    path: Path, model: dict[str, Tensor], state: dict[str, Any], optim: dict[str, Tensor] | None = None, keep_before: bool = False
) -> None:
    """Write a checkpoint directory. The previous one is replaced only after the new one was read back and compared.

    With `keep_before` the previous checkpoint stays as NAME.old. Raises SmatError, and keeps the previous one as it was, if the
    new one cannot be written (full disk) or reads back differently.
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
        raise SmatError(f"checkpoint {path} cannot be written: {reason} (the previous checkpoint is kept)") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_checkpoint(
    path: Path,
    reporter: Reporter | None = None,
    device: str | torch.device = "cpu",
    others: Sequence[Path] = (),
    strict: bool = False,
) -> Checkpoint:
    """Read a checkpoint. If it is damaged, report that and read the previous one, or else the first intact one of `others`.

    With `strict` a damaged checkpoint is never replaced by an older one (an evaluation must measure the checkpoint that it names). Raises
    UserError if there is no intact checkpoint.
    """
    path = Path(path)
    while True:
        seen = _file_stamps(path)
        problems: list[str] = []
        for place in (*_existing_places(path)[: 1 if strict else None], *others):
            try:
                loaded = _load(place, device)
            except Damaged as error:
                problems.append(str(error))
                continue
            if problems and reporter is not None:
                reporter.line(f"{'; '.join(problems)}; using an older one ({loaded.path})")
            return loaded
        if _file_stamps(path) == seen:  # another process has just written a new one: try again
            raise UserError("; ".join(problems) or f"checkpoint {path} does not exist")


def has_checkpoint(path: Path) -> bool:
    """Return whether there is a checkpoint (or a previous one) to load."""
    return bool(_existing_places(Path(path)))


def kept_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints `step-N` in a folder, newest first."""
    steps = sorted((int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdecimal()), reverse=True)
    return [folder / f"step-{step}" for step in steps]


def _old(path: Path) -> Path:
    return path.parent / f"{path.name}.old"


def _new(path: Path) -> Path:
    return path.parent / f"{path.name}.new"


def _existing_places(path: Path) -> list[Path]:
    """Return the existing directories of a checkpoint, newest first."""
    return [place for place in (_new(path), path, _old(path)) if place.is_dir()]


def _file_stamps(path: Path) -> list[tuple[str, int, int]]:
    stamps = []
    for place in _existing_places(path):
        try:
            facts = place.stat()
        except OSError:
            continue
        stamps.append((place.name, facts.st_ino, facts.st_mtime_ns))
    return stamps


def _settle(path: Path) -> None:
    """Complete what a killed process left unfinished; remove a damaged NAME.new."""
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
    """Rename NAME to NAME.old and NAME.new to NAME; if interrupted, NAME.new is still there and complete."""
    if path.is_dir():
        shutil.rmtree(_old(path), ignore_errors=True)
        path.rename(_old(path))
    _new(path).rename(path)
    sync_folder(path.parent)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file, flush it, and read it back."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if place in seen else value  # safetensors refuses tensors that share memory
        seen.add(place)
    save_file(plain, file)
    with file.open("rb+") as handle:
        os.fchmod(handle.fileno(), 0o666 & ~_umask())  # safetensors ignores the umask, so a group could not read its runs
        os.fsync(handle.fileno())
    if not _reads_back(file, plain):
        raise Damaged(f"{file.name} reads back differently from what was written; the disk may be failing")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _reads_back(file: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Compare a file with the tensors bit for bit, in pieces: reading or mapping all of it would double the memory in use."""
    try:
        header = safetensors_header(file)
    except UnsafeWeights:
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
