"""Full fine-tuning: every weight of the base model is trained."""

from typing import Any

from smatcli.config.llm import LlmFullConfig
from smatcli.llm.methods.base import LanguageMethod


class FullMethod(LanguageMethod):
    """Full fine-tuning, in fp32 weights."""

    def __init__(self, base: Any, config: LlmFullConfig) -> None:
        super().__init__(base.float())
        for parameter in self.base.parameters():
            parameter.requires_grad = True
