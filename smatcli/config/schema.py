"""The recipe: every setting of a run with its type, unit and default. Unknown keys are errors."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.finetune import FullConfig, Group, JointConfig, LoraAdaptConfig, Rate, SearchConfig
from smatcli.config.methods import MethodConfig, SmatConfig

Split = Literal["train", "valid", "test", "all"]
Positive = Annotated[int, Field(gt=0)]


class BackboneConfig(Strict):
    """The vision transformer and the source of its weights."""

    name: str = Field("vit_small_patch16_224", description="timm model name")
    args: dict[str, Any] = Field({}, description="keyword arguments of timm.create_model (embed_dim, depth, ...)")
    image_size: Positive = Field(128, description="side of the square input image in pixels; position embeddings are resized to it")
    position_size: Positive | None = Field(
        None, description="imported runs: image size of the position embedding, which is resized at every call; null = image_size"
    )
    weights: str = Field("timm", description="'timm' (needs a network), 'none', a .safetensors or .pth file, or a pretrain run")


class DataConfig(Strict):
    """The datasets of training, validation and meta-test."""

    root: str = Field(description="folder of the stores (one .h5 per dataset)")
    train: list[str] = Field(min_length=1, description="datasets whose training classes are used for training")
    valid: list[str] | None = Field(None, description="validation datasets; null = those of train with enough classes")
    id: list[str] = Field([], description="in-domain datasets of the meta-test, evaluated on their test classes")
    ood: list[str] = Field([], description="out-of-domain datasets of the meta-test")
    ood_split: Split = Field("all", description="out-of-domain datasets: split whose classes are used")
    allow_overlap: bool = Field(
        False, description="accept training datasets, or copies of them, as out-of-domain, with a footnote in tables"
    )

    @model_validator(mode="after")
    def _distinct(self) -> "DataConfig":
        for key in ("train", "valid", "id", "ood"):
            names = getattr(self, key) or []
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"data.{key} names {', '.join(twice)} twice")
        if both := sorted(set(self.id) & set(self.ood)):
            raise ValueError(f"data.id and data.ood both name {', '.join(both)}; a dataset is one or the other")
        if (seen := sorted(set(self.train) & set(self.ood))) and not self.allow_overlap:
            raise ValueError(f"data.train and data.ood both name {', '.join(seen)}; remove it, or set data.allow_overlap=true")
        return self


class EpisodeConfig(Strict):
    """Settings of the episode sampler. A recipe may name a protocol instead (`episode: md-oneshot`); see `smatcli.config.protocols`.

    fixed: N-way K-shot. variable: variable way and shot as in Meta-Dataset, with classes drawn from the whole split. meta-dataset: the
    official protocol; if the store has an ontology, the classes of an episode belong to the same superclass (bilevel) or graph node (dag).
    list: episodes from a file.
    """

    kind: Literal["fixed", "variable", "meta-dataset", "list"] = "fixed"
    ways: int | tuple[int, int] = Field(5, description="fixed: number of classes; a pair (a, b): drawn uniformly from a to b per episode")
    shots: int | tuple[int, int] = Field(5, description="fixed: support images per class; a pair: drawn per episode")
    queries: Positive | Literal["auto"] = Field(
        10,
        description="query images per class. fixed: exact number; auto: up to 10, limited by the smallest class. Others: upper bound",
    )
    min_ways: Positive = Field(5, description="variable, meta-dataset: minimum number of classes")
    max_ways: Positive = Field(50, description="variable, meta-dataset: maximum number of classes")
    max_support: Positive = Field(500, description="variable, meta-dataset: maximum number of support images per episode")
    max_support_per_class: Positive = Field(
        100, description="variable, meta-dataset: maximum number of images per class that count towards the support size"
    )
    balanced: int | tuple[int, int] | None = Field(
        None, description="variable, meta-dataset: same number of support images for each class; a pair: drawn per episode"
    )
    min_images: int = Field(0, ge=0, description="skip classes with fewer images")
    ontology: Literal["both", "dag", "bilevel", "none"] = Field("both", description="meta-dataset: kinds of ontology to use")
    ignore_hierarchy: float = Field(0.0, ge=0, le=1, description="meta-dataset: probability of ignoring the ontology in an episode")
    file: str | None = Field(None, description="list: file of fixed episodes from smat data episodes")


class AugmentConfig(Strict):
    """Training augmentation, computed in batches on the device. Strengths are defined as in torchvision."""

    crop_scale: tuple[float, float] = Field((1.0, 1.0), description="area range of the random resized crop; (1, 1) = off")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    jitter: float = Field(0.0, ge=0, description="strength of the brightness, contrast and saturation jitter")
    grayscale: float = Field(0.0, ge=0, le=1, description="probability of converting to grayscale")
    rotate: float = Field(0.0, ge=0, description="maximum rotation in degrees")
    erase: float = Field(0.0, ge=0, le=1, description="probability of erasing a random rectangle")
    mixup: float = Field(0.0, ge=0, description="Beta parameter of mixup (pretrain only); 0 = off")


class GroupConfig(Strict):
    """An optimizer group: its optimizer, learning rate and schedule."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    clip: float | None = Field(None, gt=0, description="maximum gradient norm of the group; null = no clipping")
    schedule: Literal["constant", "cosine", "linear"] = Field("cosine", description="schedule after the warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="fraction of the steps in which the learning rate increases linearly")


class SpikeConfig(Strict):
    """Which updates are skipped and counted: those whose loss or gradient is not finite and, with `factor`, spikes of the loss."""

    factor: float | None = Field(
        None,
        gt=0,
        description="a loss is a spike if it exceeds the median of the last losses by more than this many deviations "
        "(1.4826 x median absolute deviation), e.g. 20; null = off",
    )
    window: Positive = Field(100, description="number of last losses from which the median and the deviation are computed")
    in_a_row: Positive = Field(5, description="number of consecutive skipped updates after which the run fails with exit code 1")


class TrainConfig(Strict):
    """Meta-training."""

    steps: int = Field(ge=0, description="optimizer updates")
    meta_batch: Positive = Field(1, description="tasks per update")
    augment: AugmentConfig = AugmentConfig()
    valid_every: Positive = Field(100, description="updates between validations")
    valid_episodes: Positive = Field(30, description="fixed validation episodes per dataset")
    checkpoint_every: Positive = Field(100, description="updates between checkpoints (checkpoints/last)")
    keep_every: Positive | None = Field(None, description="updates between permanent checkpoints (step-N); null = none")
    spike: SpikeConfig = SpikeConfig()
    groups: dict[str, GroupConfig] = Field({}, description="optimizer groups by name; default: the method's")
    shard_optimizer: bool = Field(
        False, description="shard the optimizer states of large parameters over processes (torchrun); results do not change"
    )
    compile: bool = Field(False, description="compile the transformer block (torch.compile); episodes are padded to a few sizes")
    checkpoint_activations: bool | Literal["auto", "cheap"] = Field(
        "auto",
        description="activations to recompute in backward: true = those of whole blocks (least memory, a fifth more time); cheap = only "
        "the outputs of norms and activation functions; auto = cheap for a plain ViT that is not compiled; false = none",
    )
    chunk: Positive | None = Field(
        None, description="number of images to embed at a time (recomputed in backward), which limits the memory; null = all"
    )
    cache_frozen: bool = Field(
        False, description="cache the support features of the pre-trained model by image; requires training without augmentation"
    )

    @model_validator(mode="after")
    def _cache_is_read(self) -> Self:
        if self.cache_frozen and self.augment != AugmentConfig():
            raise ValueError("cache_frozen has no effect with train.augment, which changes every image; remove one of them")
        return self


class EvalConfig(Strict):
    """Meta-test."""

    episodes: Positive = Field(600, description="episodes per dataset")
    episode: EpisodeConfig = EpisodeConfig()
    adapt: list[str] = Field(["proto"], description="adaptations by name")
    seed: int = Field(0, ge=0, description="seed of the episodes: equal seeds give paired episodes")
    cache_features: bool = Field(
        True, description="embed each image only once while the parameters do not change; results agree up to rounding"
    )


class FlipConfig(Strict):
    """Algorithm 2: gradient-free search over binary merging scores."""

    rounds: Positive = Field(2, description="R: passes over the experts")
    rho: float = Field(0.0, ge=0, description="acceptance threshold: keep a flip if it lowers the loss by more than rho")
    loss: Literal["support", "leave-one-out", "augmented"] = Field(
        "support", description="loss on the support images, leave-one-out, or on augmented copies"
    )
    copies: Positive = Field(1, description="augmented: number of copies per support image")

    @model_validator(mode="after")
    def _copies_are_read(self) -> Self:
        if self.copies != 1 and self.loss != "augmented":
            raise ValueError(f"copies has no effect with loss {self.loss}; remove it or use loss augmented")
        return self


class ExhaustiveConfig(FlipConfig):
    """Exhaustive search over all 2^M binary scores with the loss of `flip`. `rounds` and `rho` are those of the compared flip search."""


class DipaConfig(Strict):
    """Scales and shifts of the features of the last blocks, tuned with the proxy-anchor loss (Perera & Halgamuge, CVPR 2024)."""

    lr: Rate | None = Field(5e-3, description="learning rate of scales and shifts (NAdam); null = searched (adapt.search)")
    anchor_lr: Rate = Field(5.0, description="learning rate of the anchors (NAdam)")
    steps: int = Field(80, gt=0)
    blocks: Positive = Field(
        9, description="number of last blocks to scale and shift; the authors use 7 of 12 in domain and 9 of 12 out of domain"
    )
    fuse: Positive = Field(4, description="number of last blocks whose class tokens are concatenated")
    margin: float = Field(0.1, ge=0, description="delta of the proxy-anchor loss")
    sharpness: float = Field(32.0, gt=0, description="alpha of the proxy-anchor loss")
    anchors: Literal["class-means", "random"] = Field("class-means", description="initial anchors: class means, or N(0, 2 / ways)")
    batch: int = Field(1024, gt=0, description="larger support sets are embedded in parts, each part twice, which saves memory")
    trajectory: bool = Field(False, description="record the query accuracy after every step; never used for selection")


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


class RunRecipe(Strict):
    """Settings that every kind of run has."""

    run: str = Field(description="run directory to create")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="auto: chosen by device and backbone width, and printed; tf32: CUDA only; fp32: without TF32"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null = all cores")
    track: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="trackers that receive a copy of metrics.jsonl (need optional extras)"
    )
    deterministic: bool = Field(False, description="use only deterministic algorithms: bit-identical results on one device; slower")


