"""What looks at a training and leaves it as it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


class Observer:
    """Base class: an observer that sees nothing. It gets detached tensors; ``learn`` must not draw from PyTorch's
    global generator, ``observe`` may.

    Attributes:
        moments: number of calls of ``observe`` during a training, the first step not counted.
    """

    moments = 5

    def learn(self, features: Tensor, shown: NDArray[np.int64]) -> None:
        """Called after every step with the encoder's features (n, k) of the first view and the images (n,) in it."""

    def recent(self) -> dict[str, float]:
        """Numbers for the next line of metrics, about the time since the last one."""
        return {}

    def observe(self, encoder: nn.Module) -> dict[str, float]:
        """Numbers for the line of metrics at a moment; the encoder is in evaluation mode, without gradients."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the observer to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from such a state."""
