"""Families of masks: what the state of M masks is (log_alpha, fixed booleans, nothing), and theta from it. The default one is `merge`'s."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from smatcli.config.methods import MaskConfig
from smatcli.errors import SmatError
from smatcli.experts.groups import Groups
from smatcli.experts.masks import HardConcrete, counted_sparsity, expected_l0, initial_log_alpha
from smatcli.experts.merge import Merged, merge
from smatcli.experts.merge_eager import Noise
from smatcli.experts.noise import logistic
from smatcli.experts.space import ParameterSpace


class Masks:
    """M masks z_m over P parameters from a state [M, G], G groups of parameters (G = P unless masks are structured).

    The state is log_alpha where masks are learned, booleans where they are fixed (`random`, `magnitude`), and None where they are all one.
    """

    def __init__(self, config: MaskConfig, space: ParameterSpace, own: bool = False) -> None:
        self.config, self.size, self.own = config, space.size, own
        self.shape = HardConcrete.of(config)
        self.groups = None if config.group == "element" else Groups.of(space, config.group)

    @property
    def learned(self) -> bool:
        """Is the state trained?"""
        return self.config.kind == "learned"

    @property
    def entries(self) -> int:
        """G."""
        return self.groups.size if self.groups else self.size

    def initial_log_alpha(self, experts: int) -> Tensor:
        """log_alpha [M, G] of learned masks, from torch's global generator."""
        return initial_log_alpha(experts, self.entries, self.config)

    def draw(self, experts: int, theta_pre: Tensor, tau: float) -> Tensor | None:
        """Fixed masks [M, G] bool with a share tau of zeros (None where they are all one), from torch's global generator.

        `random`: any groups alike. `magnitude`: the largest mean |theta_pre|; with several experts drawn without replacement in
        proportion to it (Gumbel top-k), so that they differ.
        """
        if self.config.kind == "dense":
            return None
        wanted = round((1 - tau) * self.size)
        members = self.groups.members if self.groups else torch.ones(self.size, dtype=torch.float64)
        found = []
        for _ in range(experts):
            score = torch.rand(self.entries, dtype=torch.float64)
            if self.config.kind == "magnitude":
                strength = theta_pre.detach().abs().cpu()
                weight = (self.groups.mean(strength) if self.groups else strength.double()).log()
                score = weight if experts == 1 else weight - torch.log(-torch.log(score))
            order = score.argsort(descending=True, stable=True)
            before = members[order].cumsum(0) - members[order]
            found.append(torch.zeros(self.entries, dtype=torch.bool).index_fill_(0, order[before < wanted], True))
        return torch.stack(found)

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
        """theta [P] for scores alpha [M], theta_delta [P] or each expert's own [M, P]; non-zeros [M]; E[L0] / P [M] (learned, training)."""
        if self.learned and self.groups is None and not self.own:
            assert state is not None
            return merge(theta_pre, theta_delta, state, alpha, self.shape, training=training, noise=noise, dense=dense)
        if dense is not None:
            raise SmatError("always-dense parameters exist for learned element-wise masks of shared experts alone")
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
        """z [M, G], with graph where it is learned."""
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
        """The inference masks z_m [P] one after the other, in the dtype of `like`."""
        for m in range(experts):
            if state is None:
                yield torch.ones_like(like)
            else:
                row = self.shape.eval_gate(state[m].detach()) if self.learned else state[m].to(like.dtype)
                yield self._expand(row)

    def expected_l0(self, state: Tensor | None) -> Tensor:
        """E[L0(z_m)] / P of learned masks, or the share of non-zeros of fixed ones, [M]."""
        assert state is not None
        if not self.learned:
            return self._share(state.to(torch.get_default_dtype()))
        if self.groups is None:
            return expected_l0(state, self.shape)
        return self._share(self.shape.expected_l0_element(state))

    def counted(self, state: Tensor | None, gate: Literal["training", "inference"]) -> Tensor:
        """Share of zeros of every noise-free mask, [M]."""
        assert state is not None
        if not self.learned:
            return 1 - self.expected_l0(state)
        if self.groups is None:
            return counted_sparsity(state, self.shape, gate == "training")
        return self._share((state <= self.shape.zero_below(gate == "training")).to(state.dtype))

    def _expand(self, values: Tensor) -> Tensor:
        return values if self.groups is None else self.groups.expand(values)

    def _share(self, values: Tensor) -> Tensor:
        """Mean over all P parameters of values [M, G] of their groups."""
        if self.groups is None:
            return values.mean(-1)
        return values @ (self.groups.members / self.size).to(values)
