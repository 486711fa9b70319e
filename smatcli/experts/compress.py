"""Experts at inference: positions and values of each mask's non-zeros, and theta_i from them by scatter."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from smatcli.errors import UserError
from smatcli.experts.masks import HardConcrete
from smatcli.safe.files import atomic_path
from smatcli.safe.tensors import safetensors_header

FORMAT = "smat-experts-1"


@dataclass(frozen=True)
class Expert:
    """One mask: `values` at `positions` (int32, rising), or all P values where `positions` is None (smaller above half density)."""

    values: Tensor
    positions: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.positions) if t is not None)

    def add_to(self, total: Tensor, weight: float | Tensor) -> None:
        """total [P] += weight * z, touching the non-zeros only."""
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
        """From masks z_m [P] given one at a time; `dtype` of the stored values (default: the masks')."""
        made: list[Expert] = []
        size = 0
        for z in masks:
            size = z.numel()
            positions = z.nonzero().squeeze(1).to(torch.int32)
            stored = z.to(dtype or z.dtype)
            sparse = 2 * len(positions) <= size
            made.append(Expert(stored[positions], positions) if sparse else Expert(stored.clone(), None))
        return cls(size, tuple(made))

    @classmethod
    def of_log_alpha(
        cls, log_alpha: Tensor, shape: HardConcrete, dense: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> "CompressedExperts":
        """The inference gates of log_alpha [M, P], expert by expert; `dense` [P] bool: masks that are always 1."""
        gates = (shape.eval_gate(row) for row in log_alpha.detach())
        return cls.of((z if dense is None else z.masked_fill_(dense, 1.0) for z in gates), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return sum(expert.nbytes for expert in self.experts)

    @property
    def nonzeros(self) -> list[int]:
        """Number of non-zeros of each mask."""
        return [int(torch.count_nonzero(expert.values)) for expert in self.experts]

    def mask(self, expert: int) -> Tensor:
        """z [P] of one expert, exactly as it was compressed (up to the values' dtype)."""
        z = self.experts[expert].values.new_zeros(self.size)
        self.experts[expert].add_to(z, 1.0)
        return z

    def total(self, weights: Tensor, like: Tensor) -> Tensor:
        """sum_m w_m z_m [P] in the dtype of `like`."""
        out = torch.zeros(self.size, dtype=like.dtype, device=like.device)
        for expert, weight in zip(self.experts, weights.tolist(), strict=True):
            if weight:
                expert.add_to(out, weight)
        return out

    def save(self, path: Path) -> None:
        """One safetensors file, written whole or not at all."""
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
        """What `save` wrote; `UserError` for a file that is not one."""
        try:
            safetensors_header(path)
            with safe_open(path, "pt", device=str(device)) as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise UserError(f"{path}: cannot be read as compressed experts ({error}); write it again") from None
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: is not a file of compressed experts (format {meta.get('format')!r}, expected {FORMAT!r})")
        experts = tuple(Expert(tensors[f"{m}.values"], tensors.get(f"{m}.positions")) for m in range(int(meta["experts"])))
        return cls(int(meta["size"]), experts)


def mix(theta_pre: Tensor, experts: CompressedExperts, scores: Tensor) -> Tensor:
    """theta = theta_pre + (sum_m s_m e_m) / sum_m s_m for scores s [M] >= 0 of any scale and experts with parameters of their own, e_m [P].

    All off: theta_pre.
    """
    if not bool(scores.any()):
        return theta_pre.clone()
    return theta_pre + experts.total((scores / scores.sum()).to(theta_pre), theta_pre)


class Merger:
    """theta = theta_pre + theta_delta * (sum_m s_m z_m) / sum_m s_m for a sequence of scores s [M], from compressed experts.

    Between two *binary* scores (all non-zero entries equal) only the non-zeros of the experts that differ are touched, in a running
    float64 sum: sums of fp32 masks are exact in it, so the result does not depend on the way that led to a state. All off: theta_pre.
    """

    def __init__(self, theta_pre: Tensor, theta_delta: Tensor, experts: CompressedExperts) -> None:
        self.theta_pre, self.theta_delta, self.experts = theta_pre, theta_delta, experts
        self._bits: list[bool] = [False] * len(experts.experts)
        self._sum: Tensor | None = None
        self.touched = 0

    def __call__(self, scores: Tensor) -> Tensor:
        """theta [P] for scores [M] >= 0 of any scale."""
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
