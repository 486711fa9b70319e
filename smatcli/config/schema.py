"""The recipe: every setting of a run, typed, with its unit and its default (`extra="forbid"` everywhere)."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.finetune import FullConfig, Group, JointConfig, LoraAdaptConfig, Rate, SearchConfig
from smatcli.config.methods import MethodConfig, SmatConfig

Split = Literal["train", "valid", "test", "all"]
Positive = Annotated[int, Field(gt=0)]


class BackboneConfig(Strict):
    """Which vision transformer, and where its weights come from."""

    name: str = Field("vit_small_patch16_224", description="timm model name")
    args: dict[str, Any] = Field({}, description="keyword arguments of timm.create_model (embed_dim, depth, ...)")
    image_size: Positive = Field(128, description="side of the square input image, pixels; embeddings are resized to it")
    position_size: Positive | None = Field(
        None, description="image size of the position embedding, stretched to image_size at every call (imported runs); null = equal"
    )
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
    """How one episode is drawn; in a recipe also the name of a protocol (`episode: md-oneshot`), see `smatcli.config.protocols`.

    fixed: N-way K-shot. variable: Meta-Dataset's variable way and shot over all classes of a split. meta-dataset: the same by the official
    protocol, whose classes come from one superclass (bilevel) or graph node (dag) where the store has such an ontology. list: from a file.
    """

    kind: Literal["fixed", "variable", "meta-dataset", "list"] = "fixed"
    ways: int | tuple[int, int] = Field(5, description="fixed: classes; a pair (a, b) is drawn uniformly, inclusive")
    shots: int | tuple[int, int] = Field(5, description="fixed: support images a class; a pair is drawn per episode")
    queries: Positive | Literal["auto"] = Field(
        10,
        description="fixed: query images a class, auto: up to 10, what the smallest class leaves; else: upper bound (Meta-Dataset: 10)",
    )
    min_ways: Positive = Field(5, description="variable, meta-dataset: fewest classes")
    max_ways: Positive = Field(50, description="variable, meta-dataset: most classes")
    max_support: Positive = Field(500, description="variable, meta-dataset: most support images of an episode")
    max_support_per_class: Positive = Field(100, description="variable, meta-dataset: cap of one class's share of the support size")
    balanced: int | tuple[int, int] | None = Field(
        None, description="variable, meta-dataset: support images of every class instead of uneven ones; a pair is drawn per episode"
    )
    min_images: int = Field(0, ge=0, description="classes with fewer images are left out")
    ontology: Literal["both", "dag", "bilevel", "none"] = Field("both", description="meta-dataset: kinds of ontology that are honoured")
    ignore_hierarchy: float = Field(0.0, ge=0, le=1, description="meta-dataset: probability that an episode ignores the ontology")
    file: str | None = Field(None, description="list: file of fixed episodes, written by smat data episodes")


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


class SpikeConfig(Strict):
    """Updates that are left out and counted: a loss or gradient that is not finite (always), or a spike of the loss (if asked for)."""

    factor: float | None = Field(
        None,
        gt=0,
        description="a loss more than this many deviations (1.4826 x median absolute deviation) above the median of the last ones is a "
        "spike, e.g. 20; null = none is, so that every finite loss is learned from",
    )
    window: Positive = Field(100, description="losses that the median and the deviation are taken of")
    in_a_row: Positive = Field(5, description="updates left out one after the other at which the run stops with exit code 1")


class TrainConfig(Strict):
    """Meta-training."""

    steps: int = Field(ge=0, description="optimizer updates")
    meta_batch: Positive = Field(1, description="tasks an update")
    augment: AugmentConfig = AugmentConfig()
    valid_every: Positive = Field(100, description="updates between validations")
    valid_episodes: Positive = Field(30, description="fixed validation episodes a dataset")
    checkpoint_every: Positive = Field(100, description="updates between checkpoints (last)")
    keep_every: Positive | None = Field(None, description="updates between checkpoints that are kept for good (step-N); null = none")
    spike: SpikeConfig = SpikeConfig()
    groups: dict[str, GroupConfig] = Field({}, description="optimizer groups by name; missing ones take the method's")
    shard_optimizer: bool = Field(
        False, description="several processes (torchrun) split the optimizer states of large parameters; the result is the same"
    )
    compile: bool = Field(False, description="compile the transformer block (torch.compile); episodes are padded to few sizes")
    checkpoint_activations: bool | Literal["auto", "cheap"] = Field(
        "auto",
        description="make activations again in backward: true = all of each block (least memory, a fifth more time); cheap = what norms "
        "and activation functions make; auto = cheap where the network is a plain ViT that is not compiled; false = none",
    )
    chunk: Positive | None = Field(
        None, description="images embedded at a time, made again in backward: memory no longer grows with the episode; null = all"
    )
    cache_frozen: bool = Field(
        False, description="keep the pre-trained model's support features of images that come again (no augmentation)"
    )

    @model_validator(mode="after")
    def _cache_is_read(self) -> Self:
        if self.cache_frozen and self.augment != AugmentConfig():
            raise ValueError("cache_frozen is not read with train.augment, where no image comes twice; remove one of them")
        return self


class EvalConfig(Strict):
    """Meta-test."""

    episodes: Positive = Field(600, description="episodes a dataset")
    episode: EpisodeConfig = EpisodeConfig()
    adapt: list[str] = Field(["proto"], description="adaptations by name")
    seed: int = Field(0, ge=0, description="the episodes' seed: equal seeds give paired episodes")
    cache_features: bool = Field(
        True, description="embed an image that comes again once where its parameters stay the same; equal up to rounding"
    )


class FlipConfig(Strict):
    """Algorithm 2, the gradient-free search over binary merging scores."""

    rounds: Positive = Field(2, description="R: passes over the experts")
    rho: float = Field(0.0, ge=0, description="acceptance: a flip is kept if it lowers the loss by more than rho")
    loss: Literal["support", "leave-one-out", "augmented"] = Field(
        "support", description="on the support images, without the image in question, or on augmented copies of them"
    )
    copies: Positive = Field(1, description="augmented: copies of every support image")

    @model_validator(mode="after")
    def _copies_are_read(self) -> Self:
        if self.copies != 1 and self.loss != "augmented":
            raise ValueError(f"copies is not read with loss {self.loss}; remove it or use loss augmented")
        return self


class ExhaustiveConfig(FlipConfig):
    """All 2^M binary scores by the loss of `flip`; rounds and rho are those of the flip that is compared with them."""


class DipaConfig(Strict):
    """Scale and shift of the last blocks' features, tuned by the proxy-anchor loss (Perera & Halgamuge, CVPR 2024)."""

    lr: Rate | None = Field(5e-3, description="rate of scales and shifts (NAdam): the authors'; null = searched (adapt.search)")
    anchor_lr: Rate = Field(5.0, description="rate of the anchors (NAdam)")
    steps: int = Field(80, gt=0)
    blocks: Positive = Field(9, description="last blocks that are scaled and shifted; the authors: 7 in-domain, 9 out-of-domain, of 12")
    fuse: Positive = Field(4, description="last blocks whose class tokens are concatenated to the feature")
    margin: float = Field(0.1, ge=0, description="delta of the proxy-anchor loss")
    sharpness: float = Field(32.0, gt=0, description="alpha of the proxy-anchor loss")
    anchors: Literal["class-means", "random"] = Field("class-means", description="first anchors: class means, or N(0, 2 / ways)")
    batch: int = Field(1024, gt=0, description="more support images than these are embedded in parts, twice each: less memory")
    trajectory: bool = Field(False, description="record the query accuracy after every step; never used for choosing")


class AdaptConfig(Strict):
    """Settings of the meta-test adaptations, by name."""

    flip: FlipConfig = FlipConfig()
    full: FullConfig = FullConfig()
    lora: LoraAdaptConfig = LoraAdaptConfig()
    joint: JointConfig = JointConfig()
    search: SearchConfig = SearchConfig()
    group: Group = "auto"
    exhaustive: ExhaustiveConfig = ExhaustiveConfig()
    dipa: DipaConfig = DipaConfig()


class _Run(Strict):
    run: str = Field(description="run directory that is made")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="auto: by device and width, printed; tf32: CUDA only; fp32 means no TF32"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null = all cores")
    track: list[Literal["tensorboard", "wandb"]] = Field([], description="mirrors of metrics.jsonl: tensorboard, wandb (optional extras)")
    deterministic: bool = Field(False, description="only algorithms that give equal bits twice on one device; slower")
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
    spike: SpikeConfig = SpikeConfig()


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
