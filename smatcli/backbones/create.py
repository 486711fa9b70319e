"""Create the timm model of a recipe's `backbone` section, which maps images to features."""

from pathlib import Path
from typing import Any

from torch import nn

from smatcli import plugins
from smatcli.backbones.weights import is_weights_file, load_file_weights, load_run_weights
from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError, nearest

RESERVED = {
    "num_classes": "a backbone has no classes",
    "img_size": "set backbone.image_size",
    "pretrained": "set backbone.weights",
    "checkpoint_path": "set backbone.weights",
    "pretrained_cfg": "set backbone.weights",
    "pretrained_cfg_overlay": "set backbone.weights",
    "cache_dir": "set HF_HOME in the environment",
}


def create_backbone(config: BackboneConfig) -> nn.Module:
    """Return the timm model of a recipe: images [B, 3, image_size, image_size] to features [B, D] (`num_features` = D).

    Position and patch embeddings of the weights are resampled to the image and patch size of the recipe, for any source of weights. With
    `position_size`, the position embedding keeps that size and is stretched at every call.
    Raises `UserError` for an unknown model, an invalid argument, and weights that are missing, damaged, not finite or of another
    architecture.
    """
    if config.position_size not in (None, config.image_size):
        from smatcli.backbones.positions import stretched

        at = {"image_size": config.position_size, "position_size": None}
        model = stretched(create_backbone(config.model_copy(update=at)), config)
        _check_size(model, config)
        return model
    weights = Path(config.weights)
    if config.weights == "none":
        return _create(config)
    if config.weights == "timm":
        return _create(config, pretrained=True)
    if not weights.exists():
        raise UserError(
            f"backbone.weights: no such file or run: {weights} (use 'timm', 'none', a .safetensors/.pth file or a pretrain run)"
        )
    if weights.is_dir():
        model = _create(config)
        load_run_weights(model, config, weights)
    elif is_weights_file(weights):
        model = _create(config)
        load_file_weights(model, config, weights)
    else:
        raise UserError(f"backbone.weights: {weights} is not a .safetensors, .pth, .pt or .bin file")
    return model


def _create(config: BackboneConfig, pretrained: bool = False) -> nn.Module:
    import timm

    in_timm = config.name in timm.list_models() or timm.is_model(config.name)
    if not in_timm and plugins.find("backbones", config.name) is None:
        near = nearest(config.name, [*timm.list_models(), *plugins.names("backbones")])
        raise UserError(f"backbone.name: timm has no model {config.name!r}{near}")
    for key, instead in RESERVED.items():
        if key in config.args:
            raise UserError(f"backbone.args.{key} cannot be set here: {instead}")
    if not in_timm:
        return _from_plugin(config, pretrained)
    arguments: dict[str, Any] = {"num_classes": 0, "img_size": config.image_size, **config.args}
    try:
        model = timm.create_model(config.name, **arguments)
    except (TypeError, AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"backbone.args: {config.name} cannot be created with {config.args or 'its defaults'}: {_short(error)}") from None
    _check_size(model, config)
    if pretrained:
        model = _download(config, arguments)
    return model


def _from_plugin(config: BackboneConfig, pretrained: bool) -> nn.Module:
    """Create the network of a plugin. Raises `UserError` for invalid arguments and for a network without `num_features`."""
    plugin: plugins.BackbonePlugin = plugins.find("backbones", config.name)
    if pretrained and plugin.pretrained is None:
        raise UserError(f"backbone.weights: {config.name} has no weights; use 'none', a .safetensors/.pth file or a pretrain run")
    maker = plugin.create_pretrained if pretrained else plugin.create
    try:
        model = plugins.guarded("backbones", config.name, lambda: maker(image_size=config.image_size, **config.args))
    except (TypeError, AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"backbone.args: {config.name} cannot be created with {config.args or 'its defaults'}: {_short(error)}") from None
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "num_features", None), int):
        raise UserError(f"plugin backbones.{config.name}: returns a {type(model).__name__}, not a torch module with num_features")
    _check_size(model, config)
    return model


def _download(config: BackboneConfig, arguments: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model_pretrained(config.name):
        raise UserError(f"backbone.weights: timm has no weights for {config.name}; use 'none', a .safetensors/.pth file or a pretrain run")
    try:
        return timm.create_model(config.name, pretrained=True, **arguments)
    except Exception as error:  # the download uses several libraries, each with its own errors
        if "size mismatch" in str(error) or "Missing key" in str(error) or "Unexpected key" in str(error):
            raise UserError(f"backbone.args: timm's weights for {config.name} do not fit {config.args}: {_short(error)}") from None
        raise UserError(
            f"backbone.weights: timm's weights for {config.name} could not be downloaded ({_short(error)}); "
            "download them elsewhere and set backbone.weights to the .safetensors or .pth file, or use a pretrain run"
        ) from None


def _check_size(model: nn.Module, config: BackboneConfig) -> None:
    """Raise `UserError` unless the patch size divides the image size: timm would silently drop the border."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and config.image_size % patch[0]:
        below = config.image_size // patch[0] * patch[0]
        sizes = f"{below} or {below + patch[0]}" if below else f"{patch[0]}"
        raise UserError(f"backbone.image_size: {config.image_size} is not a multiple of the patch size {patch[0]}; use {sizes}")


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = " ".join(line.strip() for line in lines[:3]) if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
