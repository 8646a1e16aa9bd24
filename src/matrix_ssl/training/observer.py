"""What looks at a training and leaves it as it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


class Observer:
    """Base class: an observer that sees nothing. What it is given is detached, and it must not draw from PyTorch's
    global random numbers in ``learn``; in ``observe`` it may.

    Attributes:
        moments: how many times during a training ``observe`` is called, the first step not counted.
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
        """What a checkpoint must hold for the observer to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from such a state."""
