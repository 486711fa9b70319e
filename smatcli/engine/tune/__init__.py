"""`smat tune`."""

from smatcli.engine.tune.tuning import tune

__all__ = ["tune"]
