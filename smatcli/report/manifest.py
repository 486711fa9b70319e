"""Which files a report made: the next one in the same folder removes those that it does not make again, and nothing else."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import read_json

NAME = ".smat-report.json"


def settle(out: Path, made: Mapping[str, Sequence[Path]]) -> list[str]:
    """Remove what an earlier report left in `out` and this one did not make, and record `made` (format -> files) for the next.

    Only formats of `made` are cleared, and only files whose content is still what the report wrote; lines name what was kept.
    """
    before = _read(out)
    now = {form: {path.relative_to(out).as_posix(): _digest(path) for path in files} for form, files in made.items()}
    written = {name for files in now.values() for name in files}
    lines = []
    for form in made:
        for name, digest in before.get(form, {}).items():
            path = out / name
            if name in written or not path.is_file() or path.is_symlink():
                continue
            if _digest(path) != digest:
                lines.append(f"{path}: of an earlier report, changed since: kept")
                continue
            path.unlink()
            if path.parent != out and not any(path.parent.iterdir()):
                path.parent.rmdir()
    atomic_write_text(out / NAME, json.dumps({"format": 1, "files": {**before, **now}}, indent=1) + "\n")
    return lines


def _read(out: Path) -> dict[str, dict[str, str]]:
    """Format -> file -> digest of the last report; empty for a missing or damaged record, whose files then stay."""
    try:
        found = read_json(out / NAME)["files"]
        return {str(form): {str(name): str(d) for name, d in files.items() if _inside(str(name))} for form, files in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
