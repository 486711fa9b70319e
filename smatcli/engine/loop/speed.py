"""Options that affect the speed or memory of a method but not its results: train.compile, checkpoint_activations, chunk, cache_frozen."""

from smatcli.config.schema import TrainConfig
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.methods.routed import RoutedMethod
from smatcli.methods.running.execution import Execution, compiler_missing
from smatcli.methods.running.feature_cache import FeatureCache
from smatcli.runs.reporter import Reporter


def speed_up(method: FlatMethod, config: TrainConfig, reporter: Reporter) -> None:
    """Apply the options to `method`. Raises UserError for an option that the method does not support.

    Without a compiler, report this and run uncompiled.
    """
    compile = config.compile
    if compile and (missing := compiler_missing(method.theta_pre.device)):
        reporter.line(f"train.compile: {missing}; running uncompiled")
        compile = False
    method.execution = Execution(method.backbone, compile=compile, recompute=config.checkpoint_activations, chunk=config.chunk, lean=True)
    if config.cache_frozen:
        if not isinstance(method, RoutedMethod):
            raise UserError("train.cache_frozen: this method does not use features of the pre-trained model; remove it")
        method.frozen_cache = FeatureCache()


def speed_statistics(method: FlatMethod) -> dict[str, float]:
    """Return the number of compiled graphs and the hit rate of the feature cache, as far as these are used."""
    numbers: dict[str, float] = {}
    if (compiled := method.execution.compiled) is not None:
        numbers |= {"compiled_graphs": len(compiled.shapes), "compile_seconds": round(compiled.seconds, 1)}
    cache = getattr(method, "frozen_cache", None)
    if isinstance(cache, FeatureCache):
        numbers["frozen_cached"] = round(cache.hit_share, 4)
    return numbers
