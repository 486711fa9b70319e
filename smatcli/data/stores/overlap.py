"""Datasets of a meta-test whose stores have the content of another one, such as a training dataset under another name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from smatcli.data.stores.opening import store_files
from smatcli.data.stores.store import Store
from smatcli.errors import UserError


def contents(root: str | Path, names: Sequence[str]) -> dict[str, str]:
    """Map dataset to content hash for those of the stores `names` that are in the folder and can be read; images are not checked."""
    hashes = {}
    files = store_files(root)
    for name in names:
        try:
            hashes[name] = Store.open(files[name]).content_hash
        except (KeyError, UserError):
            continue
    return hashes


def copies(train: Mapping[str, str], indomain: Mapping[str, str], ood: Mapping[str, str], allowed: bool = False) -> dict[str, str]:
    """Map each dataset that is a copy to the original: out-of-domain datasets of training datasets, datasets of earlier ones.

    The arguments map dataset to content hash. Raises UserError if there is a copy, unless it is `allowed` (data.allow_overlap).
    """
    originals: dict[str, str] = {}
    result: dict[str, str] = {}
    for name, content in indomain.items():
        if (original := originals.setdefault(content, name)) != name:
            result[name] = original
    trained = {content: name for name, content in train.items()}
    for name, content in ood.items():
        if content in trained:
            result[name] = trained[content]
        elif (original := originals.setdefault(content, name)) != name:
            result[name] = original
    for name, original in result.items():
        if not allowed:
            kind = f"training dataset {original}" if original in train and name in ood else f"dataset {original}"
            raise UserError(
                f"data: {name} has the same content as the {kind}; remove it, or set data.allow_overlap=true (with a footnote in tables)"
            )
    return result
