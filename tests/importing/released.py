"""Checkpoints in the layouts of the official releases, from the parity data or from random numbers."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.experts.parity import Parity

OVERRIDES = ("backbone.args.num_heads=2", "precision=fp32")
# A layer of ViTModel in transformers 4, in the order in which its parameters are registered.
HF_LAYER = [f"attention.attention.{name}" for name in ("query", "key", "value")]
HF_LAYER += ["attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after"]
HUB_LAYER = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}


def hf_pairs(depth: int) -> list[tuple[str, str, int | None]]:
    """Return (transformers name, torch-hub name, third of qkv) of every tensor of an encoder, in the order of transformers 4."""
    found: list[tuple[str, str, int | None]] = [
        ("embeddings.cls_token", "cls_token", None),
        ("embeddings.position_embeddings", "pos_embed", None),
        ("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight", None),
        ("embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias", None),
    ]
    for i in range(depth):
        for index, name in enumerate(HF_LAYER):
            hub = HUB_LAYER.get(name, "attn.qkv")
            for kind in ("weight", "bias"):
                part = index if hub == "attn.qkv" else None
                found.append((f"encoder.layer.{i}.{name}.{kind}", f"blocks.{i}.{hub}.{kind}", part))
    return [*found, ("layernorm.weight", "norm.weight", None), ("layernorm.bias", "norm.bias", None)]


def third(tensor: Tensor, part: int | None) -> Tensor:
    return tensor if part is None else tensor.chunk(3)[part].clone()


def smat_release(names: str = "transformers", age: str = "old") -> dict[str, Tensor]:
    """Return the `model` of a released SMAT checkpoint with the parity task's model; `age` new omits the router's keys."""
    data = Parity("task")
    arrays = {n: [data[f"{i}.{key}"].float() for key in ("theta_pre", "theta_delta", "log_alpha")] for i, n in enumerate(data.names)}
    if names == "transformers":
        pairs = [(f"encoder.{theirs}", f"encoder.{hub}", part) for theirs, hub, part in hf_pairs(2)] + [
            ("head.weight", "head.weight", None)
        ]
    else:
        pairs = [(name, name, None) for name in data.names]
    tensors = {f"net.{theirs}": third(arrays[hub][0], part) for theirs, hub, part in pairs}
    for place, which in (("delta_hypernet.phis", 1), ("mask_hypernet.log_alphas", 2)):
        tensors |= {f"{place}.{i}": third(arrays[hub][which], part) for i, (_, hub, part) in enumerate(pairs)}
    router = [key.removeprefix("router.") for key in data.arrays.files if key.startswith("router.")]
    extra = {"masks_keys", "skills_tokens", "count_encoding"}
    tensors |= {f"mask_hypernet.{key}": data[f"router.{key}"].float() for key in router if age == "old" or key not in extra}
    tensors["mask_sparsity_targets"] = torch.full((3,), 0.9)
    tensors["num_metaupdates"] = torch.tensor([4000 * (5 - float(data["temperature"]))])
    if age == "old":
        tensors["lagrangian_multiplier"] = data["multiplier"].float()
        tensors |= {f"mask_hypernet.{k}": torch.tensor(v) for k, v in (("beta", 2 / 3), ("zeta", 1.1), ("gamma", -0.1))}
        tensors["mask_hypernet.use_hard_masks"] = torch.tensor(0)
        tensors |= {f"mask_hypernet.input_embed_proj.{k}": torch.ones(2) for k in ("bias", "weight_orig", "weight_u", "weight_v")}
    return tensors


def random_vit(side: int, dim: int = 32, depth: int = 2, patch: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Return a ViT's tensors by torch-hub name, for images of `side` patches."""
    noise = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + side * side, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    layer = {"norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "norm2": (dim,)}
    layer |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for i in range(depth):
        for name, shape in layer.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return {
        name: 0.3 * torch.randn(shape, generator=noise) + ("norm" in name and name.endswith("weight")) for name, shape in shapes.items()
    }


def pmf_release(side: int = 3, scale: float = 12.5, **vit: int) -> dict[str, Tensor]:
    """Return the `model` of a released PMF checkpoint."""
    tensors = {"bias": torch.tensor([0.25]), "scale_cls": torch.tensor([scale])}
    return tensors | {f"backbone.{name}": value for name, value in random_vit(side, **vit).items()}


def saved(path: Path, tensors: dict[str, Tensor], **more: Any) -> Path:
    """Save the checkpoint: `{model, ...}` for PyTorch, bare tensors for safetensors."""
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    else:
        torch.save({"model": tensors, "optimizer": {"state": {}, "param_groups": []}, **more}, path)
    return path
