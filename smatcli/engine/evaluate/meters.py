"""Costs of an episode other than time: peak memory of the process or GPU, and energy of the GPU if its driver reports it."""

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from smatcli.seams import Classifier, Episode

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures costs from `start` to the next `read`.

    `peak_memory` (bytes): on a GPU the peak of its allocator; on a CPU the peak resident memory of the process, including weights,
    libraries and memory cached by the allocator (since the start of the process on systems that cannot reset the high-water mark). `energy`
    (J): energy of the whole GPU, from NVML's counter, which is updated every few tens of milliseconds; absent without a counter.
    """

    def __init__(self, device: torch.device, counter: Callable[[], float | None] | None = None) -> None:
        self.device = device
        self._joules = counter or (nvml_counter(device) if device.type == "cuda" else _unknown)
        self._begun: float | None = None

    def start(self) -> None:
        """Start measuring."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_high_water()
        self._begun = self._joules()

    def read(self) -> dict[str, float]:
        """Return `peak_memory`, and `energy` if known."""
        now = self._joules()
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else high_water()
        return {"peak_memory": float(peak), **({} if now is None or self._begun is None else {"energy": now - self._begun})}


def combined(shared: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    """Combine the costs of a shared part and of an episode's own part: the maximum of memory, the sum of energy."""
    joined = {"peak_memory": max(shared["peak_memory"], own["peak_memory"])}
    return joined | ({"energy": shared["energy"] + own["energy"]} if "energy" in shared and "energy" in own else {})


def _unknown() -> float | None:
    return None


def _reset_high_water() -> None:
    with suppress(OSError):  # other than Linux, or not permitted: the mark is not reset
        CLEAR.write_text("5")


def high_water() -> int:
    """Return the peak resident memory of the process, bytes."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def nvml_counter(device: torch.device, library: str = "libnvidia-ml.so.1") -> Callable[[], float | None]:
    """Return a function that reads the energy (J) used by a GPU since its driver was loaded, or None if the driver does not report it."""
    try:
        nvml = ctypes.CDLL(library)
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = ctypes.c_void_p()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
            return _unknown
    except (OSError, AttributeError, RuntimeError, AssertionError):
        return _unknown

    def joules() -> float | None:
        millijoules = ctypes.c_ulonglong()
        try:
            failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        except AttributeError:
            return None
        return None if failed else millijoules.value / 1000

    return joules if joules() is not None else _unknown


class Trajectory:
    """Recorder of query accuracies (fractions) of an episode, one per classifier it is called with. The adaptation never sees them."""

    def __init__(self, episode: Episode) -> None:
        self.episode, self.shares, self.seconds = episode, list[float](), 0.0

    def __call__(self, classifier: Classifier) -> None:
        begun = time.perf_counter()
        right = classifier.predict(self.episode.query_images).argmax(1) == self.episode.query_labels
        self.shares.append(float(right.double().mean()))
        self.seconds += time.perf_counter() - begun

    def padded(self, steps: int) -> np.ndarray:
        """Return float32 [1 + steps]: before the first step, and after each step. After an early end the last value repeats."""
        return np.array(self.shares + self.shares[-1:] * (1 + steps - len(self.shares)), np.float32)
