"""Record of the files that a report wrote. The next report in the same folder removes those it does not replace, and no other files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import read_json

NAME = ".smat-report.json"


def settle(out: Path, written: Mapping[str, Sequence[Path]]) -> list[str]:
    """Remove the files of an earlier report in `out` that are not in `written` (format -> files), then record `written`.

    Files of formats that are not in `written` are kept, and so are edited files. Returns a line for each edited file.
    """
    before = _read(out)
    now = {form: {path.relative_to(out).as_posix(): _digest(path) for path in files} for form, files in written.items()}
    current = {name for files in now.values() for name in files}
    lines = []
    for form in written:
        for name, digest in before.get(form, {}).items():
            path = out / name
            if name in current or not path.is_file() or path.is_symlink():
                continue
            if _digest(path) != digest:
                lines.append(f"{path}: kept, because it was edited after an earlier report wrote it")
                continue
            path.unlink()
            if path.parent != out and not any(path.parent.iterdir()):
                path.parent.rmdir()
    atomic_write_text(out / NAME, json.dumps({"format": 1, "files": {**before, **now}}, indent=1) + "\n")
    return lines


def _read(out: Path) -> dict[str, dict[str, str]]:
    """Return format -> file -> digest of the last report; empty if the record is missing or damaged, so that no file is removed."""
    try:
        recorded = read_json(out / NAME)["files"]
        return {str(form): {str(name): str(d) for name, d in files.items() if _inside(str(name))} for form, files in recorded.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
