"""Start-up test of packing: a packed row must give the logits of its sequences, one by one."""

from typing import Any

import torch

from smatcli.device import Precision
from smatcli.llm.data.batches import TokenSet, rows_of

TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}  # of the largest logit


@torch.no_grad()
def packing_error(model: Any, data: TokenSet, row: int, device: torch.device, precision: Precision) -> float:
    """Return the largest difference of logits between a packed row of a few examples and the examples, relative to the largest logit.

    `model` is the base model, in evaluation mode.
    """
    shortest = sorted(range(len(data)), key=lambda i: (len(data.tokens[i].ids), i))
    chosen = [i for i in shortest[:3] if len(data.tokens[i].ids) * 3 <= row]
    if len(chosen) < 2:
        return 0.0  # rows contain one example each
    (packed,) = rows_of(data, chosen, row, packed=True, pad=0)
    with precision.autocast():
        together = model(input_ids=packed.ids.to(device), use_cache=False, **packed.inputs(device)).logits.float()
        worst, largest = 0.0, 1e-6
        for i, (start, stop) in zip(packed.examples, packed.pieces or [], strict=True):
            alone = model(input_ids=torch.tensor([data.tokens[i].ids], device=device), use_cache=False).logits.float()
            worst = max(worst, float((together[:, start:stop] - alone).abs().max()))
            largest = max(largest, float(alone.abs().max()))
    return worst / largest
