"""Interface between the kinds of source data and `smat data prepare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology


@dataclass(frozen=True)
class SourceClass:
    """One class. `images` are the keys for `ImageSource.read`, in order; the sequence may be lazy (a range) and is never copied to a list.

    `split` is the class's split (train, valid, test) if the source defines one. Sources that split by image (VTAB, FGVC) give one of
    these per image in `image_splits` instead, aligned with `images`.
    """

    name: str
    images: Sequence[Any]
    split: str | None = None
    image_splits: Sequence[str] | None = None


class ImageSource(Protocol):
    """A source of images.

    `kind` is the KIND of `smat data prepare KIND`, `name` the proposed dataset name; `remarks` are sentences about skipped or unusual
    data; `fingerprint` changes whenever the content may have changed (names, sizes and times of the files are enough). Class ids of
    `ontology` are positions in `classes()`. Optional attributes: `describe(image) -> str` names an image in messages (file and byte
    offset), by default a key that is a string is its own name; `strict`, whether an unreadable image is an error by default; and
    `dropped`, the names of classes that the source skips but a splits file may list.
    """

    kind: str
    name: str
    remarks: list[str]
    fingerprint: str
    ontology: "Ontology | None"

    def classes(self) -> Sequence[SourceClass]:
        """Return the classes in their order in the store."""
        ...

    def read(self, image: Any) -> bytes | np.ndarray:
        """Return an image by its key: encoded (any format that Pillow reads) or uint8 [H, W, 3]. Must be thread-safe.

        Raises `images.Unreadable` for one bad image, which is counted, named and skipped, and UserError for damage that makes the whole
        source unusable (a wrong CRC, a truncated record, a label outside the spec).
        """
        ...

    def close(self) -> None:
        """Close open files."""
        ...
