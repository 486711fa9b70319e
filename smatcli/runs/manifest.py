"""Integrity of a checkpoint directory: manifest.json with the format, the version, and size and SHA-256 of every file."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from smatcli.errors import SmatError, UserError
from smatcli.safe.text import read_json
from smatcli.version import __version__

FORMAT = 2
PARTS = ("model.safetensors", "optim.safetensors")
STATE, MANIFEST = "state.json", "manifest.json"
LARGEST_JSON = 1 << 26  # bytes; a state has a few kilobytes


class Damaged(SmatError):
    """A checkpoint that is missing, incomplete or altered."""


def seal(folder: Path, state: dict[str, Any]) -> None:
    """Add state.json and, last, manifest.json to a folder with the tensor files; everything is flushed to disk."""
    _write(folder / STATE, {"format": FORMAT, "state": state})
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)} for name in (*PARTS, STATE)}
    _write(folder / MANIFEST, {"format": FORMAT, "smatcli": __version__, "files": files})
    sync_folder(folder)


def check(folder: Path) -> None:
    """Compare every file with the manifest. Raises Damaged, naming the file that differs, and UserError for another format."""
    for name, size, sha256 in _listed(folder):
        try:
            if ((folder / name).stat().st_size, digest(folder / name)) != (size, sha256):
                raise Damaged(f"checkpoint {folder} is damaged: {name} has changed since it was written")
        except OSError as error:
            raise Damaged(f"checkpoint {folder} is damaged: {name} cannot be read ({error.strerror})") from None


def read_state(folder: Path) -> dict[str, Any]:
    """Return the plain data of a checkpoint."""
    state = _read(folder, STATE).get("state")
    if not isinstance(state, dict):
        raise Damaged(f"checkpoint {folder} is damaged: {STATE} has no state")
    return state


def _listed(folder: Path) -> list[tuple[str, Any, Any]]:
    """Return name, size and SHA-256 of every file, as the manifest lists them."""
    if not (folder / MANIFEST).exists():
        _check_format(folder, _read(folder, STATE))
        raise Damaged(f"checkpoint {folder} is damaged: {MANIFEST} is missing")
    body = _read(folder, MANIFEST)
    _check_format(folder, body)
    try:
        files = {str(name): dict(facts) for name, facts in body["files"].items()}
        if files.keys() != {*PARTS, STATE}:
            raise ValueError("it does not list exactly the files of a checkpoint")
        return [(name, facts["bytes"], facts["sha256"]) for name, facts in files.items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"checkpoint {folder} is damaged: its list of files cannot be read ({error})") from None


def _check_format(folder: Path, body: dict[str, Any]) -> None:
    number = body.get("format")
    if not isinstance(number, int):
        raise Damaged(f"checkpoint {folder} is damaged: it has no format")
    if number != FORMAT:
        advice = "update smat" if number > FORMAT else "train again with this version"
        raise UserError(f"checkpoint {folder} is of format {number}, this version reads format {FORMAT}; {advice}")


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
        raise Damaged(f"checkpoint {folder} is damaged: {name} is not a JSON object")
    return body


def _write(file: Path, body: dict[str, Any]) -> None:
    text = json.dumps(body, allow_nan=False)
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    if file.read_text(encoding="utf-8") != text:
        raise Damaged(f"{file.name} reads back differently from what was written; the disk may be failing")


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
