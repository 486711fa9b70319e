"""The seam between kinds of source data and `smat data prepare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology


@dataclass(frozen=True)
class SourceClass:
    """One class. `images` are the keys for `Source.read` in their order; the sequence may be lazy (a range): it is never listed as a whole.

    `split` is the class's split (train, valid, test) where the source itself says one; `image_splits` instead gives one of these for
    every image (VTAB, FGVC), aligned with `images`.
    """

    name: str
    images: Sequence[Any]
    split: str | None = None
    image_splits: Sequence[str] | None = None


class Source(Protocol):
    """Where images come from.

    `kind` is the word of `smat data prepare KIND`, `name` the proposed dataset name; `remarks` are sentences about what was left out or is
    odd; `fingerprint` changes whenever the content may have (names, sizes and times of the files are enough). Class ids of `ontology` are
    positions in `classes()`. A source may also have `describe(image) -> str`, which names an image for messages (file and byte offset);
    without it a key that is a string names itself; `strict`, whether an unreadable image is an error unless the user says otherwise; and
    `dropped`, the names of classes that it left out, which a splits file may still list.
    """

    kind: str
    name: str
    remarks: list[str]
    fingerprint: str
    ontology: "Ontology | None"

    def classes(self) -> Sequence[SourceClass]:
        """The classes in their order in the store."""
        ...

    def read(self, image: Any) -> bytes | np.ndarray:
        """An image by its key: encoded (any format that Pillow reads) or uint8 [H, W, 3]. Called from many threads at once.

        Raises `images.Unreadable` for one bad image, which is counted, named and left out, and UserError for what makes the whole source
        worthless (a wrong CRC, a truncated record, a label outside the spec).
        """
        ...

    def close(self) -> None:
        """Give back open files."""
        ...
