"""`smat analyze`: experts, gradients, predictions, searches and features of trained runs."""

from smatcli.engine.analyze.analysis import analyze
from smatcli.engine.analyze.options import AnalysisOptions
from smatcli.moved import attribute_error

__all__ = ["AnalysisOptions", "analyze"]

__getattr__ = attribute_error(__name__)
