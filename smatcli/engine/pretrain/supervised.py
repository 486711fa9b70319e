"""The model of supervised pre-training (a cosine classifier) and its data (images of stores, some of them held out)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.config.schema import PretrainData
from smatcli.data.counted import counted_rng
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.store import Store
from smatcli.errors import UserError

NO_DECAY = ("pos_embed", "cls_token", "reg_token", "dist_token", "rel_pos", "relative_position_bias_table")


class CosineClassifier(nn.Module):
    """Cosine classifier: logits [B, C] = scale * cosine(backbone(images), class weights)."""

    def __init__(self, backbone: nn.Module, classes: int, scale: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.weight = nn.Parameter(0.02 * torch.randn(classes, int(backbone.num_features)))  # type: ignore[arg-type]
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.scale * F.linear(F.normalize(features.float()), F.normalize(self.weight))

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters without weight decay: norms, biases, position embeddings and special tokens."""
        return [p for n, p in self.named_parameters() if p.ndim <= 1 or any(part in n for part in NO_DECAY)]


@dataclass(frozen=True)
class ImageSplit:
    """Rows and labels of each store, for training and held out; `names` [C] are 'dataset/class'."""

    stores: list[Store]
    names: list[str]
    train_rows: list[np.ndarray]
    train_labels: list[np.ndarray]
    held_rows: list[np.ndarray]
    held_labels: list[np.ndarray]
    single: int  # number of classes with one image, which is used for training

    @property
    def hashes(self) -> dict[str, str]:
        """Content hash of each store: a resumed run must see the same images."""
        return {store.name: store.content_hash for store in self.stores}


def split_images(data: PretrainData, seed: int) -> ImageSplit:
    """Split the images by `seed`: hold out the fraction `holdout` of each class, at least one image if it has two."""
    stores = open_stores(data.root, data.datasets)
    split = ImageSplit(list(stores.values()), [], [], [], [], [], 0)
    single = 0
    for store in split.stores:
        chosen = store.classes(data.split.get(store.name, "train"))
        if not len(chosen):
            wanted = data.split.get(store.name, "train")
            raise UserError(f"data.split.{store.name}: the store has no class in split {wanted!r}; choose another or prepare it again")
        parts: dict[str, list[np.ndarray]] = {"train": [], "held": []}
        labels: dict[str, list[np.ndarray]] = {"train": [], "held": []}
        for index in chosen:
            first, after = int(store.class_offsets[index]), int(store.class_offsets[index + 1])
            count = after - first
            held = min(count - 1, max(1, round(data.holdout * count)))
            single += count == 1
            order = first + counted_rng("holdout", seed, store.name, int(index)).permutation(count)
            for part, rows in (("held", order[:held]), ("train", np.sort(order[held:]))):
                parts[part].append(rows)
                labels[part].append(np.full(len(rows), len(split.names), np.int64))
            split.names.append(f"{store.name}/{store.class_names[index]}")
        split.train_rows.append(np.concatenate(parts["train"]))
        split.train_labels.append(np.concatenate(labels["train"]))
        split.held_rows.append(np.concatenate(parts["held"]))
        split.held_labels.append(np.concatenate(labels["held"]))
    if len(split.names) < 2:
        raise UserError(f"data: {len(split.names)} class cannot be classified; pre-training needs two or more")
    if not any(map(len, split.held_rows)):
        raise UserError("data: every class has a single image, so none can be held out for validation")
    return ImageSplit(**{**split.__dict__, "single": single})
