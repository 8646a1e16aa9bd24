"""Pre-training, readable from top to bottom: set up, resume, loop, finish.

The state of a run after a step is a function of its configuration and the step alone: every random number is drawn from
them, so a checkpoint is only tensors and a step number, and a run that was killed ends with the same bits as one that was
not (same machine, same number of processes).
"""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from matrix_ssl import checkpoint as checkpoints
from matrix_ssl import diagnostics, distributed, networks, optim, record
from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import Batch, TrainingBatches
from matrix_ssl.encoder import build_encoder
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, TrainingError
from matrix_ssl.methods import Method, StepOutput, complete_options, find_method
from matrix_ssl.progress import Display
from matrix_ssl.randomness import hash_integers, permutation

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SPECTRA = 6  # moments of a run at which the whole spectrum is kept
_SECONDS_BETWEEN_CHECKPOINTS = 60.0  # at most this often when checkpoints follow epochs
_MOST_SKIPPED = 0.01  # part of the pictures that may be unreadable
_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}


class Interrupted(MatrixSSLError):
    """A signal ended the run after a checkpoint; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command resumes.")
        self.exit_code = 128 + number


def complete(config: RunConfig) -> RunConfig:
    """The configuration with every option of its method filled in, so that it is written and compared whole.

    Raises:
        ConfigError: the method or one of its options does not exist, or a value is out of range.
    """
    method = find_method(config.method.name)
    options = complete_options(method, config.method.options)
    for key, least in (("epochs", 1), ("batch_size", 2), ("log_every", 1), ("max_bad_steps", 1)):
        if getattr(config, key) < least:
            raise ConfigError(f"{key}={getattr(config, key)}: expected {least} or more.")
    return dataclasses.replace(config, method=dataclasses.replace(config.method, options=options))


def headline(config: RunConfig, source: Source, device: torch.device) -> str:
    """One line on what is about to run and where."""
    processes = distributed.world_size()
    where = f"{device_name(device)}, {torch.get_num_threads()} threads" if device.type == "cpu" else device_name(device)
    return (
        f"{config.method.name} on {len(source)} pictures of {source.name!r}: {config.network.encoder}, "
        f"{config.data.image_size} px, {config.epochs} epochs of batch {config.batch_size}, seed {config.seed}; "
        f"{where}, {choose_precision(config, device)}, {processes} process{'es' if processes > 1 else ''}"
    )


def write_environment(run: Path, device: torch.device) -> None:
    """Writes ``environment.json``."""
    values = record.environment(
        device=device.type,
        device_name=device_name(device),
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
    )
    record.write_json(run / record.ENVIRONMENT, values)


def pretrain(
    config: RunConfig,
    run: Path,
    *,
    source: Source,
    device: torch.device,
    display: Display,
    events: Path | None = None,
) -> dict[str, Any]:
    """Pre-trains an encoder, or goes on where an earlier call of the same configuration stopped.

    Args:
        config: from ``complete``.
        run: the run folder; the main process has created it and holds its lock.
        source: unlabelled or labelled pictures; labels are not looked at.
        device: where to train.
        display: progress.
        events: a folder for TensorBoard events, or None.

    Returns:
        The summary, which is also ``summary.json``.

    Raises:
        Interrupted: a signal came; a checkpoint has been written.
        MatrixSSLError: what is wrong and what to do.
    """
    source = _choose(source, config)
    precision = choose_precision(config, device)
    _prepare_torch(config, device)
    batches = TrainingBatches(
        source, config,
        rank=distributed.rank(), world_size=distributed.world_size(), device=device, dtype=_DTYPES[precision],
    )  # fmt: skip
    method = build_method(config)
    networks.synchronise_batch_norm(method, device.type)
    method.to(device, _DTYPES[precision], memory_format=torch.channels_last)  # faster convolutions, on CPUs too
    settings = config.optimizer
    optimizer = optim.build_optimizer(
        method, name=settings.name, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    loop = Loop(config, run, method=method, optimizer=optimizer, batches=batches, source=source, display=display)
    loop.resume(events)
    loop.run_steps(torch.bfloat16 if precision == "bfloat16" else None)
    return loop.finish()


class Loop:
    """The state of a run between two steps, and the steps."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        *,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batches: TrainingBatches,
        source: Source,
        display: Display,
    ):
        self.config, self.run, self.method, self.optimizer = config, run, method, optimizer
        self.batches, self.source, self.display = batches, source, display
        self.device = next(method.parameters()).device
        self.total_steps = config.epochs * batches.steps_per_epoch
        self.step = 0  # steps done
        self.counters: dict[str, float] = {"bad_steps": 0, "seconds": 0.0}
        self.events = {name: torch.zeros((), device=self.device) for name in method.counters}
        self.skipped = {line["where"] for line in record.read_lines(run / record.SKIPPED)}
        self.metrics: record.MetricsWriter | None = None

    def resume(self, events: Path | None) -> None:
        """Takes up the newest whole checkpoint, if there is one."""
        found, problems = checkpoints.load_newest(self.run)
        for problem in problems:
            self.display.say(f"warning: {problem} Going on from the checkpoint before it.")
        if found is not None:
            checkpoints.load_strictly(self.method, found.model, f"the checkpoint of step {found.step}")
            self.optimizer.load_state_dict(found.optimizer)
            self.step = found.step
            self.counters = dict(found.counters)
            self.events = {name: torch.tensor(self.counters.pop(name), device=self.device) for name in self.events}
            self.display.say(f"resuming after step {self.step} of {self.total_steps}")
        distributed.barrier()
        if distributed.is_main():
            self.metrics = record.MetricsWriter(self.run, after_step=self.step, events=events)

    def run_steps(self, autocast: torch.dtype | None) -> None:
        """Trains from the current step to the last."""
        forward = distributed.wrap(self.method)
        self.method.train()
        saved = time.monotonic()
        bad_in_a_row = 0
        with _signals() as received, self.display.training(done=self.step, total=self.total_steps) as display:
            started = time.monotonic() - self.counters["seconds"]
            for batch in self.batches.iterate(self.step, self.total_steps):
                self._note_unreadable(batch)
                output, good, number = self._train_step(forward, batch, autocast, received)
                self.step += 1
                self.counters["seconds"] = time.monotonic() - started
                bad_in_a_row = 0 if good else bad_in_a_row + 1
                if not good:
                    self._skip_bad_step(bad_in_a_row)
                last = self.step == self.total_steps
                line = None
                if good and (self.step % self.config.log_every == 0 or last or self._keeps_spectrum()):
                    line = self._describe(output)
                display.step(self.step, self.config.batch_size, line, _term_names(self.method, output))
                if last or number or self._checkpoint_is_due(saved):
                    self.save()
                    saved = time.monotonic()
                if number and not last:
                    raise Interrupted(number, self.step)

    def save(self) -> None:
        """Writes a checkpoint after the current step."""
        finite = diagnostics.is_finite(*self.method.parameters())
        if not finite:
            raise TrainingError(f"the weights are not finite after step {self.step}.{_ADVICE}")
        if distributed.is_main():
            counters = self.counters | {name: float(count) for name, count in self.events.items()}
            state = checkpoints.Checkpoint(self.step, self.method.state_dict(), self.optimizer.state_dict(), counters)
            checkpoints.save_checkpoint(self.run, state)
        distributed.barrier()

    def finish(self) -> dict[str, Any]:
        """Writes the encoder and the summary of a complete run."""
        summary = {
            "recipe": self.config.recipe,
            "finished": True,
            "steps": self.total_steps,
            "epochs": self.config.epochs,
            "parameters": sum(p.numel() for p in self.method.encoder.parameters()),
            "seconds": self.counters["seconds"],
            "seconds_training": self.counters["seconds"],
            "skipped": len(self.skipped),
            "bad_steps": int(self.counters["bad_steps"]),
            **{name: int(count) for name, count in self.events.items()},
            "data": {"name": self.source.name, "pictures": len(self.source)},
        }
        if distributed.is_main():
            checkpoints.save_weights(self.run / record.ENCODER, self.method.encoder, {"weights": "student"})
            record.write_json(self.run / record.SUMMARY, summary)
        distributed.barrier()
        return summary

    def _train_step(
        self, forward: nn.Module, batch: Batch, autocast: torch.dtype | None, received: list[int]
    ) -> tuple[StepOutput, bool, int]:
        """One update. Returns the output, whether it was finite and applied, and a signal's number or 0."""
        # layers that draw random numbers (dropout, stochastic depth) draw them from the step, too
        torch.manual_seed(int(hash_integers(self.config.seed, batch.step, distributed.rank()) >> 1))
        buffers = [b for b in self.method.buffers() if b.is_floating_point()]
        before = [b.clone() for b in buffers]
        optim.set_learning_rate(self.optimizer, self._learning_rate(batch.step))
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            output: StepOutput = forward(*batch.views)
        output.loss.backward()
        gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
        bad = ~diagnostics.is_finite(output.loss.detach(), *torch._foreach_norm(gradients))
        state = torch.stack([bad.to(torch.int64), torch.tensor(received[0] if received else 0, device=self.device)])
        is_bad, number = (int(v) for v in distributed.maximum(state))  # all processes take the same decision
        if is_bad:
            torch._foreach_copy_(buffers, before)
            return output, False, number
        self.optimizer.step()
        self.method.after_step((batch.step + 1) / self.total_steps)
        for name, count in self.events.items():
            count += output.terms[name]
        return output, True, number

    def _learning_rate(self, step: int) -> float:
        settings = self.config.optimizer
        return optim.learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=min(round(settings.warmup_epochs * self.batches.steps_per_epoch), self.total_steps // 2),
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
            features = distributed.gather(output.features)
            if self.metrics is None:
                return None
            values, eigenvalues = diagnostics.describe(features, output.student, output.teacher)
        line = {
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
        if self._keeps_spectrum():
            line["spectrum"] = [float(f"{v:.4g}") for v in eigenvalues.tolist()]
        self.metrics.write(line)
        return line

    def _keeps_spectrum(self) -> bool:
        moments = {math.ceil(self.total_steps * i / (_SPECTRA - 1)) for i in range(1, _SPECTRA)} | {1}
        return self.step in moments

    def _checkpoint_is_due(self, saved: float) -> bool:
        if self.config.checkpoint_every:
            return self.step % self.config.checkpoint_every == 0
        due = self.step % self.batches.steps_per_epoch == 0 and time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS
        return bool(distributed.broadcast_object(due))

    def _note_unreadable(self, batch: Batch) -> None:
        for where, why in batch.unreadable:
            if where not in self.skipped:
                self.skipped.add(where)
                record.append_line(self.run / record.SKIPPED, {"where": where, "why": why})
        most = max(10, int(_MOST_SKIPPED * len(self.source)))
        if len(self.skipped) > most:
            raise DataError(
                f"{len(self.skipped)} of {len(self.source)} pictures cannot be read, more than {most}: see "
                f"{self.run / record.SKIPPED}, then mend or remove them."
            )


_ADVICE = (
    " Lower the learning rate (--set optimizer.learning_rate=...), lengthen the warm-up (--set "
    "optimizer.warmup_epochs=...) or train in float32 (--set precision=float32), with --fresh."
)


def build_method(config: RunConfig) -> Method:
    """The method of a run with freshly initialised networks, a function of the configuration.

    Raises:
        ConfigError: the encoder is unknown or does not fit the pictures.
    """
    encoder, feature_dim = build_encoder(config)
    return find_method(config.method.name)(encoder, feature_dim, **config.method.options)


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; use --device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: PyTorch sees no Apple GPU here; use --device cpu.")
    return torch.device("cuda", distributed.local_rank()) if name == "cuda" else torch.device(name)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it, or just its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_precision(config: RunConfig, device: torch.device) -> str:
    """The precision of the networks; the losses always compute in float32 or better."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def _choose(source: Source, config: RunConfig) -> Source:
    if source.channels != len(config.data.mean):
        raise ConfigError(
            f"the pictures of {source.name!r} have {source.channels} channels, recipe {config.recipe!r} is for "
            f"{len(config.data.mean)} (data.mean has one number a channel): choose another recipe."
        )
    if not config.data.subset or config.data.subset >= len(source):
        return source
    return source.subset(sorted(permutation(len(source), config.seed)[: config.data.subset].tolist()))


def _prepare_torch(config: RunConfig, device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.deterministic
        torch.use_deterministic_algorithms(config.deterministic)


def _term_names(method: Method, output: StepOutput) -> tuple[str, ...]:
    return tuple(name for name in output.terms if name not in method.counters)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects signals instead of dying from them; the loop looks at the list between two steps."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C is impatient: stop now, the last checkpoint stands
        received.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
