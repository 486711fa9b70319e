"""Source `torchvision`: a dataset of torchvision, with all its splits together."""

import hashlib
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.lists import inside, stamp_of
from smatcli.data.sources.spill import Spill
from smatcli.data.sources.torchvision_table import ALIASES, SETS
from smatcli.data.sources.trees import DirectoryTree
from smatcli.errors import SmatError, UserError, nearest
from smatcli.safe.files import pointer_kind

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology

DEFAULT_ROOT = Path("data/torchvision")
TIMEOUT = 60.0  # seconds without a response after which a download fails


def dataset_name(name: str) -> str:
    """Return the dataset's name for a store: torchvision's class name in lower case. Raises UserError for an unknown name."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    canonical = ALIASES.get(plain, plain)
    if canonical not in SETS:
        names = [each.cls for each in SETS.values()]
        close = nearest(plain, list(SETS))
        raise UserError(f"torchvision: there is no dataset {name!r}{close or '; available: ' + ', '.join(names)}")
    return canonical


class TorchvisionSource:
    """The union of torchvision's train, validation and test splits, with torchvision's class names in torchvision's order.

    Image files are read unchanged; pixels that torchvision loads into memory are moved to a temporary file. With `download`, torchvision
    fetches the files that are not yet below `root` (default: data/torchvision).
    Raises UserError for an unknown name, for missing files (with how to get them), and for files that torchvision cannot read.
    """

    kind = "torchvision"

    def __init__(self, name: str, root: str | Path | None = None, download: bool = False):
        self.name = dataset_name(name)
        self.root = (DEFAULT_ROOT if root is None else Path(root)).expanduser()
        self.remarks: list[str] = []
        self.ontology: Ontology | None = None
        self._set = SETS[self.name]
        self._tree = DirectoryTree(self.root)
        self._arrays: dict[str, Spill] = {}  # by part
        self._images: dict[str, list[str]] = {}  # class name -> keys
        download = download and self._set.downloads
        try:
            if not download:
                self._require_files()
            for given in self._set.parts:
                self._add(given, download)
            self._require_files()
        except BaseException:
            self.close()
            raise
        self.fingerprint = self._fingerprint()
        if self._set.left_out and (self.root / self._set.left_out[0]).exists():
            self.remarks.append(self._set.left_out[1])

    def classes(self) -> Sequence[SourceClass]:
        return [SourceClass(name, images) for name, images in self._images.items()]

    def read(self, image: str) -> bytes | np.ndarray:
        if self._set.arrays is None:
            return self._tree.read(image)
        part, _, row = image.rpartition("/")
        return self._arrays[part].image(int(row))

    def close(self) -> None:
        for spill in self._arrays.values():
            spill.close()

    def _add(self, given: dict[str, Any], download: bool) -> None:
        """Add one split of the dataset, opened by torchvision."""
        from torchvision import datasets

        cls = getattr(datasets, self._set.cls)
        options = {**given, **({"loader": str} if self._set.loader else {}), **({"download": True} if download else {})}
        try:
            with _download_timeout(download):
                dataset = cls(self.root, **options)
            keys, names, labels = self._listed(_part_name(given), dataset)
        except (SmatError, MemoryError):
            raise
        except Exception as error:  # torchvision raises almost anything for damaged files, or without a network
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            if download:
                raise UserError(f"{self.name}: torchvision could not download it ({reason}); do it by hand: {self._how()}") from error
            if damaged := self._wrong_checksum(cls):
                raise UserError(
                    f"{self.root / damaged}: its MD5 sum is not the one torchvision expects; fetch it again: {self._how()}"
                ) from error
            raise UserError(f"{self.root}: torchvision cannot read {self._set.cls} ({reason}); fetch it again: {self._how()}") from error
        for name in names:
            self._images.setdefault(name, [])
        for key, label in zip(keys, labels, strict=True):
            if not 0 <= label < len(names):
                raise UserError(f"{self.root}: {key} has the label {label}, but {self._set.cls} has {len(names)} classes; {self._how()}")
            self._images[names[label]].append(key)

    def _listed(self, part: str, dataset: Any) -> tuple[list[str], list[str], Sequence[int]]:
        """Return the key of each image (path below the root, or part/row), the class names, and the label of each image."""
        facts = self._set
        if facts.arrays is not None:
            pixels, given = facts.arrays(dataset)
            labels = [int(label) for label in given]
            if pixels.dtype != np.uint8 or len(pixels) != len(labels) or pixels.shape[3:] not in ((), (3,)):
                raise UserError(f"{self.root}: {len(labels)} labels for {part} pixels {pixels.dtype} {list(pixels.shape)}; {self._how()}")
            self._arrays[part] = Spill(pixels)
            keys = [f"{part}/{row}" for row in range(len(labels))]
        else:
            items = [(self._below_root(path), int(label)) for path, label in facts.files(dataset)]
            if facts.name_of is not None:  # torchvision has no names, and its labels depend on the order of directory listings
                named = sorted((path, facts.name_of(path, label)) for path, label in items)
                order = {name: label for label, name in enumerate(sorted({name for _, name in named}))}
                return [path for path, _ in named], list(order), [order[name] for _, name in named]
            keys, labels = [path for path, _ in items], [label for _, label in items]
        names = facts.names(dataset)
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{self.root}: two classes of {facts.cls} are called {repeated[0]!r}; {self._how()}")
        return keys, names, labels

    def _below_root(self, path: str) -> str:
        return str(inside(Path(path).relative_to(self.root).as_posix(), f"{self.root}, lists of {self._set.cls}"))

    def _require_files(self) -> None:
        for name in self._set.needs:
            path = self.root / name
            if not path.exists():
                download = ", or give --download" if self._set.downloads else ""
                raise UserError(f"{self.name}: {path} is missing; {self._how()}{download}")
            if path.is_file():
                with path.open("rb") as file:
                    if kind := pointer_kind(file.read(1000)):
                        raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")

    def _how(self) -> str:
        return self._set.get.format(root=self.root)

    def _wrong_checksum(self, cls: Any) -> str | None:
        from torchvision.datasets.utils import check_integrity

        return next((name for name, md5 in self._set.sums(cls) if not check_integrity(self.root / name, md5)), None)

    def _fingerprint(self) -> str:
        """SHA-256 of the names, sizes and times of the files that torchvision needs, and of the image files if there are any."""
        digest = hashlib.sha256("".join(f"{name}\0{stamp_of(self.root / name)}\n" for name in self._set.needs).encode())
        for name, images in self._images.items():
            for image in images:
                stamp = "" if self._set.arrays else stamp_of(self.root / image)
                digest.update(f"{name}\0{image}\0{stamp}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _part_name(given: dict[str, Any]) -> str:
    return str(given["split"]) if "split" in given else "train" if given.get("train", True) else "test"


@contextmanager
def _download_timeout(download: bool) -> Iterator[None]:
    """Set a timeout while torchvision downloads (by default, urllib waits forever)."""
    before = socket.getdefaulttimeout()
    if download:
        socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
