"""The datasets of the papers: expected numbers, licence, and the command that prepares each.

The facts are in `paper.toml` (the 18 datasets of the paper), `vtab.toml` (VTAB-1k) and `fgvc.toml` (FGVC), beside this module.
"""

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

Collection = Literal["paper", "vtab", "fgvc"]
Counts = tuple[int, int, int]  # train, valid, test


@dataclass(frozen=True)
class KnownDataset:
    """One dataset as it should be: `classes` per split, or for a tuning task `images_by_split` and the total of `classes`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str  # of the store
    title: str
    collection: Collection
    classes: Counts | int
    origin: str  # page to get it from
    licence: str
    download: str  # size of the download
    command: str  # without --out
    images: int | None = None
    images_by_split: Counts | None = None
    images_per_class: tuple[int, int] | None = None  # fewest, most
    ontology: str | None = None  # its kind, if the protocol draws classes by an ontology
    size: int = 128  # px, as the paper uses it
    raw: str = ""  # the command for the dataset's own download, if `command` starts from Meta-Dataset's conversion
    group: str = ""  # of a VTAB-1k task: Natural, Specialized or Structured
    aliases: tuple[str, ...] = ()  # other names of the store
    variants: Mapping[int, str] = field(default_factory=dict)  # another number of images that is not a mistake -> why

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def number_of_classes(self) -> int:
        """Classes of all splits."""
        return self.classes if isinstance(self.classes, int) else sum(self.classes)

    @property
    def store_bytes(self) -> int | None:
        """Bytes of the images in a store with raw pixels of the paper's size, or None if the number of images is not known."""
        images = sum(self.images_by_split) if self.images_by_split else self.images
        return None if images is None else images * self.size**2 * 3

    def command_for(self, root: str = "data", raw: bool = False) -> str:
        """Return the command that prepares the dataset into `<root>/<collection>`."""
        return f"{self.raw if raw else self.command} --out {shlex.quote(str(Path(root, self.collection)))}"


_DATASET = TypeAdapter(KnownDataset)


def read_collection(path: Path) -> tuple[tuple[KnownDataset, ...], dict[str, Any]]:
    """Read the datasets of a TOML file that is named after its collection; also return all of the file's tables.

    Raises ValueError, with file, dataset and key, for a fact that is missing, unknown or of the wrong type.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    datasets = []
    for position, facts in enumerate(tables["dataset"]):
        try:
            datasets.append(_DATASET.validate_python({**facts, "collection": path.stem}))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path}, dataset {facts.get('name', position)}: {key}: {first['msg']}") from None
    return tuple(datasets), tables


_FILES = {name: read_collection(Path(__file__).with_name(f"{name}.toml")) for name in get_args(Collection)}
COLLECTIONS: Mapping[str, tuple[KnownDataset, ...]] = {name: datasets for name, (datasets, _) in _FILES.items()}
TITLES: Mapping[str, str] = {name: tables["title"] for name, (_, tables) in _FILES.items()}
LINKS: Mapping[str, Mapping[str, str]] = {name: tables["links"] for name, (_, tables) in _FILES.items()}


def find_dataset(name: str, datasets: tuple[KnownDataset, ...]) -> KnownDataset | None:
    """Return the dataset with this name or alias, ignoring case and punctuation, or None."""
    wanted = _letters(name)
    return next((dataset for dataset in datasets if wanted in map(_letters, dataset.names)), None)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
