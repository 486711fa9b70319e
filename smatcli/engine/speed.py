"""How fast a method runs, never what it computes: train.compile, train.checkpoint_activations, train.chunk, train.cache_frozen."""

from smatcli.config.schema import TrainConfig
from smatcli.engine.reporter import Reporter
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.methods.execution import Execution, compiler_missing
from smatcli.methods.frozen import FeatureCache
from smatcli.methods.routed import RoutedMethod


def speed_up(method: FlatMethod, config: TrainConfig, reporter: Reporter) -> None:
    """Make `method` run as the recipe asks; UserError for an option that it cannot read. Without a compiler: one line, and no compiling."""
    compile = config.compile
    if compile and (missing := compiler_missing(method.theta_pre.device)):
        reporter.line(f"train.compile: {missing}; running uncompiled")
        compile = False
    method.execution = Execution(method.backbone, compile=compile, recompute=config.checkpoint_activations, chunk=config.chunk, lean=True)
    if config.cache_frozen:
        if not isinstance(method, RoutedMethod):
            raise UserError("train.cache_frozen: this method uses no features of the pre-trained model; remove it")
        method.frozen_cache = FeatureCache()


def speed_statistics(method: FlatMethod) -> dict[str, float]:
    """How many graphs were compiled, and how many frozen features came from the cache; empty where neither is used."""
    found: dict[str, float] = {}
    if (compiled := method.execution.compiled) is not None:
        found |= {"compiled_graphs": len(compiled.shapes), "compile_seconds": round(compiled.seconds, 1)}
    cache = getattr(method, "frozen_cache", None)
    if isinstance(cache, FeatureCache):
        found["frozen_cached"] = round(cache.hit_share, 4)
    return found
