"""`smat export`: merged parameters as a plain timm model or ONNX, and experts in compressed form."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smatcli import plugins
from smatcli.backbones.positions import settled
from smatcli.config.schema import BackboneConfig
from smatcli.data.augment import MEAN, STD
from smatcli.deploy.classifier import check_target, read_classifier
from smatcli.deploy.folder import Fitting, fit_folder
from smatcli.deploy.frozen import Network, backbone_of, module_of
from smatcli.deploy.model import FewShotModel, adapt_settings, run_recipe
from smatcli.deploy.plain import Plain, check_close
from smatcli.errors import UserError
from smatcli.experts.compress import CompressedExperts
from smatcli.experts.space import at_least_fp32
from smatcli.methods.smat import SmatMethod
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.safe.files import publish
from smatcli.seams import Support, Task

Format = Literal["timm", "onnx"]


def export(
    source: str | Path,
    out: Path,
    form: Format = "timm",
    fitting: Fitting | None = None,
    average: bool = False,
    which: str = "best",
    reporter: Reporter | None = None,
) -> Path:
    """Write theta_i of a support set (adapted), or of equal scores for all experts (`average`), from a run; or a saved classifier's.

    timm: a new folder with model.safetensors (loads strictly into `timm.create_model`) and config.json (`local-dir:` of timm). onnx: one
    file, images in [0, 1] to features and, with classes, logits. Nothing is written unless the export gives the original's features.
    """
    source, fitting, reporter = Path(source), fitting or Fitting(), reporter or SilentReporter()
    _check(source, out, form, fitting, average, which)
    plain = _plain(source, fitting, average, which, reporter)
    if form == "timm" and plain.backbone.name in plugins.names("backbones"):
        raise UserError(f"{source}: its backbone {plain.backbone.name} is a plugin's, which timm cannot make; use --format onnx")
    if form == "onnx":
        from smatcli.deploy.onnx_file import write_onnx

        write_onnx(plain, out)
    else:
        _write_timm(plain, out)
    classes = f", {len(plain.classes)} classes" if form == "onnx" and plain.classes else ""
    reporter.line(f"{out}: {plain.backbone.name} at {plain.backbone.image_size} px, {plain.origin}{classes}")
    return out


def export_experts(run: str | Path, out: Path, which: str = "best", reporter: Reporter | None = None) -> tuple[int, int]:
    """Write every expert's differences from theta_pre, theta_delta * z_m, as positions and values; bytes written, and bytes of [M, P] fp32.

    theta_i = theta_pre + sum_m alpha_m e_m, over the backbone's parameters in the order of `named_parameters()`. `UserError` for a method
    without sparse experts.
    """
    reporter = reporter or SilentReporter()
    check_target(out, ".safetensors")
    if run_recipe(run).method.name != "smat":
        raise UserError(f"--experts: {run} is {run_recipe(run).method.name}, which has no sparse experts")
    method = FewShotModel.open(run, which, "cpu", reporter).method
    assert isinstance(method, SmatMethod)
    masks, delta = method.compressed(), method.theta_delta.detach()
    count = len(masks.experts)
    own = delta.ndim == 2  # then z_m * theta_delta_m is what the method compresses
    experts = CompressedExperts.of(masks.mask(m) if own else masks.mask(m) * delta for m in range(count))
    experts.save(out)
    dense = count * masks.size * 4
    shares = ", ".join(f"{n / masks.size:.1%}" for n in experts.nonzeros)
    reporter.line(f"{count} experts over {masks.size:,} parameters; non-zeros: {shares}")
    return out.stat().st_size, dense


def _check(source: Path, out: Path, form: str, fitting: Fitting, average: bool, which: str) -> None:
    if not source.exists():
        raise UserError(f"{source}: there is no such run or saved classifier")
    if fitting.support is not None and average:
        raise UserError("--support and --average: give one of them")
    if source.is_file():
        fitting.refuse_for(source)
        if average or which != "best":
            raise UserError(f"{'--average' if average else '--which'}: is for runs, {source} is a saved classifier; leave it out")
    if fitting.support is None and fitting != Fitting():
        raise UserError("--adapt, --fit, --skip-unreadable and settings need --support: without it nothing is adapted")
    if form == "onnx":
        from smatcli.deploy.onnx_file import require_onnx

        check_target(out, ".onnx")
        require_onnx()
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; choose another folder")
    elif out.suffix:
        raise UserError(f"{out}: --format timm makes a folder (model.safetensors, config.json); give a name without an ending")


def _plain(source: Path, fitting: Fitting, average: bool, which: str, reporter: Reporter) -> Plain:
    if source.is_file():
        classifier = read_classifier(source, "cpu")
        origin = f"saved classifier of {classifier.facts.method}, {classifier.facts.adapt}"
    else:
        recipe = run_recipe(source)
        if fitting.support is None:
            if not average and getattr(recipe.method, "experts", None) is not None:
                raise UserError(f"{source}: {recipe.method.name} has other parameters for every task; add --support DIR, or --average")
            return _without_support(FewShotModel.open(source, which, "cpu", reporter))
        adapt_settings(recipe, fitting.adapt or "proto", fitting.overrides)
        classifier = fit_folder(source, fitting, which, "cpu", reporter)
        origin = f"{recipe.method.name}, {classifier.facts.adapt} on {fitting.support}"
    head = classifier.frozen()
    module, config = _settle(head.network.backbone, classifier.facts.backbone)
    fuse = head.network.fuse
    if fuse:
        origin += f" (classified by the features of the last {fuse} blocks side by side)"
    return Plain(Network(module, fuse), config, origin, classifier.classes, head.centres.cpu(), classifier.scale)


def _without_support(model: FewShotModel) -> Plain:
    """Parameters that no support set chose: equal scores where there are experts, else the method's own."""
    task = model.task(_blank(model))
    theta, origin = _equal_scores(task) if task.alpha is not None else (task.theta, model.recipe.method.name)
    module, config = _settle(module_of(model.method, theta, model.recipe.backbone), model.recipe.backbone)
    return Plain(Network(module), config, origin, scale=task.scale)


