"""`smat train --memory-report`: predict the peak memory of a training step from two or three smaller steps."""

import resource
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smatcli.config.schema import EpisodeConfig, TrainRecipe
from smatcli.device import give_back_memory
from smatcli.engine.loop.loading import prepare_method
from smatcli.engine.loop.optimizers import Optimizers, build_optimizers
from smatcli.engine.loop.speed import speed_up
from smatcli.methods.base import FlatMethod
from smatcli.phases import Recorder, phase, recording
from smatcli.runs.reporter import SilentReporter
from smatcli.seams import Episode, Support

MIB = 2**20
HOLES = 1.2  # resident / live bytes of a step on a CPU; the excess is heap fragmentation, 10 to 25 % (benchmarks/memory.py)


class LiveBytes(TorchDispatchMode):
    """Counts bytes of CPU tensor storages allocated in the context: those still alive (`live`), and their maximum since `mark` (`peak`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in given:
                    self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def mark(self) -> int:
        """Return the peak since the last call, and start a new one."""
        peak, self.peak = self.peak, self.live
        return peak


@dataclass
class PeakRecorder(Recorder):
    """A recorder that also measures peak memory per phase: by `tracker` on a CPU, by the allocator on a GPU."""

    tracker: LiveBytes = field(default_factory=LiveBytes)

    def _charge(self) -> None:
        super()._charge()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            peak = self.tracker.mark()
        if self._stack:
            spent = self.phases[self._stack[-1]]
            spent.peak = max(spent.peak, peak)


@dataclass(frozen=True)
class MemoryReport:
    """Predicted bytes: `before` the first step (in the process, or in a GPU's allocator), and the additional peak of each phase."""

    before: int
    phases: dict[str, int]
    support: int
    query: int
    meta_batch: int

    @property
    def peak(self) -> int:
        """Peak memory of the step in bytes."""
        return self.before + max(self.phases.values())

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        worst = max(self.phases, key=lambda name: self.phases[name])
        head = f"largest episode: {self.support} support and {self.query} query images, {self.meta_batch} tasks per update"
        rows = [f"  {name:12} {(self.before + size) / MIB:10,.0f} MiB" for name, size in self.phases.items()]
        return [head, f"before the first step {self.before / MIB:,.0f} MiB; at the peak of each phase:", *rows, self.summary(worst)]

    def summary(self, worst: str) -> str:
        """Return the last line of the report."""
        return f"predicted peak: {self.peak / MIB:,.0f} MiB ({worst})"


def largest(episode: EpisodeConfig) -> tuple[int, int, int]:
    """Return (ways, support images, query images) of the largest episode that a recipe can draw."""
    if episode.kind == "fixed":
        ways, shots = (max(v) if isinstance(v, tuple) else v for v in (episode.ways, episode.shots))
        queries = 10 if episode.queries == "auto" else episode.queries
        return ways, ways * shots, ways * queries
    queries = 10 if episode.queries == "auto" else episode.queries
    return episode.max_ways, episode.max_support, episode.max_ways * queries


def predict_memory(recipe: TrainRecipe) -> MemoryReport:
    """Predict the peak memory of the recipe's largest training step.

    Runs two steps with a smaller episode at each of two sizes (three with train.chunk), and extrapolates the peak of each phase linearly
    in the number of images (and the chunk size). The steps are not compiled; compiled steps need less memory.
    """
    train = recipe.train.model_copy(update={"compile": False})
    method = prepare_method(recipe, "none")
    speed_up(method, train, SilentReporter())
    optimizers = build_optimizers(method.groups(), train.groups, max(1, train.steps), method.default_groups())
    ways, support, query = largest(recipe.episode)
    total, share = support + query, support / (support + query)
    small = min(_probe_images(method, recipe), total)
    sizes = [small, min(2 * small, total)]
    chunk = train.chunk if train.chunk is not None and train.chunk < total else None
    before = _used(method.theta_pre.device)
    points: list[tuple[int, int, dict[str, int]]] = []
    for images, part in (
        [(n, None) for n in sizes] if chunk is None else [(2 * small, small // 2), (4 * small, small // 2), (4 * small, small)]
    ):
        method.execution.chunk = part
        cut = min(max(1, round(share * images)), images - 1)
        peaks = _measure_peaks(method, optimizers, recipe, (min(ways, cut), cut, images - cut))
        points.append((images, part or images, peaks))
    if method.theta_pre.device.type == "cpu":
        # Libraries and kernels that the first steps load stay in memory; memory that they freed is released first.
        give_back_memory()
        before = max(before, _used(method.theta_pre.device) - _state_bytes(optimizers))
    wanted = (total, chunk or total)
    phases = {
        name: _extrapolate([(n, c, peaks.get(name, 0)) for n, c, peaks in points], wanted, chunk is not None) for name in points[0][2]
    }
    # Cosine similarities need a few [Q, C, D] tensors, which grow faster than the number of images.
    extra = 4 * 4 * query * ways * int(method.backbone.num_features)  # type: ignore[arg-type]
    # The images of a meta-batch; also, on a GPU those of the next episode, and in main memory the prefetched bytes.
    waiting = 4 if method.theta_pre.device.type == "cuda" else 5
    pixels = 3 * recipe.backbone.image_size**2 * total * (4 * train.meta_batch + waiting)
    busy = {name: size + pixels + (extra if name in ("student", "teacher", "backward") else 0) for name, size in phases.items()}
    if method.theta_pre.device.type == "cpu":
        busy = {name: round(HOLES * size) for name, size in busy.items()}
    return MemoryReport(before, busy, support, query, train.meta_batch)


def _probe_images(method: FlatMethod, recipe: TrainRecipe) -> int:
    """Return how many images (at least 16) have activations about as large as the parameters: fewer would not show in the peak."""
    tokens = (recipe.backbone.image_size // 16) ** 2 + 1
    depth = len(getattr(method.backbone, "blocks", [])) or 12
    image = 4 * 20 * tokens * depth * int(method.backbone.num_features)  # type: ignore[arg-type]
    return int(min(64, max(16, 4 * 4 * method.space.size // image)))


def _extrapolate(points: list[tuple[int, int, int]], wanted: tuple[int, int], chunked: bool) -> int:
    """Extrapolate the peaks at (images, chunk) linearly to `wanted`, never below a measured peak."""
    (n0, _, first), (n1, c1, second) = points[0], points[1]
    slope = max(0.0, (second - first) / (n1 - n0)) if n1 > n0 else 0.0
    peak = second + slope * (wanted[0] - n1)
    if chunked:
        _, c2, third = points[2]
        peak += max(0.0, (third - second) / (c2 - c1)) * (wanted[1] - c1)
    return max(first, round(peak))


def _measure_peaks(method: FlatMethod, optimizers: Optimizers, recipe: TrainRecipe, sizes: tuple[int, int, int]) -> dict[str, int]:
    """Return the peak of each phase in the second of two steps: with optimizer states, which the first step creates, without images."""
    device = method.theta_pre.device
    batch = [_random_episode(*sizes, recipe.backbone.image_size, device, k) for k in range(recipe.train.meta_batch)]
    recorder, held = PeakRecorder(device), 0
    for _ in range(2):
        recorder = PeakRecorder(device)
        with _tracked(recorder) as before, recording(recorder), phase("other"):
            held = before
            _step(method, optimizers, batch)
    states = _state_bytes(optimizers)
    return {name: spent.peak - held + states for name, spent in recorder.phases.items()}


@contextmanager
def _tracked(recorder: PeakRecorder) -> Iterator[int]:
    if recorder.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(recorder.device)
        yield torch.cuda.memory_allocated(recorder.device)
    else:
        with recorder.tracker:
            yield 0


def _step(method: FlatMethod, optimizers: Optimizers, batch: list[Episode]) -> None:
    device = method.theta_pre.device
    noises = [torch.Generator(device).manual_seed(k) for k in range(len(batch))]
    optimizers.zero_grad()
    method.train()
    method.begin(batch, noises)
    for episode, noise in zip(batch, noises, strict=True):
        losses = method.loss(episode, noise)
        with phase("backward"):
            (losses.total / len(batch)).backward()
    with phase("backward"):
        method.end()
    with phase("optimizer"):
        optimizers.step()
    optimizers.zero_grad()


def _state_bytes(optimizers: Optimizers) -> int:
    return sum(t.numel() * t.element_size() for t in optimizers.state_dict()[0].values())


def _used(device: torch.device) -> int:
    """Return the bytes in use: resident memory of the process, or allocated memory of a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _random_episode(ways: int, support: int, query: int, size: int, device: torch.device, index: int) -> Episode:
    generator = torch.Generator().manual_seed(index)
    images = torch.randn(support + query, 3, size, size, generator=generator).to(device)
    labels = [(torch.arange(n) % ways).to(device) for n in (support, query)]
    return Episode(Support(images[:support], labels[0], ways), images[support:], labels[1], "random", index, 0)
