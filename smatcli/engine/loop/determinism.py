"""Deterministic algorithms: two runs on one device give the same bits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from smatcli.errors import SmatError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS is deterministic only with a workspace of fixed size; the variable is read when CUDA starts


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms within the context, if `wanted`. Raises SmatError, naming the operation, if it has no such algorithm."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
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
