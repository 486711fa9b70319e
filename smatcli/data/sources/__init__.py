"""Kinds of source data, by name. A new kind needs one file here, one line in `SOURCES` and one command in `cli/prepare.py`.

Other packages add their own kinds with an entry point (`smatcli.plugins`).
"""

from importlib import import_module
from typing import Any

from smatcli import plugins
from smatcli.data.sources.base import ImageSource, SourceClass
from smatcli.data.sources.folder import FolderSource

# kind -> module and class, imported on first use
SOURCES = {
    "folder": "folder:FolderSource",
    "meta-dataset": "meta_dataset:MetaDatasetSource",
    "pmf-h5": "pmf_h5:PmfH5Source",
    "pmf-episodes": "pmf_episodes:PmfEpisodesSource",
    "torchvision": "torchvision_sets:TorchvisionSource",
    "vtab": "vtab:VtabSource",
    "fgvc": "fgvc:FgvcSource",
    "domainnet": "domainnet:DomainNetSource",
    "coco": "coco:CocoSource",
    "cub": "cub:CubSource",
    "fungi": "fungi:FungiSource",
    "quickdraw": "quickdraw:QuickdrawSource",
}


def open_source(kind: str, *args: Any, **options: Any) -> ImageSource:
    """Open a source by its kind; other arguments go to its constructor. Raises UserError for missing, damaged or unsuitable data."""
    source: ImageSource
    if kind not in SOURCES:
        if plugins.find("sources", kind) is None:
            raise plugins.unknown("sources", "kind of source", kind, list(SOURCES))
        source = plugins.make("sources", kind, *args, **options)
        return source
    module, name = SOURCES[kind].split(":")
    source = getattr(import_module(f"smatcli.data.sources.{module}"), name)(*args, **options)
    return source


__all__ = ["SOURCES", "FolderSource", "ImageSource", "SourceClass", "open_source"]
