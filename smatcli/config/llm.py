"""The recipe of `smat llm train`: a causal language model, instruction data, and how it is upcycled and trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.methods import MaskConfig
from smatcli.config.schema import GroupConfig, Positive, RunRecipe, SpikeConfig

Count = Annotated[int, Field(gt=0, le=10**9)]
Width = Annotated[int, Field(gt=0, le=2**16)]
Temperature = Annotated[float, Field(gt=0, le=1000)]


class RowMaskConfig(MaskConfig):
    """Hard-concrete masks over the rows of the layers."""

    kind: Literal["learned"] = "learned"
    group: Literal["output"] = Field("output", description="a mask entry switches an output feature of a layer")


class PromptRouterConfig(Strict):
    """Router: frozen features of the prompt -> a hidden layer -> scores of the experts."""

    features: Literal["last", "embedding"] = Field("last", description="hidden states of the base model that are averaged over the prompt")
    hidden: Width = Field(128, description="width of the hidden layer")
    scores: Literal["softmax", "gumbel-sigmoid"] = Field("softmax", description="softmax(logits / T), or Gumbel-sigmoid scores normalised")
    temperature: tuple[Temperature, Temperature] = Field((1.0, 1.0), description="first and last temperature T, linear over the training")


class OrthogonalityConfig(Strict):
    """Penalty on the overlap of the experts' masks: || Z Z^T - I ||."""

    weight: float = Field(0.1, ge=0, le=1e6, description="0 = no penalty")
    norm: Literal["frobenius", "spectral"] = "frobenius"
    of: Literal["expected", "sampled"] = Field("expected", description="probabilities that a gate is open, or the gates of the update")
    rows: Literal["unit", "none"] = Field("unit", description="unit: each expert's mask has length 1; none: as the formula is printed")


class LlmSparsityConfig(Strict):
    """Constraint on the share of zeros of the masks, by a Lagrangian."""

    tau: float = Field(0.75, ge=0, lt=1, description="target share of zeros; 0 = no constraint")
    scope: Literal["each", "all", "union"] = Field(
        "all", description="each expert by itself, the stacked masks (paper), or the rows that any expert keeps"
    )
    count: Literal["parameters", "entries"] = Field("parameters", description="zeros counted by parameters, or by mask entries")
    warmup: float = Field(0.3, ge=0, le=1, description="share of the updates in which tau rises linearly from 0")
    lr: float = Field(0.02, gt=0, le=1e6, description="rate of the gradient ascent on the multipliers")
    reset: bool = Field(True, description="multiplier back to 0 when its constraint holds")


class SimoeConfig(Strict):
    """SIMoE: sparse interpolated experts in every linear layer and norm of the decoder layers."""

    name: Literal["simoe"] = "simoe"
    experts: Positive = Field(8, le=256)
    upcycle: Literal["all", "ffn", "attention", "norms"] = "all"
    masks: RowMaskConfig = RowMaskConfig()
    router: PromptRouterConfig = PromptRouterConfig()
    sparsity: LlmSparsityConfig = LlmSparsityConfig()
    orthogonality: OrthogonalityConfig = OrthogonalityConfig()


class LlmFullConfig(Strict):
    """Full fine-tuning of all weights."""

    name: Literal["full"] = "full"


