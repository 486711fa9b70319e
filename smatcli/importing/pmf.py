"""Checkpoints of PMF (Hu et al., CVPR 2022; repository hushell/pmf_cvpr22): a ProtoNet over a ViT with timm's names.

`backbone.*` is the tuned network, `scale_cls` [1] the learned scale of the cosine, and `bias` [1] a constant added to all logits. The bias
has no effect on predictions or loss and is ignored. The pre-trained weights are not in the file.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from smatcli.errors import UserError
from smatcli.importing.names import entries_for, to_timm
from smatcli.importing.parsed import Parsed, backbone_section, check_finite, check_keys, check_shape

NET, SCALE, BIAS = "backbone.", "scale_cls", "bias"


def is_pmf(names: Mapping[str, Tensor]) -> bool:
    """Return whether these names belong to a PMF checkpoint."""
    return SCALE in names and any(name.startswith(NET) for name in names)


def parse_pmf(path: Path, tensors: Mapping[str, Tensor]) -> Parsed:
    """Parse the tensors of PMF. Raises UserError if tensors are missing, unexpected, not finite or of a wrong shape."""
    entries = entries_for(path, [name.removeprefix(NET) for name in tensors if name.startswith(NET)])
    names = [f"{NET}{entry.theirs}" for entry in entries]
    check_keys(path, tensors, [*names, SCALE], [BIAS], what="PMF")
    check_shape(path, SCALE, tensors[SCALE], (1,))
    check_finite(path, tensors)
    scale = round(float(tensors[SCALE]), 6)
    if scale <= 0:
        raise UserError(f"{path}: {SCALE} is {scale:g}, expected a positive number; the file is damaged")
    theta = to_timm(entries, [tensors[name] for name in names], names)
    return Parsed(
        layout="PMF",
        method={"name": "pmf", "scale": scale},
        backbone=backbone_section(path, theta),
        flat={"theta_pre": theta, "theta": theta},
        single={},
        facts={"scale": scale},
        notes=["the pre-trained weights are not in the file, so theta_pre of the run is the tuned network too"],
    )
