"""Methods that adapt a language model, by name. A new one: one file, one line in `METHODS`, one settings model, one row in the battery."""

from collections.abc import Callable
from typing import Any

from smatcli.config.llm import LlmMethodConfig
from smatcli.llm.methods.base import LanguageMethod
from smatcli.llm.methods.full import FullMethod
from smatcli.llm.methods.lora import LlmLora
from smatcli.llm.methods.simoe import Simoe
from smatcli.llm.methods.softmerge import SoftMergeLlm
from smatcli.llm.methods.upcycle import UpcycleMethod

METHODS: dict[str, Callable[[Any, Any], LanguageMethod]] = {
    "simoe": Simoe,
    "full": FullMethod,
    "lora": LlmLora,
    "upcycle": UpcycleMethod,
    "softmerge": SoftMergeLlm,
}


def build_method(base: Any, config: LlmMethodConfig) -> LanguageMethod:
    """Return the method `config.name` around `base`; UserError for a model that the method cannot adapt."""
    return METHODS[config.name](base, config)
