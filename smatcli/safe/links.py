"""Refuse folders from which a write would leave through a symbolic link."""

import os
import stat
from pathlib import Path

from smatcli.errors import UserError

# Folders of other programs, whose links lead to their own logs.
FOREIGN = ("wandb",)


def refuse_outside_links(folder: str | Path) -> None:
    """Raise UserError if something in `folder`, a run or a sweep to write into, is a link to a place outside, a pipe or a device.

    The folder itself may be a link, and links within it are allowed. A missing folder is accepted.
    """
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue  # removed in the meantime
            shown = Path(folder, os.path.relpath(path, root))
            if stat.S_ISLNK(mode):
                target = os.path.realpath(path)
                if os.path.commonpath((root, target)) != root:
                    raise UserError(
                        f"{shown}: is a link to {target}, outside {folder}; nothing is written through it: replace it by a copy"
                    )
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISSOCK(mode)):
                raise UserError(f"{shown}: is a pipe or a device; nothing is written to it: remove it")
        folders[:] = [name for name in folders if name not in FOREIGN]
