"""The seam between kinds of source data and `smat data prepare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class SourceClass:
    """One class: its name, the names of its images in order, and its split where the source itself says one."""

    name: str
    images: Sequence[str]
    split: str | None = None


class Source(Protocol):
    """Where images come from. `remarks` are sentences about what was left out; `fingerprint` changes whenever the content may have."""

    remarks: list[str]
    fingerprint: str

    def classes(self) -> Sequence[SourceClass]:
        """The classes in their order in the store."""
        ...

    def read(self, image: str) -> bytes | np.ndarray:
        """An image by its name: encoded (any format that Pillow reads) or uint8 [H, W, 3]. Called from many threads at once."""
        ...

    def close(self) -> None:
        """Give back open files."""
        ...
