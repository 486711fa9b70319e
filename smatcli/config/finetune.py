"""Settings of the fine-tuning adaptations (`full`, `lora`, `joint`) and of the search for their learning rate."""

from typing import Annotated, Literal

from pydantic import Field

from smatcli.config.base import Strict

Rate = Annotated[float, Field(ge=0)]
Group = Annotated[
    Literal["auto"] | Annotated[int, Field(gt=0)],
    Field(
        description="full, lora: so many fine-tunings side by side (episodes of one shape, rates of a search), equal up to rounding; "
        "auto: one after the other on a CPU, on CUDA measured once a shape"
    ),
]


class SearchConfig(Strict):
    """How the rate of an adaptation is chosen, once a dataset, where the adaptation's own `lr` is null.

    valid: episodes of the dataset's validation classes; a dataset without any (or whose evaluation uses them) leaves out images of the
    support sets instead. paper: episodes of the evaluation itself with their query labels, as the papers did (labelled in every result).
    none: only rates that are given.
    """

    kind: Literal["valid", "paper", "none"] = "valid"
    episodes: int = Field(10, gt=0, description="tasks of a search; the release of SMAT: 5")
    rates: tuple[Rate, ...] = Field((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), description="candidates beside 0, which always is one")


class FullConfig(Strict):
    """Fine-tuning of all parameters by Adam on the augmented support set, with prototypes of the support set made anew at every step."""

    lr: Rate | None = Field(None, description="rate of Adam; null = searched (adapt.search)")
    steps: int = Field(50, gt=0)
    probability: float = Field(0.9, ge=0, le=1, description="DiffAugment: chance that a step's batch is changed; 0 = off")
    colour: bool = Field(True, description="DiffAugment: brightness, saturation, contrast")
    translation: float = Field(0.125, ge=0, lt=1, description="DiffAugment: largest shift, share of the side")
    batch: int = Field(1024, gt=0, description="more images than these are embedded in parts, twice each: less memory, a third more time")
    trajectory: bool = Field(False, description="record the query accuracy after every step; never used for choosing")


class LoraAdaptConfig(FullConfig):
    """Fine-tuning of low-rank changes of the q and v projections (Hu et al. 2022); rank, alpha and dropout as in the release of SMAT."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(32.0, gt=0, description="the change is alpha / rank * B A")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the input of the low-rank branch")
    factor: float = Field(10.0, gt=0, description="the optimizer's rate is lr times this (release: 10)")


class JointConfig(FullConfig):
    """Fine-tuning of everything that theta_i is made of: theta_delta, the masks' logits and the router (Table 4, column 4)."""
