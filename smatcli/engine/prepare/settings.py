"""Settings that, with the source, determine the content of a store."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from smatcli.data.images import Fit
from smatcli.data.stores import splits
from smatcli.data.stores.format import ENCODINGS
from smatcli.errors import UserError


class _ImageOptions(TypedDict, total=False):
    size: int  # px, default 64
    fit: Fit  # default crop
    encoding: str  # default raw
    max_per_class: int | None
    min_images: int | None
    licence: str


class SettingsOptions(_ImageOptions, total=False):
    """Options of `prepare` that determine the content of a store, with the defaults of `prepare folder`."""

    split: str | None  # default 65/15/20, unless the source has its own
    splits_file: str | Path | None
    seed: int | None  # default 0


@dataclass(frozen=True)
class Settings:
    """Settings of `smat data prepare`; the defaults are those of `prepare folder`. Raises UserError for invalid values."""

    size: int = 64
    fit: Fit = "crop"
    split: str = splits.DEFAULT_SPLIT
    splits: str | None = None
    seed: int = 0
    min_images: int | None = None
    licence: str = ""
    encoding: str = "raw"
    max_per_class: int | None = None
    split_asked: bool = False  # `split` was given explicitly

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise UserError(f"size {self.size}: give 1 to 4096 pixels")
        if self.fit not in ("crop", "squash"):
            raise UserError(f"fit {self.fit!r}: give crop or squash")
        if self.min_images is not None and self.min_images < 2:
            raise UserError(f"min-images {self.min_images}: an episode needs at least 2 images per class")
        if len(self.licence.encode()) > 30_000:
            raise UserError("the licence text is longer than 30,000 bytes; give its name and a link")
        if self.encoding not in ENCODINGS:
            raise UserError(f"encoding {self.encoding!r}: give {' or '.join(ENCODINGS)}")
        if self.max_per_class is not None and self.max_per_class < self.fewest:
            raise UserError(f"max-per-class {self.max_per_class}: a class needs {self.fewest} images")
        splits.parse_shares(self.split)

    @classmethod
    def from_options(
        cls, split: str | None = None, splits_file: str | Path | None = None, seed: int | None = None, **options: Unpack[_ImageOptions]
    ) -> "Settings":
        """Build the settings from the options of `prepare`. Raises UserError if both a splits file and a split are given."""
        if splits_file and (split is not None or (seed is not None and options.get("max_per_class") is None)):
            raise UserError(f"the splits file {splits_file} assigns the classes to splits; remove --split and --seed")
        return cls(
            split=splits.DEFAULT_SPLIT if split is None else split,
            split_asked=split is not None,
            splits=str(splits_file) if splits_file else None,
            seed=seed or 0,
            **options,
        )

    @property
    def fewest(self) -> int:
        """Minimum number of readable images per class."""
        return self.min_images or 2

    def facts(self) -> dict[str, Any]:
        """Return the settings that the fingerprint covers.

        Those added later are omitted at their defaults, so that old stores stay valid.
        """
        chosen = {**asdict(self), "depth": 1}
        del chosen["split_asked"]
        for key, default in (("encoding", "raw"), ("max_per_class", None)):
            if chosen[key] == default:
                del chosen[key]
        return chosen
