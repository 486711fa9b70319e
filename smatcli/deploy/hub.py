"""Upload runs to the Hugging Face hub, and download them."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smatcli.deploy.card import model_card
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.safe.files import publish

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOCAL = ("pid", "command")  # keys of run.json that are not uploaded: useless elsewhere, and they reveal the author's folders
EVALUATION = ("results.h5", "settings.json", "search.json", "summary.csv")  # settings.json is needed to extend the evaluation
RESULTS = (*(f"eval/*/{name}" for name in EVALUATION), "tune.json", "segment/fold*.json", "segment/summary.csv")
FILES = ["recipe.yaml", "origins.json", "run.json", "backbone.*", "checkpoints/**", *RESULTS, "README.md"]


def stage(run: str | Path, folder: Path, which: str = "best", licence: str | None = None) -> Path:
    """Write the files to upload into the new `folder`: recipe, one checkpoint without optimizer state, results, model card."""
    opened = RunDir.open(run)
    kept = _chosen(opened, which)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: already exists; choose another folder")
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", "origins.json"):
        if (opened.path / name).is_file():
            shutil.copyfile(opened.path / name, folder / name)
    info = {key: value for key, value in opened.info.items() if key not in LOCAL}
    (folder / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    for name in ("backbone.safetensors", "backbone.json"):
        if (opened.path / name).is_file():
            shutil.copyfile(opened.path / name, folder / name)
    if kept is not None:
        checkpoint = load_checkpoint(kept)
        save_checkpoint(folder / "checkpoints" / kept.name, checkpoint.model, checkpoint.state)
    for file in sorted(path for pattern in RESULTS for path in opened.path.glob(pattern)):
        target = folder / file.relative_to(opened.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (folder / "README.md").write_text(model_card(opened, licence), encoding="utf-8")
    return folder


def push(
    run: str | Path,
    hub_id: str,
    which: str = "best",
    licence: str | None = None,
    public: bool = False,
    reporter: Reporter | None = None,
) -> str:
    """Upload a run as the model `hub_id` and return its address. A new model is created if needed, private unless `public`."""
    import huggingface_hub

    reporter = reporter or SilentReporter()
    _check_id(hub_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = stage(run, Path(scratch) / "run", which, licence)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        reporter.line(f"{run}: {size / 1e6:.1f} MB for {hub_id}")
        with _hub_errors(hub_id, "pushed to"):
            api = huggingface_hub.HfApi()
            api.create_repo(hub_id, repo_type="model", private=not public, exist_ok=True)
            commit = api.upload_folder(repo_id=hub_id, folder_path=folder, repo_type="model", commit_message="smat push")
    return str(getattr(commit, "commit_url", commit))


def pull(hub_id: str, out: Path, revision: str | None = None, reporter: Reporter | None = None) -> RunDir:
    """Download the run `hub_id` to the new folder `out` and check it.

    Raises `UserError` if the model does not exist or was not uploaded by `smat push`.
    """
    import huggingface_hub

    reporter = reporter or SilentReporter()
    _check_id(hub_id)
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(scratch) / out.name
        with _hub_errors(hub_id, "pulled from"):
            huggingface_hub.snapshot_download(hub_id, revision=revision, local_dir=draft, allow_patterns=FILES)
        shutil.rmtree(draft / ".cache", ignore_errors=True)
        _check_run(hub_id, draft)
        publish(draft, out)
    reporter.line(f"{out}: run {hub_id}; try `smat predict --model {out} --support DIR --images DIR`")
    return RunDir.open(out)


def _chosen(run: RunDir, which: str) -> Path | None:
    """Return the checkpoint to upload, or None for a pre-training run, whose backbone is a separate file."""
    if which not in ("best", "last"):
        raise UserError(f"--which {which}: use best or last")
    if (run.path / "backbone.safetensors").is_file():
        return None
    folder = run.checkpoints / which
    if which == "best" and not has_checkpoint(folder):
        folder = run.checkpoints / "last"
    if not has_checkpoint(folder):
        raise UserError(f"{run.path}: has no checkpoint yet; finish it with `smat train {run.path}/recipe.yaml --resume`")
    return folder


def _check_run(hub_id: str, folder: Path) -> None:
    try:
        run = RunDir.open(folder)
        kept = _chosen(run, "best")
        if kept is not None:
            load_checkpoint(kept)
    except SmatError as error:
        reason = str(error).replace(str(folder), hub_id)
        raise UserError(f"{hub_id}: is not a run of `smat push` ({reason}); for official checkpoints use `smat import {hub_id}`") from None


def _check_id(hub_id: str) -> None:
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"{hub_id}: is not a model id of the Hugging Face hub; give OWNER/NAME")


@contextmanager
def _hub_errors(hub_id: str, what: str) -> Iterator[None]:
    """Convert every error of the hub client to a `UserError` with one line."""
    from huggingface_hub import constants, errors

    try:
        yield
    except SmatError:
        raise
    except (errors.RepositoryNotFoundError, errors.GatedRepoError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise UserError(
            f"{hub_id}: the model does not exist on the Hugging Face hub, or needs `hf auth login`; check the name, or log in"
        ) from None
    except Exception as error:  # several libraries raise errors of their own here
        if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
            raise UserError(f"{hub_id}: cannot be {what} while HF_HUB_OFFLINE is set; unset it if there is a network") from None
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            raise UserError(
                f"{hub_id}: the Hugging Face hub denies access; log in with `hf auth login` and a token with write access"
            ) from None
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{hub_id}: the Hugging Face hub cannot be reached ({text}); try again with a network connection") from None
