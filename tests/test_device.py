import pytest
import timm
import torch
from timm.layers import Attention

from smatcli.device import Precision, choose_device, choose_precision, threads
from smatcli.errors import UserError

CPU = torch.device("cpu")


def _cpu(monkeypatch, amx, avx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)


@pytest.mark.parametrize(
    ("amx", "avx", "width", "expected"),
    [(True, True, 128, "bf16"), (False, True, 128, "fp32"), (False, True, 384, "bf16"), (False, False, 768, "fp32")],
)
def test_auto_on_a_cpu_goes_by_units_and_width(monkeypatch, amx, avx, width, expected):
    _cpu(monkeypatch, amx, avx)
    precision = choose_precision("auto", CPU, width)
    assert precision.name == expected
    assert precision.fused_attention == (expected == "fp32")
    assert f"precision {expected}" in str(precision)
    assert "on cpu" in str(precision)


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((7, 5), "fp32")])
def test_auto_on_a_gpu_goes_by_its_units(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precision = choose_precision("auto", torch.device("cuda"), 384)
    assert (precision.name, precision.fused_attention) == (expected, True)


def test_what_was_asked_for_is_taken():
    assert choose_precision("fp32", CPU, 128) == Precision("fp32", CPU, "as requested", True)
    assert choose_precision("bf16", CPU, 128) == Precision("bf16", CPU, "as requested", False)


def test_autocast_computes_in_the_precision_of_its_name():
    layer, images = torch.nn.Linear(4, 4), torch.randn(2, 4)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with choose_precision(name, CPU, 128).autocast():
            assert layer(images).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16), choose_precision("fp32", CPU, 128).autocast():
        assert layer(images).dtype == torch.float32


def test_apply_sets_every_attention_block_and_changes_no_result():
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0).eval()
    images = torch.randn(2, 3, 16, 16)
    fused = model(images)
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    choose_precision("bf16", CPU, 32).apply(model)
    assert [attention.fused_attn for attention in attentions] == [False, False]
    torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-5)
    choose_precision("fp32", CPU, 32).apply(model)
    assert [attention.fused_attn for attention in attentions] == [True, True]


def test_threads_come_back():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_devices():
    assert choose_device("cpu") == CPU
    with pytest.raises(UserError, match="unknown device 'gpu7'"):
        choose_device("gpu7")
    with pytest.raises(UserError, match="not supported"):
        choose_device("meta")
    with pytest.raises(UserError, match="fp16"):
        choose_precision("fp16", CPU, 128)


def test_missing_cuda_devices_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device is visible"):
        choose_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="not available on this machine"):
        choose_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="use cuda:0 to cuda:1"):
        choose_device("cuda:2")
