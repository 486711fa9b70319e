import errno
import json

import pytest
import torch

from smatcli.engine import checkpoint as module
from smatcli.engine.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.engine.reporter import SilentReporter
from smatcli.errors import SmatError, UserError


def save(path, value):
    save_checkpoint(path, {"w": torch.full((3, 2), float(value))}, {"step": value}, {"w/exp_avg": torch.tensor([value + 0.5])})


@pytest.fixture
def last(tmp_path):
    save(tmp_path / "last", 1)
    return tmp_path / "last"


def test_what_was_saved_comes_back_bitwise(tmp_path):
    model = {"a": torch.randn(4, 3).t(), "b": torch.randn(5).bfloat16(), "c": torch.tensor(7), "d": torch.zeros(0)}
    model["tied"] = model["a"]
    state = {"step": 3, "nested": {"x": [1, 2.5, "y", None, True]}}
    save_checkpoint(tmp_path / "c", model, state, {"s": torch.arange(3)})
    found = load_checkpoint(tmp_path / "c")
    assert found.state == state
    assert found.model.keys() == model.keys()
    assert all(torch.equal(found.model[k], v) and found.model[k].dtype == v.dtype for k, v in model.items())
    assert torch.equal(found.optim["s"], torch.arange(3))


def test_a_new_one_replaces_the_old_one(last):
    save(last, 2)
    assert load_checkpoint(last).state == {"step": 2}
    assert [p.name for p in last.parent.iterdir()] == ["last"]
    assert sorted(p.name for p in last.iterdir()) == ["model.safetensors", "optim.safetensors", "state.json"]


def _truncate(name):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-3])


def _flip(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


DAMAGE = [
    _truncate("model.safetensors"),
    _truncate("optim.safetensors"),
    _truncate("state.json"),
    _flip,
    lambda path: (path / "optim.safetensors").unlink(),
    lambda path: (path / "state.json").write_text("[]"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_one_before_is_used(last, damage):
    damage(last)
    with pytest.raises(UserError, match=r"checkpoint .*last is damaged"):
        load_checkpoint(last)
    save(last.parent / "last.old", 0)
    reporter = SilentReporter()
    assert load_checkpoint(last, reporter).state == {"step": 0}
    assert "damaged" in reporter.lines[0] and "using the one before it" in reporter.lines[0]


def test_a_crash_between_the_renames_loses_nothing(last):
    last.rename(last.parent / "last.old")
    assert has_checkpoint(last)
    assert load_checkpoint(last).state == {"step": 1}
    save(last, 2)
    assert [p.name for p in last.parent.iterdir()] == ["last"]
    assert load_checkpoint(last).state == {"step": 2}


def test_a_stale_older_one_and_a_draft_are_cleaned_up(last):
    save(last.parent / "last.old", 0)
    (last.parent / ".last.tmp-1").mkdir()
    save(last, 2)
    assert [p.name for p in last.parent.iterdir()] == ["last"]


@pytest.mark.parametrize("where", ["save_file", "_sync_and_sum", "_sync_folder"])
def test_a_full_disk_keeps_the_one_before(last, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, where, full)
        with pytest.raises(SmatError, match=r"no space left .* \(the checkpoint before it is kept\)") as error:
            save(last, 2)
    assert error.value.exit_code == 1
    assert load_checkpoint(last).state == {"step": 1}
    assert [p.name for p in last.parent.iterdir()] == ["last"]


def test_missing_and_newer_formats(tmp_path, last):
    assert not has_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="none does not exist"):
        load_checkpoint(tmp_path / "none")
    body = json.loads((last / "state.json").read_text())
    (last / "state.json").write_text(json.dumps({**body, "format": 2}))
    with pytest.raises(UserError, match="of format 2, this version reads 1"):
        load_checkpoint(last)
