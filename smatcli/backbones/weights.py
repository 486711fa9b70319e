"""Weights from files and runs: read without executing pickled code, unwrapped, resampled, and checked key by key."""

import argparse
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError
from smatcli.safe.files import atomic_path, atomic_write_text, pointer_kind
from smatcli.safe.tensors import UnsafeWeights, check_archive, check_tensors, safetensors_header
from smatcli.safe.text import read_json, refuse_special

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "module", "backbone")
MAX_WRAPPERS = 20
PREFIXES = ("module.", "backbone.", "model.", "_orig_mod.")
HEADS = ("head.", "head_dist.", "heads.", "classifier.", "fc.", "projection_head.", "last_layer.")
# Arguments that change neither parameter shapes nor inference, or whose effect is handled by resampling.
HARMLESS = {
    "drop_rate",
    "drop_path_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "patch_size",
    "weight_init",
}
FETCH = {"git-lfs": "git lfs pull", "git-annex": "git annex get"}
BUNDLE, FACTS = "backbone.safetensors", "backbone.json"


def is_weights_file(path: Path) -> bool:
    """Whether the file name has the suffix of a weights file."""
    return path.suffix in SUFFIXES


def save_backbone(folder: Path, model: nn.Module, config: BackboneConfig, metrics: Mapping[str, float]) -> None:
    """Write backbone.safetensors and backbone.json (timm name, arguments, image size, metrics) into `folder`, each atomically."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with atomic_path(folder / BUNDLE) as draft:
        save_file(tensors, draft)
    facts = {"format": 1, "name": config.name, "args": config.args, "image_size": config.image_size, "metrics": dict(metrics)}
    atomic_write_text(folder / FACTS, json.dumps(facts, indent=1))


def load_run_weights(model: nn.Module, config: BackboneConfig, run: Path) -> None:
    """Load the backbone of a pre-training run. Raises `UserError` with the first key that differs from the recipe."""
    if not (run / FACTS).is_file() or not (run / BUNDLE).is_file():
        raise UserError(f"backbone.weights: {run} has no finished backbone ({FACTS} and {BUNDLE}); run `smat pretrain` first")
    try:
        facts = read_json(run / FACTS)
        name, args = str(facts["name"]), dict(facts["args"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"backbone.weights: {run / FACTS} is damaged ({(str(error) or type(error).__name__)[:100]})") from None
    if name != config.name:
        raise UserError(f"backbone.name is {config.name!r}, but {run} was pre-trained with {name!r}")
    for key in sorted((args.keys() | config.args.keys()) - HARMLESS):
        ours, theirs = config.args.get(key, "the default"), args.get(key, "the default")
        if ours != theirs:
            raise UserError(f"backbone.args.{key} is {ours}, but {run} was pre-trained with {theirs}")
    load_file_weights(model, config, run / BUNDLE)


def load_file_weights(model: nn.Module, config: BackboneConfig, path: Path) -> None:
    """Load a weights file into `model`: unwrap it, drop heads, resample embeddings. Raises `UserError` if anything does not fit."""
    own = model.state_dict()
    tensors = _strip(_read(path), own)
    tensors = {k: v for k, v in tensors.items() if k in own or not k.startswith(HEADS)}
    check_floating(path, {k: v for k, v in tensors.items() if k in own and own[k].is_floating_point()}, "backbone.weights")
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise UserError(f"backbone.weights: {path} has NaN or infinite values in {some(bad)}")
    _check_prefix(model, tensors, path)
    try:
        tensors = _resample(model, config, tensors)
    except Exception as error:  # timm's filters index by names that a foreign file may lack
        raise UserError(f"backbone.weights: {path} does not fit {config.name}: {error!r}") from None
    _check_keys(own, tensors, path, config)
    check_floating(path, {k: v for k, v in tensors.items() if own[k].is_floating_point()}, "backbone.weights")
    model.load_state_dict(tensors)


def load_tree(path: Path, where: str = "backbone.weights") -> Any:
    """Read a weights file without executing code in it. Raises `UserError`, with the prefix `where`, if it cannot be read."""
    refuse_special(path)
    with path.open("rb") as file:
        start = file.read(1000)
    if not start:
        raise UserError(f"{where}: {path} is empty")
    if kind := pointer_kind(start):
        raise UserError(f"{where}: {path} is a {kind} pointer, not the weights; fetch them with `{FETCH[kind]}`")
    try:
        if path.suffix == ".safetensors":
            safetensors_header(path)
        else:
            check_archive(path)
        # Published checkpoints often contain their argparse settings, which are as harmless as a dictionary.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnsafeWeights) as error:
        raise UserError(f"{where}: {path} {_unreadable(path, error)}") from None
    except Exception as error:  # unpickling damaged bytes can raise anything
        foreign = "unsupported global" in str(error).lower() or "unsupported class" in str(error).lower()
        reason = "it contains objects other than tensors; save only its state_dict" if foreign else "truncated or not a PyTorch file"
        raise UserError(f"{where}: {path} cannot be read: {reason}") from None


def check_plain_tensors(path: Path, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError`, with the prefix `where`, for tensors that are not plain dense arrays, or whose size exceeds their storage."""
    try:
        check_tensors(path, tensors.items())
    except UnsafeWeights as error:
        raise UserError(f"{where}: {path} cannot be used: {error}") from None


