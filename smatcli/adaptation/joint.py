"""Fine-tuning of what theta_i is made of: router, theta_delta and masks of SMAT together (Chen et al., ICML 2024, Table 4, column 4)."""

import torch
from torch import Tensor

from smatcli.adaptation.finetune import FineTune, Tunable
from smatcli.config.finetune import JointConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from smatcli.seams import Task


class Joint(FineTune[JointConfig]):
    """All parts of a task's theta at one rate; the masks are those of inference, without noise, and no sparsity is asked for."""

    name = "joint"
    groups = False  # what theta is made of is the task's own

    def tunable(self, task: Task, several: bool = False) -> Tunable:
        """The parts in one vector; `UserError` for a method without experts."""
        if task.parts is None:
            raise UserError("joint needs a method with experts: use --adapt full")
        parts = task.parts()
        space = ParameterSpace(tuple(parts.tensors), tuple(t.shape for t in parts.tensors.values()))

        def compose(values: Tensor) -> Tensor:
            return parts.compose(space.unflatten(values))

        with torch.no_grad():
            start = space.flatten(parts.tensors)
        return Tunable(start, compose, self.embedding(task), compose)
