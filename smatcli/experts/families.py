"""Families of masks (learned, fixed or all ones; element-wise or structured), and the merge of experts with such masks."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from smatcli.config.methods import MaskConfig
from smatcli.errors import SmatError
from smatcli.experts.groups import ParameterGroups
from smatcli.experts.masks import HardConcrete, counted_sparsity, expected_l0, initial_log_alpha
from smatcli.experts.merge import Merged, merge
from smatcli.experts.merge_eager import Gate, Noise
from smatcli.experts.noise import logistic
from smatcli.experts.space import ParameterSpace


class Masks:
    """M masks z_m over P parameters from a state [M, G], with G groups of parameters (G = P unless masks are structured).

    The state is log_alpha for learned masks, booleans for fixed ones (`random`, `magnitude`), and None if all masks are ones. With
    `own`, every expert has its own theta_delta.
    """

    def __init__(self, config: MaskConfig, space: ParameterSpace, own: bool = False) -> None:
        self.config, self.size, self.own = config, space.size, own
        self.shape = HardConcrete.of(config)
        self.groups = None if config.group == "element" else ParameterGroups.of(space, config.group)

    @property
    def learned(self) -> bool:
        """Whether the state is trained."""
        return self.config.kind == "learned"

    @property
    def entries(self) -> int:
        """G, the number of mask entries per expert."""
        return self.groups.size if self.groups else self.size

    def initial_log_alpha(self, experts: int) -> Tensor:
        """Draw log_alpha [M, G] of learned masks from torch's global generator."""
        return initial_log_alpha(experts, self.entries, self.config)

    def draw(self, experts: int, theta_pre: Tensor, tau: float) -> Tensor | None:
        """Draw fixed masks [M, G] (bool) with a share tau of zeros from torch's global generator; None if masks are all ones.

        `random` draws groups uniformly. `magnitude` selects the groups with the largest mean |theta_pre|. With several experts,
        each samples groups without replacement in proportion to this mean (Gumbel top-k), so that the masks differ.
        """
        if self.config.kind == "dense":
            return None
        wanted = round((1 - tau) * self.size)
        members = self.groups.members if self.groups else torch.ones(self.size, dtype=torch.float64)
        masks = []
        for _ in range(experts):
            score = torch.rand(self.entries, dtype=torch.float64)
            if self.config.kind == "magnitude":
                strength = theta_pre.detach().abs().cpu()
                weight = (self.groups.mean(strength) if self.groups else strength.double()).log()
                score = weight if experts == 1 else weight - torch.log(-torch.log(score))
            order = score.argsort(descending=True, stable=True)
            before = members[order].cumsum(0) - members[order]
            mask = torch.zeros(self.entries, dtype=torch.bool)
            mask[order[before < wanted]] = True
            masks.append(mask)
        return torch.stack(masks)

    def merge(
        self,
        theta_pre: Tensor,
        theta_delta: Tensor,
        state: Tensor | None,
        alpha: Tensor,
        *,
        training: bool,
        noise: Noise = None,
        dense: Tensor | None = None,
    ) -> Merged:
        """Return theta [P] for scores alpha [M], the masks' non-zeros [M], and E[L0] / P [M] (zeros unless learned and training).

        theta_delta is [P], or [M, P] if every expert has its own. Raises `SmatError` for `dense` unless masks are learned,
        element-wise and share theta_delta.
        """
        if self.learned and self.groups is None and not self.own:
            assert state is not None
            return merge(theta_pre, theta_delta, state, alpha, Gate(self.shape, training, noise if training else None, dense))
        if dense is not None:
            raise SmatError("always-dense parameters need learned element-wise masks of experts that share theta_delta")
        with torch.autocast(theta_pre.device.type, enabled=False):
            z = self._gates(state, training, noise if training else None, alpha)
            theta = self._theta(theta_pre, theta_delta, z, alpha)
            if z is None:
                return Merged(theta, alpha.new_full((len(alpha),), self.size), alpha.new_zeros(len(alpha)))
            nonzeros = self._share((z.detach() > 0).to(alpha)) * self.size
            l0 = self.expected_l0(state) if self.learned and training and state is not None else alpha.new_zeros(len(alpha))
            return Merged(theta, nonzeros, l0)

    def _theta(self, theta_pre: Tensor, theta_delta: Tensor, z: Tensor | None, alpha: Tensor) -> Tensor:
        if not self.own:
            return theta_pre + theta_delta * (alpha.sum() if z is None else self._expand(alpha @ z))
        if z is None:
            return theta_pre + alpha @ theta_delta
        theta = theta_pre
        for score, row, delta in zip(alpha, z, theta_delta, strict=True):
            theta = theta + score * (self._expand(row) * delta)
        return theta

    def _gates(self, state: Tensor | None, training: bool, noise: Noise, like: Tensor) -> Tensor | None:
        """Return z [M, G], with graph if masks are learned."""
        if state is None:
            return None
        if not self.learned:
            return state.to(like.dtype)
        if not training:
            return self.shape.eval_gate(state)
        if isinstance(noise, int):
            return self.shape.gate(state + logistic(noise, len(state), state.shape[1], state), self.shape.beta)
        return self.shape.train_gate(state, noise)

    def inference(self, state: Tensor | None, experts: int, like: Tensor) -> Iterator[Tensor]:
        """Yield the inference masks z_m [P] one by one, in the dtype of `like`."""
        for m in range(experts):
            if state is None:
                yield torch.ones_like(like)
            else:
                row = self.shape.eval_gate(state[m].detach()) if self.learned else state[m].to(like.dtype)
                yield self._expand(row)

    def expected_l0(self, state: Tensor | None) -> Tensor:
        """Return E[L0(z_m)] / P [M] of learned masks, or the share of non-zeros of fixed ones."""
        assert state is not None
        if not self.learned:
            return self._share(state.to(torch.get_default_dtype()))
        if self.groups is None:
            return expected_l0(state, self.shape)
        return self._share(self.shape.expected_l0_element(state))

    def counted(self, state: Tensor | None, gate: Literal["training", "inference"]) -> Tensor:
        """Return the share of zeros [M] of each noise-free mask."""
        assert state is not None
        if not self.learned:
            return 1 - self.expected_l0(state)
        if self.groups is None:
            return counted_sparsity(state, self.shape, gate == "training")
        return self._share((state <= self.shape.zero_below(gate == "training")).to(state.dtype))

    def _expand(self, values: Tensor) -> Tensor:
        return values if self.groups is None else self.groups.expand(values)

    def _share(self, values: Tensor) -> Tensor:
        """Return the mean over all P parameters of values [M, G] of their groups."""
        if self.groups is None:
            return values.mean(-1)
        return values @ (self.groups.members / self.size).to(values)
