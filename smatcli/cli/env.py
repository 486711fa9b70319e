"""`smat env`: versions, devices and paths, for bug reports."""

import os
import platform
from pathlib import Path
from typing import Annotated

import typer

from smatcli.version import __version__

PACKAGES = ("torch", "timm", "numpy", "h5py", "pandas", "pydantic", "typer", "rich", "safetensors", "pillow", "scipy", "matplotlib", "peft")
EXTRAS = ("transformers", "datasets", "submitit", "tensorboard", "wandb")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Print versions, devices and paths."""
    sections = {"versions": _versions(), "devices": _devices(), "paths": _paths()}
    if installed := _plugins():
        sections["plugins"] = installed
    if as_json:
        import json

        typer.echo(json.dumps(sections, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from smatcli.cli.output import console

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for i, (title, rows) in enumerate(sections.items()):
        if i:
            table.add_row()
        table.add_row(Text(title, style="bold cyan"))
        for name, value in rows.items():
            table.add_row(f"  {name}", Text(value))
    console().print(table)


def _versions() -> dict[str, str]:
    versions = {"smat": __version__, "python": f"{platform.python_version()} ({platform.platform()})"}
    versions.update((name, _version(name)) for name in PACKAGES)
    versions.update((name, version) for name in EXTRAS if (version := _version(name)) != "missing")
    return versions


def _version(name: str) -> str:
    from importlib import metadata  # imported here because it would take a tenth of the start-up time of `smat --help`

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _plugins() -> dict[str, str]:
    from smatcli.config.extended import ADAPT_NAMES, METHOD_NAMES
    from smatcli.data.sources import SOURCES
    from smatcli.plugins import listing

    return listing({"methods": METHOD_NAMES, "adaptations": ADAPT_NAMES, "sources": SOURCES})


def _devices() -> dict[str, str]:
    devices = {"cpu": _cpu(), "threads": f"{os.cpu_count()} cores"}
    try:
        import torch
    except ImportError as error:
        return {**devices, "torch": f"cannot be imported: {error}"}
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices["threads"] = f"{torch.get_num_threads()} used by torch, {allowed} cores allowed, {os.cpu_count()} present"
    devices["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            devices[f"cuda:{i}"] = (
                f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}, bf16 {torch.cuda.is_bf16_supported()}"
            )
    else:
        devices["cuda"] = "none"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((values.get("flags") or values.get("Features") or "").split())
    shown = ", ".join(flag for flag in FLAGS if flag in flags)
    name = values.get("model name", platform.machine())
    return f"{name} ({shown})" if shown else name


def _paths() -> dict[str, str]:
    from smatcli.config import recipes_root

    here = Path.cwd()
    data = here / "data"
    stores = sorted(data.rglob("*.h5")) if data.is_dir() else []
    return {
        "smatcli": str(Path(__file__).resolve().parent.parent),
        "recipes": str(recipes_root()),
        "working folder": str(here),
        "data": f"{data} ({len(stores)} stores)" if data.is_dir() else f"{data} (does not exist)",
        "timm weights": os.environ.get("HF_HOME", str(Path("~/.cache/huggingface").expanduser())),
    }
