"""The default SMAT is unchanged: losses and gradients of three updates in float64, compared with frozen numbers within a tolerance.

Trained float32 weights differ between processors: Adam divides a gradient by its own size, so rounding alone moves an entry whose true
gradient is zero by a whole learning rate. Starting values and images come from NumPy's legacy generator, whose stream is frozen; torch's
normal numbers depend on the vector width of the processor. `python -m tests.methods.test_unchanged > tests/methods/unchanged.json` freezes
the numbers again, after a deliberate change of the method.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from smatcli.config.methods import RouterConfig, SmatConfig
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.experts.merge_kernels import VARIABLE
from smatcli.methods import build_method
from smatcli.methods.smat import SmatMethod
from smatcli.seams import Episode, Support
from tests.experts.parity import release_config

FROZEN = Path(__file__).parent / "unchanged.json"
WAYS, SHOTS, EXPERTS, STEPS = 3, 2, 3, 3
CONFIGS = {
    "paper": SmatConfig(experts=EXPERTS, router=RouterConfig(heads=2)),
    "release": release_config(EXPERTS, heads=2),
}
# Relative. Two vector widths and two numbers of threads differ by 4e-13; the rest is a margin for other libraries.
TOLERANCE = 1e-6


def normal(random: np.random.RandomState, shape: torch.Size | tuple[int, ...], std: float) -> Tensor:
    return torch.from_numpy(random.standard_normal(tuple(shape)) * std)


def make(config: SmatConfig) -> SmatMethod:
    """Return a small SMAT in float64, with fixed random values for the backbone, parameters and power-iteration vectors."""
    random = np.random.RandomState(0)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0).double()
    with torch.no_grad():
        for name, tensor in sorted(net.state_dict().items()):
            tensor.copy_(normal(random, tensor.shape, 0.2) + ("norm" in name and "weight" in name))
    method = build_method(config, net).double().train()
    method.backbone.double()
    assert isinstance(method, SmatMethod)
    with torch.no_grad():
        for name, tensor in sorted(method.named_parameters()):
            tensor.copy_(normal(random, tensor.shape, 0.1))
            if "multipliers" in name:
                tensor.abs_()
        for _, tensor in sorted(method.router.named_buffers()):
            if tensor.ndim == 1:
                tensor.copy_(torch.nn.functional.normalize(normal(random, tensor.shape, 1.0), dim=0))
    return method


def episode(seed: int) -> Episode:
    images = normal(np.random.RandomState(seed), (2, WAYS * SHOTS, 3, 16, 16), 1.0)
    labels = torch.arange(WAYS).repeat(SHOTS)
    images += labels[None, :, None, None, None]
    return Episode(Support(images[0], labels, WAYS), images[1], labels, "random", 0, seed)


def fingerprint(tensor: Tensor) -> list[float]:
    """Return the norm of a tensor and its products with three fixed vectors, which change with any entry."""
    flat = tensor.detach().double().reshape(-1)
    at = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return [float(flat.norm()), *(float(flat @ torch.cos(at * frequency)) for frequency in (0.1, 1.0, 2.3))]


def trace(name: str) -> list[dict[str, Any]]:
    """Return loss, terms and gradient fingerprints by parameter for each of three updates."""
    method = make(CONFIGS[name])
    optimizers = build_optimizers(method.groups(), {}, STEPS, method.default_groups())
    steps = []
    for step in range(STEPS):
        optimizers.zero_grad()
        losses = method.loss(episode(step), torch.Generator().manual_seed(step))
        losses.total.backward()
        gradients = {key: fingerprint(value.grad) for key, value in method.named_parameters() if value.grad is not None}
        steps.append({"loss": losses.total.item(), "terms": losses.terms, "gradients": gradients})
        optimizers.step()
        method.after_step(step + 1)
    return steps


def test_the_default_start() -> None:
    """theta_delta and the multipliers start at zero, so that the first task uses the pre-trained model."""
    method = build_method(SmatConfig(), VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0))
    assert isinstance(method, SmatMethod)
    assert not method.theta_delta.any()
    assert not method.sparsity.multipliers.any()
    assert method.log_alpha.std() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_the_default_smat_has_not_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "eager")  # the definition; other tests compare the fused merges with it
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))[name]
    for step, (ours, theirs) in enumerate(zip(trace(name), frozen, strict=True)):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=TOLERANCE), f"loss of step {step}"
        assert ours["terms"] == pytest.approx(theirs["terms"], rel=TOLERANCE, abs=1e-12), f"terms of step {step}"
        assert ours["gradients"].keys() == theirs["gradients"].keys(), f"parameters with a gradient at step {step}"
        for key, expected in theirs["gradients"].items():
            size = expected[0]
            assert ours["gradients"][key] == pytest.approx(expected, abs=TOLERANCE * size + 1e-12), f"gradient of {key} at step {step}"


if __name__ == "__main__":
    import os

    os.environ[VARIABLE] = "eager"
    print(json.dumps({name: trace(name) for name in CONFIGS}, indent=1))
