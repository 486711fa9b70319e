"""Locate and read foreign checkpoints: files, folders, models on the Hugging Face hub. Code in them is never executed."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from smatcli.backbones.weights import SUFFIXES, check_plain_tensors, load_tree
from smatcli.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIRST = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("model", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")


def locate(source: str) -> Path:
    """Return the checkpoint file of `source`, which is a file, a folder with weights, or a model id of the hub.

    Raises UserError if there is no checkpoint.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _weights_in(path, source)
    if path.exists():
        return path
    if path.suffix not in SUFFIXES and not path.is_absolute() and _HUB_ID.fullmatch(source):
        return _weights_in(_download(source), source)
    raise UserError(f"{source}: file not found (models of the Hugging Face hub are named OWNER/NAME)")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the model in a checkpoint by name. The name prefix of a wrapper module is removed."""
    tree = load_tree(path, "import")
    for key in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"{path}: contains no named tensors; give the checkpoint of a model")
    for key, value in tree.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor; give the original checkpoint")
    check_plain_tensors(path, tree, "import")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tree):
            tree = {key.removeprefix(prefix): value for key, value in tree.items()}
    return {
        key: value.detach().float() if value.dtype.itemsize == 1 and value.is_floating_point() else value.detach()
        for key, value in tree.items()
    }


def _weights_in(folder: Path, source: str) -> Path:
    if (folder / "run.json").is_file():
        raise UserError(f"{source}: is already a run; use it directly")
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    chosen = [p for name in _FIRST for p in files if p.name == name] or files
    if not chosen:
        raise UserError(f"{source}: contains no weights ({', '.join(SUFFIXES)})")
    if len(chosen) > 1 and chosen[0].name not in _FIRST:
        names = ", ".join(str(p) for p in chosen[:4])
        raise UserError(f"{source}: contains {len(chosen)} checkpoints; give one of them: {names}")
    return chosen[0]


def _download(hub_id: str) -> Path:
    """Download the weights of a model on the hub to the local cache, and return their folder."""
    import huggingface_hub
    from huggingface_hub import errors

    missing: tuple[type[Exception], ...] = (errors.RepositoryNotFoundError, errors.GatedRepoError, errors.HFValidationError)
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    except missing:
        raise UserError(
            f"{hub_id}: neither a file nor a public model of the Hugging Face hub; check the name, or log in (`hf auth login`)"
        ) from None
    except Exception as error:  # several libraries raise errors of their own here
        raise UserError(
            f"{hub_id}: not a file, and the Hugging Face hub cannot be reached ({_reason(error)}); "
            "download the checkpoint on a machine with a network and give its path"
        ) from None


def _reason(error: Any) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the model is not in the cache"
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
