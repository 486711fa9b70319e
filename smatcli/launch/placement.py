"""Where the runs of a sweep or suite are executed: in this process, in parallel on devices, or on a Slurm cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smatcli.errors import UserError


@dataclass(frozen=True)
class Placement:
    """The launcher of a batch of runs and its resources.

    The `launcher` None executes runs in this process, unless several runs are executed at a time. "local" starts a process per run, by
    default one per visible GPU at a time. "slurm" submits a job per run with the options `slurm` and does not wait for it. `devices` are
    used in parallel. `jobs` is the number of runs at a time, by default one per device.
    """

    launcher: str | None = None
    devices: Sequence[str] = ()
    jobs: int | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)

    def slots(self, overrides: Sequence[str] = ()) -> list[str | None]:
        """Return a device per run that is executed at a time (None: that of the recipe). Raises UserError for contradictory options."""
        device_given = any(text.partition("=")[0].strip() == "device" for text in overrides)
        if self.devices and device_given:
            raise UserError("device= and --devices are both given; give one of them")
        if self.launcher == "slurm" and (self.devices or self.jobs):
            raise UserError("--devices and --jobs are options of the local launcher; Slurm assigns the devices of a job (--slurm-gpus)")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: give 1 or more")
        devices = list(self.devices)
        if self.launcher == "local" and not devices and not device_given:
            devices = visible_devices()
        names: list[str | None] = [*devices] or [None]
        return [names[i % len(names)] for i in range(self.jobs or len(names))]


def visible_devices() -> list[str]:
    """Return the names of all GPUs that are visible to this process."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
