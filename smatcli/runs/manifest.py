"""What proves a checkpoint directory whole: manifest.json with the format, the versions, and size and SHA-256 of every file."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smatcli.errors import SmatError, UserError
from smatcli.safe.text import read_json
from smatcli.version import __version__

FORMAT = 2
PARTS = ("model.safetensors", "optim.safetensors")
STATE, MANIFEST = "state.json", "manifest.json"
LARGEST_JSON = 1 << 26  # bytes; a state is some kilobytes


class Damaged(SmatError):
    """A checkpoint that is not whole."""


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Write state.json and, last, manifest.json over the tensor files that are there; everything is flushed to the disk."""
    _write(folder / STATE, {"format": FORMAT, "state": state})
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in (*PARTS, STATE)}
    _write(folder / MANIFEST, {"format": FORMAT, "smatcli": __version__, "files": files})
    sync_folder(folder)


def check(folder: Path) -> None:
    """Compare every file with the manifest; Damaged names what differs, UserError a format of the future."""
    for name, wanted, found in _sums(folder):
        try:
            if found(folder / name) != wanted:
                raise Damaged(f"checkpoint {folder} is damaged: {name} is not what was written")
        except OSError as error:
            raise Damaged(f"checkpoint {folder} is damaged: {name} cannot be read ({error.strerror})") from None


def read_state(folder: Path) -> dict[str, Any]:
    """The plain data of a checkpoint."""
    state = _read(folder, STATE).get("state")
    if not isinstance(state, dict):
        raise Damaged(f"checkpoint {folder} is damaged: {STATE} holds no state")
    return state


def _sums(folder: Path) -> list[tuple[str, Any, Callable[[Path], Any]]]:
    """Name, recorded sum and the function that makes it, of every file."""
    old = not (folder / MANIFEST).exists()
    body = _read(folder, STATE if old else MANIFEST)
    if body.get("format") != 1 and old:
        if isinstance(body.get("format"), int) and body["format"] > FORMAT:
            raise _unknown(folder, body["format"])
        raise Damaged(f"checkpoint {folder} is damaged: {MANIFEST} is missing")
    if not old and body.get("format") != FORMAT:
        if isinstance(body.get("format"), int):
            raise _unknown(folder, body["format"])
        raise Damaged(f"checkpoint {folder} is damaged: {MANIFEST} has no format")
    try:
        files = {str(name): dict(facts) for name, facts in body["files"].items()}
        if files.keys() != {*PARTS} | (set() if old else {STATE}):
            raise ValueError("it lists other files")
        if old:
            return [(name, facts["crc32"], crc32) for name, facts in files.items()]
        return [(name, (facts["bytes"], facts["sha256"]), _size_and_digest) for name, facts in files.items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"checkpoint {folder} is damaged: its list of files cannot be read ({error})") from None


def _unknown(folder: Path, found: int) -> UserError:
    return UserError(f"checkpoint {folder} is of format {found}, this version reads 1 to {FORMAT}; update smat")


def _read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError("it is too large")
        body = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Damaged(f"checkpoint {folder} is damaged: {name} cannot be read ({reason})") from None
    if not isinstance(body, dict):
        raise Damaged(f"checkpoint {folder} is damaged: {name} is no object")
    return body


def _write(file: Path, body: dict[str, Any]) -> None:
    text = json.dumps(body, allow_nan=False)
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    if file.read_text(encoding="utf-8") != text:
        raise Damaged(f"{file.name} does not read back as it was written; the disk may be failing")


def _size_and_digest(file: Path) -> tuple[int, str]:
    return file.stat().st_size, digest(file)


def digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def crc32(file: Path) -> int:
    """CRC-32 of a file's content (format 1)."""
    value = 0
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
