"""Kinds of source data, by name: a new kind is one file here and one line in `SOURCES`."""

from collections.abc import Callable

from smatcli.data.sources.base import Source, SourceClass
from smatcli.data.sources.folder import FolderSource

SOURCES: dict[str, Callable[..., Source]] = {"folder": FolderSource}

__all__ = ["SOURCES", "FolderSource", "Source", "SourceClass"]
