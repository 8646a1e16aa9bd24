"""The training loop of pre-training, of the protocols that train, and of detection.

Every random number of a step is a function of the seed, the step and the process, so the state of a training is its
tensors and the number of completed steps: a training that was killed and resumed is identical bit for bit to one that
was not (same machine, same number of processes). All processes decide alike, and a step whose loss or gradient is not
finite leaves no trace.
"""

import contextlib
import math
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic

import torch

from matrix_ssl import distributed
from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.data.unreadable import main_reason
from matrix_ssl.errors import CheckpointError, DataError, Diverged, TrainingError, is_out_of_memory
from matrix_ssl.runs import checkpoint as checkpoints
from matrix_ssl.runs import signals
from matrix_ssl.runs.devices import Transfer
from matrix_ssl.runs.files import append_line, read_lines
from matrix_ssl.runs.folder import SKIPPED, tidy
from matrix_ssl.runs.metrics import History, MetricsWriter
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training.diagnostics import is_bad, is_finite
from matrix_ssl.training.optim import drop_encoder_gradients, load_state, set_learning_rate
from matrix_ssl.training.task import Batch, Line, Output, Task

_SECONDS_BETWEEN_CHECKPOINTS = 60.0  # at least, if checkpoints follow epochs
_FEW_SKIPPED = 10  # unreadable images that any dataset may have


