"""Write the model card of a run: description, results, recipe, and the licence of its initial weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smatcli.config import dump_recipe
from smatcli.config.loader import AnyVisionRecipe, vision
from smatcli.config.schema import TrainRecipe
from smatcli.runs.directory import RunDir
from smatcli.runs.results import SummaryRow, read_results, result_files
from smatcli.version import __version__

UNKNOWN, SCRATCH = "not recorded", "none, trained from scratch"


def base_weights(recipe: AnyVisionRecipe, info: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """Return a description of the initial weights, their licence and their model id on the hub. Unknown values are None."""
    backbone = recipe.backbone
    if imported := info.get("imported"):
        return f"imported from {Path(str(imported.get('file', '?'))).name} ({imported.get('layout', 'official checkpoint')})", None, None
    if backbone.weights == "none":
        return SCRATCH, None, None
    if backbone.weights == "timm":
        import timm

        config = timm.get_pretrained_cfg(backbone.name)
        if config is None:
            return f"timm's weights of {backbone.name}", None, None
        hub_id = config.hf_hub_id or ""
        if hub_id.endswith("/"):
            hub_id += backbone.name.partition(".")[0] + (f".{config.tag}" if config.tag else "")
        return f"timm's weights of {backbone.name}", config.license, hub_id or None
    return f"{Path(backbone.weights).name}, weights from a file or a pre-training run of the author", None, None


def model_card(run: RunDir, licence: str | None = None) -> str:
    """Return the text of README.md with front matter.

    `licence` is a licence identifier of the hub, such as apache-2.0; by default that of the base weights.
    """
    recipe = vision(run.recipe)
    base, base_licence, hub_id = base_weights(recipe, run.info)
    licence = licence or base_licence
    licensed = "" if base == SCRATCH else f"; their licence: {base_licence or UNKNOWN}"
    method = recipe.method.name if isinstance(recipe, TrainRecipe) else {"pretrain": "pre-training"}.get(recipe.kind, recipe.kind)
    front = ["---", *([f"license: {licence}"] if licence else []), *([f"base_model: {hub_id}"] if hub_id else [])]
    front += ["tags:", "- few-shot-learning", "- vision-transformer", f"- {method}", "pipeline_tag: image-feature-extraction", "---", ""]
    name = run.path.resolve().name
    body = [
        f"# {name}",
        "",
        f"Few-shot learner: {recipe.backbone.name} at {recipe.backbone.image_size} px, method `{method}`, trained with smat {__version__}.",
        f"Base weights: {base}{licensed}.",
        "",
        "## Use",
        "",
        "```bash",
        f"smat pull THIS_ID --out runs/{name}",
        f"smat predict --model runs/{name} --support class_folders --images images --out labels.csv",
        "```",
        "",
        "## Results",
        "",
        *_results(run.path),
        "",
        "## Recipe",
        "",
        "```yaml",
        dump_recipe(recipe).rstrip(),
        "```",
    ]
    return "\n".join([*front, *body]) + "\n"


def _results(run: Path) -> list[str]:
    rows: list[SummaryRow] = []
    for file in result_files(run):
        rows += read_results(file).rows
    if not rows:
        return ["Not meta-tested yet."]
    lines = ["Accuracy in percent, mean and 95 % half-width over episodes.", ""]
    lines += ["| dataset | domain | adaptation | protocol | accuracy | episodes |", "|---|---|---|---|---|---|"]
    for r in rows:
        accuracy = f"{100 * r.mean:.1f} ± {100 * r.half_width:.1f}"
        lines.append(f"| {r.dataset} | {r.domain} | {r.adapt} | {r.protocol} | {accuracy} | {r.episodes} |")
    return lines
