"""Fine-tuning of the parts of theta_i: router, theta_delta and masks of SMAT together (Chen et al., ICML 2024, Table 4, column 4)."""

import torch
from torch import Tensor

from smatcli.adaptation.finetune import FineTune, Tunable
from smatcli.config.finetune import JointConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from smatcli.seams import Task


class Joint(FineTune[JointConfig]):
    """Tune all parts of a task's theta at one learning rate, with inference masks (no noise) and no sparsity constraint."""

    name = "joint"
    groups = False  # the parts of theta differ between tasks

    def tunable(self, task: Task, several: bool = False) -> Tunable:
        """Return the parts as one vector. Raises `UserError` for a method without experts."""
        if task.parts is None:
            raise UserError("joint needs a method with experts: use --adapt full")
        parts = task.parts()
        space = ParameterSpace(tuple(parts.tensors), tuple(t.shape for t in parts.tensors.values()))

        def compose(values: Tensor) -> Tensor:
            return parts.compose(space.unflatten(values))

        with torch.no_grad():
            start = space.flatten(parts.tensors)
        return Tunable(start, compose, self.embedding(task), compose)
