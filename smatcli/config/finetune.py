"""Settings of the fine-tuning adaptations (`full`, `lora`, `joint`) and of the search for their learning rate."""

from typing import Annotated, Literal

from pydantic import Field

from smatcli.config.base import Strict

Rate = Annotated[float, Field(ge=0)]
Group = Annotated[
    Literal["auto"] | Annotated[int, Field(gt=0)],
    Field(
        description="full, lora: number of fine-tunings in parallel (episodes of the same shape, candidate rates); results agree up to "
        "rounding; auto: 1 on a CPU, measured per shape on CUDA"
    ),
]


class SearchConfig(Strict):
    """Settings of the search for the learning rate of an adaptation whose `lr` is null. A rate is chosen per dataset.

    valid: search on episodes of the validation classes of the dataset; if it has none (or the evaluation uses them), on held-out images of
    the support sets. paper: search on episodes of the evaluation with their query labels, as in the papers; every result states this.
    none: no search.
    """

    kind: Literal["valid", "paper", "none"] = "valid"
    episodes: int = Field(10, gt=0, description="tasks per search; SMAT release: 5")
    rates: tuple[Rate, ...] = Field((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), description="candidate learning rates, in addition to 0")


class FullConfig(Strict):
    """Fine-tuning of all parameters by Adam on the augmented support set; prototypes are recomputed at every step."""

    lr: Rate | None = Field(None, description="learning rate of Adam; null = searched (adapt.search)")
    steps: int = Field(50, gt=0)
    probability: float = Field(0.9, ge=0, le=1, description="DiffAugment: probability that a step's batch is augmented; 0 = off")
    colour: bool = Field(True, description="DiffAugment: brightness, saturation, contrast")
    translation: float = Field(0.125, ge=0, lt=1, description="DiffAugment: largest shift as a fraction of the image side")
    batch: int = Field(1024, gt=0, description="larger image sets are embedded in parts, each part twice: less memory, a third more time")
    trajectory: bool = Field(False, description="record the query accuracy after every step; never used for selection")


class LoraAdaptConfig(FullConfig):
    """Low-rank updates of the q and v projections (Hu et al. 2022); rank, alpha and dropout as in the SMAT release."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(32.0, gt=0, description="the update is alpha / rank * B A")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the input of the low-rank branch")
    factor: float = Field(10.0, gt=0, description="the optimizer's learning rate is lr times this (release: 10)")


class JointConfig(FullConfig):
    """Fine-tuning of all components of theta_i: theta_delta, mask logits and router (paper, Table 4, column 4)."""
