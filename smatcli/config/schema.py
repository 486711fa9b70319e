"""The recipe: every setting of a run, typed, with its unit and its default (`extra="forbid"` everywhere)."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.methods import MethodConfig, SmatConfig

Split = Literal["train", "valid", "test", "all"]
Positive = Annotated[int, Field(gt=0)]


class BackboneConfig(Strict):
    """Which vision transformer, and where its weights come from."""

    name: str = Field("vit_small_patch16_224", description="timm model name")
    args: dict[str, Any] = Field({}, description="keyword arguments of timm.create_model (embed_dim, depth, ...)")
    image_size: Positive = Field(128, description="side of the square input image, pixels; embeddings are resized to it")
    weights: str = Field("timm", description="'timm' (needs network), 'none', a .safetensors/.pth file, or a pretrain run")


class DataConfig(Strict):
    """Which stores play which part."""

    root: str = Field(description="folder of the stores (one .h5 per dataset)")
    train: list[str] = Field(min_length=1, description="datasets whose training classes are learned from")
    valid: list[str] | None = Field(None, description="datasets validated on; default: those of train with enough classes")
    id: list[str] = Field([], description="datasets meta-tested as in-domain, on their test classes")
    ood: list[str] = Field([], description="datasets meta-tested as out-of-domain")
    ood_split: Split = Field("all", description="classes of the out-of-domain datasets that are used")


class EpisodeConfig(Strict):
    """How one episode is drawn: fixed N-way K-shot, or Meta-Dataset's variable way and shot."""

    kind: Literal["fixed", "variable"] = "fixed"
    ways: int | tuple[int, int] = Field(5, description="fixed: classes; a pair (a, b) is drawn uniformly, inclusive")
    shots: int | tuple[int, int] = Field(5, description="fixed: support images a class; a pair is drawn per episode")
    queries: Positive = Field(10, description="fixed: query images a class; variable: upper bound (Meta-Dataset: 10)")
    min_ways: Positive = Field(5, description="variable: fewest classes")
    max_ways: Positive = Field(50, description="variable: most classes")
    max_support: Positive = Field(500, description="variable: most support images of an episode")
    max_support_per_class: Positive = Field(100, description="variable: cap of one class's share of the support size")


class AugmentConfig(Strict):
    """Training augmentation, batched on the device. Probabilities in [0, 1], strengths as in torchvision."""

    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="area range of the random resized crop; (1, 1) = off")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.0, ge=0, description="brightness, contrast and saturation jitter strength")
    grayscale: float = Field(0.0, ge=0, le=1, description="probability of losing the colours")
    rotate: float = Field(0.0, ge=0, description="largest rotation, degrees")
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing a random rectangle")
    mixup: float = Field(0.0, ge=0, description="Beta parameter of mixup (pretrain only); 0 = off")


class GroupConfig(Strict):
    """One optimizer group."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    clip: float | None = Field(None, gt=0, description="largest gradient norm of the group; null = no clipping")
    schedule: Literal["constant", "cosine", "linear"] = Field("cosine", description="after the warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with a linearly rising rate")


class TrainConfig(Strict):
    """Meta-training."""

    steps: int = Field(ge=0, description="optimizer updates")
    meta_batch: Positive = Field(1, description="tasks an update")
    augment: AugmentConfig = AugmentConfig()
    valid_every: Positive = Field(100, description="updates between validations")
    valid_episodes: Positive = Field(30, description="fixed validation episodes a dataset")
    checkpoint_every: Positive = Field(100, description="updates between checkpoints")
    groups: dict[str, GroupConfig] = Field({}, description="optimizer groups by name; missing ones take the method's")


class EvalConfig(Strict):
    """Meta-test."""

    episodes: Positive = Field(600, description="episodes a dataset")
    episode: EpisodeConfig = EpisodeConfig()
    adapt: list[str] = Field(["proto"], description="adaptations by name")
    seed: int = Field(0, ge=0, description="the episodes' seed: equal seeds give paired episodes")


class FlipConfig(Strict):
    """Algorithm 2, the gradient-free search over binary merging scores."""

    rounds: Positive = Field(2, description="R: passes over the experts")
    rho: float = Field(0.0, ge=0, description="acceptance: a flip is kept if it lowers the loss by more than rho")
    loss: Literal["support", "leave-one-out"] = "support"


class AdaptConfig(Strict):
    """Settings of the meta-test adaptations, by name."""

    flip: FlipConfig = FlipConfig()


class _Run(Strict):
    run: str = Field(description="run directory that is made")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: by device and width, printed")
    threads: int | None = Field(None, gt=0, description="CPU threads; null = all cores")
    backbone: BackboneConfig = BackboneConfig()


class TrainRecipe(_Run):
    """A meta-training run and its meta-test (`smat train`, `smat eval`, `smat sweep`)."""

    kind: Literal["train"]
    data: DataConfig
    method: MethodConfig = Field(default_factory=SmatConfig, discriminator="name")
    episode: EpisodeConfig = EpisodeConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    adapt: AdaptConfig = AdaptConfig()


class PretrainData(Strict):
    """Stores and classes of supervised pre-training."""

    root: str
    datasets: list[str] = Field(min_length=1)
    split: dict[str, Split] = Field({}, description="classes used, per dataset; default 'train'")
    holdout: float = Field(0.05, gt=0, lt=1, description="share of each class's images held out for validation")


class PretrainConfig(Strict):
    """Supervised cosine-classifier training."""

    epochs: float = Field(gt=0)
    batch_size: Positive = 128
    optimizer: GroupConfig = GroupConfig(lr=1e-3, weight_decay=0.05, clip=1.0)
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(feature, class weight)")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    augment: AugmentConfig = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, mixup=0.2)
    valid_every: Positive = Field(1, description="epochs between validations")


class PretrainRecipe(_Run):
    """A supervised pre-training run (`smat pretrain`)."""

    kind: Literal["pretrain"]
    data: PretrainData
    pretrain: PretrainConfig

    @model_validator(mode="after")
    def _split_names(self) -> "PretrainRecipe":
        unknown = set(self.data.split) - set(self.data.datasets)
        if unknown:
            raise ValueError(f"data.split names datasets that data.datasets does not: {', '.join(sorted(unknown))}")
        return self


Recipe = Annotated[TrainRecipe | PretrainRecipe, Field(discriminator="kind")]