class Engine(Generic[Batch, Output]):
    """Trains a task from its newest checkpoint to the last step.

    Args:
        task: what to train; the engine advances it.
        folder: for checkpoints, metrics and the list of unreadable images; claimed for this task by the main process.
        loggers: names of loggers that also receive the lines of metrics, keys of ``runs.loggers.LOGGERS``.
    """

    def __init__(self, task: Task[Batch, Output], folder: Path, *, loggers: Collection[str] = ()):
        self.task, self.folder, self.loggers = task, folder, loggers
        self.forward = task.module
        self.kept = KeptBuffers(task.module)
        self.metrics: MetricsWriter | None = None  # of the main process
        self.signal = 0  # the number of a signal that any process has received
        self.bad_in_a_row = 0
        self.saved = 0.0  # time of the last checkpoint, by the monotonic clock
        self.is_fresh = True  # there was no checkpoint
        self.ahead: Ahead[Batch] | None = None  # the batches; the next one may be begun before a step ends
        self.reads_ahead = task.device.type != "cpu"

    def run(self) -> None:
        """Resumes and trains to the last step.

        Raises:
            Interrupted: a signal arrived; a checkpoint has been written.
            Diverged: too many steps in a row, or the weights, are not finite.
        """
        try:
            with distributed.together():
                self.resume()
            if self.is_fresh and self.task.plan.saves_start:
                self.save_start()
            self.train()
        finally:
            if self.metrics is not None:
                self.metrics.close(finished=self.task.is_last)

    def train(self) -> None:
        """The training loop, from the task's current step."""
        task, total = self.task, self.task.plan.total_steps
        self.forward = distributed.wrap(task.module)
        task.train_mode()
        self.saved = time.monotonic()
        with (
            signals.collected() as received,
            task.display.training(done=task.step, total=total) as display,
            contextlib.closing(self.read(task.step, total)) as read,
        ):
            task.clock.restart()
            batches = self.ahead = Ahead(read)
            for batch in batches:
                output = self.update(batch, received)
                task.step += 1
                task.clock.tick()

                # once in a while: a bad step
                if output is None:
                    self.count_bad_step()

                # once in a while: a line of metrics
                line = self.write_line(output) if output is not None and task.is_logged() else None
                terms = task.terms(output) if output is not None else ()
                display.step(task.step, task.plan.batch_size, line, terms)
                if task.callback is not None and output is not None and task.is_logged():
                    self.call_back(line)

                # once in a while: a checkpoint
                if task.is_last or self.signal or self.is_checkpoint_due():
                    self.save()

                # at most once: a signal
                if self.signal and not task.is_last:
                    raise Interrupted(self.signal, after=f" after step {task.step}")

    def resume(self) -> None:
        """Loads the newest checkpoint, if there is one, and discards what was written after it."""
        task = self.task
        checkpoint, problems = checkpoints.load_newest(self.folder)
        for problem in problems:
            task.display.say(f"Warning: {problem} Resuming from the checkpoint before it.")
        if checkpoint is not None:  # it holds everything, including the weights of the start
            checkpoints.load_strictly(task.module, checkpoint.model, f"The checkpoint of step {checkpoint.step}")
            try:
                load_state(task.optimizer, checkpoint.optimizer)
                task.step = checkpoint.step
                task.load_counters(checkpoint.counters)
                if checkpoint.observer:
                    task.observer.load_state_dict(checkpoint.observer)
            except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                raise CheckpointError(
                    f"The checkpoint of step {checkpoint.step} does not fit this training ({error!r}). Use --fresh to "
                    f"start over."
                ) from error
            task.display.say(f"Resuming after step {task.step} of {task.plan.total_steps}.")
        if distributed.is_main():
            tidy(self.folder)
            self.metrics = MetricsWriter(self.folder, after_step=task.step, loggers=self.loggers, say=task.display.say)
        task.skipped = self.read_skipped()
        self.is_fresh = checkpoint is None

    def save_start(self) -> None:
        """Describes the state before the first step and saves it, so that nothing else is needed to resume."""
        line = None
        with distributed.together():
            if self.metrics is not None:
                line = self.task.describe_start()
                if line is not None and not self.metrics.history:  # a kill may have come between line and checkpoint
                    self.metrics.write(line)
        if self.task.callback is not None:
            self.call_back(line)
        self.save()

    def read(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """This process's batches for the steps from ``start`` to ``stop`` - 1; notes images that cannot be read."""
        with contextlib.closing(self.task.batches(start, stop)) as batches:
            while True:
                with distributed.alone():
                    batch = next(batches, None)
                    if batch is not None:
                        self.note_unreadable(batch.unreadable)
                if batch is None:
                    return
                yield batch

    def note_unreadable(self, images: Sequence[tuple[str, str]]) -> None:
        """Adds images, where and why, to ``skipped.jsonl``, each once; if too many, adds all and raises DataError."""
        task, plan = self.task, self.task.plan
        self.list_skipped(images)
        if len(task.skipped) <= most_unreadable(plan.images, plan.max_unreadable):
            return
        task.display.say("Too many images cannot be read. Looking for all of them.")
        self.list_skipped(task.find_unreadable())
        check_unreadable(
            list(task.skipped.items()), plan.images, f"All are in {self.folder / SKIPPED}", part=plan.max_unreadable,
            option=plan.unreadable_option,
        )  # fmt: skip

    def list_skipped(self, images: Iterable[tuple[str, str]]) -> None:
        """Adds images to ``skipped.jsonl``, each once, and reads those that other processes have added."""
        new = {where: why for where, why in images if where not in self.task.skipped}
        shared = bool(new) and distributed.world_size() > 1
        if shared:
            self.task.skipped |= self.read_skipped()
        for where, why in new.items():
            if where not in self.task.skipped:
                self.task.skipped[where] = why
                append_line(self.folder / SKIPPED, {"where": where, "why": why})
        if shared:  # the last process to add some has all
            self.task.skipped |= self.read_skipped()

    def read_skipped(self) -> dict[str, str]:
        """All images in ``skipped.jsonl``: where and why."""
        return {line["where"]: line["why"] for line in read_lines(self.folder / SKIPPED)}

    def update(self, batch: Batch, received: Sequence[int] = ()) -> Output | None:
        """One step, not counted; None if its loss or gradient was not finite in any process, and it has been undone."""
        task = self.task
        seed_torch(task.plan.seed, task.step)
        self.kept.keep()
        peak = task.learning_rate(min(task.step, task.plan.warmup_steps))
        encoder = task.encoder_rate(task.step)
        set_learning_rate(task.optimizer, task.learning_rate(task.step), held=peak, encoder=encoder)
        output = self.differentiate(batch)
        if not self.agree(output, received):
            self.kept.restore()
            return None
        assert output is not None  # an agreement needs the output of every process
        if encoder == 0:
            drop_encoder_gradients(task.optimizer)
        task.optimizer.step()
        task.after_step(batch, output)
        return output

    def differentiate(self, batch: Batch) -> Output | None:
        """Forward and backward; None if the outputs are so far from finite that there is no loss."""
        self.task.optimizer.zero_grad()
        try:
            output = self.task.compute(self.forward, batch)
        except torch.linalg.LinAlgError:  # how eigenvalue routines react to NaN
            return None
        output.loss.backward()
        return output

    def agree(self, output: Output | None, received: Sequence[int]) -> bool:
        """Whether the step is finite in all processes; notes a signal that any of them received.

        A GPU is given the next step's views to compute before we wait for the answer. When the answer arrives, work is
        still queued, and the optimizer and the next forward are queued behind it.
        """
        number = received[0] if received else 0
        answer = Transfer(self.flags(output, number))
        if self.reads_ahead and self.ahead is not None:
            self.ahead.begin()
        bad, *signal = answer.numbers()
        self.signal = int(signal[0]) if signal else number
        self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        return not bad

    def flags(self, output: Output | None, number: int) -> torch.Tensor:
        """On the device: whether the step is bad in any process and, with several processes, the number of a signal."""
        if output is None:
            bad = torch.ones((), dtype=torch.bool, device=self.task.device)
        else:
            bad = is_bad(output.loss, [p.grad for p in self.task.module.parameters() if p.grad is not None])
        if distributed.world_size() == 1:
            return bad.view(1)
        return distributed.maximum(torch.stack([bad.to(torch.int64), bad.new_full((), number, dtype=torch.int64)]))

    def count_bad_step(self) -> None:
        """Warns that the step just completed has been undone, or ends the training."""
        task = self.task
        task.counters["bad_steps"] += 1
        if self.bad_in_a_row >= task.plan.max_bad_steps:
            raise Diverged(
                f"The loss or its gradient is not finite in step {task.step} (bad steps in a row: "
                f"{self.bad_in_a_row}). {task.plan.advice}"
            )
        task.display.say(f"Warning: skipped step {task.step}: loss or gradient is not finite.")

    def write_line(self, output: Output) -> Line | None:
        """Writes the line of metrics for the step just completed."""
        line = self.task.describe(output, self.metrics.history if self.metrics is not None else History())
        if line is not None and self.metrics is not None:
            self.metrics.write(line)
        return line

    def call_back(self, line: Line | None) -> None:
        """Passes a new line to the task's callback; if that raises, saves a checkpoint before the error propagates."""
        failure: BaseException | None = None
        try:
            if line is not None and self.task.callback is not None:
                self.task.callback(dict(line))
        except BaseException as error:
            failure = error
        if distributed.broadcast_object(failure is not None):
            self.save()
            raise failure or TrainingError(f"The callback failed in the main process after step {self.task.step}.")

    def is_checkpoint_due(self) -> bool:
        """Whether the plan asks for a checkpoint after the step just completed."""
        plan = self.task.plan
        if self.task.step in plan.kept_steps():
            return True
        if plan.checkpoint_every:
            return self.task.step % plan.checkpoint_every == 0
        if self.task.step % plan.steps_per_epoch:
            return False
        return bool(distributed.broadcast_object(time.monotonic() - self.saved > _SECONDS_BETWEEN_CHECKPOINTS))

    def save(self) -> None:
        """Writes a checkpoint; raises Diverged if weights or BatchNorm statistics are not finite."""
        task = self.task
        kept = {name: tensor for name, tensor in task.module.state_dict().items() if tensor.is_floating_point()}
        if not is_finite(*task.module.parameters()):
            raise Diverged(f"The weights are not finite after step {task.step}. {task.plan.advice}")
        if not is_finite(*kept.values()):
            name = next(name for name, tensor in kept.items() if not is_finite(tensor))
            raise Diverged(f"{name} is not finite after step {task.step}. {task.plan.advice}")
        if distributed.is_main():
            state = task.module.state_dict(), task.optimizer.state_dict()
            counters, observer = task.saved_counters(), task.observer.state_dict()
            checkpoint = checkpoints.Checkpoint(task.step, *state, counters, observer)
            checkpoints.save_checkpoint(self.folder, checkpoint, kept=task.plan.kept_steps())
        distributed.barrier()
        self.saved = time.monotonic()


class Ahead(Generic[Batch]):
    """Batches in order, the next of which may be begun early; an error in it is raised when it is asked for."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches
        self._begun: list[Batch] = []
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Computes the next batch, as far as a device needs to be told to."""
        if self._begun or self._error is not None:
            return
        try:
            self._begun.append(next(self._batches))
        except BaseException as error:  # including StopIteration
            self._error = error

    def __iter__(self) -> "Ahead[Batch]":
        return self

    def __next__(self) -> Batch:
        self.begin()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._begun.pop()


class KeptBuffers:
    """The buffers of a module as they were before a step, in memory that is reused at the next step."""

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self._kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        self._copies: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}

    def keep(self) -> None:
        """Copies the module's current buffers."""
        self._kinds = {}
        for buffer in self._module.buffers():
            self._kinds.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        for kind, buffers in self._kinds.items():
            copies = self._copies.get(kind, [])
            if [copy.shape for copy in copies] == [buffer.shape for buffer in buffers]:
                torch._foreach_copy_(copies, buffers)
            else:
                self._copies[kind] = [buffer.clone() for buffer in buffers]

    def restore(self) -> None:
        """Restores the values of the buffers that were kept."""
        for kind, buffers in self._kinds.items():
            torch._foreach_copy_(buffers, self._copies[kind])


def seed_torch(seed: int, step: int) -> None:
    """Seeds PyTorch's generator for one step of this process: layers such as dropout draw from it."""
    torch.manual_seed(int(hash_integers(seed, step, distributed.rank()) >> 1))


def most_unreadable(images: int, part: float) -> int:
    """How many images may be unreadable: ten, which may happen by accident, or a fraction of all if that is more."""
    return max(_FEW_SKIPPED, math.floor(part * images + 1e-9))  # 0.29 * 100 is 28.999999999999996


def check_unreadable(
    unreadable: Sequence[Sequence[str]], images: int, where: str, *, part: float, option: str
) -> None:  # fmt: skip
    """Raises DataError if more images are unreadable than ``most_unreadable``; ``option`` accepts the loss.

    ``unreadable`` are pairs (where, why); the error names the most frequent reason.
    """
    count, most = len(unreadable), most_unreadable(images, part)
    if count > most:
        accept = f", or accept the loss with {option}{math.ceil(100 * count / images) / 100:g}" if option else ""
        raise DataError(
            f"{count} of {images} images cannot be read, and at most {most} may be unreadable. {where}; fix or remove "
            f"those files{accept}. {main_reason(unreadable)}"
        )