def _blank(model: FewShotModel) -> Support:
    """Two grey images: `Method.task` wants a support set, and nothing of it is used."""
    size = model.image_size
    images = torch.zeros(2, 3, size, size, device=model.device)
    return Support(images, torch.arange(2, device=model.device), 2)


def _equal_scores(task: Task) -> tuple[Tensor, str]:
    assert task.alpha is not None
    if task.merge is None:
        raise UserError("--average: the method cannot merge its experts for given scores; use --support")
    return task.merge(torch.ones_like(task.alpha)), f"{len(task.alpha)} experts in equal shares"


def _settle(module: nn.Module, backbone: BackboneConfig) -> tuple[nn.Module, BackboneConfig]:
    """`module` as a plain timm model at the same image size, loaded strictly; `SmatError` when its features differ."""
    plain = backbone.model_copy(update={"weights": "none", "position_size": None})
    made = backbone_of(plain, settled(module.state_dict(), module))
    size = backbone.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        check_close(at_least_fp32(made(images)), at_least_fp32(module.cpu()(images)), "the plain timm model")
    return made, plain


def timm_config(plain: Plain) -> dict[str, Any]:
    """config.json of timm's `local-dir:` and `hf-hub:` models."""
    config, size = plain.backbone, plain.backbone.image_size
    return {
        "architecture": config.name.partition(".")[0],
        "num_classes": 0,
        "num_features": int(plain.network.backbone.num_features),  # type: ignore[arg-type]
        "model_args": {"img_size": size, **config.args},
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": 0,
        },
    }


def _write_timm(plain: Plain, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        tensors = {name: tensor.contiguous().clone() for name, tensor in plain.network.backbone.state_dict().items()}
        save_file(tensors, draft / "model.safetensors", {"format": "pt"})
        (draft / "config.json").write_text(json.dumps(timm_config(plain), indent=2) + "\n", encoding="utf-8")
        publish(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
