"""Fine-tuning of all parameters of a task."""

from smatcli.adaptation.finetune import FineTune, Tunable
from smatcli.config.finetune import FullConfig
from smatcli.seams import Task


class Full(FineTune[FullConfig]):
    """Tune theta_i itself."""

    name = "full"

    def tunable(self, task: Task, several: bool = False) -> Tunable:
        """Return theta [P] as the tuned values."""
        embed = self.embedding(task, several)
        pure = None if task.module is None else lambda values, fixed, images: embed(images, values)
        return Tunable(task.theta, lambda values: values, embed, lambda values: values, pure)
