import contextlib
import errno
import json

import pytest
import torch

from smatcli.errors import SmatError, UserError
from smatcli.runs import checkpoint as module
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.runs.reporter import SilentReporter


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
    assert sorted(p.name for p in last.iterdir()) == ["manifest.json", "model.safetensors", "optim.safetensors", "state.json"]


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
    lambda path: (path / "manifest.json").write_text("[]"),
    lambda path: (path / "manifest.json").write_text("[" * 100_000),
    lambda path: (path / "manifest.json").unlink(),
    lambda path: (path / "manifest.json").write_text('{"format": 2, "files": {"../last/state.json": {}}}'),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_one_before_is_used(last, damage):
    damage(last)
    with pytest.raises(UserError, match=r"checkpoint .*last is damaged"):
        load_checkpoint(last)
    save(last.parent / "last.old", 0)
    reporter = SilentReporter()
    assert load_checkpoint(last, reporter).state == {"step": 0}
    assert "damaged" in reporter.lines[0]
    assert "using an older one" in reporter.lines[0]


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


@pytest.mark.parametrize("where", ["save_file", "safetensors_header", "seal", "sync_folder"])
def test_a_full_disk_keeps_the_one_before(last, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, where, full)
        with pytest.raises(SmatError, match=r"no space left .* \(the previous checkpoint is kept\)") as error:
            save(last, 2)
    assert error.value.exit_code == 1
    # Flushing the folder is after the new one is complete: it may be the one that is found.
    assert load_checkpoint(last).state == {"step": 2 if where == "sync_folder" else 1}
    save(last, 3)
    assert load_checkpoint(last).state == {"step": 3}
    assert [p.name for p in last.parent.iterdir()] == ["last"]


def test_what_does_not_read_back_is_no_checkpoint(last, monkeypatch):
    """A disk flips a bit between writing and reading."""
    write = module.save_file  # type: ignore[attr-defined]

    def lossy(tensors, file):
        write(tensors, file)
        _flip(file.parent)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", lossy)
        with pytest.raises(
            SmatError, match=r"model.safetensors reads back differently from what was written.*\(the previous checkpoint is kept\)"
        ):
            save(last, 2)
    assert load_checkpoint(last).state == {"step": 1}


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_crash_anywhere_loses_nothing_and_the_next_one_takes_its_place(last, monkeypatch, cut):
    """Crash after every possible number of renames and removals."""
    save_checkpoint(last, {}, {"step": 2}, keep_before=True)
    calls = iter(range(100))

    class Killed(BaseException):
        pass

    def counted(real):
        def call(*args, **kwargs):
            if next(calls) + 1 == cut:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "rename", counted(module.Path.rename))  # type: ignore[attr-defined]
        patch.setattr(module.shutil, "rmtree", counted(module.shutil.rmtree))  # type: ignore[attr-defined]
        with contextlib.suppress(Killed):
            save_checkpoint(last, {}, {"step": 3}, keep_before=True)
    assert has_checkpoint(last)
    found = load_checkpoint(last).state["step"]
    assert found in (2, 3)
    save_checkpoint(last, {}, {"step": 4}, keep_before=True)
    assert load_checkpoint(last).state == {"step": 4}
    assert load_checkpoint(last.parent / "last.old").state["step"] in (2, 3)
    assert not (last.parent / "last.new").exists()


def test_the_one_before_is_kept_if_asked_for(last):
    save_checkpoint(last, {}, {"step": 2}, keep_before=True)
    save_checkpoint(last, {}, {"step": 3}, keep_before=True)
    assert sorted(p.name for p in last.parent.iterdir()) == ["last", "last.old"]
    assert load_checkpoint(last.parent / "last.old").state == {"step": 2}


def test_others_stand_in_where_both_are_damaged(last):
    save(last.parent / "step-1", 1)
    save_checkpoint(last, {}, {"step": 2}, keep_before=True)
    for name in ("last", "last.old"):
        _flip(last.parent / name) if name == "last.old" else (last / "state.json").unlink()
    reporter = SilentReporter()
    assert load_checkpoint(last, reporter, others=[last.parent / "step-1"]).state == {"step": 1}
    assert reporter.lines[0].count("is damaged") == 2
    assert reporter.lines[0].endswith("step-1)")
    with pytest.raises(UserError, match="last is damaged"):
        load_checkpoint(last)


def test_missing_and_newer_formats(tmp_path, last):
    assert not has_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="none does not exist"):
        load_checkpoint(tmp_path / "none")
    body = json.loads((last / "manifest.json").read_text())
    (last / "manifest.json").write_text(json.dumps({**body, "format": 3}))
    with pytest.raises(UserError, match="of format 3, this version reads format 2; update smat"):
        load_checkpoint(last)


def test_format_1_is_refused_in_one_line(last):
    """Format 1 had no manifest; its checksums were in state.json."""
    (last / "manifest.json").unlink()
    (last / "state.json").write_text(json.dumps({"format": 1, "files": {}, "state": {"step": 1}}))
    with pytest.raises(UserError, match=r"^checkpoint .*last is of format 1, this version reads format 2; train again with this version$"):
        load_checkpoint(last)
