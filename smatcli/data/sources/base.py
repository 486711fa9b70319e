"""Interface between the kinds of source data and `smat data prepare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology


@dataclass(frozen=True)
class SourceClass:
    """A class of a source. `images` are the keys for `ImageSource.read`, in order; the sequence may be lazy and is never copied to a list.

    `split` is the split of the class (train, valid, test) if the source defines one. Sources that split by image (VTAB, FGVC) have one
    split per image in `image_splits` instead, aligned with `images`.
    """

    name: str
    images: Sequence[Any]
    split: str | None = None
    image_splits: Sequence[str] | None = None


class ImageSource(Protocol):
    """A source of images.

    `kind` is the KIND of `smat data prepare KIND`, `name` the default dataset name. `remarks` are messages about skipped or unusual
    data. `fingerprint` changes whenever the content may have changed (a hash of file names, sizes and times is enough). Class ids in
    `ontology` are positions in `classes()`.
    Optional attributes: `describe(image) -> str` describes an image in messages (such as file and byte offset; by default, a string key
    is used as it is); `strict` sets whether an unreadable image is an error by default; `dropped` are names of skipped classes that a
    splits file may still list.
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
        """Return an image by its key, encoded (in any format that Pillow reads) or as uint8 [H, W, 3]. Must be thread-safe.

        Raises `images.Unreadable` for a single bad image, which is counted, reported and skipped, and UserError for damage that makes the
        whole source unusable (a wrong CRC, a truncated record, a label that is not in the spec).
        """
        ...

    def close(self) -> None:
        """Close open files."""
        ...
