"""`smat analyze`."""

from smatcli.engine.analyze.analysis import analyze

__all__ = ["analyze"]
