"""Settings of the tuners, with one model per tuner, selected by `tuner.name`. To add a tuner, add a model and list it in `TunerConfig`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.pmoe import PmoeConfig

Count = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Pattern = Literal["uniform", "incremental", "decremental", "hourglass", "protruding", "random"]
QKV = "blocks.*.attn.qkv"


class LinearConfig(Strict):
    """A linear classifier on the frozen features."""

    name: Literal["linear"] = "linear"


class FullTuneConfig(Strict):
    """Training of all parameters of the backbone."""

    name: Literal["full"] = "full"


class BiasConfig(Strict):
    """Training of only the biases of the backbone (BitFit, Ben Zaken et al. 2022)."""

    name: Literal["bias"] = "bias"


class LoraTuneConfig(Strict):
    """Low-rank updates of linear layers (Hu et al. 2022), implemented with peft."""

    name: Literal["lora"] = "lora"
    rank: Count = 8
    alpha: float = Field(8.0, gt=0, description="the update is alpha / rank * B A")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the low-rank branch")
    layers: list[str] = Field([QKV], min_length=1, description="names of the linear layers; * matches any text")


class AdapterConfig(Strict):
    """A bottleneck parallel to every MLP (AdaptFormer, Chen et al. 2022): x + MLP(norm x) + scale * up(relu(down x))."""

    name: Literal["adapter", "adaptformer"] = "adapter"
    hidden: Count = Field(64, description="width of the bottleneck")
    scale: float = Field(0.1, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the bottleneck; the authors: 0.1 on video, 0 on images")


class VptShallowConfig(Strict):
    """Prompt tokens before the patches of the first block (Jia et al. 2022)."""

    name: Literal["vpt-shallow"] = "vpt-shallow"
    prompts: Count = Field(10, description="prompt tokens")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the prompts; the authors: 0.1")


class VptDeepConfig(Strict):
    """New prompt tokens in every block (Jia et al. 2022)."""

    name: Literal["vpt-deep"] = "vpt-deep"
    prompts: Count = Field(10, description="prompt tokens per block")
    layers: Count | None = Field(None, description="number of initial blocks that have their own prompts; null = all")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the prompts; the authors: 0.1")


class GaptConfig(Strict):
    """Gated prompt tuning (Yoo et al. 2023): prompts in the first block, with a learned gate on their outputs after each block."""

    name: Literal["gapt"] = "gapt"
    prompts: Count = Field(10, description="prompt tokens")
    gate: float = Field(0.0, description="initial logit of every gate; 0 weights old and new prompts equally")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the prompts")


class SsfConfig(Strict):
    """A scale and a shift after every linear layer, norm and patch embedding (SSF, Lian et al. 2022)."""

    name: Literal["ssf"] = "ssf"
    init_std: float = Field(
        0.02, ge=0, description="scales ~ N(1, init_std^2), shifts ~ N(0, init_std^2); 0 = start at the pre-trained model"
    )


class MlaeConfig(Strict):
    """Masked LoRA experts (Wang et al. 2024): Delta W = sum_i m_i lambda_i b_i a_i over the rank-one experts of each layer."""

    name: Literal["mlae"] = "mlae"
    rank: Count = Field(8, description="total rank per layer (mean over the blocks for an uneven pattern)")
    cell: Literal[1, 2, 4] = Field(1, description="rank of one expert: 1 = cellular decomposition; 2, 4 = sub-matrices")
    init: float = Field(1.0, description="initial value of the adaptive coefficients lambda; the paper: 0.125 to 4")
    mask: Literal["none", "fixed", "stochastic", "mixed"] = Field(
        "stochastic", description="fixed: a pattern of experts per block; stochastic: random dropout of experts; mixed: both"
    )
    p: float | list[Probability] = Field(0.5, description="stochastic, mixed: dropout probability of an expert; a list gives one per block")
    pattern: Pattern | list[int] | None = Field(
        None,
        description="fixed, mixed: experts per block (null = incremental); stochastic: mean number kept per block (null = uniform)",
    )
    pattern_seed: int = Field(0, ge=0, description="seed of the pattern `random`")
    layers: list[str] = Field([QKV], min_length=1, description="names of the linear layers; * matches any text")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if isinstance(self.p, float) and not 0 <= self.p < 1:
            raise ValueError(f"p is {self.p:g}; give a probability below 1, since 1 drops every expert")
        if self.rank % self.cell:
            raise ValueError(f"rank {self.rank} is not a multiple of cell {self.cell}, the rank of an expert")
        if self.mask in ("none", "fixed") and self.p != type(self).model_fields["p"].default:
            raise ValueError(f"p has no effect with mask {self.mask}; remove it")
        if self.mask == "none" and self.pattern is not None:
            raise ValueError("pattern has no effect with mask none; remove it")
        if isinstance(self.p, list) and self.pattern is not None and self.mask == "stochastic":
            raise ValueError("pattern has no effect because p has a value per block; remove pattern")
        if self.pattern_seed and self.pattern != "random":
            raise ValueError("pattern_seed has no effect without pattern random; remove it")
        return self


# The last model is the default: its keys are valid in a recipe without tuner.name.
TunerConfig = Annotated[
    LinearConfig
    | FullTuneConfig
    | BiasConfig
    | LoraTuneConfig
    | AdapterConfig
    | VptShallowConfig
    | VptDeepConfig
    | GaptConfig
    | SsfConfig
    | PmoeConfig
    | MlaeConfig,
    Field(discriminator="name"),
]
