"""push and pull: the uploaded files, the downloaded files, and the errors offline."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest

import smatcli
from smatcli.config.loader import vision
from smatcli.deploy.card import base_weights
from smatcli.deploy.hub import pull, push, stage
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from tests.deploy.world import make_pretrain_run, make_run, pictures
from tests.runs.eval_results import write_evaluation


class FakeHub:
    """Replacement for the hub's client that stores uploaded folders by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []  # type: ignore[var-annotated]

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(options)

    def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> Any:
        shutil.copytree(folder_path, self.folder / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    def snapshot_download(self, repo_id: str, local_dir: Path, **options: Any) -> str:
        shutil.copytree(self.folder / repo_id, local_dir)
        (Path(local_dir) / ".cache").mkdir()
        return str(local_dir)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_run_comes_back_as_it_went(tmp_path: Path, hub: FakeHub) -> None:
    run = make_run(tmp_path)
    folder = run / "eval" / "proto-5w5s10q-test"
    write_evaluation(folder, {"birds": ("ID", "5w5s10q-test", 0.5432, 0.0123)}, episodes=600)
    others = ("eval/proto-5w5s10q-test/settings.json", "eval/proto-5w5s10q-test/search.json", "tune.json", "segment/fold0.json")
    (run / "segment").mkdir()
    for name in others:
        (run / name).write_text(f'{{"name": "{name}"}}')
    assert push(run, "me/birds") == "https://hub/me/birds"
    assert hub.calls == [{"repo_type": "model", "private": True, "exist_ok": True}]
    back = pull("me/birds", tmp_path / "back")
    assert back.finished
    for name in (*others, "eval/proto-5w5s10q-test/results.h5", "eval/proto-5w5s10q-test/summary.csv"):
        assert (back.path / name).read_bytes() == (run / name).read_bytes()
    support, labels = pictures()
    first, second = (smatcli.load(path).adapt(support, labels, adapt="flip").predict(support) for path in (run, back.path))
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    card = (back.path / "README.md").read_text()
    for text in ("| birds | ID | proto | 5w5s10q-test | 54.3 ± 1.2 | 600 |", "vit_tiny_patch16_224", "experts: 3", "trained from scratch"):
        assert text in card
    info = json.loads((back.path / "run.json").read_text())
    assert "pid" not in info
    assert "command" not in info
    assert not (back.path / ".cache").exists()
    with pytest.raises(UserError, match="exists"):
        pull("me/birds", tmp_path / "back")


def test_pretraining_runs_too(tmp_path: Path, hub: FakeHub) -> None:
    push(make_pretrain_run(tmp_path), "me/pre", public=True, licence="mit")
    back = pull("me/pre", tmp_path / "back")
    assert "license: mit\n" in (back.path / "README.md").read_text()
    smatcli.load(back.path).adapt(*pictures())


def test_what_is_no_run_is_refused_and_nothing_is_left(tmp_path: Path, hub: FakeHub) -> None:
    other = tmp_path / "hub" / "me" / "other"
    other.mkdir(parents=True)
    (other / "README.md").write_text("x")
    with pytest.raises(UserError, match="not a run of `smat push`"):
        pull("me/other", tmp_path / "back")
    push(make_run(tmp_path), "me/cut")
    weights = tmp_path / "hub" / "me" / "cut" / "checkpoints" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        pull("me/cut", tmp_path / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub", "run"]


def test_licence_of_the_base_weights_as_timm_tells_it(tmp_path: Path) -> None:
    run = RunDir.open(make_run(tmp_path))
    recipe = vision(run.recipe)
    backbone = recipe.backbone.model_copy(update={"name": "vit_small_patch16_224.dino", "weights": "timm"})
    recipe = recipe.model_copy(update={"backbone": backbone})
    words, licence, hub_id = base_weights(recipe, {})
    assert (licence, hub_id) == ("apache-2.0", "timm/vit_small_patch16_224.dino")
    assert "vit_small_patch16_224.dino" in words
    assert base_weights(recipe, {"imported": {"file": "/x/y.pt", "layout": "PMF"}})[0] == "imported from y.pt (PMF)"


def test_staged_folder_holds_no_optimizer_and_is_a_run(tmp_path: Path) -> None:
    folder = stage(make_run(tmp_path), tmp_path / "look")
    assert (folder / "checkpoints" / "last" / "optim.safetensors").stat().st_size < 100
    smatcli.load(folder)
    with pytest.raises(UserError, match="already exists"):
        stage(tmp_path / "run", folder)


def test_offline_and_bad_names_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run = make_run(tmp_path)
    for call in (lambda: push(run, "me/birds"), lambda: pull("me/birds", tmp_path / "back")):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE") as caught:
            call()
        assert "\n" not in str(caught.value)
    for name in ("birds", "me/../birds", "a b/c", "https://x/y"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            pull(name, tmp_path / "back")
    with pytest.raises(UserError, match="no checkpoint"):
        shutil.rmtree(run / "checkpoints" / "last")
        push(run, "me/birds")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_unknown_ids_and_missing_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(Exception):
        def __init__(self, status: int) -> None:
            super().__init__("a long\nanswer")
            self.response = SimpleNamespace(status_code=status)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for error, message in (
        (huggingface_hub.errors.RepositoryNotFoundError.__new__(huggingface_hub.errors.RepositoryNotFoundError), "does not exist on the"),
        (Answer(401), "hf auth login"),
        (Answer(500), "cannot be reached"),
    ):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(UserError, match=message) as caught:
            pull("me/birds", tmp_path / "back")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
