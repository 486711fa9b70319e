"""Frozen features of prompts, computed once per example."""

import torch
from torch import Tensor

from smatcli.device import Precision
from smatcli.llm.data.batches import TokenSet, prompts_of
from smatcli.llm.methods.base import LanguageMethod

BLOCK = 32  # examples that are computed together


class PromptFeatures:
    """Features [n, D] of the examples of a TokenSet, kept in memory.

    They are computed in blocks of consecutive examples. A block has the same examples whichever of them is needed first, so that a resumed
    training reads the same bits.
    """

    def __init__(self, method: LanguageMethod, data: TokenSet, pad: int, device: torch.device, precision: Precision) -> None:
        self.method, self.data, self.pad, self.device, self.precision = method, data, pad, device, precision
        self._blocks: dict[int, Tensor] = {}

    def of(self, examples: list[int]) -> Tensor | None:
        """Return the features of examples, in their order; None for a method without a router."""
        if not self.method.needs_features:
            return None
        return torch.stack([self._block(i // BLOCK)[i % BLOCK] for i in examples])

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            chosen = range(number * BLOCK, min(len(self.data), (number + 1) * BLOCK))
            ids, mask = (tensor.to(self.device) for tensor in prompts_of(self.data, chosen, self.pad))
            training = self.method.training
            self.method.eval()  # without dropout: the features are those that generation sees
            with torch.no_grad(), self.precision.autocast():
                self._blocks[number] = self.method.features(ids, mask).float()
            self.method.train(training)
        return self._blocks[number]
