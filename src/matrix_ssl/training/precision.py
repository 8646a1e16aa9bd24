"""The types that a training computes in."""

from dataclasses import dataclass

import torch
from torch import nn

from matrix_ssl.runs.devices import choose_precision

_WEIGHTS = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class MixedPrecision:
    """The type of the weights, and of a forward under autocast; None: that of the weights."""

    device: torch.device
    weights: torch.dtype
    forward: torch.dtype | None

    @classmethod
    def choose(cls, name: str, device: torch.device) -> "MixedPrecision":
        """The precision of a setting: auto, float32, bfloat16 (of the forward) or float64."""
        chosen = choose_precision(name, device)
        return cls(device, _WEIGHTS[chosen], torch.bfloat16 if chosen == "bfloat16" else None)

    def place(self, module: nn.Module) -> None:
        """Moves a module to the device and type, with its convolutions channels last: faster, on CPUs too."""
        module.to(self.device, self.weights)
        module.to(memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        """The context of a forward."""
        return torch.autocast(self.device.type, dtype=self.forward, enabled=self.forward is not None)
