"""What happens between two steps of a fine-tuning: a line of metrics, a line for the person, a look for signals."""

import time
from pathlib import Path
from typing import Any

import torch

from matrix_ssl import distributed
from matrix_ssl.errors import MissingExtra
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.metrics import MetricsWriter

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "llm") from error

_SECONDS_BETWEEN_LINES = 10.0
_KEYS = ("loss", "ce", "mce", "grad_norm", "learning_rate", "epoch")


class Recorder(TrainerCallback):
    """Appends to ``metrics.jsonl`` and stops the training after a checkpoint when a signal has come to any process."""

    def __init__(self, run: Path, *, after_step: int, received: list[int], display: Display):
        """Drops the lines after ``after_step``; ``received`` grows when signals come."""
        self.stopped_by = 0  # number of a signal
        self._writer = MetricsWriter(run, after_step=after_step) if distributed.is_main() else None
        self._received, self._display, self._said = received, display, 0.0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of the run; on other processes than the main one, none."""
        return self._writer.history if self._writer is not None else []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes a line of the training."""
        if self._writer is None or "loss" not in logs:
            return
        self._writer.write({"step": state.global_step, **{key: logs[key] for key in _KEYS if key in logs}})
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self._said = time.monotonic()
            text = "  ".join(f"{key} {logs[key]:.4g}" for key in ("loss", "ce", "mce"))
            self._display.say(f"step {state.global_step}/{state.max_steps}  {text}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Agrees with the other processes on whether to go on."""
        mine = torch.tensor(self._received[0] if self._received else 0, device=args.device)
        self.stopped_by = int(distributed.maximum(mine))
        if self.stopped_by:
            control.should_save = control.should_training_stop = True
