"""Compressed experts for inference: positions and values of each mask's non-zeros; theta_i is computed by scattering them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from smatcli.errors import UserError
from smatcli.safe.files import atomic_path
from smatcli.safe.tensors import safetensors_header

FORMAT = "smat-experts-1"


@dataclass(frozen=True)
class Expert:
    """One mask: `values` at `positions` (int32, ascending), or all P values if `positions` is None (less memory above half density)."""

    values: Tensor
    positions: Tensor | None

    @property
    def nbytes(self) -> int:
        """Size of the stored tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.positions) if t is not None)

    def add_to(self, total: Tensor, weight: float | Tensor) -> None:
        """Add weight * z to `total` [P] in place, touching the non-zeros only."""
        values = self.values.to(total.dtype)
        if self.positions is None:
            total.add_(values * weight)
        elif isinstance(weight, float):
            total.index_add_(0, self.positions, values, alpha=weight)
        else:
            total.index_add_(0, self.positions, values * weight)


@dataclass(frozen=True)
class CompressedExperts:
    """The inference masks of M experts over P parameters."""

    size: int
    experts: tuple[Expert, ...]

    @classmethod
    def of(cls, masks: Iterable[Tensor], dtype: torch.dtype | None = None) -> "CompressedExperts":
        """Compress masks z_m [P], taken one at a time. Values are stored as `dtype` (default: the dtype of the masks)."""
        experts: list[Expert] = []
        size = 0
        for z in masks:
            size = z.numel()
            positions = z.nonzero().squeeze(1).to(torch.int32)
            stored = z.to(dtype or z.dtype)
            sparse = 2 * len(positions) <= size
            experts.append(Expert(stored[positions], positions) if sparse else Expert(stored.clone(), None))
        return cls(size, tuple(experts))

    @property
    def nbytes(self) -> int:
        """Size of all experts in bytes."""
        return sum(expert.nbytes for expert in self.experts)

    @property
    def nonzeros(self) -> list[int]:
        """Number of non-zeros per mask."""
        return [int(torch.count_nonzero(expert.values)) for expert in self.experts]

    def mask(self, expert: int) -> Tensor:
        """Return the mask z [P] of one expert, equal to the original up to the dtype of the stored values."""
        z = self.experts[expert].values.new_zeros(self.size)
        self.experts[expert].add_to(z, 1.0)
        return z

    def total(self, weights: Tensor, like: Tensor) -> Tensor:
        """Return sum_m w_m z_m [P] in the dtype and on the device of `like`."""
        out = torch.zeros(self.size, dtype=like.dtype, device=like.device)
        for expert, weight in zip(self.experts, weights.tolist(), strict=True):
            if weight:
                expert.add_to(out, weight)
        return out

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for m, expert in enumerate(self.experts):
            tensors[f"{m}.values"] = expert.values.contiguous()
            if expert.positions is not None:
                tensors[f"{m}.positions"] = expert.positions.contiguous()
        meta = {"format": FORMAT, "size": str(self.size), "experts": str(len(self.experts))}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, meta)

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> "CompressedExperts":
        """Read a file written by `save`. Raises `UserError` for any other file."""
        try:
            safetensors_header(path)
            with safe_open(path, "pt", device=str(device)) as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise UserError(f"{path}: cannot be read as compressed experts ({error}); write it again") from None
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: not a file of compressed experts (format {meta.get('format')!r}, expected {FORMAT!r})")
        experts = tuple(Expert(tensors[f"{m}.values"], tensors.get(f"{m}.positions")) for m in range(int(meta["experts"])))
        return cls(int(meta["size"]), experts)


def mix(theta_pre: Tensor, experts: CompressedExperts, scores: Tensor) -> Tensor:
    """Return theta = theta_pre + (sum_m s_m e_m) / sum_m s_m for experts e_m [P] that do not share theta_delta.

    Scores s [M] >= 0 may have any scale; if all are zero, theta is theta_pre.
    """
    if not bool(scores.any()):
        return theta_pre.clone()
    return theta_pre + experts.total((scores / scores.sum()).to(theta_pre), theta_pre)


class Merger:
    """Compute theta = theta_pre + theta_delta * (sum_m s_m z_m) / sum_m s_m from compressed experts, for a sequence of scores s [M].

    Between two *binary* scores (all non-zero entries equal), only the non-zeros of the experts that differ are updated, in a running
    float64 sum. Sums of fp32 masks are exact in float64, so the result does not depend on the states visited before. If all scores are
    zero, theta is theta_pre.
    """

    def __init__(self, theta_pre: Tensor, theta_delta: Tensor, experts: CompressedExperts) -> None:
        self.theta_pre, self.theta_delta, self.experts = theta_pre, theta_delta, experts
        self._bits: list[bool] = [False] * len(experts.experts)
        self._sum: Tensor | None = None
        self.touched = 0

    def __call__(self, scores: Tensor) -> Tensor:
        """Return theta [P] for scores [M] >= 0 of any scale."""
        values = scores.tolist()
        on = {value for value in values if value}
        if not on:
            return self.theta_pre.clone()
        if len(on) == 1:
            return self._binary([bool(value) for value in values])
        mask = self.experts.total(scores.to(self.theta_pre), self.theta_pre).div_(float(scores.sum()))
        return torch.addcmul(self.theta_pre, self.theta_delta, mask)

    def _binary(self, bits: list[bool]) -> Tensor:
        if self._sum is None:
            exact = torch.float32 if self.theta_pre.device.type == "mps" else torch.float64
            self._sum = torch.zeros(self.experts.size, dtype=exact, device=self.theta_pre.device)
        for m, (before, after) in enumerate(zip(self._bits, bits, strict=True)):
            if before != after:
                expert = self.experts.experts[m]
                expert.add_to(self._sum, 1.0 if after else -1.0)
                self.touched += expert.values.numel()
        self._bits = bits
        return torch.addcmul(self.theta_pre, self.theta_delta, self._sum.to(self.theta_pre.dtype), value=1 / sum(bits))
