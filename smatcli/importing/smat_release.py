"""Checkpoints of the official SMAT release (repository szc12153/sparse_interpolated_experts), in the old and the new format.

Tensors of both formats:

- `net.encoder.*`: the pre-trained ViT;
- `net.head.*`: its placeholder head, which is ignored because prototypes replace it;
- `delta_hypernet.phis.i` and `mask_hypernet.log_alphas.i` (expert axis last), where i is the index of a named parameter of the network;
- `mask_hypernet.task_embed_agg.*`: the block of the router;
- `mask_sparsity_targets` [M];
- `num_metaupdates` [1]: the number of tasks seen in training.

The old format also has the keys and skill tokens of the router, the constants of the masks, the multipliers, and unused tensors. The new
format does not include the router keys, so only equal scores are possible (`route: uniform`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.importing.names import entries_for, to_timm
from smatcli.importing.parsed import Named, Parsed, backbone_section, check_finite, check_keys, check_shape

NET, PHI, MASK, BLOCK = "net.encoder.", "delta_hypernet.phis.", "mask_hypernet.log_alphas.", "mask_hypernet.task_embed_agg."
HEADS = ("net.head.weight", "net.head.bias")
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
TARGETS, TASKS, MULTIPLIERS = "mask_sparsity_targets", "num_metaupdates", "lagrangian_multiplier"
KEYS, SKILLS = "mask_hypernet.masks_keys", "mask_hypernet.skills_tokens"
CONSTANTS, HARD = ("beta", "gamma", "zeta"), "mask_hypernet.use_hard_masks"
UNUSED = ("mask_hypernet.count_encoding", "mask_hypernet.input_embed_proj.")
_NORMS = tuple(f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))
_LINEAR = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
LIMIT = math.log(100)  # the release clamps log_alpha before each task
WARM, COLD, PACE = 5.0, 0.5, 4000  # temperature = max(COLD, WARM - tasks / PACE)


def is_smat(names: Mapping[str, Tensor]) -> bool:
    """Return whether these names belong to a SMAT checkpoint."""
    return any(name.startswith(("delta_hypernet.", "mask_hypernet.")) for name in names)


def parse_smat(path: Path, tensors: Mapping[str, Tensor], route: str) -> Parsed:
    """Parse the tensors of a release. Raises UserError if tensors are missing, unexpected, unsupported, not finite or of a wrong shape."""
    entries = entries_for(path, [name.removeprefix(NET) for name in tensors if name.startswith(NET)])
    extra = [f"{NET}{name}" for name in POOLER if f"{NET}{name}" in tensors]
    parameters = [f"{NET}{entry.theirs}" for entry in entries] + extra + [h for h in HEADS if h in tensors or h == HEADS[0]]
    router = _router_names(tensors)
    _check_names(path, tensors, parameters, list(router))
    experts = _experts(path, tensors)
    for i, name in enumerate(parameters):
        shape = tuple(tensors[name].shape)
        check_shape(path, f"{PHI}{i}", tensors[f"{PHI}{i}"], shape, f" as {name}")
        check_shape(path, f"{MASK}{i}", tensors[f"{MASK}{i}"], (*shape, experts), _mask_hint(tensors[f"{MASK}{i}"], name, experts))
    check_finite(path, tensors)

    count = len(entries)
    flat = {
        "theta_pre": to_timm(entries, [tensors[n] for n in parameters[:count]], parameters[:count]),
        "theta_delta": to_timm(entries, [tensors[f"{PHI}{i}"] for i in range(count)], [f"{PHI}{i}" for i in range(count)]),
        "log_alpha": to_timm(
            entries, [tensors[f"{MASK}{i}"].clamp_(-LIMIT, LIMIT) for i in range(count)], [f"{MASK}{i}" for i in range(count)]
        ),
    }
    tasks = float(_scalar(path, tensors, TASKS))
    temperature = max(COLD, WARM - tasks / PACE)
    single = {f"router.{ours}": Named(theirs, tensors[theirs]) for theirs, ours in router.items()}
    single["router.temperature"] = Named(TASKS, torch.tensor(temperature))
    multipliers = tensors.get(MULTIPLIERS, torch.zeros(experts))
    single["sparsity.multipliers"] = Named(MULTIPLIERS, multipliers)
    learned, notes = _route(path, tensors, route, experts, single)
    return Parsed(
        layout=f"SMAT release ({'transformers' if entries[0].theirs.startswith('embeddings') else 'torch hub'} names)",
        method=_method(path, tensors, experts, temperature, router),
        backbone=backbone_section(path, flat["theta_pre"]),
        flat=flat,
        single=single,
        facts={"tasks": int(tasks), "temperature": temperature, "experts": experts, "router": "learned" if learned else "uniform"},
        notes=notes,
    )


def _router_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the tensor names of the router block in the release, with or without spectral normalisation, to those of smat."""
    spectral = any(name.startswith(BLOCK) and name.endswith("weight_orig") for name in tensors)
    names = {f"{BLOCK}{name}": name for name in _NORMS}
    for theirs, ours in _LINEAR.items():
        parts = {"weight_orig": "weight", "weight_u": "u", "weight_v": "v"} if spectral else {"weight": "weight"}
        if ours != "qkv":
            parts["bias"] = "bias"
        names |= {f"{BLOCK}{theirs}.{part}": f"{ours}.{name}" for part, name in parts.items()}
    return names


