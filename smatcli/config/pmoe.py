"""Settings of pMoE: frozen backbones, their prompts, and the dispatcher that mixes the prompts."""

from typing import Literal, Self

from pydantic import Field, model_validator

from smatcli.config.base import Strict
from smatcli.config.schema import BackboneConfig, Positive


class DispatcherConfig(Strict):
    """Settings of the dispatcher that mixes the prompts of the experts. Each prompt layer has one, shared by all experts."""

    kind: Literal["mlp", "moe", "average", "none"] = Field(
        "mlp",
        description="mlp: the dispatcher; moe: several with a router; average: equal weights; none: no mixing",
    )
    hidden: Positive | None = Field(None, description="width of the MLP's hidden layer; null = a quarter of the prompt width")
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    mlps: Literal["shared", "separate"] = Field(
        "shared", description="shared: one MLP for prompts, prompt outputs and patches; separate: three MLPs"
    )
    count: Positive = Field(3, description="moe: number of dispatching MLPs (E); the paper: 3, 6, 9")

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Self:
        unread = [] if self.kind == "moe" else ["count"]
        if self.kind in ("average", "none"):
            unread += ["hidden", "activation", "mlps"]
        for key in unread:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with dispatcher kind {self.kind}; remove it")
        return self


class PmoeConfig(Strict):
    """pMoE: frozen backbones (`backbone` and `experts`) whose prompts are mixed by a dispatcher in every prompt layer."""

    name: Literal["pmoe"] = "pmoe"
    experts: list[BackboneConfig] = Field(
        [], description="more frozen backbones with the depth, patch grid and image size of `backbone`; different widths are projected"
    )
    prompts: Positive = Field(10, description="prompt tokens (N_p) per expert and layer")
    layers: Positive | None = Field(
        None, description="number of initial blocks that have their own prompts: 1 = shallow, null = all; the paper: 3 to 12"
    )
    gated: bool = Field(False, description="mix the prompts of each block with those of the preceding block through a learned gate")
    dispatcher: DispatcherConfig = DispatcherConfig()
