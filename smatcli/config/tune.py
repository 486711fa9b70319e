"""The recipe of `smat tune`: a dataset, a tuner, and the settings of search, training and test."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.schema import AugmentConfig, GroupConfig, Positive, SpikeConfig, VisionRecipe
from smatcli.config.tuning import MlaeConfig, TunerConfig


class TuneData(Strict):
    """The dataset and its images for training, validation and test."""

    root: str = Field(description="folder of the stores (one .h5 per dataset)")
    dataset: str = Field(description="name of the store")
    split: Literal["auto", "store", "counted"] = Field(
        "auto",
        description="store: the image split of the store; counted: a random split with the sizes below; auto: store if it has a split",
    )
    train: Positive = Field(800, description="counted: number of training images")
    valid: int = Field(200, ge=0, description="counted: number of validation images")
    test: Positive | None = Field(None, description="counted: maximum number of test images; null = all remaining images")
    split_seed: int = Field(0, ge=0, description="counted: seed of the split, independent of the run's seed")
    fit: Literal["train+valid", "train"] = Field(
        "train+valid", description="images of the final training: training and validation images (VTAB-1k: 1,000), or only training"
    )

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Self:
        for key in ("train", "valid", "test", "split_seed"):
            if self.split == "store" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with split store; remove it")
        return self


class TuneSearchConfig(Strict):
    """Grid search: train on the training images, select on the validation images, then train and test with the best values.

    A value whose list is empty is not searched.
    """

    lr: list[Annotated[float, Field(gt=0)]] = Field([], description="learning rates (tune.lr)")
    p: list[Annotated[float, Field(ge=0, lt=1)]] = Field([], description="mlae: dropout probability of an expert")
    init: list[float] = Field([], description="mlae: initial value of the coefficients")
    epochs: float | None = Field(None, gt=0, description="epochs of a trial; null = tune.epochs")

    @property
    def axes(self) -> dict[str, list[float]]:
        """The values of each axis of the grid, by recipe key."""
        keys = {"tune.lr": self.lr, "tuner.p": self.p, "tuner.init": self.init}
        return {key: values for key, values in keys.items() if values}


class TuneConfig(Strict):
    """Settings of the training on a dataset."""

    epochs: float = Field(100.0, gt=0)
    batch_size: Positive = 64
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float | None = Field(None, gt=0, description="peak learning rate; null = the tuner's default (see LEARNING)")
    head_lr: float | None = Field(None, gt=0, description="peak learning rate of the head; null = lr")
    weight_decay: float | None = Field(None, ge=0, description="weight decay; null = the tuner's default")
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    schedule: Literal["constant", "cosine", "linear"] = Field("cosine", description="schedule after the warm-up")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps in which the learning rate increases linearly")
    clip: float | None = Field(None, gt=0, description="maximum gradient norm of a group; null = no clipping")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: AugmentConfig = Field(AugmentConfig(), description="VTAB: none; FGVC: crop_scale [0.08, 1] and flip 0.5")
    normalise: Literal["imagenet", "half"] = Field("imagenet", description="mean and standard deviation of ImageNet, or (x - 0.5) / 0.5")
    centre: float = Field(1.0, gt=0, le=1, description="centre crop of validation and test images, as a fraction of the side; FGVC: 0.875")
    metric: Literal["accuracy", "auc", "per-class"] = Field("accuracy", description="metric of validation and search; all are measured")
    select: Literal["last", "best"] = Field("last", description="weights to test; best (by validation) requires data.fit train")
    valid_every: Positive = Field(10, description="epochs between validations")
    memory: float = Field(2.0, ge=0, description="size in GiB of the cache of images or frozen features on the device")
    merged: bool = Field(False, description="also write the merged network with its head (names as in timm) to RUN/merged.safetensors")
    spike: SpikeConfig = SpikeConfig()
    search: TuneSearchConfig = TuneSearchConfig()

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum has no effect with optimizer {self.optimizer}; remove it")
        if self.augment.mixup:
            raise ValueError("augment.mixup is only for pre-training; set it to 0")
        return self


class TuneRecipe(VisionRecipe):
    """A tuning run on a dataset (`smat tune`). Suites set data.dataset."""

    kind: Literal["tune"]
    data: TuneData
    tuner: TunerConfig = Field(default_factory=MlaeConfig, discriminator="name")
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tune.select == "best" and self.data.fit != "train":
            raise ValueError("tune.select best needs validation images that are not used for training; set data.fit to train")
        searched = [key for key in ("p", "init") if getattr(self.tune.search, key)]
        if searched and self.tuner.name != "mlae":
            raise ValueError(f"tune.search.{searched[0]} is only for mlae, but the tuner is {self.tuner.name}; remove it")
        if "p" in searched and isinstance(self.tuner, MlaeConfig) and self.tuner.mask not in ("stochastic", "mixed"):
            raise ValueError(f"tune.search.p has no effect with tuner.mask {self.tuner.mask}; remove it")
        return self


# Default learning rate and weight decay. MLAE: Wang et al. 2024; pMoE: Mo et al. 2026. The others are common values, to be tuned.
LEARNING: dict[str, tuple[float, float]] = {
    "linear": (1e-3, 1e-4),
    "full": (1e-4, 1e-4),
    "bias": (1e-3, 1e-4),
    "lora": (5e-4, 1e-4),
    "adapter": (1e-3, 1e-4),
    "adaptformer": (1e-3, 1e-4),
    "vpt-shallow": (5e-3, 1e-4),
    "vpt-deep": (5e-3, 1e-4),
    "gapt": (5e-3, 1e-4),
    "ssf": (1e-3, 1e-4),
    "mlae": (5e-4, 1e-4),
    "pmoe": (1e-4, 1e-5),
}


def groups_of(recipe: TuneRecipe) -> dict[str, GroupConfig]:
    """Return the optimizer settings of the groups `tuner` and `head`."""
    tune = recipe.tune
    rate, decay = LEARNING[recipe.tuner.name]
    lr = rate if tune.lr is None else tune.lr
    decay = decay if tune.weight_decay is None else tune.weight_decay
    shared: dict[str, Any] = {"optimizer": tune.optimizer, "weight_decay": decay, "momentum": tune.momentum, "schedule": tune.schedule}
    shared |= {"warmup": tune.warmup, "clip": tune.clip}
    return {"tuner": GroupConfig(lr=lr, **shared), "head": GroupConfig(lr=tune.head_lr or lr, **shared)}