def check_floating(path: Path, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError`, with the prefix `where`, for weights that are not floating-point numbers: quantized ones lack their scale."""
    if bad := [key for key, value in tensors.items() if not value.is_floating_point()]:
        kinds = ", ".join(sorted({str(tensors[key].dtype).removeprefix("torch.") for key in bad}))
        raise UserError(f"{where}: {path} has weights of type {kinds} ({some(bad)}); give floating-point weights, not quantized ones")


def _unreadable(path: Path, error: Exception) -> str:
    return f"{'is truncated or not a safetensors file' if path.suffix == '.safetensors' else 'cannot be read'} ({error})"


def _read(path: Path) -> dict[str, Tensor]:
    tensors = _unwrap(load_tree(path), set())
    if not tensors:
        raise UserError(f"backbone.weights: {path} contains no named tensors")
    check_plain_tensors(path, tensors, "backbone.weights")
    return tensors


def _unwrap(tree: Any, seen: set[int]) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, or of the first wrapper key that has any. A dictionary may contain itself."""
    if not isinstance(tree, dict) or id(tree) in seen or len(seen) > MAX_WRAPPERS:
        return {}
    seen.add(id(tree))
    for key in WRAPPERS:
        if isinstance(tree.get(key), dict) and (inner := _unwrap(tree[key], seen)):
            return inner
    return {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _strip(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers add to parameter names."""
    for _ in range(len(PREFIXES)):
        for prefix in PREFIXES:
            if any(k.startswith(prefix) and k not in own for k in tensors):
                tensors = {k.removeprefix(prefix) if k not in own else k: v for k, v in tensors.items()}
    return tensors


def _check_prefix(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` if only model or only file have a class token: resampling the position embedding would treat it as a patch."""
    for key in ("cls_token", "reg_token", "dist_token"):
        has = getattr(model, key, None) is not None
        if has != (key in tensors) and "pos_embed" in tensors:
            sides = ("the recipe's model", str(path)) if has else (str(path), "the recipe's model")
            raise UserError(f"backbone.weights: {sides[0]} has a {key} and {sides[1]} has none; set backbone.args to the same architecture")


def _resample(model: nn.Module, config: BackboneConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resample position and patch embeddings to the model's grid and patch size, by the filter of the model's timm family."""
    family = sys.modules[type(model).__module__]
    own = getattr(family, "checkpoint_filter_fn", None)
    if own is None:
        return tensors
    options: dict[str, Any] = {}
    parameters = inspect.signature(own).parameters
    if "adapt_layer_scale" in parameters:
        options["adapt_layer_scale"] = config.name.startswith("deit")
    if "interpolation" in parameters and "flexi" in config.name:
        options.update(interpolation="bilinear", antialias=False)
    return dict(own(tensors, model, **options))


def _check_keys(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, config: BackboneConfig) -> None:
    missing, unexpected = [k for k in own if k not in tensors], [k for k in tensors if k not in own]
    if missing or unexpected:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"has unexpected {some(unexpected)}"] if unexpected else []
        hint = ""
        if "fc_norm.weight" in missing and "norm.weight" in unexpected:
            hint = "; its norm comes before the pooling: set backbone.args.fc_norm to false"
        elif "norm.weight" in missing and "fc_norm.weight" in unexpected:
            hint = "; its norm comes after the pooling: set backbone.args.global_pool to avg"
        raise UserError(f"backbone.weights: {path} does not fit {config.name}: it {' and '.join(parts)}{hint}")
    for key, value in own.items():
        if value.shape != tensors[key].shape:
            shapes = f"{tuple(tensors[key].shape)}, the recipe's model has {tuple(value.shape)}"
            raise UserError(f"backbone.weights: {key} of {path} has shape {shapes}; set backbone.args to the same architecture")


def some(keys: list[str]) -> str:
    """Return the first three names, and the number of further ones."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
