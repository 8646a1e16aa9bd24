"""The training of a detector, then BatchNorm's final statistics."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.evaluate.detection.images import DetectionBatch, TrainingImages
from matrix_ssl.evaluate.detection.network import parameter_groups
from matrix_ssl.evaluate.detection.settings import DetectionSettings, Plan
from matrix_ssl.runs.devices import MixedPrecision
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.metrics import History
from matrix_ssl.training import batch_norm
from matrix_ssl.training.engine import Engine, seed_torch
from matrix_ssl.training.task import Line, Task, TrainingPlan

LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
_ADVICE = "Lower the learning rate (--set learning_rate=...) or lengthen the warm-up (--set warmup=...), with --fresh."


class Step(NamedTuple):
    """The outputs of a step on this process's part of the batch."""

    loss: Tensor  # (), the sum of the parts
    parts: dict[str, Tensor]  # () each, named in ``LOSSES``


class DetectorTraining(Task[DetectionBatch, Step]):
    """The training of a newly initialised detector, on the device, with synchronised BatchNorm."""

    def __init__(
        self, detector: nn.Module, images: TrainingImages, settings: DetectionSettings, plan: Plan, *, display: Display
    ):
        groups = parameter_groups(detector, weight_decay=settings.weight_decay)
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
        limits = TrainingPlan(
            seed=settings.seed,
            images=len(images),
            batch_size=settings.batch_size,
            total_steps=plan.total,
            checkpoint_every=settings.checkpoint_every,
            max_bad_steps=settings.max_bad_steps,
            advice=_ADVICE,
            max_unreadable=settings.max_unreadable,
            unreadable_option="--set max_unreadable=",
        )
        super().__init__(detector, optimizer, limits, display=display)
        self.images, self.settings, self.rates = images, settings, plan
        self.precision = MixedPrecision.choose(settings.precision, self.device)

    def refine_batch_norm(self, run: Path, steps: int, on_progress: Callable[[int, int], None]) -> None:
        """Replaces BatchNorm's running statistics, which lag behind changing weights, by averages over further steps.

        These steps do not update the weights ("precise BatchNorm", ``training.batch_norm``).
        """
        first = self.plan.total_steps
        self.module.train()
        with (
            batch_norm.averaged(self.module),
            contextlib.closing(Engine(self, run).read(first, first + steps)) as batches,
        ):
            for done, batch in enumerate(batches, start=1):
                seed_torch(self.plan.seed, batch.iteration)
                with torch.no_grad(), self.precision.autocast():
                    self.module(batch.images, batch.targets)
                on_progress(done, steps)

    def find_unreadable(self) -> Iterable[tuple[str, str]]:
        return self.images.unreadable()

    def batches(self, start: int, stop: int) -> Generator[DetectionBatch, None, None]:
        with contextlib.closing(self.images.batches(range(start, stop))) as batches:
            for batch in batches:
                yield batch.to(self.device)

    def learning_rate(self, step: int) -> float:
        return self.rates.learning_rate(step)

    def compute(self, forward: nn.Module, batch: DetectionBatch) -> Step:
        """The sum of the five losses; anchors and regions are sampled with PyTorch's generator."""
        with self.precision.autocast():
            losses: dict[str, Tensor] = forward(batch.images, batch.targets)
        return Step(torch.stack(list(losses.values())).sum(), losses)

    def is_logged(self) -> bool:
        return self.step % self.settings.log_every == 0 or self.is_last

    def describe(self, output: Step, history: History) -> Line:
        """The means of the losses over all processes."""
        names = self.terms(output)
        values = torch.stack([output.parts[name].detach() for name in names])
        values = distributed.gather(values[None]).mean(0)
        return {
            "step": self.step,
            "epoch": self.step * self.settings.batch_size / len(self.images),
            "seconds": round(self.counters["seconds"], 3),
            "loss": float(values.sum()),
            **dict(zip(names, values.tolist(), strict=True)),
            "learning_rate": self.learning_rate(self.step - 1),
            "bad_steps": int(self.counters["bad_steps"]),
            "images_per_second": self.images_per_second(),
        }

    def terms(self, output: Step) -> tuple[str, ...]:
        return tuple(name for name in LOSSES if name in output.parts)
