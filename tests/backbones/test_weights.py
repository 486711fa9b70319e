import argparse
import json
import pickle
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from smatcli.backbones import create_backbone, save_backbone
from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError

ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "average": {"class_token": False, "global_pool": "avg"},
    "average, norm before": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "registers": {"reg_tokens": 2},
    "token without position": {"no_embed_class": True},
}


def config(weights="none", image_size=24, **args):
    return BackboneConfig(name="vit_tiny_patch16_224", args={**ARGS, **args}, image_size=image_size, weights=str(weights))


def weights_of(image_size=24, **args):
    model = timm.create_model("vit_tiny_patch16_224", img_size=image_size, num_classes=0, **{**ARGS, **args})
    return {k: torch.randn_like(v) * 0.1 for k, v in model.state_dict().items()}


def saved(tmp_path, tensors, name="w.safetensors"):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_equal_image_size_loads_bitwise(tmp_path, variant):
    tensors = weights_of(**VARIANTS[variant])
    model = create_backbone(config(saved(tmp_path, tensors), **VARIANTS[variant]))
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [16, 40])
def test_position_embeddings_are_resampled_and_nothing_else_changes(tmp_path, variant, size):
    tensors = weights_of(**VARIANTS[variant])
    model = create_backbone(config(saved(tmp_path, tensors), image_size=size, **VARIANTS[variant]))
    old, grid = tensors["pos_embed"], size // 8
    prefix = old.shape[1] - 9
    # Independent of timm's function: the grid part by antialiased bicubic interpolation, the prefix as it was.
    patches = old[:, prefix:].reshape(1, 3, 3, 32).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, (grid, grid), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, grid * grid, 32)
    torch.testing.assert_close(model.pos_embed.data, torch.cat([old[:, :prefix], resized], 1))
    torch.testing.assert_close(model.pos_embed.data, resample_abs_pos_embed(old, [grid, grid], num_prefix_tokens=prefix))
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items() if key != "pos_embed")
    assert model(torch.randn(1, 3, size, size)).shape == (1, 32)


def test_patch_embeddings_are_resampled(tmp_path):
    tensors = weights_of()
    model = create_backbone(config(saved(tmp_path, tensors), image_size=48, patch_size=16))
    expected = resample_patch_embed(tensors["patch_embed.proj.weight"], [16, 16])
    torch.testing.assert_close(model.get_parameter("patch_embed.proj.weight").data, expected)
    assert torch.equal(model.get_parameter("pos_embed").data, tensors["pos_embed"])  # 3 x 3 patches in both
    # FlexiViT's resampling keeps the product with an upsampled patch.
    patch = torch.randn(1, 3, 8, 8)
    before = F.conv2d(patch, tensors["patch_embed.proj.weight"]).flatten()
    upsampled = F.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(F.conv2d(upsampled, expected).flatten(), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t, "args": argparse.Namespace(lr=0.1)},
        lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}},
        lambda t: {"state_dict": {f"module.backbone.{k}": v for k, v in t.items()}},
        lambda t: {"teacher": {**{f"backbone.{k}": v for k, v in t.items()}, "head.mlp.0.weight": torch.ones(2)}},
        lambda t: {**t, "head.weight": torch.ones(1000, 32), "head.bias": torch.ones(1000), "fc.weight": torch.ones(3)},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_wrappers_prefixes_and_heads_are_taken_off(tmp_path, wrap, suffix):
    tensors = weights_of()
    model = create_backbone(config(saved(tmp_path, wrap(tensors), f"w{suffix}")))
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


