"""Meta-tuning methods by name.

To add a method, write a module and a settings model, and add a line to `METHODS` and a row to tests/methods/test_battery.py. Other packages
add methods through entry points (`smatcli.plugins`).
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
    """Build the method `config.name` over `backbone`, whose weights become theta_pre.

    Raises `UserError` for a plugin that does not return a `FlatMethod`.
    """
    if config.name in METHODS:
        return METHODS[config.name](config, backbone)
    method = plugins.make("methods", config.name, config, backbone)
    if not isinstance(method, FlatMethod):
        raise UserError(f"plugin methods.{config.name}: returns a {type(method).__name__}, not a smatcli.methods.base.FlatMethod")
    return method
