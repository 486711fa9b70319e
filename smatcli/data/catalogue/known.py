"""Types that describe a known dataset: counts, files, licence, and how to get it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Collection = Literal["paper", "vtab", "fgvc"]


Counts = tuple[int, int, int]  # train, valid, test


@dataclass(frozen=True)
class Known:
    """One dataset as it should be. `classes` counts classes by split; a tuning task counts `images_by_split` and `classes` in all."""

    name: str  # of the store
    title: str
    collection: Collection
    classes: Counts | int
    origin: str  # page to get it from
    licence: str
    download: str  # size of what is to be fetched
    command: str  # without --out
    images: int | None = None
    images_by_split: Counts | None = None
    images_a_class: tuple[int, int] | None = None  # fewest, most
    ontology: str | None = None  # kind, where the protocol draws classes by one
    size: int = 128  # px, as the paper uses it
    raw: str = ""  # the command for the dataset's own download, where `command` starts from Meta-Dataset's conversion
    also: tuple[str, ...] = ()  # other names of the store
    variants: Mapping[int, str] = field(default_factory=dict)  # another number of images that is no mistake -> why

    @property
    def number_of_classes(self) -> int:
        """Classes of all splits."""
        return self.classes if isinstance(self.classes, int) else sum(self.classes)

    @property
    def store_bytes(self) -> int | None:
        """Bytes of the images in a store with raw pixels of the paper's size, None if the number of images is not known."""
        images = sum(self.images_by_split) if self.images_by_split else self.images
        return None if images is None else images * self.size**2 * 3

    def command_for(self, root: str = "data", raw: bool = False) -> str:
        """The command that prepares the dataset into `<root>/<collection>`."""
        return f"{self.raw if raw else self.command} --out {shlex.quote(str(Path(root, self.collection)))}"


_RESEARCH = "non-commercial research and education only"


_UNSTATED = "none known"


def plain(name: str) -> str:
    """A name in lower case without anything but letters and digits."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
