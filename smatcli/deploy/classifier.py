"""A fitted classifier, which can be saved to a file that is independent of the run and the support images."""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smatcli.config.schema import BackboneConfig
from smatcli.data.augment import normalise
from smatcli.data.episodes.loader import prefetched
from smatcli.data.images import Fit
from smatcli.deploy.frozen import FrozenHead, Network, backbone_of, module_of
from smatcli.deploy.pictures import as_list, as_pixels
from smatcli.deploy.predictions import Label, Predictions
from smatcli.device import Precision, choose_device, choose_precision
from smatcli.errors import SmatError, UserError
from smatcli.methods.base import FlatMethod
from smatcli.methods.prototypes import leave_one_out_logits
from smatcli.safe.files import atomic_path, pointer_kind
from smatcli.safe.tensors import safetensors_header
from smatcli.safe.text import parse_json
from smatcli.seams import Classifier, Support

BATCH = 64
PROBES = 8
TOLERANCE = 1e-2  # relative to the logit scale: larger than bf16 rounding, much smaller than the effect of a wrong parameter
USUAL = 0.95


@dataclass(frozen=True)
class ClassifierFacts:
    """Origin and preprocessing of a classifier. `usual` is its stored `usual_distance`."""

    method: str
    adapt: str
    backbone: BackboneConfig
    precision: str = "auto"
    fit: Fit = "crop"
    source: str = ""
    usual: float | None = None


