"""Write a plain model as an ONNX file and check it with onnxruntime (extra `onnx`)."""

import contextlib
import io
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.data.augment import MEAN, STD
from smatcli.errors import UserError
from smatcli.safe.files import atomic_path

if TYPE_CHECKING:
    from smatcli.deploy.plain import PlainModel

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_onnx() -> None:
    """Raise `UserError` with the names of missing packages, if any."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}; install them with: pip install 'smatcli[onnx]'")


class Packaged(nn.Module):
    """Map images [B, 3, S, S] in [0, 1] to features [B, D] and, with prototypes, to logits [B, C]."""

    mean: Tensor
    std: Tensor
    directions: Tensor

    def __init__(self, plain: "PlainModel"):
        super().__init__()
        self.network, self.scale = plain.network, plain.scale
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.classifies = plain.centres is not None
        if plain.centres is not None:
            self.register_buffer("directions", F.normalize(plain.centres.float(), dim=1))

    def forward(self, images: Tensor) -> Any:
        features = self.network((images - self.mean) / self.std)
        if not self.classifies:
            return features
        return features, self.scale * F.normalize(features, dim=1) @ self.directions.T


def write_onnx(plain: "PlainModel", out: Path) -> None:
    """Write `plain` with the input `images` (any batch size) and the outputs `features` and, with classes, `logits`.

    Class names are stored as metadata.
    """
    import onnx

    from smatcli.deploy.plain import check_close

    packaged = Packaged(plain).eval()
    outputs = ["features", "logits"] if packaged.classifies else ["features"]
    size = plain.backbone.image_size
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    facts = {"classes": json.dumps(list(plain.classes)), "architecture": plain.backbone.name}
    facts |= {"image_size": str(size), "scale": str(plain.scale)}
    with atomic_path(out) as draft:
        with _silence():
            torch.onnx.export(
                packaged,
                (images[:2],),
                draft,
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        model = onnx.load(draft)
        onnx.helper.set_model_props(model, facts)
        onnx.save(model, draft)
        with torch.no_grad():
            wanted = packaged(images)
        for name, expected in zip(outputs, wanted if packaged.classifies else [wanted], strict=True):
            for count in (1, len(images)):
                check_close(run_onnx(draft, images[:count])[name], expected[:count], f"the {name} of the ONNX file")


def run_onnx(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Run an ONNX file with onnxruntime on the CPU for images in [0, 1], and return the outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, {"images": images.numpy()}), strict=True)}


@contextlib.contextmanager
def _silence() -> Any:
    """Suppress the exporter's output, warnings and log messages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