def _check_names(path: Path, tensors: Mapping[str, Tensor], parameters: list[str], router: list[str]) -> None:
    lists = [f"{prefix}{i}" for prefix in (PHI, MASK) for i in range(len(parameters))]
    older = [KEYS, SKILLS, HARD, MULTIPLIERS, *(f"mask_hypernet.{name}" for name in CONSTANTS)]
    older += [name for name in tensors if name.startswith(UNUSED)]
    check_keys(path, tensors, [*parameters, *lists, *router, TARGETS, TASKS], older, what="SMAT")


def _experts(path: Path, tensors: Mapping[str, Tensor]) -> int:
    experts = tensors[TARGETS].numel()
    check_shape(path, TARGETS, tensors[TARGETS], (experts,))
    if experts < 2:
        raise UserError(f"{path}: has {experts} expert; the release scales a single expert by its score, which is not supported")
    if MULTIPLIERS in tensors:
        check_shape(path, MULTIPLIERS, tensors[MULTIPLIERS], (experts,))
    return experts


def _mask_hint(log_alpha: Tensor, name: str, experts: int) -> str:
    structured = log_alpha.ndim > 1 and log_alpha.shape[-1] == experts and 1 in log_alpha.shape[:-1]
    return f" as {name}" + (" (structured masks of the release cannot be imported)" if structured else "")


def _scalar(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if tensors[name].numel() != 1:
        raise UserError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected a single number")
    return tensors[name].reshape(())


def _route(path: Path, tensors: Mapping[str, Tensor], route: str, experts: int, single: dict[str, Named]) -> tuple[bool, list[str]]:
    """Add the router keys and skill tokens to `single`. Returns whether they are the learned values, and notes for the user."""
    missing = [name for name in (KEYS, SKILLS) if name not in tensors]
    if route == "uniform":
        dim = len(tensors[f"{BLOCK}norm1.weight"])
        single["router.keys"] = Named(KEYS, torch.zeros(experts, dim))
        return False, [f"all {experts} experts get the same score for every task (--route uniform)"]
    if missing:
        raise UserError(
            f"{path}: lacks {' and '.join(missing)}: this release did not save the keys of its router, so its scores are lost; "
            "add --route uniform to give all experts the same score"
        )
    if tensors[SKILLS].ndim != 3 or tensors[SKILLS].shape[0] != 1:
        raise UserError(f"{path}: {SKILLS} has shape {tuple(tensors[SKILLS].shape)}, expected (1, tokens, dim)")
    single["router.keys"] = Named(KEYS, tensors[KEYS])
    single["router.skills"] = Named(SKILLS, tensors[SKILLS][0])
    return True, []


def _method(path: Path, tensors: Mapping[str, Tensor], experts: int, temperature: float, router: Mapping[str, str]) -> dict[str, Any]:
    """Return the method section of the recipe, with the formulas of the release and the constants of the file."""
    targets = tensors[TARGETS].double()
    if float(targets.max() - targets.min()) > 1e-6:
        raise UserError(f"{path}: {TARGETS} differ between experts ({targets.tolist()}), which recipes do not support")
    if HARD in tensors and bool(_scalar(path, tensors, HARD)):
        raise UserError(f"{path}: {HARD} is set; hard masks of the release cannot be imported")
    present = [name for name in CONSTANTS if f"mask_hypernet.{name}" in tensors]
    constants = {name: round(float(_scalar(path, tensors, f"mask_hypernet.{name}")), 6) for name in present}
    if constants.get("beta") == round(2 / 3, 6):
        constants.pop("beta")  # keep the default, which is exact
    norm, fc1 = tensors[f"{BLOCK}norm1.weight"], tensors[next(n for n, ours in router.items() if ours == "fc1.weight")]
    tokens = tensors[SKILLS].shape[1] if SKILLS in tensors and tensors[SKILLS].ndim == 3 else 0
    return {
        "name": "smat",
        "experts": experts,
        "inner_steps": 1,
        "inner_lr": 1e-3,
        "masks": {"noise": "deterministic", "eval_beta": 1.0, **constants},
        "router": {
            "pool": "first",
            "mlp_ratio": len(fc1) / max(len(norm), 1),
            "skill_tokens": tokens,
            "spectral_norm": any(ours == "qkv.u" for ours in router.values()),
            "temperature": [temperature, temperature],
            "logit_l2": 1e-4,
        },
        "sparsity": {
            "tau": round(float(targets[0]), 6),
            "measure": "counted",
            "weighting": "alpha",
            "project": False,
            "lr": 2e-3,
        },
        "teacher": {"prototypes": "student", "direction": "reverse", "pretrained": True},
    }
