"""Analysis `expert-maps` of mlae: attention of the class token and change of the patches with one expert at a time (MLAE, Fig. 6)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from smatcli.engine.tune.task import View, network_input
from smatcli.errors import UserError
from smatcli.runs.analysis import FOLDER, Analysis
from smatcli.safe.files import atomic_path
from smatcli.tuning.mlae import Mlae

if TYPE_CHECKING:
    from smatcli.engine.analyze.tuned_subject import TunedSubject

SHOWN = 6  # images per dataset
MOST = 16  # experts
TILE = 64  # side of a map in the picture, in pixels
HEAD = 14  # height of the titles, in pixels


def settings(subject: "TunedSubject") -> dict[str, Any]:
    """Return the settings that identify the analysis."""
    return subject.settings(shown=SHOWN)


def compute(subject: "TunedSubject") -> Analysis:
    """Compute the analysis, and draw one picture per dataset.

    The group of a dataset has `attention` and `change` [images, 2 + experts, g, g] (with all experts, none, each alone), `pixels`, `rows`.
    """
    tuner = subject.tuner
    assert isinstance(tuner, Mlae)
    analysis = Analysis("expert-maps", "expert-maps", settings(subject))
    for name, task in subject.tasks.items():
        rows = task.rows["test"]
        chosen = np.unique(np.linspace(0, len(rows) - 1, SHOWN).astype(int))
        view = View(task, rows[chosen], subject.device, keep=True)
        assert view.kept is not None
        attention, change = maps(tuner, network_input(view.kept, subject.recipe))
        pixels = view.kept.cpu().numpy()
        analysis.groups[name] = {"attention": attention, "change": change, "pixels": pixels, "rows": rows[chosen]}
        folder = subject.run / FOLDER
        folder.mkdir(exist_ok=True)
        with atomic_path(folder / f"expert-maps-{name}.png") as draft:
            picture(pixels, attention, change).save(draft, format="png")
    return analysis


@torch.no_grad()
def maps(tuner: Mlae, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the attention of the class token in the last block (mean over heads), and the norm of the experts' change to its patches.

    Both are [B, 2 + n, g, g]: with all experts, with none, and with only the i-th expert of every layer. Raises UserError for a ViT without
    a class token or without a grid of patches.
    """
    vit: Any = tuner.backbone
    grid = getattr(getattr(vit, "patch_embed", None), "grid_size", None)
    if getattr(vit, "cls_token", None) is None or grid is None:
        raise UserError(f"expert-maps: {type(vit).__name__} has no class token whose attention could be shown; omit expert-maps")
    parts = tuner.parts().values()
    count = min(MOST, max(len(part.coefficients) for part in parts))
    special, attention, tokens = vit.num_prefix_tokens, [], []
    tuner.eval()
    try:
        for only in (None, -1, *range(count)):
            for part in parts:
                part.only = only
            weights, last = _last_block(vit, images)
            attention.append(weights[:, special:].unflatten(1, grid))
            tokens.append(last[:, special:].unflatten(1, grid))
    finally:
        for part in parts:
            part.only = None
    change = [(t - tokens[1]).norm(dim=-1) for t in tokens]
    return torch.stack(attention, 1).float().cpu().numpy(), torch.stack(change, 1).float().cpu().numpy()


def _last_block(vit: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention [B, N] of the class token in the last block (mean over heads), and the block's output [B, N, D]."""
    outputs: dict[str, Tensor] = {}
    block: Any = vit.blocks[-1]  # type: ignore[index]
    hooks = [
        block.attn.qkv.register_forward_hook(lambda m, i, o: outputs.__setitem__("qkv", o)),
        block.register_forward_hook(lambda m, i, o: outputs.__setitem__("tokens", o)),
    ]
    try:
        vit(images)
    finally:
        for hook in hooks:
            hook.remove()
    heads = block.attn.num_heads
    q, k, _ = outputs["qkv"].unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
    q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    scores = (q[:, :, :1] * block.attn.scale) @ k.transpose(-2, -1)
    return scores.softmax(-1)[:, :, 0].mean(1), outputs["tokens"]


def picture(pixels: np.ndarray, attention: np.ndarray, change: np.ndarray) -> Image.Image:
    """Draw two rows per image: attention and change of the patches (with all experts, none, each alone), scaled to the row's maximum."""
    import matplotlib

    colour = matplotlib.colormaps["viridis"]
    columns = attention.shape[1] + 1
    page = Image.new("RGB", (columns * (TILE + 2), HEAD + len(pixels) * 2 * (TILE + 2)), "white")
    for j, title in enumerate(["all", "none", *(str(i + 1) for i in range(columns - 3))]):
        ImageDraw.Draw(page).text(((j + 1.5) * (TILE + 2), 2), title, fill="black", anchor="mt")

    def tile(values: np.ndarray, top: float) -> Image.Image:
        scaled = (255 * colour(np.clip(values / max(top, 1e-12), 0, 1))[..., :3]).round().astype(np.uint8)
        return Image.fromarray(scaled).resize((TILE, TILE), Image.Resampling.NEAREST)

    for i, image in enumerate(pixels):
        page.paste(Image.fromarray(image).resize((TILE, TILE)), (0, HEAD + 2 * i * (TILE + 2)))
        for row, maps_of in enumerate((attention[i], change[i])):
            for j, values in enumerate(maps_of):
                page.paste(tile(values, float(maps_of.max())), ((j + 1) * (TILE + 2), HEAD + (2 * i + row) * (TILE + 2)))
    return page