class FewShotClassifier:
    """A classifier learned from a support set, with `predict(images)` and `save(file)`."""

    def __init__(
        self,
        head: Classifier,
        classes: Sequence[Label],
        facts: ClassifierFacts,
        device: torch.device,
        scale: float,
        method: FlatMethod | None = None,
        support: Support | None = None,
    ):
        self.head, self.classes, self.facts, self.device, self.scale = head, tuple(classes), facts, device, scale
        self._method, self._support = method, support

    @property
    def info(self) -> dict[str, Any]:
        """Details that the adaptation reports (losses, passes, chosen experts)."""
        return self.head.info

    @property
    def image_size(self) -> int:
        """Side of the input images in pixels."""
        return self.facts.backbone.image_size

    def predict(self, images: Any) -> Predictions:
        """Classify a list of images (paths, Pillow images, uint8 arrays [H, W, 3] or [3, H, W] of any size) or a uint8 array [N, H, W, 3].

        Raises `UserError` if an image cannot be read, and `SmatError` if a logit is not finite.
        """
        items = enumerate(as_list(images))
        work = prefetched(lambda item: as_pixels(item[1], self.image_size, self.facts.fit, f"image {item[0]}"), items, 2, 2 * BATCH)
        return self.classify(work)

    def classify(self, pixels: Iterable[np.ndarray]) -> Predictions:
        """Classify an iterable of uint8 images [image_size, image_size, 3]."""
        batches = [self.logits(batch) for batch in _batches(iter(pixels))]
        logits = torch.cat(batches) if batches else torch.zeros(0, len(self.classes))
        distances = (1 - logits.max(1).values / self.scale).clamp(0, 2) if len(logits) else torch.zeros(0)
        return Predictions(self.classes, logits.softmax(1).numpy(), distances.numpy())

    @torch.no_grad()
    def logits(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Return logits [Q, C] on the CPU."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device)
        logits = self.head.predict(normalise(batch)).float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise SmatError(f"the logits of {self.facts.adapt} are not finite; check the weights and the precision")
        return logits

    @cached_property
    def usual_distance(self) -> float | None:
        """The 95 % quantile of the leave-one-out cosine distances of support images to their prototypes; a threshold for rejection.

        None if every class has a single image, or if the classifier does not use prototypes.
        """
        head, support = self.head, self._support
        if support is None:
            return self.facts.usual
        theta, embed = getattr(head, "theta", None), getattr(head, "embed", None)
        counts = torch.bincount(support.labels, minlength=support.ways)[support.labels]
        if theta is None or embed is None or not bool((counts > 1).any()):
            return None
        with torch.no_grad():
            logits = leave_one_out_logits(embed(support.images, theta), support.labels, support.ways, self.scale)
        own = 1 - logits.gather(1, support.labels[:, None]).squeeze(1) / self.scale
        return float(torch.quantile(own[counts > 1].float().cpu(), USUAL))

    def frozen(self) -> FrozenHead:
        """Return a backbone with prototypes that gives the same logits. Raises `UserError` if there is none for this adaptation."""
        if isinstance(self.head, FrozenHead):
            return self.head
        theta, centres = getattr(self.head, "theta", None), getattr(self.head, "centres", None)
        assert self._method is not None
        assert self._support is not None
        precision = self._method.precision
        if not isinstance(theta, Tensor) or not isinstance(centres, Tensor) or not isinstance(precision, Precision):
            raise self._not_plain()
        module = precision.apply(module_of(self._method, theta, self.facts.backbone)).to(self.device)
        head = FrozenHead(Network(module, int(self.info.get("fused", 0))), centres.detach(), self.scale, precision)
        probe = self._support.images[:PROBES]
        try:
            gap = float((head.predict(probe) - self.head.predict(probe)).abs().max())
        except RuntimeError:  # features of a different width
            raise self._not_plain() from None
        if not gap <= TOLERANCE * self.scale:
            raise self._not_plain()
        return head

    def _not_plain(self) -> UserError:
        return UserError(
            f"a classifier of {self.facts.adapt} is not a plain backbone with prototypes and cannot be saved or exported; use --adapt proto"
        )

    def save(self, path: str | Path, replace: bool = False) -> Path:
        """Write weights, prototypes and class names to a file.

        Raises `UserError` if the file exists (without `replace`) or cannot be written.
        """
        return write_classifier(self, Path(path), replace)


def _batches(items: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(items, BATCH)):
        yield batch


SUFFIX = ".smat"
FORMAT = "smat-classifier-1"
PREFIX, CENTRES = "backbone.", "prototypes"


def write_classifier(classifier: FewShotClassifier, path: Path, replace: bool = False) -> Path:
    """Check that a frozen copy of `classifier` gives the same logits, and write it."""
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
    """Read a file written by `FewShotClassifier.save`. Raises `UserError` if it is truncated, damaged or another kind of file."""
    path = Path(path)
    body, tensors = _read(path)
    try:
        backbone = BackboneConfig.model_validate(body["backbone"])
        fields = {key: body[key] for key in ("method", "adapt", "precision", "fit", "source", "usual")}
        facts = ClassifierFacts(backbone=backbone, **fields)
        classes, scale, crc = list(body["classes"]), float(body["scale"]), body["crc32"]
        fuse = int(body["fuse"])
        centres = tensors.pop(CENTRES)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(f"{path}: is a damaged classifier file ({str(error).splitlines()[0]}); save it again") from None
    if crc != _sum({**tensors, CENTRES: centres}):
        raise UserError(f"{path}: is damaged (checksum mismatch); copy it or save it again")
    if len(classes) != len(centres) or not bool(torch.isfinite(centres).all()):
        raise UserError(f"{path}: is damaged: {len(classes)} classes, prototypes {list(centres.shape)}; save it again")
    try:
        module = backbone_of(backbone, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit the backbone {backbone.name}: {' '.join(str(error).split())[:200]}") from None
    where = choose_device(device or "auto")
    precision = choose_precision(facts.precision, where, int(module.num_features))  # type: ignore[arg-type]
    module = precision.apply(module).to(where)
    return FewShotClassifier(FrozenHead(Network(module, fuse), centres.to(where), scale, precision), classes, facts, where, scale)


def check_target(path: Path, suffix: str, replace: bool = False) -> None:
    """Raise `UserError` if `path` does not end in `suffix`, or exists and `replace` is false."""
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: give a file name that ends in {suffix}")
    refuse_existing(path, replace)


def refuse_existing(path: Path, replace: bool = False) -> None:
    """Raise `UserError` if `path` is a folder, or an existing file and `replace` is false."""
    if path.is_dir() or ((path.exists() or path.is_symlink()) and not replace):
        raise UserError(f"{path}: already exists; choose another name{'' if path.is_dir() else ', or give --replace'}")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"{path}: file not found" if not path.exists() else f"{path}: is a folder, not a saved classifier")
    with path.open("rb") as file:
        head = file.read(1000)
    if kind := pointer_kind(head):
        raise UserError(f"{path}: is a {kind} pointer, not the classifier; download the file first")
    try:
        safetensors_header(path)
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise UserError(f"{path}: is not a saved classifier of this version (format {meta.get('format')!r}, expected {FORMAT!r})")
            return parse_json(meta["smat"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is truncated or not a saved classifier ({str(error).splitlines()[0][:100]}); save it again") from None


def _sum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        raw = tensors[name].contiguous().flatten().view(torch.uint8).numpy()
        value = zlib.crc32(raw.data, zlib.crc32(name.encode(), value))
    return value
