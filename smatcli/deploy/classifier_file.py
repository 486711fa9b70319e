"""Saved classifiers (`.smat`): one safetensors file with the backbone and the prototypes, and JSON in its header."""

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smatcli.config.schema import BackboneConfig
from smatcli.deploy.classifier import Facts, FewShotClassifier
from smatcli.deploy.frozen import FrozenHead, Network, backbone_of
from smatcli.device import choose_device, choose_precision
from smatcli.errors import UserError
from smatcli.files import atomic_path, pointer_kind
from smatcli.safe import parse_json
from smatcli.safe_tensors import safetensors_header

SUFFIX = ".smat"
FORMAT = "smat-classifier-1"
PREFIX, CENTRES = "backbone.", "prototypes"


def write_classifier(classifier: FewShotClassifier, path: Path, replace: bool = False) -> Path:
    """Write `classifier`; it is checked to predict like the original before anything is written."""
    check_target(path, SUFFIX, replace)
    head = classifier.frozen()
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in head.network.backbone.state_dict().items()} | {CENTRES: head.centres}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    facts = asdict(classifier.facts)
    backbone = classifier.facts.backbone.model_copy(update={"weights": "none"})
    body = {
        **facts,
        "backbone": backbone.model_dump(mode="json"),
        "usual": classifier.usual_distance,
        "scale": classifier.scale,
        "fuse": head.network.fuse,
        "classes": list(classifier.classes),
        "crc32": _sum(tensors),
    }
    with atomic_path(path) as draft:
        save_file(tensors, draft, {"format": FORMAT, "smat": json.dumps(body, ensure_ascii=False)})
    return path


def read_classifier(path: str | Path, device: str | None = None) -> FewShotClassifier:
    """The classifier that `FewShotClassifier.save` wrote; `UserError` for a file that is cut, damaged or no classifier."""
    path = Path(path)
    body, tensors = _read(path)
    try:
        backbone = BackboneConfig.model_validate(body["backbone"])
        fields = {key: body[key] for key in ("method", "adapt", "precision", "fit", "source", "usual")}
        facts = Facts(backbone=backbone, **fields)
        classes, scale, crc = list(body["classes"]), float(body["scale"]), body["crc32"]
        fuse = int(body["fuse"])
        centres = tensors.pop(CENTRES)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(f"{path}: is a damaged classifier ({str(error).splitlines()[0]}); save it again") from None
    if crc != _sum({**tensors, CENTRES: centres}):
        raise UserError(f"{path}: is damaged, its tensors are not what was written; copy it or save it again")
    if len(classes) != len(centres) or not bool(torch.isfinite(centres).all()):
        raise UserError(f"{path}: is damaged: {len(classes)} classes, prototypes {list(centres.shape)}; save it again")
    try:
        module = backbone_of(backbone, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights are for another backbone than {backbone.name}: {' '.join(str(error).split())[:200]}"
        ) from None
    where = choose_device(device or "auto")
    precision = choose_precision(facts.precision, where, int(module.num_features))  # type: ignore[arg-type]
    module = precision.apply(module).to(where)
    return FewShotClassifier(FrozenHead(Network(module, fuse), centres.to(where), scale, precision), classes, facts, where, scale)


def check_target(path: Path, suffix: str, replace: bool = False) -> None:
    """`UserError` when `path` does not end in `suffix`, or exists without `replace`."""
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: give a file name that ends in {suffix}")
    refuse_existing(path, replace)


def refuse_existing(path: Path, replace: bool = False) -> None:
    """`UserError` when `path` is there: files without `replace`, folders always."""
    if path.is_dir() or ((path.exists() or path.is_symlink()) and not replace):
        raise UserError(f"{path}: exists already; choose another name{'' if path.is_dir() else ', or give --replace'}")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file" if not path.exists() else f"{path}: is a folder, not a saved classifier")
    with path.open("rb") as file:
        head = file.read(1000)
    if kind := pointer_kind(head):
        raise UserError(f"{path}: is a {kind} pointer, not the classifier; fetch it first")
    try:
        safetensors_header(path)
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise UserError(f"{path}: is no saved classifier of this version (format {meta.get('format')!r}, expected {FORMAT!r})")
            return parse_json(meta["smat"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is truncated or no saved classifier ({str(error).splitlines()[0][:100]}); save it again") from None


def _sum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        raw = tensors[name].contiguous().flatten().view(torch.uint8).numpy()
        value = zlib.crc32(raw.data, zlib.crc32(name.encode(), value))
    return value
