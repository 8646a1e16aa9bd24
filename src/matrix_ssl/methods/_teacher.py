"""The base of methods with a teacher: a moving average of encoder and projector that computes the targets."""

import torch
from torch import Tensor, nn

from matrix_ssl.config import Fraction, check_type
from matrix_ssl.methods._base import Method
from matrix_ssl.networks.teacher import cosine_momentum, make_teacher, update_teacher


class TeacherMethod(Method):
    """A method whose targets come from the exponential moving average of its encoder and projector.

    A subclass sets ``encoder`` and ``projector`` and then calls ``add_teacher``.
    """

    projector: nn.Module
    teacher: nn.ModuleDict
    teacher_momentum: float

    def add_teacher(self, momentum: float) -> None:
        """Creates the teacher, a copy of the student.

        Args:
            momentum: of the moving average, in [0, 1]; see ``schedule``.

        Raises:
            ConfigError: it is out of range.
        """
        self.teacher_momentum = check_type(momentum, Fraction, "method.teacher_momentum")
        self.teacher = make_teacher(self._student())

    @torch.no_grad()
    def teach(self, view: Tensor) -> Tensor:
        """The teacher's projections of a view, without gradient."""
        return self.teacher["projector"](self.teacher["encoder"](view))

    def after_step(self, progress: float) -> None:
        """Updates the teacher."""
        update_teacher(self.teacher, self._student(), self.schedule(progress)["teacher_momentum"])

    def schedule(self, progress: float) -> dict[str, float]:
        """The teacher's momentum, which rises to 1 on a cosine."""
        return {"teacher_momentum": cosine_momentum(progress, self.teacher_momentum)}

    def teacher_encoder(self) -> nn.Module:
        return self.teacher["encoder"]

    def _student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "projector": self.projector})
