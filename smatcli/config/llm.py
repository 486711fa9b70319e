"""The recipe of `smat llm train`: a causal language model, instruction data, and how it is upcycled and trained."""

from typing import Annotated, Literal

from pydantic import Field

from smatcli.config.base import Strict
from smatcli.config.methods import MaskConfig
from smatcli.config.schema import Positive


class PromptRouterConfig(Strict):
    """Router: frozen features of the prompt -> a hidden layer -> scores of the experts."""

    features: Literal["last", "embedding"] = Field("last", description="hidden states of the base model that are averaged over the prompt")
    hidden: Positive = Field(128, description="width of the hidden layer")
    scores: Literal["softmax", "gumbel-sigmoid"] = Field("softmax", description="softmax(logits / T), or Gumbel-sigmoid scores normalised")
    temperature: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (1.0, 1.0), description="first and last temperature T, linear over the training"
    )


class OrthogonalityConfig(Strict):
    """Penalty on the overlap of the experts' masks: || Z Z^T - I ||."""

    weight: float = Field(0.1, ge=0, description="0 = no penalty")
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
    lr: float = Field(0.02, gt=0, description="rate of the gradient ascent on the multipliers")
    reset: bool = Field(True, description="multiplier back to 0 when its constraint holds")


class SimoeConfig(Strict):
    """SIMoE: sparse interpolated experts in every linear layer and norm of the decoder layers."""

    name: Literal["simoe"] = "simoe"
    experts: Positive = Field(8, le=256)
    upcycle: Literal["all", "ffn", "attention", "norms"] = "all"
    masks: MaskConfig = MaskConfig(group="output")
    router: PromptRouterConfig = PromptRouterConfig()
    sparsity: LlmSparsityConfig = LlmSparsityConfig()
    orthogonality: OrthogonalityConfig = OrthogonalityConfig()


class FullConfig(Strict):
    """Full fine-tuning of all weights."""

    name: Literal["full"] = "full"


class LlmLoraConfig(Strict):
    """LoRA (Hu et al., 2022) on every linear layer of the decoder layers, by `peft`."""

    name: Literal["lora"] = "lora"
    rank: Positive = Field(16, le=4096)
    scale: float = Field(2.0, gt=0, description="alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)


class UpcycleConfig(Strict):
    """Sparse upcycling (Komatsuzaki et al., 2023): copies of the feed-forward layers, top-k of them per token."""

    name: Literal["upcycle"] = "upcycle"
    experts: Positive = Field(4, le=256)
    top: Positive = Field(2, description="experts per token")
    balance: float = Field(0.01, ge=0, description="weight of the load-balancing loss")


class SoftMergeLlmConfig(Strict):
    """Soft merging (SMEAR; Muqeeth et al., 2024): copies of the feed-forward layers, averaged by scores of the prompt."""

    name: Literal["softmerge"] = "softmerge"
    experts: Positive = Field(4, le=256)
    router: PromptRouterConfig = PromptRouterConfig()


LlmMethodConfig = Annotated[SimoeConfig | FullConfig | LlmLoraConfig | UpcycleConfig | SoftMergeLlmConfig, Field(discriminator="name")]
