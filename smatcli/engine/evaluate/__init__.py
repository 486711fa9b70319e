"""`smat eval`: meta-test of a run."""

from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.moved import attribute_error

__all__ = ["evaluate"]

__getattr__ = attribute_error(__name__)
