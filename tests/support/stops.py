"""A signal in the middle of a training in this process."""

import signal
from typing import Any

import pytest

from matrix_ssl.training.pretraining import PreTraining


def stop_once(monkeypatch: pytest.MonkeyPatch, *, before: int) -> None:
    """Sends SIGTERM as the next training that has done ``before`` steps computes another one; later ones go on."""
    compute, stops = PreTraining.compute, [before]

    def stopped(self: PreTraining, *given: Any) -> Any:
        if stops and self.step == stops[0]:
            stops.pop()
            signal.raise_signal(signal.SIGTERM)
        return compute(self, *given)

    monkeypatch.setattr(PreTraining, "compute", stopped)
