"""Meta-tuning methods by name. A new one: one file, one line in `METHODS`, one settings model, one row in tests/methods/test_battery.py.

Other packages add theirs by an entry point (`smatcli.plugins`).
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from smatcli import plugins
from smatcli.config.methods import MethodConfig
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.methods.mlp_experts import MlpExpertsMethod
from smatcli.methods.pmf import PmfMethod
from smatcli.methods.pretrained import PretrainedMethod
from smatcli.methods.smat import SmatMethod
from smatcli.methods.softmerge import SoftMergeMethod

METHODS: dict[str, Callable[[Any, nn.Module], FlatMethod]] = {
    "pretrained": PretrainedMethod,
    "pmf": PmfMethod,
    "softmerge": SoftMergeMethod,
    "mlp_experts": MlpExpertsMethod,
    "smat": SmatMethod,
}


def build_method(config: MethodConfig, backbone: nn.Module) -> FlatMethod:
    """The method that `config.name` says, over `backbone` (its weights become theta_pre); UserError for a plugin that makes none."""
    if config.name in METHODS:
        return METHODS[config.name](config, backbone)
    made = plugins.make("methods", config.name, config, backbone)
    if not isinstance(made, FlatMethod):
        raise UserError(f"plugin methods.{config.name}: makes a {type(made).__name__}, which is no smatcli.methods.base.FlatMethod")
    return made
