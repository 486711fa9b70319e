"""What every method of `smat llm` has in common: a base model, optimizer groups, a loss per sequence, and generation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.config.schema import GroupConfig

Pieces = Sequence[tuple[int, int]] | None


class LanguageMethod(nn.Module):
    """A way to adapt a causal language model. Full fine-tuning is what this class does; subclasses override what differs.

    `base` is a transformers model. Methods that condition the weights on the prompt set `needs_features` and override `condition`.
    """

    needs_features = False

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the optimizer groups by name."""
        return {"delta": [p for p in self.base.parameters() if p.requires_grad]}

    def defaults(self) -> dict[str, GroupConfig]:
        """Return the settings of the optimizer groups that a recipe does not set."""
        return {"delta": GroupConfig(lr=1e-4, clip=1.0, schedule="linear", warmup=0.03)}

    def begin_update(self, seed: int) -> None:
        """Draw what is drawn once per update, from `seed` alone: the same for all its micro-batches and processes."""

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the frozen features [B, D] of prompts: ids and mask [B, T]."""
        raise NotImplementedError

    def condition(self, features: Tensor) -> Tensor | None:
        """Return the merging scores [S, M] of sequences with these prompt features; None for a method without experts."""
        return None

    def logits(self, ids: Tensor, scores: Tensor | None, pieces: Pieces = None, **inputs: Any) -> Tensor:
        """Return logits [B, T, V]; `scores` belong to the sequences, `pieces` are the token ranges of those in one packed row."""
        return self.base(input_ids=ids, use_cache=False, **inputs).logits  # type: ignore[no-any-return]

    def penalties(self) -> dict[str, Tensor]:
        """Return the loss terms, by name, that are added once per update."""
        return {}

    def after_update(self, share: float) -> None:
        """Adjust schedules after an update; `share` of the training is done."""

    def feasible(self) -> bool:
        """Whether the method's constraint holds, so that the present weights may be kept as the best ones."""
        return True

    def statistics(self) -> dict[str, float]:
        """Return the numbers that a validation records."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint: what is trained, and buffers that training changes."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def merged(self, features: Tensor | None) -> Any:
        """Return a plain model of the base's class, with the weights of the prompt with features [1, D].

        The modules of this method are reused, so it cannot be used afterwards. Raises UserError for a method whose weights differ from
        token to token.
        """
        return self.base

    @torch.no_grad()
    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate from left-padded prompts [B, T]; `options` are those of transformers' `generate`."""
        return self.base.generate(input_ids=ids, attention_mask=mask, **options)  # type: ignore[no-any-return]
