"""Where the runs of a sweep or a suite are executed: in this process, side by side on devices, or on a Slurm cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smatcli.errors import UserError


@dataclass(frozen=True)
class Placement:
    """The launcher of a batch of runs and its resources.

    `launcher` None: this process, unless several runs are executed at a time; "local": a process per run, by default one per visible GPU;
    "slurm": a job per run with the options `slurm`, not waited for. `devices` are used side by side; `jobs`: runs at a time (default: one
    per device).
    """

    launcher: str | None = None
    devices: Sequence[str] = ()
    jobs: int | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)

    def slots(self, overrides: Sequence[str] = ()) -> list[str | None]:
        """Return the device of each run that is executed at a time; None = the recipe's. UserError for contradictory options."""
        device_given = any(text.partition("=")[0].strip() == "device" for text in overrides)
        if self.devices and device_given:
            raise UserError("device= and --devices are both given; give one of them")
        if self.launcher == "slurm" and (self.devices or self.jobs):
            raise UserError("--devices and --jobs are options of the local launcher; Slurm gives each job its device (--slurm-gpus)")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: give 1 or more")
        devices = list(self.devices)
        if self.launcher == "local" and not devices and not device_given:
            devices = visible_devices()
        names: list[str | None] = [*devices] or [None]
        return [names[i % len(names)] for i in range(self.jobs or len(names))]


def visible_devices() -> list[str]:
    """Return the name of every GPU that is visible to this process."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
