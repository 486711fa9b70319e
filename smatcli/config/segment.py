"""The recipe of `smat segment`: images and masks, the tuner of the backbone, the SETR-PUP head, training and evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.pmoe import PmoeConfig
from smatcli.config.schema import GroupConfig, Positive, SpikeConfig, VisionRecipe

FIXED = {"kvasir": ("binary", 2), "isic": ("binary", 2), "ade20k": ("index", 150), "synthetic": ("index", 4)}


class SegmentData(Strict):
    """Images and masks.

    kvasir, isic, ade20k: the folder layouts in which these datasets are published. folders: a folder of images and a folder of masks.
    synthetic: generated images.
    """

    layout: Literal["folders", "kvasir", "isic", "ade20k", "synthetic"] = "folders"
    root: str = Field("", description="folder of the dataset; synthetic: leave empty")
    images: str = Field("images", description="folders: image folder in root; may have the subfolders training, validation and test")
    masks: str = Field("masks", description="folders: mask folder in root, with the same file names")
    suffix: str = Field("", description="folders: suffix that mask names append to image names (ISIC: _segmentation)")
    values: Literal["index", "binary"] | None = Field(
        None, description="folders: index (pixel = class, 255 = ignore) or binary (bright = 1); null = index"
    )
    classes: int | None = Field(None, ge=2, le=255, description="folders: number of classes, including the background; binary: 2")
    count: Positive = Field(60, description="synthetic: number of images")
    test: float = Field(0.2, gt=0, lt=1, description="fraction of test images if the dataset has no split and folds = 0")
    valid: float = Field(0.1, gt=0, lt=1, description="fraction of the remaining images used for validation, to choose the best epoch")

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Self:
        fields, chosen = type(self).model_fields, self.layout
        unread = [] if chosen == "folders" else ["images", "masks", "suffix", "values", "classes"]
        unread += [] if chosen == "synthetic" else ["count"]
        for key in unread:
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key} has no effect with layout {chosen}; remove it")
        if chosen == "synthetic" and self.root:
            raise ValueError("root has no effect with layout synthetic; remove it")
        if chosen != "synthetic" and not self.root:
            raise ValueError("root is missing: give the folder of the dataset")
        if chosen == "folders" and self.values != "binary" and self.classes is None:
            raise ValueError("classes is missing: give the number of classes, including the background")
        if self.values == "binary" and self.classes not in (None, 2):
            raise ValueError("classes has no effect with values binary, which has two classes; remove it")
        return self

    @property
    def kind(self) -> str:
        """Encoding of the mask pixels: 'index' or 'binary'."""
        return FIXED[self.layout][0] if self.layout in FIXED else self.values or "index"

    @property
    def number(self) -> int:
        """Number of classes C."""
        return FIXED[self.layout][1] if self.layout in FIXED else self.classes or 2


class SegmentLinear(Strict):
    """Train only the head; the backbone is frozen."""

    name: Literal["linear"]


class SegmentFull(Strict):
    """Train the whole backbone."""

    name: Literal["full"]


class SegmentVpt(Strict):
    """Visual prompt tuning (Jia et al. 2022) of a frozen backbone."""

    name: Literal["vpt-shallow", "vpt-deep"]
    prompts: Positive = Field(10, description="prompt tokens per layer")


SegmentTuner = Annotated[SegmentLinear | SegmentFull | SegmentVpt | PmoeConfig, Field(discriminator="name")]


class HeadConfig(Strict):
    """SETR-PUP (Zheng et al. 2021): stages of convolution, norm, ReLU and 2x upsampling, then a 1x1 convolution."""

    channels: Positive = Field(256, description="channels of every stage")
    stages: Positive | None = Field(None, description="number of stages; null = enough to reach the image size (patch 16: 4, patch 8: 3)")


class SegmentConfig(Strict):
    """Training and augmentation."""

    epochs: Positive = 30
    batch_size: Positive = 32
    folds: int = Field(0, ge=0, description="folds of the cross-validation (5 in the paper); 0 = a single split")
    valid_every: Positive = Field(1, description="epochs between validations")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    zoom: tuple[float, float] = Field((1.0, 1.0), description="range of the random zoom; padding is ignored in the loss; (1, 1) = off")
    groups: dict[str, GroupConfig] = Field({}, description="optimizer groups tuner, backbone and head; missing groups have defaults")
    spike: SpikeConfig = SpikeConfig()

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds: cross-validation needs 2 or more; give 0 for a single split")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom: {list(self.zoom)} is not a range; give two increasing numbers above 0, such as [0.5, 2.0]")
        return self


class SegmentEval(Strict):
    """Evaluation on the test images."""

    scales: list[Annotated[float, Field(gt=0, le=8)]] = Field(
        [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], description="relative image sizes of the multi-scale evaluation, each also flipped; [] = off"
    )
    size: Literal["mask", "image"] = Field(
        "mask", description="size at which prediction and mask are compared: that of the mask, or image_size"
    )
    pictures: int = Field(8, ge=0, description="number of test images to draw with their mask and prediction")


class SegmentRecipe(VisionRecipe):
    """A segmentation run (`smat segment`)."""

    kind: Literal["segment"]
    data: SegmentData
    tuner: SegmentTuner = Field(default_factory=PmoeConfig)
    head: HeadConfig = HeadConfig()
    segment: SegmentConfig = SegmentConfig()
    eval: SegmentEval = SegmentEval()
