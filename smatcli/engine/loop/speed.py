"""How fast a method runs, never what it computes: train.compile, train.checkpoint_activations, train.chunk, train.cache_frozen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from smatcli.config.schema import TrainConfig
from smatcli.errors import SmatError, UserError
from smatcli.methods.base import FlatMethod
from smatcli.methods.routed import RoutedMethod
from smatcli.methods.running.execution import Execution, compiler_missing
from smatcli.methods.running.feature_cache import FeatureCache
from smatcli.runs.reporter import Reporter

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS is deterministic only with a workspace of fixed size, read when CUDA starts


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms for a block; the settings of before come back. SmatError names an operation that has none."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise SmatError(f"deterministic: {str(error).split('.')[0]}; run without --deterministic, or on the CPU") from None
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


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
