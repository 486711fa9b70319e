"""`smat eval`."""

from smatcli.engine.evaluate.evaluation import evaluate

__all__ = ["evaluate"]
