"""Numbers of the official release (tests/data/parity/README.md), and a mapping of its names to ours."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smatcli.config.methods import MaskConfig, RouterConfig, SmatConfig, SparsityConfig, TeacherConfig
from smatcli.experts.router import Router

FOLDER = Path(__file__).parent.parent / "data" / "parity"


class Parity:
    """One file, with arrays as tensors and floats in double precision."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(FOLDER / f"{name}.npz")

    def __getitem__(self, key: str) -> Tensor:
        found = torch.from_numpy(self.arrays[key])
        return found.double() if found.is_floating_point() else found

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self.arrays["names"]]

    def flat(self, key: str, missing: float = 0.5) -> Tensor:
        """Return the array `key` of every tensor as one vector [P], or [M, P] if it has an expert axis (last in the files)."""
        parts = []
        for i in range(len(self.names)):
            size, experts = self[f"{i}.theta_pre"].numel(), self[f"{i}.log_alpha"].shape[-1]
            part = self[f"{i}.{key}"] if f"{i}.{key}" in self else torch.full((size, experts), missing, dtype=torch.float64)
            parts.append(part.reshape(-1) if part.numel() == size and experts > 1 else part.reshape(size, experts).T)
        return torch.cat(parts, -1)


def close(found: Tensor | float, expected: Tensor, tolerance: float) -> bool:
    """Check that |found - expected| <= tolerance |expected|, by the norm."""
    found = torch.as_tensor(found).detach().double()
    assert found.shape == expected.shape
    return bool((found - expected).norm() <= tolerance * expected.norm() + 1e-12)


RELEASE_ROUTER = RouterConfig(pool="first", heads=4, logit_l2=1e-4)


def release_config(experts: int, heads: int = 4) -> SmatConfig:
    """Return the recipe options that reproduce the release's arithmetic."""
    return SmatConfig(
        experts=experts,
        inner_steps=1,
        inner_lr=1e-3,
        masks=MaskConfig(noise="deterministic"),
        router=RELEASE_ROUTER.model_copy(update={"heads": heads}),
        sparsity=SparsityConfig(tau=0.9, measure="counted", weighting="alpha", reset=True, project=False, lr=2e-3),
        teacher=TeacherConfig(steps=1, lr=5e-3, temperature=2.0, prototypes="student", direction="reverse", weight=0.25, pretrained=True),
    )


def our_name(name: str) -> str:
    """Return our name of a router tensor of the release."""
    name = name.replace("masks_keys", "keys").replace("skills_tokens", "skills").replace("task_embed_agg.", "")
    name = name.replace("attn.", "").replace("mlp.", "")
    return name.replace("weight_orig", "weight").replace("weight_u", "u").replace("weight_v", "v")


def router_state(data: Parity, prefix: str) -> dict[str, Tensor]:
    """Return the arrays under `prefix` by our names (`count_encoding`, which the release does not use either, is skipped)."""
    keys = [key for key in data.arrays.files if key.startswith(prefix) and "count_encoding" not in key]
    found = {our_name(key.removeprefix(prefix)): data[key] for key in keys}
    return {name: value.squeeze(0) if name == "skills" else value for name, value in found.items()}


def load_router(router: Router, data: Parity, prefix: str) -> nn.Module:
    """Load the state under `prefix` into `router`, in double precision."""
    router.double()
    missing, unexpected = router.load_state_dict(router_state(data, prefix), strict=False)
    assert missing == ["temperature"]
    assert not unexpected
    return router
