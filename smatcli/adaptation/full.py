"""Fine-tuning of all parameters of a task."""

from smatcli.adaptation.finetune import FineTune, Tunable
from smatcli.config.finetune import FullConfig
from smatcli.seams import Task


class Full(FineTune[FullConfig]):
    """theta_i itself is tuned."""

    name = "full"

    def tunable(self, task: Task) -> Tunable:
        """theta [P]."""
        return Tunable(task.theta, lambda values: values, task.embed, lambda values: values)
