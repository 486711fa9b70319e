"""Checkpoints: a directory of safetensors and JSON that is always whole, with the one before as a fall-back."""

import errno
import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smatcli.engine.reporter import Reporter
from smatcli.errors import SmatError, UserError

FORMAT = 1


@dataclass
class Checkpoint:
    """What was saved: `model` and `optim` tensors by name, `state` plain data, `path` where it was read from."""

    model: dict[str, Tensor]
    state: dict[str, Any]
    optim: dict[str, Tensor] = field(default_factory=dict)
    path: Path = Path()


class Damaged(SmatError):
    """A checkpoint that is not whole."""


def save_checkpoint(path: Path, model: dict[str, Tensor], state: dict[str, Any], optim: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint directory: temporary directory, fsync, rename; the old one is kept until the new one is in place."""
    path = Path(path)
    draft, old = path.parent / f".{path.name}.tmp-{os.getpid()}", _old(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        draft.mkdir()
        parts = {"model.safetensors": model, "optim.safetensors": optim or {}}
        files = {}
        for name, tensors in parts.items():
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, draft / name)
            files[name] = _sync_and_sum(draft / name)
        body = json.dumps({"format": FORMAT, "files": files, "state": state}, allow_nan=False)
        (draft / "state.json").write_text(body, encoding="utf-8")
        _sync_and_sum(draft / "state.json")
        _sync_folder(draft)
        if old.exists():
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():
            path.rename(old)
        draft.rename(path)
        _sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "no space left on the device; make room and continue with --resume" if full else str(error)
        raise SmatError(f"checkpoint {path} cannot be written: {reason} (the checkpoint before it is kept)") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_checkpoint(path: Path, reporter: Reporter | None = None, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint, or the one before it when it is missing or damaged; UserError when there is neither."""
    path = Path(path)
    try:
        return _load(path, device)
    except Damaged as error:
        if not _old(path).is_dir():
            raise UserError(str(error)) from None
        found = _load(_old(path), device)
        if reporter is not None:
            reporter.line(f"{error}; using the one before it")
        return found


def has_checkpoint(path: Path) -> bool:
    """Is there a checkpoint (or the one before it) to load?"""
    return Path(path).is_dir() or _old(Path(path)).is_dir()


def _old(path: Path) -> Path:
    return path.parent / f"{path.name}.old"


def _load(path: Path, device: str | torch.device) -> Checkpoint:
    if not path.is_dir():
        raise Damaged(f"checkpoint {path} does not exist")
    try:
        body = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise UserError(f"checkpoint {path} is of format {body['format']}, this version reads {FORMAT}")
        for name, facts in body["files"].items():
            if _sum(path / name) != facts["crc32"]:
                raise Damaged(f"checkpoint {path} is damaged: {name} is not what was written")
        model, optim = (load_file(path / f"{part}.safetensors", device=str(device)) for part in ("model", "optim"))
        return Checkpoint(model, body["state"], optim, path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Damaged(f"checkpoint {path} is damaged: {error}") from None


def _sum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _sync_and_sum(path: Path) -> dict[str, int]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "crc32": _sum(path)}


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
