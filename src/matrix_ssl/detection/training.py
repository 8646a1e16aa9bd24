"""The training of a detector: resume, iterations, metrics, checkpoints, signals; then BatchNorm's final statistics."""

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from matrix_ssl import distributed
from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.detection.images import DetectionBatch, TrainingImages
from matrix_ssl.detection.network import parameter_groups
from matrix_ssl.detection.settings import DetectionSettings, Plan
from matrix_ssl.errors import DataError, TrainingError
from matrix_ssl.runs import checkpoint as checkpoints
from matrix_ssl.runs import signals
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import append_line, read_lines
from matrix_ssl.runs.folder import SKIPPED, tidy
from matrix_ssl.runs.metrics import MetricsWriter
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import diagnostics

LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
_MOST_SKIPPED = 0.01  # part of the images that may be unusable
_ADVICE = " Lower the learning rate (--set learning_rate=...) or lengthen the warm-up (--set warmup=...), with --fresh."


class Training:
    """The state of a training between two iterations, and the iterations.

    Args:
        detector: at its initialisation, on the device, with synchronised BatchNorm.
        loader: the batches of this process.
        run: the run folder; the main process has claimed it and holds its lock.
    """

    def __init__(
        self,
        detector: nn.Module,
        loader: TrainingImages,
        settings: DetectionSettings,
        plan: Plan,
        *,
        run: Path,
        device: torch.device,
        display: Display,
    ):
        self.detector, self.loader, self.settings, self.plan = detector, loader, settings, plan
        self.run, self.device, self.display = run, device, display
        groups = parameter_groups(detector, weight_decay=settings.weight_decay)
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
        self.iteration = 0  # iterations done
        self.counters: dict[str, float] = {"bad_steps": 0, "seconds": 0.0}
        self.skipped: set[str] = set()

    def train(self) -> None:
        """Resumes from the newest checkpoint of the run and trains to the last iteration.

        Raises:
            Interrupted: a signal came; a checkpoint has been written.
            MatrixSSLError: what is wrong and what to do.
        """
        with distributed.together():
            self._resume()
        if self.iteration < self.plan.total:
            self._iterate()

    def refine_batch_norm(self, iterations: int, on_progress: Callable[[int, int], None]) -> None:
        """Replaces BatchNorm's running statistics by averages over iterations that follow the training, unlearnt.

        While weights change, the running statistics lag behind them (Wu and Johnson, "Rethinking 'Batch' in BatchNorm",
        arXiv 2105.07576, 2021, section 3; "precise BatchNorm").
        """
        layers = [module for module in self.detector.modules() if isinstance(module, _BatchNorm)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # an average in which every batch counts the same
        self.detector.train()
        first = self.plan.total
        for done, batch in enumerate(self._read(range(first, first + iterations)), start=1):
            self._seed(batch.iteration)
            with torch.no_grad():
                self.detector(batch.images, batch.targets)
            on_progress(done, iterations)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def _resume(self) -> None:
        found, problems = checkpoints.load_newest(self.run)
        for problem in problems:
            self.display.say(f"warning: {problem} Going on from the checkpoint before it.")
        if found is not None:
            source = f"the checkpoint of iteration {found.step}"
            checkpoints.load_strictly(self.detector, found.model, source)
            self.optimizer.load_state_dict(found.optimizer)
            self.iteration = found.step
            self.counters |= found.counters
            self.display.say(f"resuming after iteration {self.iteration} of {self.plan.total}")
        if distributed.is_main():
            tidy(self.run)
            self.metrics = MetricsWriter(self.run, after_step=self.iteration)
        self.skipped = {line["where"] for line in read_lines(self.run / SKIPPED)}

    def _iterate(self) -> None:
        forward = distributed.wrap(self.detector)
        self.detector.train()
        bad_in_a_row = 0
        total = self.plan.total
        with contextlib.ExitStack() as stack:
            received = stack.enter_context(signals.collected())
            display = stack.enter_context(self.display.training(done=self.iteration, total=total))
            started = time.monotonic() - self.counters["seconds"]
            batches = stack.enter_context(contextlib.closing(self._read(range(self.iteration, total))))
            for batch in batches:
                losses, number = self._step(forward, batch, received)
                self.iteration += 1
                self.counters["seconds"] = time.monotonic() - started
                line = None
                if losses is None:
                    bad_in_a_row += 1
                    self._skip_bad_step(bad_in_a_row)
                else:
                    bad_in_a_row = 0
                    if self.iteration % self.settings.log_every == 0 or self.iteration == total:
                        line = self._describe(losses)
                display.step(self.iteration, self.settings.batch_size, line, LOSSES)
                if self.iteration == total or number or self.iteration % self.settings.checkpoint_every == 0:
                    self._save()
                if number and self.iteration < total:
                    raise Interrupted(number, after=f" after iteration {self.iteration}")

    def _read(self, iterations: range) -> Generator[DetectionBatch, None, None]:
        with contextlib.closing(self.loader.batches(iterations)) as batches:
            while True:
                with distributed.alone():
                    batch = next(batches, None)
                    if batch is not None:
                        self._note_unreadable(batch)
                if batch is None:
                    return
                yield batch.to(self.device)

    def _seed(self, iteration: int) -> None:
        """The sampling of anchors and regions draws from PyTorch's generator."""
        torch.manual_seed(int(hash_integers(self.settings.seed, iteration, distributed.rank()) >> 1))

    def _step(
        self, forward: nn.Module, batch: DetectionBatch, received: list[int]
    ) -> tuple[dict[str, Tensor] | None, int]:
        """One update. Returns the losses, None if they were not finite and left out, and a signal's number or 0."""
        self._seed(batch.iteration)
        buffers = list(self.detector.buffers())
        before = [buffer.clone() for buffer in buffers]
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(batch.iteration)
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = forward(batch.images, batch.targets)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        gradients = [p.grad for p in self.detector.parameters() if p.grad is not None]
        finite = diagnostics.is_finite(loss.detach(), *torch._foreach_norm(gradients))
        number = torch.tensor(received[0] if received else 0, device=self.device)
        # all processes take the same decision
        is_bad, number_of_all = distributed.maximum(torch.stack([(~finite).to(torch.int64), number])).tolist()
        if is_bad:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            return None, number_of_all
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}, number_of_all

    def _skip_bad_step(self, in_a_row: int) -> None:
        self.counters["bad_steps"] += 1
        if in_a_row >= self.settings.max_bad_steps:
            raise TrainingError(
                f"the loss or its gradient was not finite {in_a_row} iterations in a row, up to iteration "
                f"{self.iteration}.{_ADVICE}"
            )
        self.display.say(f"warning: iteration {self.iteration} was skipped, its loss or gradient is not finite.")

    def _describe(self, losses: dict[str, Tensor]) -> dict[str, Any]:
        """Writes a line of metrics, with the means of the losses over the processes."""
        values = torch.stack([losses[name] for name in LOSSES])
        values = distributed.gather(values[None]).mean(0)
        line: dict[str, Any] = {
            "step": self.iteration,
            "epoch": self.iteration * self.settings.batch_size / len(self.loader),
            "seconds": round(self.counters["seconds"], 3),
            "loss": float(values.sum()),
            **dict(zip(LOSSES, values.tolist(), strict=True)),
            "learning_rate": self.plan.learning_rate(self.iteration - 1),
            "bad_steps": int(self.counters["bad_steps"]),
            "images_per_second": self.images_per_second(),
        }
        if distributed.is_main():
            self.metrics.write(line)
        return line

    def images_per_second(self) -> float:
        """Of all processes, over the whole training."""
        return self.iteration * self.settings.batch_size / max(self.counters["seconds"], 1e-9)

    def _save(self) -> None:
        if not diagnostics.is_finite(*self.detector.parameters()):
            raise TrainingError(f"the weights are not finite after iteration {self.iteration}.{_ADVICE}")
        if distributed.is_main():
            state = self.detector.state_dict(), self.optimizer.state_dict()
            checkpoints.save_checkpoint(self.run, checkpoints.Checkpoint(self.iteration, *state, self.counters))
        distributed.barrier()

    def _note_unreadable(self, batch: DetectionBatch) -> None:
        for where, why in batch.unreadable:
            if where not in self.skipped:
                self.skipped.add(where)
                append_line(self.run / SKIPPED, {"where": where, "why": why})
        check_unreadable(len(self.skipped), len(self.loader), f"see {self.run / SKIPPED}")


def check_unreadable(skipped: int, images: int, see: str) -> None:
    """Raises DataError when more images cannot be used than may happen by accident: ten, or one in a hundred."""
    most = max(10, int(_MOST_SKIPPED * images))
    if skipped > most:
        raise DataError(f"{skipped} of {images} images cannot be used, more than {most}: {see}, then mend them.")
