"""A parsed foreign checkpoint, and the checks that all importers share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smatcli.backbones.weights import check_floating, some
from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from smatcli.methods.base import FlatMethod

TRAINED_AT = {224: 128}
"""Image size by size of the position embedding. Published models were tuned at 128 px with the position embedding for 224 px."""
_FAMILY = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}


@dataclass(frozen=True)
class Named:
    """A tensor and its name or names in the foreign file, for error messages."""

    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Parsed:
    """The content of a foreign checkpoint, converted to the terms of smat.

    `method` and `backbone` are sections of the recipe. `flat` maps state keys of the method to tensors by timm name, which are flattened to
    [P], or to [M, P] if their last axis is the expert. `single` maps the other state keys to tensors.
    """

    layout: str
    method: dict[str, Any]
    backbone: dict[str, Any]
    flat: dict[str, dict[str, Named]]
    single: dict[str, Named]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_keys(path: Path, present: Iterable[str], wanted: Iterable[str], optional: Iterable[str] = (), what: str = "") -> None:
    """Raise UserError if `present` lacks keys of `wanted`, or has keys that are neither in `wanted` nor in `optional`."""
    present, wanted = list(present), list(wanted)
    missing = [k for k in wanted if k not in set(present)]
    unexpected = [k for k in present if k not in {*wanted, *optional}]
    if missing or unexpected:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"has unexpected {some(unexpected)}"] if unexpected else []
        raise UserError(f"{path}: not a complete {what} checkpoint: it {' and '.join(parts)}")


def check_shape(path: Path, key: str, tensor: Tensor, shape: tuple[int, ...], why: str = "") -> None:
    """Raise UserError with the name of the tensor if its shape is not `shape`."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{path}: {key} has shape {tuple(tensor.shape)}, expected {shape}{why}")


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if tensors have NaN or infinite values, or (counters apart) are not floating-point numbers."""
    check_floating(path, {k: v for k, v in tensors.items() if v.numel() > 1}, "import")
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise UserError(f"{path}: NaN or infinite values in {some(bad)}; the file is damaged or the training diverged")


def backbone_section(path: Path, tensors: Mapping[str, Named]) -> dict[str, Any]:
    """Derive the backbone section of the recipe from the tensors of a plain ViT. For unusual widths the user gives the number of heads."""
    patch = tensors["patch_embed.proj.weight"]
    if patch.tensor.ndim != 4:
        raise UserError(f"{path}: {patch.name} has shape {tuple(patch.tensor.shape)}, expected (dim, 3, patch, patch)")
    dim, size = patch.tensor.shape[0], patch.tensor.shape[-1]
    position = tensors["pos_embed"]
    side = isqrt(max(position.tensor.numel() // dim - 1, 0))
    check_shape(path, position.name, position.tensor, (1, side * side + 1, dim), " (a square of patches and the class token)")
    depth = len([name for name in tensors if name.endswith(".norm1.weight")])
    ratio = tensors["blocks.0.mlp.fc1.weight"].tensor.shape[0] / dim
    family = _FAMILY.get((dim, depth)) if ratio == 4 else None
    name, args = f"vit_{family}_patch{size}_224", {}
    import timm

    if family is None or not timm.is_model(name):
        name = "vit_small_patch16_224"
        args = {"patch_size": size, "embed_dim": dim, "depth": depth} | ({} if ratio == 4 else {"mlp_ratio": ratio})
    native = side * size
    return {"name": name, "args": args, "image_size": TRAINED_AT.get(native, native), "position_size": native, "weights": "none"}


def check_heads(path: Path, config: BackboneConfig) -> None:
    """Raise UserError if the width is unusual and no number of heads is given, since the tensors do not determine it."""
    if "embed_dim" in config.args and "num_heads" not in config.args:
        raise UserError(
            f"{path}: a ViT of width {config.args['embed_dim']} and depth {config.args.get('depth')} is not a timm model, and its number "
            "of heads is not in the file; add backbone.args.num_heads=N"
        )


def state_of(path: Path, method: FlatMethod, parsed: Parsed) -> dict[str, Tensor]:
    """Return the state dictionary of the method with the tensors of the checkpoint. Raises UserError if one does not fit the recipe."""
    state = method.state_dict()
    for key, tensors in parsed.flat.items():
        if key not in state:
            raise UserError(f"{path}: the method of the recipe has no {key}; do not override the method settings")
        state[key] = _flattened(path, method.space, tensors, state[key])
    for key, named in parsed.single.items():
        if key not in state:
            raise UserError(f"{path}: the method of the recipe has no {key} for {named.name}; do not override the method settings")
        check_shape(path, named.name, named.tensor, tuple(state[key].shape), " by the recipe")
        state[key] = named.tensor.to(state[key].dtype)
    return state


def check_backbone(path: Path, space: ParameterSpace, tensors: Mapping[str, Named], experts: tuple[int, ...] = ()) -> None:
    """Raise UserError if tensors do not fit the backbone of the recipe. `experts` is the size of an additional last axis."""
    missing = [name for name in space.names if name not in tensors]
    more = [named.name for name, named in tensors.items() if name not in space.names]
    if missing or more:
        parts = [f"lacks {some(missing)} of the recipe's backbone"] if missing else []
        parts += [f"has {some(more)}, which the recipe's backbone does not have"] if more else []
        raise UserError(f"{path}: is a checkpoint of a different backbone: it {' and '.join(parts)}")
    for name, shape in zip(space.names, space.shapes, strict=True):
        check_shape(path, tensors[name].name, tensors[name].tensor, (*shape, *experts), " by the recipe's backbone and method")


def _flattened(path: Path, space: ParameterSpace, tensors: Mapping[str, Named], like: Tensor) -> Tensor:
    experts = (like.shape[0],) if like.ndim == 2 else ()
    check_backbone(path, space, tensors, experts)
    flat = torch.cat([tensors[name].tensor.reshape(-1, *experts) for name in space.names])
    return (flat.T if experts else flat).to(like.dtype).contiguous()
