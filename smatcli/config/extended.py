"""Extend the recipe models with the settings of the plugins that a recipe uses."""

from functools import cache
from typing import Annotated, Any, Union, get_args

from pydantic import BaseModel, Field, create_model

from smatcli import plugins
from smatcli.config.methods import MethodConfig, SmatConfig
from smatcli.config.schema import AdaptConfig, TrainRecipe

METHOD_MODELS: tuple[type[BaseModel], ...] = get_args(get_args(MethodConfig)[0])
METHOD_NAMES = {get_args(model.model_fields["name"].annotation)[0] for model in METHOD_MODELS}
ADAPT_NAMES = {"proto", *AdaptConfig.model_fields}


def with_plugins(model: type[BaseModel], data: dict[str, Any]) -> type[BaseModel]:
    """Return `model`, or a subclass of it that includes the settings of the plugin methods and adaptations named in `data`.

    Names that are neither built in nor installed are reported later, by the validation. Raises UserError for a broken plugin.
    """
    if not issubclass(model, TrainRecipe):
        return model
    method, adapt, evaluation = (_dict(data.get(key)) for key in ("method", "adapt", "eval"))
    evaluated = evaluation.get("adapt")
    wanted = {name for name in [*adapt, *(evaluated if isinstance(evaluated, list) else [])] if isinstance(name, str)} - ADAPT_NAMES
    adapts = {name: plugins.find("adaptations", name) for name in sorted(wanted)}
    settings = {name: plugin.settings for name, plugin in adapts.items() if plugin is not None and plugin.settings is not None}
    name = method.get("name")
    own = plugins.find("methods", name) if isinstance(name, str) and name not in METHOD_NAMES else None
    if own is None and not settings:
        return model
    return _extended(model, own and own.settings, tuple(settings.items()))


@cache
def _extended(
    model: type[TrainRecipe], method: type[BaseModel] | None, adapts: tuple[tuple[str, type[BaseModel]], ...]
) -> type[TrainRecipe]:
    fields: dict[str, Any] = {}
    if method is not None:
        union = Union[(method, *METHOD_MODELS)]  # type: ignore[valid-type]
        fields["method"] = (Annotated[union, Field(discriminator="name")], Field(default_factory=SmatConfig))
    if adapts:
        added: dict[str, Any] = {name: (settings, settings()) for name, settings in adapts}
        larger = create_model(AdaptConfig.__name__, __base__=AdaptConfig, __module__=AdaptConfig.__module__, **added)
        fields["adapt"] = (larger, larger())
    return create_model(model.__name__, __base__=model, __module__=model.__module__, **fields)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
