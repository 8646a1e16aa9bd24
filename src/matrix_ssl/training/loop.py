"""The training loop: resume, steps, metrics, checkpoints, signals, finish."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matrix_ssl import distributed
from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import Batch, TrainingBatches
from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.errors import DataError, TrainingError
from matrix_ssl.methods import Method, StepOutput
from matrix_ssl.runs import checkpoint as checkpoints
from matrix_ssl.runs import signals
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import append_line, read_lines, write_json
from matrix_ssl.runs.folder import ENCODER, SKIPPED, SUMMARY, tidy
from matrix_ssl.runs.metrics import MetricsWriter
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import diagnostics, optim
from matrix_ssl.training.observer import Observer

_SPECTRA = 6  # moments of a run at which the whole spectrum is kept
_SECONDS_BETWEEN_CHECKPOINTS = 60.0  # at most this often when checkpoints follow epochs
_MOST_SKIPPED = 0.01  # part of the images that may be unreadable
_ADVICE = (
    " Lower the learning rate (--set optimizer.learning_rate=...), lengthen the warm-up (--set "
    "optimizer.warmup_epochs=...) or train in float32 (--set precision=float32), with --fresh."
)


class Loop:
    """The state of a run between two steps, and the steps.

    Args:
        config: of the run.
        method, optimizer: at their initialisation, on the device.
        batches: of this process.
        source: where they come from.
        display: progress.
        autocast: the type that the networks' forward computes in, or None for that of their weights.

    Attributes:
        observer: its numbers join the lines of metrics, and the time of its ``observe`` does not count as training. It
            sees the part of the main process alone.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batches: TrainingBatches,
        source: Source,
        display: Display,
        autocast: torch.dtype | None,
    ):
        self.config, self.method, self.optimizer = config, method, optimizer
        self.batches, self.source, self.display = batches, source, display
        self.autocast = autocast
        self.device = next(method.parameters()).device
        self.total_steps = config.epochs * batches.steps_per_epoch
        warmup_steps = round(config.optimizer.warmup_epochs * batches.steps_per_epoch)
        self.warmup_steps = min(warmup_steps, self.total_steps // 2)
        self.step = 0  # steps done
        self.counters: dict[str, float] = {"bad_steps": 0, "seconds": 0.0, "cpu_seconds": 0.0}
        self.events = {name: torch.zeros((), device=self.device) for name in method.counters}
        self.metrics: MetricsWriter | None = None
        self.observer = Observer()

    def train(self, run: Path, events: Path | None) -> dict[str, Any]:
        """Resumes from the newest checkpoint in ``run``, trains to the last step and writes the encoder.

        Args:
            run: the run folder; the main process has created it and holds its lock.
            events: a folder for TensorBoard events, or None.

        Returns:
            The summary, which is also ``summary.json``.

        Raises:
            Interrupted: a signal came; a checkpoint has been written.
            MatrixSSLError: what is wrong and what to do.
        """
        self.run = run
        with distributed.together():
            self._resume(events)
        self._run_steps()
        return self._finish()

    def _resume(self, events: Path | None) -> None:
        found, problems = checkpoints.load_newest(self.run)
        for problem in problems:
            self.display.say(f"warning: {problem} Going on from the checkpoint before it.")
        if found is not None:
            checkpoints.load_strictly(self.method, found.model, f"the checkpoint of step {found.step}")
            self.optimizer.load_state_dict(found.optimizer)
            self.step = found.step
            self.counters |= found.counters
            if found.observer:
                self.observer.load_state_dict(found.observer)
            self.events = {name: torch.tensor(self.counters.pop(name), device=self.device) for name in self.events}
            self.display.say(f"resuming after step {self.step} of {self.total_steps}")
        if distributed.is_main():
            tidy(self.run)
            self.metrics = MetricsWriter(self.run, after_step=self.step, events=events)
        self.skipped = {line["where"] for line in read_lines(self.run / SKIPPED)}

    def _run_steps(self) -> None:
        forward = distributed.wrap(self.method)
        self.method.train()
        saved = time.monotonic()
        bad_in_a_row = 0
        with signals.collected() as received, self.display.training(done=self.step, total=self.total_steps) as display:
            self.started = time.monotonic() - self.counters["seconds"]
            self.cpu_started = time.process_time() - self.counters["cpu_seconds"]
            for batch in self._read_batches():
                output, number = self._train_step(forward, batch, received)
                self.step += 1
                self.counters["seconds"] = time.monotonic() - self.started
                self.counters["cpu_seconds"] = time.process_time() - self.cpu_started
                last = self.step == self.total_steps
                line: dict[str, Any] | None = None
                terms: tuple[str, ...] = ()
                if output is None:
                    bad_in_a_row += 1
                    self._skip_bad_step(bad_in_a_row)
                else:
                    bad_in_a_row, terms = 0, _term_names(self.method, output)
                    if distributed.is_main():
                        self.observer.learn(output.features.detach(), batch.indices)
                    if self.step % self.config.log_every == 0 or last or self._keeps_spectrum() or self._is_observed():
                        line = self._describe(output)
                display.step(self.step, self.config.batch_size, line, terms)
                if last or number or self._checkpoint_is_due(saved):
                    self._save()
                    saved = time.monotonic()
                if number and not last:
                    raise Interrupted(number, after=f" after step {self.step}")

    def _read_batches(self) -> Iterator[Batch]:
        batches = self.batches.iterate(self.step, self.total_steps)
        while True:
            with distributed.alone():
                batch = next(batches, None)
                if batch is not None:
                    self._note_unreadable(batch)
            if batch is None:
                return
            yield batch

    def _train_step(self, forward: nn.Module, batch: Batch, received: list[int]) -> tuple[StepOutput | None, int]:
        """One update. Returns the output, None if it was not finite and left out, and a signal's number or 0."""
        # layers that draw random numbers (dropout, stochastic depth) draw them from the step, too
        torch.manual_seed(int(hash_integers(self.config.seed, batch.step, distributed.rank()) >> 1))
        buffers = list(self.method.buffers())
        before = [b.clone() for b in buffers]
        optim.set_learning_rate(
            self.optimizer,
            self._learning_rate(batch.step),
            held=self._learning_rate(min(batch.step, self.warmup_steps)),
        )
        self.method.before_step(batch.step, self.total_steps)
        self.optimizer.zero_grad()
        output = self._differentiate(forward, batch)
        finite = torch.zeros((), dtype=torch.bool, device=self.device)
        if output is not None:
            gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
            finite = diagnostics.is_finite(output.loss.detach(), *torch._foreach_norm(gradients))
        signals = torch.tensor(received[0] if received else 0, device=self.device)
        # all processes take the same decision
        is_bad, number = distributed.maximum(torch.stack([(~finite).to(torch.int64), signals])).tolist()
        if output is None or is_bad:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            return None, number
        self.optimizer.step()
        self.method.after_step((batch.step + 1) / self.total_steps)
        for name, count in self.events.items():
            count += output.terms[name]
        return output, number

    def _differentiate(self, forward: nn.Module, batch: Batch) -> StepOutput | None:
        """Forward and backward; None when the outputs are so far from finite that there is no loss."""
        try:
            with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                output: StepOutput = forward(*batch.views)
        except torch.linalg.LinAlgError:  # how eigenvalue routines answer NaN
            return None
        output.loss.backward()
        return output

    def _learning_rate(self, step: int) -> float:
        settings = self.config.optimizer
        return optim.learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            peak=settings.learning_rate * self.config.batch_size / 256,
        )

    def _skip_bad_step(self, in_a_row: int) -> None:
        self.counters["bad_steps"] += 1
        if in_a_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"the loss or its gradient was not finite {in_a_row} steps in a row, up to step {self.step}.{_ADVICE}"
            )
        self.display.say(f"warning: step {self.step} was skipped, its loss or gradient is not finite.")

    def _describe(self, output: StepOutput) -> dict[str, Any] | None:
        """A line of metrics on the main process; the gather needs every process."""
        with torch.no_grad():
            features, student, teacher = (
                distributed.gather(rows) for rows in (output.features, output.student, output.teacher)
            )
            if self.metrics is None:
                return None
            values, eigenvalues = diagnostics.describe(features, student, teacher)
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.batches.steps_per_epoch,
            "seconds": round(self.counters["seconds"], 3),
            "loss": float(output.loss.detach()),
            **{name: float(output.terms[name]) for name in _term_names(self.method, output)},
            "learning_rate": self._learning_rate(self.step - 1),
            **self.method.schedule(self.step / self.total_steps),
            **{name: float(value) for name, value in values.items()},
            **{name: int(count) for name, count in self.events.items()},
            "bad_steps": int(self.counters["bad_steps"]),
            "images_per_second": self.step * self.config.batch_size / max(self.counters["seconds"], 1e-9),
        }
        found = diagnostics.alarms([*self.metrics.history, line])
        if found:
            line["alarm"] = found
            known = {text.partition(":")[0] for earlier in self.metrics.history for text in earlier.get("alarm", [])}
            for text in found:
                if text.partition(":")[0] not in known:
                    self.display.say(f"alarm at step {self.step}: {text}")
        line |= self.observer.recent()
        if self._is_observed():
            line |= self._observe()
        if self._keeps_spectrum():
            line["spectrum"] = [float(f"{v:.4g}") for v in eigenvalues.tolist()]
        self.metrics.write(line)
        return line

    def _observe(self) -> dict[str, float]:
        before = time.monotonic(), time.process_time()
        self.method.encoder.eval()
        with torch.no_grad():
            values = self.observer.observe(self.method.encoder)
        self.method.encoder.train()
        self.started += time.monotonic() - before[0]
        self.cpu_started += time.process_time() - before[1]
        return values

    def _keeps_spectrum(self) -> bool:
        return self._is_moment(_SPECTRA - 1)

    def _is_observed(self) -> bool:
        return self._is_moment(self.observer.moments)

    def _is_moment(self, count: int) -> bool:
        """Whether the step is the first or one of ``count`` that are spread evenly over the training up to its end."""
        return self.step in {math.ceil(self.total_steps * i / count) for i in range(1, count + 1)} | {1}

    def _checkpoint_is_due(self, saved: float) -> bool:
        if self.config.checkpoint_every:
            return self.step % self.config.checkpoint_every == 0
        if self.step % self.batches.steps_per_epoch:
            return False
        return bool(distributed.broadcast_object(time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS))

    def _save(self) -> None:
        if not diagnostics.is_finite(*self.method.parameters()):
            raise TrainingError(f"the weights are not finite after step {self.step}.{_ADVICE}")
        if distributed.is_main():
            counters = self.counters | {name: float(count) for name, count in self.events.items()}
            state = checkpoints.Checkpoint(
                self.step, self.method.state_dict(), self.optimizer.state_dict(), counters, self.observer.state_dict()
            )
            checkpoints.save_checkpoint(self.run, state)
        distributed.barrier()

    def _finish(self) -> dict[str, Any]:
        summary = {
            "recipe": self.config.recipe,
            "finished": True,
            "steps": self.total_steps,
            "epochs": self.config.epochs,
            "parameters": sum(p.numel() for p in self.method.encoder.parameters()),
            "seconds": self.counters["seconds"],
            "seconds_training": self.counters["seconds"],
            "skipped": len({line["where"] for line in read_lines(self.run / SKIPPED)}),
            "bad_steps": int(self.counters["bad_steps"]),
            **{name: int(count) for name, count in self.events.items()},
            "data": {"name": self.source.name, "images": len(self.source)},
        }
        if distributed.is_main():
            checkpoints.save_weights(self.run / ENCODER, self.method.encoder, {"weights": "student"})
            write_json(self.run / SUMMARY, summary)
        distributed.barrier()
        return summary

    def _note_unreadable(self, batch: Batch) -> None:
        for where, why in batch.unreadable:
            if where not in self.skipped:
                self.skipped.add(where)
                append_line(self.run / SKIPPED, {"where": where, "why": why})
        most = max(10, int(_MOST_SKIPPED * len(self.source)))
        if len(self.skipped) > most:
            raise DataError(
                f"{len(self.skipped)} of {len(self.source)} images cannot be read, more than {most}: see "
                f"{self.run / SKIPPED}, then mend or remove them."
            )


def _term_names(method: Method, output: StepOutput) -> tuple[str, ...]:
    return tuple(name for name in output.terms if name not in method.counters)
