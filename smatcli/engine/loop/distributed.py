"""Several processes as one run (torchrun, or the tasks of a Slurm job): who is who, what is dealt to whom, and what they tell each other.

Every process holds the whole model and takes a share of each meta-batch; gradients are summed once per meta-batch, so that all of them make
the same update. The first process alone writes files and speaks. Numbers that decide (losses, accuracies, signals) travel in float64.
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

# A process that dies closes its connections and is noticed at once; this is for one that hangs, and longer than any checkpoint takes.
TIMEOUT = timedelta(minutes=30)
BUCKET = 2**18  # gradients of fewer elements travel together


class Elsewhere(SmatError):
    """Another process of this run failed, and says so itself; this one ends with the same code, without a word."""

    quiet = True

    def __init__(self, rank: int, code: int) -> None:
        super().__init__(f"process {rank} failed")
        self.exit_code = code


@dataclass(frozen=True)
class World:
    """The processes of a run. `rank` 0 .. `size` - 1; a single process needs no group, and nothing here costs it anything."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Is this the process that writes and speaks?"""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The positions 0 .. count - 1 that are this process's, one after the other: those before it are the earlier processes'."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def deals(self, index: int) -> bool:
        """Is the episode of this index this process's? Dealt in turn, so that each gets as many of every dataset."""
        return index % self.size == self.rank

    def reporter(self, reporter: Reporter) -> Reporter:
        """The given one for the first process, a silent one for the others."""
        return reporter if self.first else SilentReporter()

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The float64 `numbers` of every process (equally many each), by rank."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(list(numbers), dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self.talking():
            distributed.all_gather(found, mine)
        return [one.tolist() for one in found]

    def joined(self, count: int, mine: Iterable[int], values: Sequence[Sequence[float]]) -> list[list[float]]:
        """Rows 0 .. count - 1 of which this process has `values` for the positions `mine`, the others the rest; exact, in order."""
        if self.size == 1:
            return [list(row) for row in values]
        width = int(max(one[0] for one in self.gather([max((len(row) for row in values), default=0)])))
        table = torch.zeros(count, width, dtype=torch.float64)
        for place, row in zip(mine, values, strict=True):
            table[place, : len(row)] = torch.tensor(list(row), dtype=torch.float64)
        with self.talking():
            distributed.all_reduce(table)
        return table.tolist()  # type: ignore[no-any-return]

    def most(self, number: int) -> int:
        """The largest of the processes' numbers: a signal that one of them received is obeyed by all at the same step."""
        return int(max(one[0] for one in self.gather([number]))) if self.size > 1 else number

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.gather([0.0])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum `.grad` over the processes, once: flat vectors in place, small parameters in one bucket; all start before any is waited for.

        A parameter that has a gradient nowhere keeps none.
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
        with self.talking():
            bucket = torch.cat([g.flatten() for g in small]) if small else None
            pending = [distributed.all_reduce(t, async_op=True) for t in [*large, *([] if bucket is None else [bucket])]]
            for one in pending:
                if one is not None:
                    one.wait()
        if bucket is not None:
            for grad, part in zip(small, bucket.split([g.numel() for g in small]), strict=True):
                grad.copy_(part.view_as(grad))

    def collect(self, whole: Tensor) -> None:
        """Every process has made its `share` of the contiguous tensor `whole`; afterwards each has all of it."""
        if self.size == 1:
            return
        flat = whole.view(-1)
        with self.talking():
            pending = []
            for rank in range(self.size):
                places = World(rank, self.size).share(len(flat))
                pending.append(distributed.broadcast(flat[places.start : places.stop], rank, async_op=True))
            for one in pending:
                if one is not None:
                    one.wait()

    def check_equal(self, tensors: Iterable[Tensor], what: str) -> None:
        """SmatError unless the processes hold the same numbers: a file that one of them reads otherwise would go unnoticed."""
        if self.size == 1:
            return
        sums = [[float(t.detach().double().sum()), float(t.detach().double().abs().sum())] for t in tensors if t.is_floating_point()]
        rows = self.gather([x for pair in sums for x in pair])
        if any(row != rows[0] and str(row) != str(rows[0]) for row in rows):
            raise SmatError(f"the {self.size} processes hold different {what}; do they all see the same files?")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that may fail in one process: all go on, or none does. The first that failed tells why; the others raise `Elsewhere`."""
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
        bad = next((rank for rank, found in enumerate(codes) if found), None)
        if bad == self.rank and error is not None:
            raise error
        if bad is not None:
            raise Elsewhere(bad, codes[bad]) from error

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Turns a broken connection into one line."""
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
    """The processes that this one belongs to, from the environment that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...).

    The first call joins them: gloo between CPUs, NCCL between GPUs (process LOCAL_RANK of a node takes GPU LOCAL_RANK). UserError for a
    `device` that several processes cannot share, or fewer GPUs than processes.
    """
    global _current
    if _current is None or (_current.size > 1 and not distributed.is_initialized()):
        _current = _join(device)
    return _current


def restarted() -> bool:
    """Did torchrun start this process again after one of the run had failed? Then it continues what is there."""
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
            local = 0  # --gpus-per-task: each task sees its own GPU alone
        if count <= local:
            raise UserError(f"process {local} of this node has no GPU ({count} visible); start fewer or use device=cpu")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    elif device not in ("auto", "cpu"):
        raise UserError(f"device={device}: several processes work on cpu or cuda; start one process")
    try:
        # torchrun keeps its store when it starts the processes again: addresses of the dead ones must not be found in it.
        store, _, _ = next(distributed.rendezvous("env://", rank, size, timeout=TIMEOUT))
        store = distributed.PrefixStore(f"smat-{_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise SmatError(f"process {rank} of {size} cannot join the others: {str(error).splitlines()[0]}") from None
    atexit.register(_leave)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for the rest of the process: the first one speaks)
    return World(rank, size)


def _leave() -> None:
    with suppress(Exception):
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} in the environment is no whole number; start the processes with torchrun")
    return int(text)


class WatchedRun(RunDir):
    """The run as the processes that do not write see it: the same recipe and checkpoints, and nothing that touches a file."""

    def note(self, **facts: Any) -> None:
        self.info.update(facts)

    @contextmanager
    def active(self) -> Iterator["WatchedRun"]:
        yield self

    def log(self, record: dict[str, Any]) -> None: ...

    def truncate(self, step: int) -> None: ...

    def sync(self) -> None: ...


def reserve(loaded: "Loaded", reporter: Reporter, resume: bool, here: World) -> RunDir | None:
    """`RunDir.reserve` by the first process; the others watch what it found. None: to be made by `create`."""
    run = None
    with here.together():
        if here.first:
            run = RunDir.reserve(loaded, reporter, resume or restarted())
    found = here.gather([0.0 if run is None else 1.0 + run.finished])[0][0]
    return run if here.first or not found else _watched(loaded, "finished" if found == 2.0 else "running")


def create(loaded: "Loaded", here: World) -> RunDir:
    """`RunDir.create` by the first process; the others watch it."""
    run = None
    with here.together():
        if here.first:
            run = RunDir.create(loaded.recipe.run, loaded.recipe, loaded.origins)
    return run or _watched(loaded, "running")


def _watched(loaded: "Loaded", status: str) -> WatchedRun:
    return WatchedRun(Path(loaded.recipe.run), loaded.recipe, {"status": status})
