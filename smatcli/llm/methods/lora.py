"""LoRA on the linear layers of the decoder layers, by `peft`."""

from typing import Any

from torch import Tensor

from smatcli.config.llm import LlmLoraConfig
from smatcli.config.schema import GroupConfig
from smatcli.llm.find import find_segments
from smatcli.llm.methods.base import LanguageMethod


class LlmLora(LanguageMethod):
    """Low-rank updates of the same layers that SIMoE upcycles, norms apart."""

    def __init__(self, base: Any, config: LlmLoraConfig) -> None:
        from peft import LoraConfig, get_peft_model

        names = [segment.name for segment in find_segments(base) if segment.kind != "norm"]
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.scale * config.rank,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=names,
            fan_in_fan_out=any(type(base.get_submodule(name)).__name__ == "Conv1D" for name in names),
        )
        super().__init__(get_peft_model(base, settings))

    def defaults(self) -> dict[str, GroupConfig]:
        """Return the defaults, with a higher rate."""
        return {name: group.model_copy(update={"lr": 1e-3}) for name, group in super().defaults().items()}

    def merged(self, features: Tensor | None) -> Any:
        """Return the base model with the low-rank updates added to its weights."""
        return self.base.merge_and_unload()
