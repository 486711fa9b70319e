"""What an episode costs beside time: peak memory of the process or the GPU, and the GPU's energy where its driver tells."""

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
    """Measures from one `start` to the `read` after it.

    `peak_memory` (bytes): the most that the allocator of a GPU held; on a CPU the most resident memory of the process, weights, libraries
    and what the allocator keeps included (on systems that cannot set their high-water mark back: since the process began).
    `energy` (J): of the whole GPU by NVML's counter, whose steps are some tens of milliseconds; absent where there is none.
    """

    def __init__(self, device: torch.device, counter: Callable[[], float | None] | None = None) -> None:
        self.device = device
        self._joules = counter or (nvml_counter(device) if device.type == "cuda" else _unknown)
        self._begun: float | None = None

    def start(self) -> None:
        """From here on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_high_water()
        self._begun = self._joules()

    def read(self) -> dict[str, float]:
        """`peak_memory`, and `energy` if known."""
        now = self._joules()
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else high_water()
        return {"peak_memory": float(peak), **({} if now is None or self._begun is None else {"energy": now - self._begun})}


def combined(shared: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    """The costs of a part that several share, and of what came after: memory by the larger, energy by the sum."""
    joined = {"peak_memory": max(shared["peak_memory"], own["peak_memory"])}
    return joined | ({"energy": shared["energy"] + own["energy"]} if "energy" in shared and "energy" in own else {})


def _unknown() -> float | None:
    return None


def _reset_high_water() -> None:
    with suppress(OSError):  # not Linux, or not allowed: the mark stays that of the process
        CLEAR.write_text("5")


def high_water() -> int:
    """Bytes of resident memory at the high-water mark of the process."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def nvml_counter(device: torch.device, library: str = "libnvidia-ml.so.1") -> Callable[[], float | None]:
    """A function that reads the energy (J) a GPU has used since its driver was loaded; None from it where the driver does not tell."""
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
    """Query accuracies (shares) of an episode, of every classifier that it is called with: what an adaptation shows, and never hears of."""

    def __init__(self, episode: Episode) -> None:
        self.episode, self.shares, self.seconds = episode, list[float](), 0.0

    def __call__(self, classifier: Classifier) -> None:
        begun = time.perf_counter()
        right = classifier.predict(self.episode.query_images).argmax(1) == self.episode.query_labels
        self.shares.append(float(right.double().mean()))
        self.seconds += time.perf_counter() - begun

    def padded(self, steps: int) -> np.ndarray:
        """[1 + steps] float32, from before the first step to after the last; where fewer were taken, nothing changed after them."""
        return np.array(self.shares + self.shares[-1:] * (1 + steps - len(self.shares)), np.float32)
