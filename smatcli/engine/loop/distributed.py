"""Data-parallel runs with several processes (torchrun, or the tasks of a Slurm job): ranks, shares of the work, and collectives.

Every process has the whole model and takes a share of each batch. Gradients are summed once per update, so that all processes make the
same update. Only the main process (rank 0) writes files and prints. Losses, accuracies and signals are exchanged in float64.
"""

import atexit
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from smatcli.errors import SmatError, UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter

if TYPE_CHECKING:
    from smatcli.config import Loaded

# To detect a process that hangs (a crash closes connections and is noticed at once). No checkpoint takes this long.
TIMEOUT = timedelta(minutes=30)
BUCKET = 2**18  # elements; smaller gradients are summed together in one bucket


class FailedElsewhere(SmatError):
    """Raised if another process of the run failed: that process prints the error, this one exits silently with the same code."""

    quiet = True

    def __init__(self, rank: int, code: int) -> None:
        super().__init__(f"process {rank} failed")
        self.exit_code = code


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen by the process `rank` of `size`. For a single process every method is a cheap no-op."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's contiguous block of the positions 0 .. count - 1; blocks are in order of rank."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def owns(self, index: int) -> bool:
        """Return whether this process handles item `index`.

        Items are dealt round-robin, so that each process gets its share of every dataset.
        """
        return index % self.size == self.rank

    def reporter(self, reporter: Reporter) -> Reporter:
        """Return `reporter` for the main process and a silent one for the others."""
        return reporter if self.is_main else SilentReporter()

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the float64 `numbers` of every process (equally many each), by rank."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(list(numbers), dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        with self.connection_errors():
            distributed.all_gather(everyone, mine)
        return [row.tolist() for row in everyone]

    def gather_rows(self, count: int, mine: Iterable[int], values: Sequence[Sequence[float]]) -> list[list[float]]:
        """Return all rows 0 ..

        count - 1 in order, without rounding. This process contributes `values` as rows `mine`, the others the rest.
        """
        if self.size == 1:
            return [list(row) for row in values]
        width = int(max(row[0] for row in self.gather([max((len(row) for row in values), default=0)])))
        table = torch.zeros(count, width, dtype=torch.float64)
        for place, row in zip(mine, values, strict=True):
            table[place, : len(row)] = torch.tensor(list(row), dtype=torch.float64)
        with self.connection_errors():
            distributed.all_reduce(table)
        return table.tolist()

    def all_max(self, number: int) -> int:
        """Return the largest of the processes' numbers, e.g. to stop all processes at the same step after a signal to one of them."""
        return int(max(row[0] for row in self.gather([number]))) if self.size > 1 else number

    def wait(self) -> None:
        """Wait until all processes have reached this point (barrier)."""
        self.gather([0.0])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum `.grad` over the processes: large gradients in place, small ones in one bucket, all asynchronously.

        A parameter that has no gradient in any process keeps `grad` None.
        """
        if self.size == 1:
            return
        there = [any(column) for column in zip(*self.gather([float(p.grad is not None) for p in parameters]), strict=True)]
        grads = []
        for parameter, wanted in zip(parameters, there, strict=True):
            if wanted:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
        large = [g for g in grads if g.numel() >= BUCKET and g.is_contiguous()]
        small = [g for g in grads if g.numel() < BUCKET or not g.is_contiguous()]
        with self.connection_errors():
            bucket = torch.cat([g.flatten() for g in small]) if small else None
            pending = [distributed.all_reduce(t, async_op=True) for t in [*large, *([] if bucket is None else [bucket])]]
            for handle in pending:
                if handle is not None:
                    handle.wait()
        if bucket is not None:
            for grad, part in zip(small, bucket.split([g.numel() for g in small]), strict=True):
                grad.copy_(part.view_as(grad))

    def collect(self, whole: Tensor) -> None:
        """Complete the contiguous tensor `whole`, in which every process has filled its `share` (all-gather in place)."""
        if self.size == 1:
            return
        flat = whole.view(-1)
        with self.connection_errors():
            pending = []
            for rank in range(self.size):
                places = World(rank, self.size).share(len(flat))
                pending.append(distributed.broadcast(flat[places.start : places.stop], rank, async_op=True))
            for handle in pending:
                if handle is not None:
                    handle.wait()

    def check_equal(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise SmatError unless all processes have the same values (one may have read another version of a file)."""
        if self.size == 1:
            return
        sums = [[float(t.detach().double().sum()), float(t.detach().double().abs().sum())] for t in tensors if t.is_floating_point()]
        rows = self.gather([x for pair in sums for x in pair])
        if any(row != rows[0] and str(row) != str(rows[0]) for row in rows):
            raise SmatError(f"the {self.size} processes have different {what}; do they all see the same files?")

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Context that may fail in some processes: then the lowest failed rank re-raises its error, the others raise `FailedElsewhere`."""
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        code = 0 if error is None else getattr(error, "exit_code", 1)
        codes = [int(row[0]) for row in self.gather([float(code)])]
        bad = next((rank for rank, failed in enumerate(codes) if failed), None)
        if bad == self.rank and error is not None:
            raise error
        if bad is not None:
            raise FailedElsewhere(bad, codes[bad]) from error

    @contextmanager
    def connection_errors(self) -> Iterator[None]:
        """Convert errors of broken connections within the context to a SmatError of one line."""
        try:
            yield
        except RuntimeError as error:
            raise SmatError(
                f"process {self.rank} of {self.size}: another process of this run has ended ({str(error).strip().splitlines()[0][:120]}); "
                "what was saved is kept, start it again with --resume"
            ) from None


ALONE = World()
_current: World | None = None


def world(device: str = "auto") -> World:
    """Return the processes of this run, from the variables that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...).

    The first call connects the processes: gloo between CPUs, NCCL between GPUs (process LOCAL_RANK of a node takes GPU LOCAL_RANK). Raises
    UserError for a `device` that several processes cannot share, or if there are fewer GPUs than processes.
    """
    global _current
    if _current is None or (_current.size > 1 and not distributed.is_initialized()):
        _current = _join(device)
    return _current


def restarted() -> bool:
    """Return whether torchrun has restarted this process after a failure, in which case the run is resumed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _join(device: str) -> World:
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return ALONE
    rank, local = _number("RANK", None), _number("LOCAL_RANK", 0)
    if not distributed.is_available():
        raise UserError("WORLD_SIZE is set, but this torch has no torch.distributed; start one process")
    backend = "gloo"
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        if ":" in device:
            raise UserError(f"device={device} with {size} processes: each takes a GPU of its own; use device=cuda")
        count = torch.cuda.device_count()
        if count == 1 and "SLURM_LOCALID" in os.environ:
            local = 0  # --gpus-per-task: each task sees only its own GPU
        if count <= local:
            raise UserError(f"process {local} of this node has no GPU ({count} visible); start fewer or use device=cpu")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    elif device not in ("auto", "cpu"):
        raise UserError(f"device={device}: several processes need device cpu or cuda; start one process")
    try:
        # torchrun keeps its store across restarts; a prefix per restart hides the addresses of dead processes.
        store, _, _ = next(distributed.rendezvous("env://", rank, size, timeout=TIMEOUT))
        store = distributed.PrefixStore(f"smat-{_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise SmatError(f"process {rank} of {size} cannot join the others: {str(error).splitlines()[0]}") from None
    atexit.register(_leave)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open until exit: only the main process prints)
    return World(rank, size)


