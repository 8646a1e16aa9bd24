"""The interface of the engine: what is trained, what a step computes, and what a line of metrics holds."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matrix_ssl.runs.display import Display
from matrix_ssl.runs.metrics import History

Line = dict[str, Any]  # one line of ``metrics.jsonl``


class AnyBatch(Protocol):
    """This process's part of one step."""

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """The images that were replaced because they cannot be read: where and why."""


class AnyOutput(Protocol):
    """What a step computes."""

    @property
    def loss(self) -> Tensor:
        """(), with its gradient."""


Batch = TypeVar("Batch", bound=AnyBatch)
Output = TypeVar("Output", bound=AnyOutput)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long a training is, when it saves, and what ends it early."""

    seed: int
    images: int  # of the dataset
    batch_size: int  # over all processes
    total_steps: int
    warmup_steps: int = 0  # after them, parameter groups marked ``constant`` keep their learning rate
    checkpoint_every: int = 0  # steps; 0: at the end of an epoch, at most once a minute
    keep_checkpoints: int = 0  # how many, spread evenly over the training, are kept besides the newest two
    steps_per_epoch: int = 1
    saves_start: bool = False  # a checkpoint before the first step, if the weights are not newly initialised
    max_bad_steps: int  # steps in a row with a loss or gradient that is not finite before the training stops
    advice: str  # what the user can do about them
    max_unreadable: float = 0.01  # fraction of the images that may be unreadable; a few always may
    unreadable_option: str = ""  # the option for that, up to its value; empty: there is none

    def kept_steps(self) -> set[int]:
        """The steps after which a permanent checkpoint is written."""
        return {math.ceil(self.total_steps * i / self.keep_checkpoints) for i in range(1, self.keep_checkpoints + 1)}


class Observer:
    """Base class of observers, which observes nothing.

    Observers get detached tensors. ``learn`` must not draw from PyTorch's global generator; ``observe`` may.

    Attributes:
        moments: number of calls of ``observe`` during a training, not counting the first step.
    """

    moments = 5

    def learn(self, features: Tensor, shown: NDArray[np.int64]) -> None:
        """Called after every step with the encoder's features (n, k) of the first view and the images (n,) in it."""

    def recent(self) -> dict[str, float]:
        """Numbers for the next line of metrics, about the time since the last one."""
        return {}

    def observe(self, encoder: nn.Module) -> dict[str, float]:
        """Numbers for a line of metrics; the encoder is in evaluation mode, without gradients."""
        return {}

    def observe_start(self, encoder: nn.Module) -> dict[str, float]:
        """Like ``observe``, before the first step, about pre-trained weights."""
        return {}

    def verdict(self) -> list[str]:
        """Conclusions at the end of the training from the numbers since its start, as alarms, "KIND: sentence"."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the observer to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a ``state_dict``."""


class Task(ABC, Generic[Batch, Output]):
    """The state of a training between two steps, and the definition of a step.

    Args:
        module: the module to train and save, initialised and on its device.

    Attributes:
        step: number of completed steps.
        counters: plain numbers that are saved in checkpoints.
        skipped: images that cannot be read: where and why.
        observer: its state is saved in checkpoints.
        callback: called by the main process with a copy of every new line of metrics; an exception in it ends the
            training after a checkpoint.
    """

    callback: Callable[[Line], object] | None = None

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, plan: TrainingPlan, *, display: Display):
        self.module, self.optimizer, self.plan, self.display = module, optimizer, plan, display
        self.device = next(module.parameters()).device
        self.step = 0
        self.counters: dict[str, float] = {"bad_steps": 0, "seconds": 0.0, "cpu_seconds": 0.0}
        self.clock = Clock(self.counters)
        self.skipped: dict[str, str] = {}
        self.observer = Observer()

    def train_mode(self) -> None:
        """Puts every layer into its mode for training."""
        self.module.train()

    def find_unreadable(self) -> Iterable[tuple[str, str]]:
        """All unreadable images of the dataset, where and why, to name them all at once before a training ends."""
        return ()

    @abstractmethod
    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's batches for the steps from ``start`` to ``stop`` - 1."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0; a parameter group may have a factor ``rate``."""

    def encoder_rate(self, step: int) -> float:
        """A factor for the learning rate of parameter groups marked ``encoder``; 0: a step leaves them unchanged."""
        return 1.0

    @abstractmethod
    def compute(self, forward: nn.Module, batch: Batch) -> Output:
        """The loss of a batch. ``forward`` is the module, in DistributedDataParallel with several processes."""

    def after_step(self, batch: Batch, output: Output) -> None:
        """Called after the weights have changed, before the step is counted."""

    @abstractmethod
    def is_logged(self) -> bool:
        """Whether the step just completed gets a line of metrics."""

    @abstractmethod
    def describe(self, output: Output, history: History) -> Line | None:
        """The line of metrics for the step just completed; every process calls it, and the main process's is used.

        Args:
            history: what is remembered of earlier lines, on the main process.
        """

    def describe_start(self) -> Line | None:
        """The line of metrics for step 0, if there is one; only the main process calls it."""
        return None

    def terms(self, output: Output) -> tuple[str, ...]:
        """Names in a line of metrics that the display shows next to the loss."""
        return ()

    def saved_counters(self) -> dict[str, float]:
        """The counters as a checkpoint holds them."""
        return self.counters

    def load_counters(self, counters: dict[str, float]) -> None:
        """Continues from a checkpoint's counters."""
        self.counters |= counters

    @property
    def is_last(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.plan.total_steps

    def images_per_second(self) -> float:
        """The mean over the training so far, for all processes together."""
        return self.step * self.plan.batch_size / max(self.counters["seconds"], 1e-9)


class Clock:
    """Adds the wall time and this process's CPU time of a training to ``seconds`` and ``cpu_seconds`` of counters."""

    def __init__(self, counters: dict[str, float]):
        self._counters, self._mark = counters, _now()

    def tick(self) -> None:
        """Counts the time since the last call of ``tick`` or ``restart``."""
        now = _now()
        self._counters["seconds"] += now[0] - self._mark[0]
        self._counters["cpu_seconds"] += now[1] - self._mark[1]
        self._mark = now

    def restart(self) -> None:
        """Starts counting from now."""
        self._mark = _now()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A block whose time is not counted."""
        before = _now()
        yield
        after = _now()
        self._mark = self._mark[0] + after[0] - before[0], self._mark[1] + after[1] - before[1]


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()
