"""`smat export`: write merged parameters as a plain timm model or an ONNX file, and write compressed experts."""

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
from smatcli.deploy.folder import Fitting, ModelSource, fit_folder
from smatcli.deploy.frozen import Network, backbone_of, module_of
from smatcli.deploy.model import FewShotModel, adapt_settings, run_recipe
from smatcli.deploy.plain import PlainModel, check_close
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
    """Write theta_i of a run for a support set or with equal expert scores (`average`), or write the network of a saved classifier.

    timm: a new folder with config.json and model.safetensors, which `timm.create_model("local-dir:...")` loads strictly. onnx: a file that
    maps images in [0, 1] to features and, with classes, logits. Nothing is written unless the features equal those of the original.
    """
    source, fitting, reporter = Path(source), fitting or Fitting(), reporter or SilentReporter()
    _check(source, out, form, fitting, average, which)
    plain = _plain(source, fitting, average, which, reporter)
    if form == "timm" and plain.backbone.name in plugins.names("backbones"):
        raise UserError(f"{source}: its backbone {plain.backbone.name} is from a plugin, which timm cannot create; use --format onnx")
    if form == "onnx":
        from smatcli.deploy.onnx_file import write_onnx

        write_onnx(plain, out)
    else:
        _write_timm(plain, out)
    classes = f", {len(plain.classes)} classes" if form == "onnx" and plain.classes else ""
    reporter.line(f"{out}: {plain.backbone.name} at {plain.backbone.image_size} px, {plain.origin}{classes}")
    return out


def export_experts(run: str | Path, out: Path, which: str = "best", reporter: Reporter | None = None) -> tuple[int, int]:
    """Write the sparse difference e_m = theta_delta * z_m of every expert as positions and values.

    Returns the size of the file and that of dense experts [M, P] in fp32, in bytes. theta_i = theta_pre + sum_m alpha_m e_m, with the
    parameters of the backbone in the order of `named_parameters()`. Raises `UserError` if the method has no sparse experts.
    """
    reporter = reporter or SilentReporter()
    check_target(out, ".safetensors")
    if run_recipe(run).method.name != "smat":
        raise UserError(f"--experts: {run} is {run_recipe(run).method.name}, which has no sparse experts")
    method = FewShotModel.open(run, which, "cpu", reporter).method
    assert isinstance(method, SmatMethod)
    masks, delta = method.compressed(), method.theta_delta.detach()
    count = len(masks.experts)
    own = delta.ndim == 2  # one theta_delta per expert; the masks then already contain z_m * theta_delta_m
    experts = CompressedExperts.of(masks.mask(m) if own else masks.mask(m) * delta for m in range(count))
    experts.save(out)
    dense = count * masks.size * 4
    shares = ", ".join(f"{n / masks.size:.1%}" for n in experts.nonzeros)
    reporter.line(f"{count} experts over {masks.size:,} parameters; non-zeros: {shares}")
    return out.stat().st_size, dense


def _check(source: Path, out: Path, form: str, fitting: Fitting, average: bool, which: str) -> None:
    if not source.exists():
        raise UserError(f"{source}: no such run or saved classifier")
    if fitting.support is not None and average:
        raise UserError("--support and --average: give one of them")
    if source.is_file():
        fitting.refuse_for(source)
        if average or which != "best":
            raise UserError(f"{'--average' if average else '--which'}: is only for runs, and {source} is a saved classifier; remove it")
    if fitting.support is None and fitting != Fitting():
        raise UserError("--adapt, --fit, --skip-unreadable and settings need --support")
    if form == "onnx":
        from smatcli.deploy.onnx_file import require_onnx

        check_target(out, ".onnx")
        require_onnx()
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out}: already exists; choose another folder")
    elif out.suffix:
        raise UserError(f"{out}: --format timm writes a folder (model.safetensors, config.json); give a name without a suffix")


def _plain(source: Path, fitting: Fitting, average: bool, which: str, reporter: Reporter) -> PlainModel:
    if source.is_file():
        classifier = read_classifier(source, "cpu")
        origin = f"saved classifier of {classifier.facts.method}, {classifier.facts.adapt}"
    else:
        recipe = run_recipe(source)
        if fitting.support is None:
            if not average and getattr(recipe.method, "experts", None) is not None:
                raise UserError(f"{source}: the parameters of {recipe.method.name} depend on the task; add --support DIR, or --average")
            return _without_support(FewShotModel.open(source, which, "cpu", reporter))
        adapt_settings(recipe, fitting.adapt or "proto", fitting.overrides)
        classifier = fit_folder(ModelSource(source, which, "cpu"), fitting, reporter)
        origin = f"{recipe.method.name}, {classifier.facts.adapt} on {fitting.support}"
    head = classifier.frozen()
    module, config = _settle(head.network.backbone, classifier.facts.backbone)
    fuse = head.network.fuse
    if fuse:
        origin += f" (classified by the concatenated features of the last {fuse} blocks)"
    return PlainModel(Network(module, fuse), config, origin, classifier.classes, head.centres.cpu(), classifier.scale)


def _without_support(model: FewShotModel) -> PlainModel:
    """Return the model of a run without a support set, with equal scores of all experts if the method has experts."""
    task = model.task(_blank(model))
    theta, origin = _equal_scores(task) if task.alpha is not None else (task.theta, model.recipe.method.name)
    module, config = _settle(module_of(model.method, theta, model.recipe.backbone), model.recipe.backbone)
    return PlainModel(Network(module), config, origin, scale=task.scale)


def _blank(model: FewShotModel) -> Support:
    """Return a support set of two grey images. `Method.task` requires one, but the result does not depend on it."""
    size = model.image_size
    images = torch.zeros(2, 3, size, size, device=model.device)
    return Support(images, torch.arange(2, device=model.device), 2)


def _equal_scores(task: Task) -> tuple[Tensor, str]:
    assert task.alpha is not None
    if task.merge is None:
        raise UserError("--average: the method cannot merge its experts with given scores; use --support")
    return task.merge(torch.ones_like(task.alpha)), f"{len(task.alpha)} experts with equal scores"


def _settle(module: nn.Module, backbone: BackboneConfig) -> tuple[nn.Module, BackboneConfig]:
    """Convert `module` to a plain timm model of the same image size. Raises `SmatError` if their features differ."""
    plain = backbone.model_copy(update={"weights": "none", "position_size": None})
    converted = backbone_of(plain, settled(module.state_dict(), module))
    size = backbone.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        check_close(at_least_fp32(converted(images)), at_least_fp32(module.cpu()(images)), "the plain timm model")
    return converted, plain


def timm_config(plain: PlainModel) -> dict[str, Any]:
    """Return the content of config.json for the `local-dir:` and `hf-hub:` models of timm."""
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


def _write_timm(plain: PlainModel, out: Path) -> None:
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