def test_half_precision_weights_become_fp32(tmp_path):
    tensors = {k: v.half() for k, v in weights_of().items()}
    model = create_backbone(config(saved(tmp_path, tensors), image_size=16))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_floating_point_weights_are_converted(tmp_path, dtype, suffix):
    tensors = {k: v.to(dtype) for k, v in weights_of().items()}
    model = create_backbone(config(saved(tmp_path, tensors, f"w{suffix}")))
    assert all(torch.equal(value, tensors[key].float()) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("keys", [1, 100])
def test_other_weights_are_refused(tmp_path, dtype, keys):
    """Integers are the codes of quantized weights: without their scale they would be loaded as values from -128 to 127."""
    tensors = weights_of()
    chosen = sorted(tensors)[:keys]
    tensors.update({k: (100 * tensors[k]).to(dtype) for k in chosen})
    with pytest.raises(UserError, match=rf"has weights of type {str(dtype)[6:]} \(.*give floating-point weights") as error:
        create_backbone(config(saved(tmp_path, tensors)))
    assert "\n" not in str(error.value)


def _without(key):
    return lambda t: {k: v for k, v in t.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("norm.weight"), r"lacks norm\.weight"),
        (lambda t: {**t, "blocks.1.norm1.bias": torch.ones(32)}, r"has unexpected blocks\.1\.norm1\.bias"),
        (lambda t: {**t, "norm.weight": torch.ones(64)}, r"norm\.weight of .* has shape \(64,\), the recipe's model has \(32,\)"),
        (lambda t: {**t, "norm.bias": torch.full((32,), float("nan"))}, r"NaN or infinite values in norm\.bias"),
        (_without("cls_token"), "the recipe's model has a cls_token and .* has none"),
        (lambda t: {**t, "pos_embed": torch.ones(1, 11, 32)}, r"pos_embed|does not fit"),
        (lambda t: {"something": torch.ones(1)}, "lacks cls_token|has none|does not fit"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        create_backbone(config(saved(tmp_path, change(weights_of()))))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_norm_on_the_other_side_of_the_pooling_gets_a_hint(tmp_path):
    args = {"class_token": False, "global_pool": "avg"}
    path = saved(tmp_path, weights_of(fc_norm=False, **args))
    with pytest.raises(UserError, match=r"set backbone\.args\.fc_norm to false"):
        create_backbone(config(path, **args))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"", "is empty"),
        ("w.pth", b"", "is empty"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git-lfs pointer"),
        ("w.safetensors", b"\xff" * 100, "truncated or not a safetensors"),
        ("w.pth", b"not weights at all", "truncated or not a PyTorch file"),
        ("w.pth", pickle.dumps({"a": Evil()}, protocol=2), "cannot be read"),
        ("w.txt", b"abc", "is not a .safetensors"),
    ],
)
def test_damaged_and_foreign_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        create_backbone(config(tmp_path / name))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_truncated_files(tmp_path, name):
    path = saved(tmp_path, weights_of(), name)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="truncated"):
        create_backbone(config(path))


def test_a_pickle_with_objects_is_not_run(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": weights_of(), "args": Evil()}, path)
    with pytest.raises(UserError, match="objects other than tensors"):
        create_backbone(config(path))


def test_no_tensors_by_name(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with pytest.raises(UserError, match="contains no named tensors"):
        create_backbone(config(tmp_path / "w.pth"))


class TestRun:
    """Weights from a pre-training run."""

    @pytest.fixture
    def run(self, tmp_path):
        model = create_backbone(config(drop_path_rate=0.1))
        save_backbone(tmp_path, model, config(drop_path_rate=0.1), {"top1": 0.5})
        return tmp_path, model.state_dict()

    def test_it_loads_and_is_resized(self, run):
        path, tensors = run
        model = create_backbone(config(path))
        assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())
        larger = create_backbone(config(path, image_size=32))
        torch.testing.assert_close(larger.pos_embed.data, resample_abs_pos_embed(tensors["pos_embed"], [4, 4]))
        assert json.loads((path / "backbone.json").read_text())["metrics"] == {"top1": 0.5}

    def test_another_architecture_is_named(self, run):
        path, _ = run
        with pytest.raises(UserError, match=r"backbone\.args\.depth is 2, but .* was pre-trained with 1"):
            create_backbone(config(path, depth=2))
        with pytest.raises(UserError, match=r"backbone\.args\.class_token is False, but .* with the default"):
            create_backbone(config(path, class_token=False, global_pool="avg"))
        other = config(path).model_copy(update={"name": "vit_small_patch16_224"})
        with pytest.raises(UserError, match=r"backbone\.name is 'vit_small_patch16_224'"):
            create_backbone(other)

    def test_unfinished_and_damaged_runs(self, run, tmp_path):
        path, _ = run
        (path / "backbone.json").write_text("{")
        with pytest.raises(UserError, match="damaged"):
            create_backbone(config(path))
        (path / "backbone.json").unlink()
        with pytest.raises(UserError, match="no finished backbone"):
            create_backbone(config(path))
