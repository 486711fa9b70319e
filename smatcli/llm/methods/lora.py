"""LoRA on the linear layers of the decoder layers, by `peft`."""

from typing import Any

from smatcli.config.llm import LlmLoraConfig
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