class LlmLoraConfig(Strict):
    """LoRA (Hu et al., 2022) on every linear layer of the decoder layers, by `peft`."""

    name: Literal["lora"] = "lora"
    rank: Positive = Field(16, le=4096)
    scale: float = Field(2.0, gt=0, le=1e6, description="alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)


class UpcycleConfig(Strict):
    """Sparse upcycling (Komatsuzaki et al., 2023): copies of the feed-forward layers, top-k of them per token."""

    name: Literal["upcycle"] = "upcycle"
    experts: Positive = Field(4, le=256)
    top: Positive = Field(2, le=256, description="experts per token")
    balance: float = Field(0.01, ge=0, le=1e6, description="weight of the load-balancing loss")


class SoftMergeLlmConfig(Strict):
    """Soft merging (SMEAR; Muqeeth et al., 2024): copies of the feed-forward layers, averaged by scores of the prompt."""

    name: Literal["softmerge"] = "softmerge"
    experts: Positive = Field(4, le=256)
    router: PromptRouterConfig = PromptRouterConfig()


LlmMethodConfig = Annotated[SimoeConfig | LlmFullConfig | LlmLoraConfig | UpcycleConfig | SoftMergeLlmConfig, Field(discriminator="name")]


class LlmModel(Strict):
    """The base model: a transformers folder, or a tiny Llama that is pre-trained first."""

    path: str | None = Field(None, description="folder of a transformers model with its tokenizer; null = the tiny Llama below")
    hidden: Width = Field(192, description="tiny Llama: width")
    layers: Positive = Field(4, le=1000, description="tiny Llama: decoder layers")
    heads: Positive = Field(6, le=1024, description="tiny Llama: attention heads")
    pretrain_steps: int = Field(0, ge=0, le=10**9, description="tiny Llama: updates of its pre-training, on text in the form of the tasks")
    pretrain_lr: float = Field(1e-3, gt=0, le=1, description="tiny Llama: peak learning rate of its pre-training")

    @model_validator(mode="after")
    def _tiny(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden: {self.hidden} cannot be split into {self.heads} heads of even width; choose a multiple of {2 * self.heads}"
            )
        given = sorted(self.model_fields_set - {"path"})
        if self.path is not None and any(getattr(self, key) != type(self).model_fields[key].default for key in given):
            raise ValueError(f"path: {self.path} is used as it is; remove {', '.join(given)}, which are for the tiny Llama")
        return self


class LlmData(Strict):
    """Instruction rows for training, validation and the held-out test."""

    train: str = Field(description="prepared folder, .jsonl file, folder of task files, or `synthetic`")
    heldout: str | None = Field(None, description="rows of held-out categories, for `smat llm eval`")
    valid: Count = Field(200, description="training rows that are set aside for validation, drawn by the seed")
    limit: Count | None = Field(None, description="most rows of data.train that are used, drawn by the seed; null = all")
    per_category: Positive = Field(400, le=10**6, description="synthetic: examples per category")
    template: Literal["auto", "chat", "plain"] = Field("auto", description="chat: the tokenizer's chat template; auto: where it has one")
    context: Positive = Field(512, le=2**24, description="most tokens of an example")
    too_long: Literal["refuse", "drop", "truncate-prompt-left"] = Field(
        "refuse", description="examples with more tokens than context; an answer is never cut"
    )


class LlmTrain(Strict):
    """Optimisation."""

    steps: Count = 1000
    batch: Positive = Field(16, le=2**20, description="examples per update")
    row: Positive = Field(2048, le=2**24, description="most tokens of a forward pass; an update takes as many passes as it needs")
    packing: Literal["auto", "on", "off"] = Field("auto", description="whole examples packed into rows; auto: where a start-up test passes")
    valid_every: Count = 200
    checkpoint_every: Count = 200
    keep_every: Count | None = Field(None, description="checkpoints step-N that are never removed, every so many updates; null = none")
    groups: dict[str, GroupConfig] = Field({}, description="optimizer groups by name: delta, masks, router, multipliers")
    spike: SpikeConfig = SpikeConfig()


class LlmEval(Strict):
    """What `smat llm eval` measures on the held-out rows."""

    examples: Count = Field(25, description="most examples per task, the first ones of the file")
    generate: bool = Field(True, description="also generate answers, for exact match and ROUGE-L")
    tokens: Positive = Field(64, le=2**16, description="most tokens of a generated answer")
    batch: Positive = Field(16, le=2**16, description="prompts that are answered side by side")


class LlmRecipe(RunRecipe):
    """A run of `smat llm train`."""

    kind: Literal["llm"]
    model: LlmModel = LlmModel()
    data: LlmData
    method: LlmMethodConfig = Field(default_factory=SimoeConfig)
    train: LlmTrain = LlmTrain()
    eval: LlmEval = LlmEval()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train.row < self.data.context:
            raise ValueError(
                f"train.row: {self.train.row} tokens are fewer than data.context ({self.data.context}); an example could not fit a row"
            )
        if self.method.name == "upcycle" and self.method.top > self.method.experts:
            raise ValueError(
                f"method.top: {self.method.top} experts per token of {self.method.experts}; choose at most {self.method.experts}"
            )
        return self
