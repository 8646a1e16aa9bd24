"""Pre-training: the loss of a self-supervised method, and the contents of its metrics, summary and encoder."""

import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import Batch, TrainingBatches, unreadable_images
from matrix_ssl.errors import ConfigError, MatrixSSLError
from matrix_ssl.methods import Method, StepOutput, check_output
from matrix_ssl.runs import checkpoint as checkpoints
from matrix_ssl.runs.devices import MixedPrecision
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_lines, write_json
from matrix_ssl.runs.folder import SKIPPED, SUMMARY, identity
from matrix_ssl.runs.metrics import History, kind_of_alarm
from matrix_ssl.training import batch_norm, diagnostics, optim
from matrix_ssl.training.engine import Engine
from matrix_ssl.training.task import Line, Task, TrainingPlan

T = TypeVar("T")

_FAILURES = (MatrixSSLError, RuntimeError, ValueError, ArithmeticError)  # in code that only observes a training
_SPECTRA = 6  # times during a run at which the whole spectrum is kept
_ADVICE = (
    "Lower the learning rate (--set optimizer.learning_rate=...), lengthen the warm-up (--set "
    "optimizer.warmup_epochs=...) or train in float32 (--set precision=float32), with --fresh."
)


class PreTraining(Task[Batch, StepOutput]):
    """The pre-training of an encoder by a method.

    The observer's numbers are added to the lines of metrics, and the time of its ``observe`` does not count as
    training. It sees only the features of the main process.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        method: Method,
        optimizer: torch.optim.Optimizer,
        loader: TrainingBatches,
        source: Source,
        precision: MixedPrecision,
        display: Display,
    ):
        total = config.epochs * loader.steps_per_epoch
        plan = TrainingPlan(
            seed=config.seed,
            images=len(source),
            batch_size=config.batch_size,
            total_steps=total,
            warmup_steps=min(round(config.optimizer.warmup_epochs * loader.steps_per_epoch), total // 2),
            checkpoint_every=config.checkpoint_every,
            keep_checkpoints=config.keep_checkpoints,
            steps_per_epoch=loader.steps_per_epoch,
            saves_start=bool(config.start.reference),
            max_bad_steps=config.max_bad_steps,
            advice=_ADVICE,
            max_unreadable=config.data.max_unreadable,
            unreadable_option="--set data.max_unreadable=",
        )
        super().__init__(method, optimizer, plan, display=display)
        self.config, self.method, self.loader, self.source, self.precision = config, method, loader, source, precision
        self.events = {name: torch.zeros((), device=self.device) for name in method.counters}
        self.measures_information = False  # whether lines contain MIR and HDR of the two branches
        self.follow: Callable[[nn.Module, int], None] | None = None  # called with the encoder when a spectrum is kept
        self._alarmed: set[str] | None = None  # kinds of alarms already reported to the user

    def train(self, run: Path, *, loggers: Collection[str] = ()) -> dict[str, Any]:
        """Trains the run in a claimed folder from its newest checkpoint to the end, and writes encoder and summary."""
        Engine(self, run, loggers=loggers).run()
        summary = self.summarise(run)
        if distributed.is_main():
            checkpoints.save_encoder(run, self.method.encoder)
            write_json(run / SUMMARY, summary)
        distributed.barrier()
        return summary

    def summarise(self, run: Path) -> dict[str, Any]:
        """The content of ``summary.json`` after the last step."""
        return {
            "run": identity(run),
            "recipe": self.config.recipe,
            "finished": True,
            "steps": self.plan.total_steps,
            "epochs": self.config.epochs,
            "parameters": sum(p.numel() for p in self.method.encoder.parameters()),
            "seconds": self.counters["seconds"],
            "seconds_training": self.counters["seconds"],
            "skipped": len({line["where"] for line in read_lines(run / SKIPPED)}),
            "bad_steps": int(self.counters["bad_steps"]),
            **{name: int(count) for name, count in self.events.items()},
            "data": {"name": self.source.name, "images": len(self.source)},
        }

    def train_mode(self) -> None:
        super().train_mode()
        if self.config.optimizer.frozen_statistics:
            for encoder in filter(None, (self.method.encoder, self.method.teacher_encoder())):
                batch_norm.keep_statistics(encoder)

    def find_unreadable(self) -> Iterable[tuple[str, str]]:
        return unreadable_images(self.source, workers=self.config.data.workers)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        yield from self.loader.iterate(start, stop)

    def learning_rate(self, step: int) -> float:
        peak, plan = self.config.optimizer.learning_rate * self.config.batch_size / 256, self.plan
        return optim.learning_rate(step, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps, peak=peak)

    def encoder_rate(self, step: int) -> float:
        """0 while the encoder is frozen, then a warm-up of its own."""
        frozen, warmup = round(self.config.optimizer.frozen_epochs * self.plan.steps_per_epoch), self.plan.warmup_steps
        if step < frozen:
            return 0.0
        return min(1.0, (step - frozen + 1) / (warmup + 1)) if frozen else 1.0

    def compute(self, forward: torch.nn.Module, batch: Batch) -> StepOutput:
        self.method.before_step(self.step, self.plan.total_steps)
        with self.precision.autocast(), compilation() if self.config.compile else nullcontext():
            output: StepOutput = forward(*batch.views)
        check_output(output, self.config.method.name, len(batch.indices))
        return output

    def after_step(self, batch: Batch, output: StepOutput) -> None:
        """Updates the teacher, counts events and lets the observer learn."""
        self.method.after_step((self.step + 1) / self.plan.total_steps)
        for name, count in self.events.items():
            count += output.terms[name]
        if distributed.is_main():
            self.observer.learn(output.features.detach(), batch.indices)

    def is_logged(self) -> bool:
        """Every ``log_every`` steps, at the last one, and when a spectrum or an observation is due."""
        regular = self.step % self.config.log_every == 0 or self.is_last
        return regular or self._is_moment(_SPECTRA - 1) or self._is_moment(self.observer.moments)

    def describe(self, output: StepOutput, history: History) -> Line | None:
        """Loss, rates, counts, spectral summaries of the batch of all processes, alarms and observations."""
        with torch.no_grad():
            features, student, teacher = (
                distributed.gather(rows) for rows in (output.features, output.student, output.teacher)
            )
            if not distributed.is_main():
                return None
            named = {"loss": output.loss.detach(), **{name: output.terms[name] for name in self.terms(output)}}
            numbers, eigenvalues, failure = _read({**named, **self.events}, (features, student, teacher))
        line: Line = {
            "step": self.step,
            "epoch": self.step / self.plan.steps_per_epoch,
            "seconds": round(self.counters["seconds"], 3),
            **{name: numbers[name] for name in named},
            "learning_rate": self.learning_rate(self.step - 1),
            **self.method.schedule(self.step / self.plan.total_steps),
            **{name: numbers[name] for name in diagnostics.NAMES},
            **{name: int(numbers[name]) for name in self.events},
            "bad_steps": int(self.counters["bad_steps"]),
            "images_per_second": self.images_per_second(),
        }
        failures = [f"Failed diagnostic: {failure}."] if failure else []
        try:
            if self.measures_information:
                line |= diagnostics.information(student, teacher)
            line |= self.observer.recent()
            if self._is_moment(self.observer.moments):
                line |= self._look(self.observer.observe)
            if (follow := self.follow) and self._is_moment(_SPECTRA - 1):
                self._look(lambda encoder: follow(encoder, self.step))
        except _FAILURES as error:  # failed observations do not end a training
            failures.append(f"Failed observation: {str(error) or type(error).__name__}.")
        line |= self._alarms(line, history, failures)
        if self._is_moment(_SPECTRA - 1):
            line["spectrum"] = [float(f"{v:.4g}") for v in eigenvalues]
        return line

    def describe_start(self) -> Line | None:
        values = self._look(self.observer.observe_start)
        if not values:
            return None
        self.display.say(f"Before the first step: {', '.join(f'{name} {values[name]:.3f}' for name in values)}.")
        return {"step": 0, "epoch": 0.0, "seconds": 0.0, **values}

    def terms(self, output: StepOutput) -> tuple[str, ...]:
        return tuple(name for name in output.terms if name not in self.method.counters)

    def saved_counters(self) -> dict[str, float]:
        return self.counters | {name: float(count) for name, count in self.events.items()}

    def load_counters(self, counters: dict[str, float]) -> None:
        self.events = {name: torch.tensor(counters[name], device=self.device) for name in self.events}
        self.counters |= {name: count for name, count in counters.items() if name not in self.events}

    def _alarms(self, line: Line, history: History, failures: Sequence[str]) -> Line:
        """Alarms, reported to the user the first time that one of a kind is raised."""
        if self._alarmed is None:
            self._alarmed = set(history.alarms)
        start = 1 if history and history.first[0]["step"] == 0 else 0
        lines = [*history.ends(diagnostics.WINDOW, start=start), line]
        alarms = [*failures, *diagnostics.alarms(lines)] + (self.observer.verdict() if self.is_last else [])
        for text in alarms:
            if kind_of_alarm(text) not in self._alarmed:
                self.display.say(f"Alarm at step {self.step}: {text}")
        self._alarmed |= set(map(kind_of_alarm, alarms))
        return {"alarm": alarms} if alarms else {}

    def _look(self, observe: Callable[[nn.Module], T]) -> T:
        self.method.encoder.eval()
        try:
            with self.clock.stopped(), torch.no_grad():
                return observe(self.method.encoder)
        finally:
            self.train_mode()

    def _is_moment(self, count: int) -> bool:
        """Whether the step is the first or one of ``count`` that are spread evenly over the training up to its end."""
        return self.step in {math.ceil(self.plan.total_steps * i / count) for i in range(1, count + 1)} | {1}


@contextmanager
def compilation() -> Iterator[None]:
    """A block in which a failure of ``torch.compile`` becomes a ConfigError that gives the reason."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and only compiled runs need it

    try:
        yield
    except TorchDynamoException as error:
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0].rstrip(".:")
        raise ConfigError(
            f"compile=true: PyTorch cannot compile the networks here ({reason}). Install a C++ compiler, name yours in "
            "the environment variable CXX, or use compile=false."
        ) from error


def _read(named: dict[str, Tensor], rows: tuple[Tensor, Tensor, Tensor]) -> tuple[dict[str, Any], list[float], str]:
    """Scalars as numbers, with those of ``diagnostics.describe``, its eigenvalues and its failure, in one transfer.

    If it failed, its numbers are None.
    """
    eigenvalues, failure = rows[0].new_zeros(0), ""
    try:
        values, eigenvalues = diagnostics.describe(*rows)
        named = {**named, **values}
    except _FAILURES as error:
        failure = str(error) or type(error).__name__
    read = torch.cat([*(value.reshape(1) for value in named.values()), eigenvalues]).tolist()
    return dict.fromkeys(diagnostics.NAMES) | dict(zip(named, read, strict=False)), read[len(named) :], failure
