"""`smat segment`."""

from smatcli.engine.segment.segmenting import segment

__all__ = ["segment"]
