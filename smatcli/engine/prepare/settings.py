"""What decides the content of a store, besides the source."""

from dataclasses import asdict, dataclass
from typing import Any

from smatcli.data.images import Fit
from smatcli.data.stores import splits
from smatcli.data.stores.format import ENCODINGS
from smatcli.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Settings of `smat data prepare`; the defaults are those of `prepare folder`. Raises UserError for values that make no sense."""

    size: int = 64
    fit: Fit = "crop"
    split: str = splits.DEFAULT_SPLIT
    splits: str | None = None
    seed: int = 0
    min_images: int | None = None
    licence: str = ""
    encoding: str = "raw"
    max_per_class: int | None = None
    split_asked: bool = False  # `split` is not the default but was given

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise UserError(f"size {self.size}: give 1 to 4096 pixels")
        if self.fit not in ("crop", "squash"):
            raise UserError(f"fit {self.fit!r}: give crop or squash")
        if self.min_images is not None and self.min_images < 2:
            raise UserError(f"min-images {self.min_images}: an episode needs at least 2 images a class")
        if len(self.licence.encode()) > 30_000:
            raise UserError("the licence text is longer than 30,000 bytes; give its name and where it stands")
        if self.encoding not in ENCODINGS:
            raise UserError(f"encoding {self.encoding!r}: give {' or '.join(ENCODINGS)}")
        if self.max_per_class is not None and self.max_per_class < self.fewest:
            raise UserError(f"max-per-class {self.max_per_class}: a class needs {self.fewest} images")
        splits.parse_shares(self.split)

    @property
    def fewest(self) -> int:
        """Readable images that a class needs."""
        return self.min_images or 2

    def facts(self) -> dict[str, Any]:
        """What the fingerprint covers; options that came later are left out at their default, so that older stores stay what they are."""
        chosen = {**asdict(self), "depth": 1}
        del chosen["split_asked"]
        for key, default in (("encoding", "raw"), ("max_per_class", None)):
            if chosen[key] == default:
                del chosen[key]
        return chosen
