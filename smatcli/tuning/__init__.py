"""Tuners by name.

To add a tuner, write a module and a settings model, and add a line to `TUNERS` and a row to tests/tuning/test_battery.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from torch import nn

from smatcli.config import tuning as settings
from smatcli.config.pmoe import PmoeConfig
from smatcli.config.tuning import TunerConfig
from smatcli.tuning import adapter, lora, mlae, pmoe, prompts, simple, ssf
from smatcli.tuning.base import Tuner

__all__ = ["TUNERS", "Tuner", "build_tuner"]


class TunerEntry(NamedTuple):
    """Settings model of a tuner, and its factory: build(config, backbones, classes)."""

    settings: type[BaseModel]
    build: Callable[[Any, Sequence[nn.Module], int], Tuner]


TUNERS: dict[str, TunerEntry] = {
    "linear": TunerEntry(settings.LinearConfig, simple.build_linear),
    "full": TunerEntry(settings.FullTuneConfig, simple.build_full),
    "bias": TunerEntry(settings.BiasConfig, simple.build_bias),
    "lora": TunerEntry(settings.LoraTuneConfig, lora.build),
    "adapter": TunerEntry(settings.AdapterConfig, adapter.build),
    "adaptformer": TunerEntry(settings.AdapterConfig, adapter.build),
    "vpt-shallow": TunerEntry(settings.VptShallowConfig, prompts.build),
    "vpt-deep": TunerEntry(settings.VptDeepConfig, prompts.build),
    "gapt": TunerEntry(settings.GaptConfig, prompts.build),
    "ssf": TunerEntry(settings.SsfConfig, ssf.build),
    "mlae": TunerEntry(settings.MlaeConfig, mlae.build),
    "pmoe": TunerEntry(PmoeConfig, pmoe.build),
}


def build_tuner(config: TunerConfig, backbones: Sequence[nn.Module], classes: int) -> Tuner:
    """Build the tuner `config.name` over its backbones (one; several for pmoe). Raises `UserError` if they do not fit."""
    return TUNERS[config.name].build(config, backbones, classes)
