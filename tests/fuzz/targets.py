"""Fuzzing targets: how to write a tiny valid folder, how to read it, and how to change a file inside its container."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.fuzz import sources
from tests.fuzz.mutate import mutated

Fix = Callable[[str, bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """`make(folder)` writes valid files, `read(folder)` reads them; `change(name, data, chance)` changes one (default: its bytes)."""

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    change: Fix | None = None
    skip: tuple[str, ...] = ()  # suffixes of files that are not changed


def plain(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change the bytes."""
    return mutated(data, chance)


def in_zip(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change a member of the archive and correct its checksum and size, or change the bytes of the archive."""
    if chance.random() < 0.3:
        return mutated(data, chance)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
        names = archive.namelist()
        chosen = chance.choice(names + [n for n in names if "data.pkl" in n or "head" in n] * 8)
        for member in names:
            content = archive.read(member)
            made.writestr(member, mutated(content, chance) if member == chosen else content)
    return out.getvalue()


def in_safetensors(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change the header and correct its length, or change any bytes."""
    if not name.endswith((".safetensors", ".smat")) or chance.random() < 0.3:
        return mutated(data, chance)
    length = int.from_bytes(data[:8], "little")
    header = mutated(data[8 : 8 + length], chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def weights(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change a checkpoint of either kind."""
    return in_zip(name, data, chance) if name.endswith((".pt", ".pth")) and data[:2] == b"PK" else in_safetensors(name, data, chance)


def in_record(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change the payload of a record and correct its checksums, or change any bytes."""
    from tests.data.mdfiles import record

    if not name.endswith(".tfrecords") or chance.random() < 0.4:
        return mutated(data, chance)
    size = int.from_bytes(data[:8], "little")
    return record(mutated(data[12 : 12 + size], chance)) + data[16 + size :]


def in_seal(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change an HDF5 file, mostly without its seal, so that the damage reaches the library."""
    if not name.endswith(".h5") or chance.random() < 0.2:
        return mutated(data, chance)
    end = data.rfind(b"SMATSEAL")
    return mutated(data[:end] if end > 0 else data, chance)


def in_checkpoint(name: str, data: bytes, chance: random.Random) -> bytes:
    """Change any file of a checkpoint; `rewritten` corrects the manifest."""
    return in_safetensors(name, data, chance)


def _recipe(folder: Path) -> None:
    from tests.conftest import RECIPE

    (folder / "recipe.yaml").write_text(RECIPE + "episode: 5w1s\nadapt: {flip: &f {rounds: 1}, exhaustive: *f}\n")


def _read_recipe(folder: Path) -> object:
    from smatcli.config import dump_recipe, load_recipe

    return dump_recipe(load_recipe(folder / "recipe.yaml", ["train.steps=3", "eval.episode=5w5s"]).recipe)


def _checkpoint(folder: Path) -> None:
    import torch

    from smatcli.runs.checkpoint import save_checkpoint

    state = {"step": 3, "best": {"mean": 0.5, "step": 2}, "optimizers": {"a": {"lr": 0.1}}}
    save_checkpoint(folder / "last", {"theta": torch.arange(4.0)}, state, {"m": torch.zeros(2)})


def _read_checkpoint(folder: Path) -> object:
    from smatcli.runs.checkpoint import load_checkpoint

    return load_checkpoint(folder / "last")


def _read_resealed(folder: Path) -> object:
    """Read a damaged checkpoint whose manifest is correct."""
    from smatcli.runs import manifest

    state, body = folder / "last" / manifest.STATE, folder / "last" / manifest.MANIFEST
    try:
        found = json.loads(body.read_text())
        for name in (*manifest.PARTS, manifest.STATE):
            file = folder / "last" / name
            found["files"][name] = {"bytes": file.stat().st_size, "sha256": manifest.digest(file)}
        body.write_text(json.dumps(found))
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        pass
    assert state is not None
    return _read_checkpoint(folder)


def _official(folder: Path) -> None:
    import torch

    from tests.importing.released import pmf_release, saved, smat_release

    saved(folder / "pmf.pt", pmf_release(dim=8, depth=1))
    saved(folder / "pmf.safetensors", pmf_release(dim=8, depth=1))
    torch.save({"model": pmf_release(dim=8, depth=1)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    saved(folder / "smat.pt", smat_release())


def _read_official(folder: Path) -> object:
    from smatcli.importing import parse

    return sources.each([partial(parse, path) for path in sorted(folder.iterdir())])


_CONFIG = {"name": "vit_tiny_patch16_224", "args": {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}, "image_size": 16}


def _weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from smatcli.backbones import create_backbone
    from smatcli.backbones.weights import save_backbone
    from smatcli.config.schema import BackboneConfig

    config = BackboneConfig(**_CONFIG, weights="none")  # type: ignore[arg-type]
    model = create_backbone(config)
    torch.save({"state_dict": model.state_dict()}, folder / "a.pth")
    save_file(model.state_dict(), folder / "a.safetensors")
    save_backbone(folder, model, config, {})


def _read_weights(folder: Path) -> object:
    from smatcli.backbones import create_backbone
    from smatcli.backbones.weights import load_file_weights, load_run_weights
    from smatcli.config.schema import BackboneConfig

    config = BackboneConfig(**_CONFIG, weights="none")  # type: ignore[arg-type]
    model = create_backbone(config)
    load_run_weights(model, config, folder)
    return sources.each([partial(load_file_weights, model, config, folder / name) for name in ("a.pth", "a.safetensors")])


def _results(folder: Path) -> None:
    from smatcli.runs.results import write_results
    from tests.report.fakes import add_eval, draw, make_run

    run = make_run(folder / "smat", "smat", 0.9, 3, [0.5, 0.6])
    shares = draw(0.0, 0.0, 6, ("aircraft", "sketch_pacs"))
    made = add_eval(run, "proto", shares, tau=0.9, experts=3)
    columns = {"index": np.arange(6), "seconds": np.ones(6), "alpha": np.ones((6, 3))}
    records = {name: {**columns, "accuracy": values} for name, values in shares.items()}
    drawn = {"aircraft": {"domain": "ID", "protocol": "5w5s10q-test"}, "sketch_pacs": {"domain": "OOD", "protocol": "5w5s10q-all"}}
    facts = {"run": "smat", "method": "smat", "adapt": "proto", "tau": 0.9, "experts": 3}
    write_results(made / "results.h5", records, drawn, facts, {"seed": 0})


def _read_results(folder: Path) -> object:
    from smatcli.report.results.frame import read
    from smatcli.report.tables.costs import size_of
    from smatcli.runs.rates import read_choices
    from smatcli.runs.results import joined, read_records

    frame = read([folder])
    for evaluation in frame.evaluations:
        assert isinstance(evaluation.accuracies, dict)
        assert isinstance(evaluation.extra("seconds", "alpha"), dict)
        assert evaluation.settings is not None
    for run in frame.runs:
        assert run.sparsity is None or run.sparsity == run.sparsity
        size_of(run)
    results = folder / "smat" / "eval" / "proto-5w5s10q" / "results.h5"
    read_choices(results.parent)
    return [joined([records]) for records in read_records(results).values()] if results.exists() else None


def _analysis(folder: Path) -> None:
    from smatcli.runs.analysis import Analysis, texts, write_analysis

    arrays = {"a": np.arange(6.0).reshape(2, 3), "names": texts(["x", "é"]), "big": np.zeros(4000)}
    write_analysis(folder, Analysis("masks", "masks", {"seed": 1}, {"all": arrays}, {"all": {"domain": "ID"}}, facts={"parameters": 3}))


def _read_analysis(folder: Path) -> object:
    from smatcli.runs.analysis import read_analysis

    return read_analysis(folder / "masks.h5")


def _lists(folder: Path) -> None:
    from smatcli.config.schema import EpisodeConfig
    from smatcli.data.episodes.lists import draw_list, write_list
    from smatcli.data.episodes.sampler import EpisodeSampler
    from tests.data.fakes import FakeStore

    store = FakeStore([9, 12, 8, 9, 10, 11])
    store.content_hash = "abc"  # type: ignore[attr-defined]
    write_list(folder / "l.npz", draw_list(EpisodeSampler({"birds": store}, "all", EpisodeConfig(kind="variable"), 4), 3))  # type: ignore[dict-item]


def _read_lists(folder: Path) -> object:
    from smatcli.data.episodes.lists import read_list

    return [[each.plan(i) for i in range(len(each))] for each in read_list(folder / "l.npz").values()]


def _classifier(folder: Path) -> None:
    import smatcli
    from tests.deploy.world import make_run, pictures

    run = make_run(folder, {"name": "pmf"})
    images, labels = pictures()
    smatcli.load(run).adapt(images, labels).save(folder / "c.smat")
    import shutil

    shutil.rmtree(run)


def _read_classifier(folder: Path) -> object:
    import smatcli

    return smatcli.load_classifier(folder / "c.smat").predict([np.zeros((16, 16, 3), np.uint8)])


def _run(folder: Path) -> None:
    from tests.deploy.world import make_run

    make_run(folder, {"name": "pmf"})


def _read_run(folder: Path) -> object:
    import smatcli

    return smatcli.load(folder / "run").adapt([np.zeros((16, 16, 3), np.uint8)] * 2, ["a", "b"])


TARGETS = {
    "recipe": Target(_recipe, _read_recipe),
    "tfrecord": Target(sources.records, sources.read_records, in_record),
    "store": Target(sources.stores, sources.read_stores, in_seal),
    "checkpoint": Target(_checkpoint, _read_checkpoint),
    "resealed": Target(_checkpoint, _read_resealed, in_checkpoint),
    "official": Target(_official, _read_official, weights),
    "weights": Target(_weights, _read_weights, weights),
    "results": Target(_results, _read_results, in_seal),
    "analysis": Target(_analysis, _read_analysis, in_seal),
    "episodes": Target(_lists, _read_lists, in_zip),
    "classifier": Target(_classifier, _read_classifier, in_safetensors),
    "coco": Target(sources.coco, sources.read_coco, None, (".jpg",)),
    "quickdraw": Target(sources.quickdraw, sources.read_quickdraw),
    "specs": Target(sources.specs, sources.read_specs),
    "archive": Target(sources.archive, sources.read_archive, in_zip),
    "images": Target(sources.images, sources.read_images),
    "pmf": Target(sources.pmf, sources.read_pmf),
    "run": Target(_run, _read_run, in_safetensors),
    "tuning-lists": Target(sources.tuning_lists, sources.read_tuning_lists, None, (".jpg",)),
}


class Bench:
    """A target in `folder`. Its valid files are kept in memory and rewritten for every attempt."""

    def __init__(self, name: str, folder: Path) -> None:
        self.target, self.folder = TARGETS[name], folder
        folder.mkdir(parents=True, exist_ok=True)
        self.target.make(folder)
        self.valid = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.names = [name for name in self.valid if not name.endswith(self.target.skip or ("\0",))]
        self.last: str | None = None
        self.target.read(folder)  # valid files must be readable

    def attempt(self, seed: int) -> bool:
        """Change one file by `seed` and read everything; return whether that raised SmatError."""
        from tests.fuzz.guard import refused

        chance = random.Random(seed)
        if self.last is not None:
            (self.folder / self.last).write_bytes(self.valid[self.last])
        self.last = chance.choice(self.names)
        (self.folder / self.last).write_bytes((self.target.change or plain)(self.last, self.valid[self.last], chance))
        return refused(lambda: self.target.read(self.folder))