def _leave() -> None:
    with suppress(Exception):
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} in the environment is not a whole number; start the processes with torchrun")
    return int(text)


class WatchedRun(RunDir):
    """Read-only view of the run for processes other than the main one: same recipe and checkpoints, no-ops instead of writes."""

    def note(self, **facts: Any) -> None:
        self.info.update(facts)

    @contextmanager
    def active(self) -> Iterator["WatchedRun"]:
        yield self

    def log(self, record: dict[str, Any]) -> None: ...

    def truncate(self, step: int) -> None: ...

    def sync(self) -> None: ...


def reserve(loaded: "Loaded", reporter: Reporter, resume: bool, here: World) -> RunDir | None:
    """Call `RunDir.reserve` in the main process. Return the run (a `WatchedRun` in the others), or None if it has yet to be created."""
    run = None
    with here.fail_together():
        if here.is_main:
            run = RunDir.reserve(loaded, reporter, resume or restarted())
    status = here.gather([0.0 if run is None else 1.0 + run.finished])[0][0]  # 0 no run, 1 unfinished, 2 finished
    return run if here.is_main or not status else _open_watched(loaded, "finished" if status == 2.0 else "running")


def create(loaded: "Loaded", here: World) -> RunDir:
    """Call `RunDir.create` in the main process, and return the run (a `WatchedRun` in the others)."""
    run = None
    with here.fail_together():
        if here.is_main:
            run = RunDir.create(loaded.recipe.run, loaded.recipe, loaded.origins)
    return run or _open_watched(loaded, "running")


def _open_watched(loaded: "Loaded", status: str) -> WatchedRun:
    return WatchedRun(Path(loaded.recipe.run), loaded.recipe, {"status": status})