class VisionRecipe(RunRecipe):
    """The settings of all recipes with a vision transformer."""

    backbone: BackboneConfig = BackboneConfig()


class TrainRecipe(VisionRecipe):
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
    split: dict[str, Split] = Field({}, description="split of the classes to use, per dataset; default: train")
    holdout: float = Field(0.05, gt=0, lt=1, description="fraction of the images of each class held out for validation")


class PretrainConfig(Strict):
    """Settings of the supervised training of a cosine classifier."""

    epochs: float = Field(gt=0)
    batch_size: Positive = 128
    optimizer: GroupConfig = GroupConfig(lr=1e-3, weight_decay=0.05, clip=1.0)
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(feature, class weight)")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    augment: AugmentConfig = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, mixup=0.2)
    valid_every: Positive = Field(1, description="epochs between validations")
    spike: SpikeConfig = SpikeConfig()


class PretrainRecipe(VisionRecipe):
    """A supervised pre-training run (`smat pretrain`)."""

    kind: Literal["pretrain"]
    data: PretrainData
    pretrain: PretrainConfig

    @model_validator(mode="after")
    def _split_names(self) -> "PretrainRecipe":
        names = self.data.datasets
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"data.datasets names {', '.join(twice)} twice")
        unknown = set(self.data.split) - set(self.data.datasets)
        if unknown:
            raise ValueError(f"data.split names datasets that are not in data.datasets: {', '.join(sorted(unknown))}")
        return self


Recipe = Annotated[TrainRecipe | PretrainRecipe, Field(discriminator="kind")]
