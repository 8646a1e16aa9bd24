"""Training a classifier by gradient steps: the engine of the protocols whose published form is a training.

Scores are ``learner(frozen(image))``: the frozen part runs in evaluation mode without gradients, the learner is
trained with cross-entropy on one random view of every image. As in pre-training, every random number is a function of
the seed and the step, so a training that was killed and started again ends with the same bits (same machine, same
number of processes). The folder of a training holds its description, its metrics and its newest checkpoints.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import Batch, TrainingBatches
from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.distributed import batch_norm
from matrix_ssl.errors import ConfigError, TrainingError
from matrix_ssl.evaluate.trained.classifier import Classifier, Outcome, Settings, judge
from matrix_ssl.evaluate.trained.folder import claim
from matrix_ssl.runs import checkpoint as checkpoints
from matrix_ssl.runs import signals
from matrix_ssl.runs.devices import choose_precision
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.folder import tidy
from matrix_ssl.runs.metrics import MetricsWriter
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import diagnostics, optim

_DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
_SECONDS_BETWEEN_CHECKPOINTS = 60.0  # at most this often, at the ends of epochs


class Diverged(TrainingError):
    """The loss, its gradient or the weights are not finite."""


def fit_and_judge(
    classifier: Classifier,
    train: Source,
    test: Source,
    data: DataConfig,
    *,
    settings: Settings,
    folder: Path,
    device: torch.device,
    display: Display,
    seed: int,
) -> Outcome:
    """Trains the learner in place, or goes on where an earlier call stopped, and scores the test images.

    With several processes each trains on its part of every batch, and each scores all test images.

    Args:
        train, test: labelled images that passed ``check_parts``.
        data: size, normalisation, and the central part that test images are judged by.
        folder: of this training; a finished one is loaded again, and may be removed once its outcome is stored.
        seed: of the order of the images and of their views. PyTorch's generator is seeded anew at every step.

    Raises:
        ConfigError: a setting is out of range or does not fit the number of processes.
        RunFolderError: the folder holds another training or cannot be written.
        Diverged: what to change.
        Interrupted: a signal came; a checkpoint has been written.
        DataError: no test image can be read.
    """
    rates = tuple(group["rate"] for group in classifier.groups)
    training = _Training(
        classifier, train, data, settings=settings, folder=folder, device=device, display=display, seed=seed
    )
    training.run()
    scores, indices, unreadable = judge(classifier, test, data, device=device)
    assert test.labels is not None  # check_parts
    return Outcome(
        scores=scores,
        labels=torch.from_numpy(test.labels[indices]),
        indices=indices,
        unreadable=unreadable,
        train_accuracy=training.counters["train_accuracy"],
        seconds=training.counters["seconds"],
        batch_size=training.batch_size,
        rates=rates,
    )


class _Training:
    """The state of a training between two steps, and the steps."""

    def __init__(
        self,
        classifier: Classifier,
        source: Source,
        data: DataConfig,
        *,
        settings: Settings,
        folder: Path,
        device: torch.device,
        display: Display,
        seed: int,
    ):
        self.source, self.data, self.settings, self.folder = source, data, settings, folder
        self.device, self.display, self.seed = device, display, seed
        precision = choose_precision(settings.precision, device)
        self.autocast = torch.bfloat16 if precision == "bfloat16" else None
        self.batch_size = self._fitting_batch()
        self.batches = TrainingBatches(
            source, data, (settings.view,), batch_size=self.batch_size, seed=seed,
            rank=distributed.rank(), world_size=distributed.world_size(), device=device, dtype=_DTYPES[precision],
        )  # fmt: skip
        self.total_steps = settings.epochs * self.batches.steps_per_epoch
        self.classifier = classifier
        batch_norm.synchronise_batch_norm(
            classifier.learner, device.type
        )  # in place but for a learner that is one layer
        for module in (classifier.frozen, classifier.learner):
            module.to(device, _DTYPES[precision])
            module.to(memory_format=torch.channels_last)
        self.optimizer = optim.build_optimizer(
            classifier.learner,
            name=settings.optimizer,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            groups=classifier.groups,
        )
        self.labels = torch.from_numpy(source.labels).to(device)
        self.step = 0  # steps done
        # sums over the steps of the epoch so far, the accuracy of the last whole one, and the time
        self.counters: dict[str, float] = {"loss": 0.0, "right": 0.0, "train_accuracy": 0.0, "seconds": 0.0}
        self.replaced: dict[str, str] = {}  # images that cannot be read: where, why
        self.metrics: MetricsWriter | None = None

    def run(self) -> None:
        """Resumes from the newest checkpoint in the folder and trains to the last step."""
        with distributed.together():
            self._resume()
        forward = distributed.wrap(self.classifier.learner)
        self.classifier.frozen.eval()
        self.classifier.learner.train()
        saved = time.monotonic()
        with signals.collected() as received, self.display.training(done=self.step, total=self.total_steps) as display:
            started = time.monotonic() - self.counters["seconds"]
            for batch in self._read_batches():
                number = self._train_step(forward, batch, received)
                self.step += 1
                self.counters["seconds"] = time.monotonic() - started
                ends_epoch, last = self.step % self.batches.steps_per_epoch == 0, self.step == self.total_steps
                display.step(self.step, self.batch_size, self._end_epoch() if ends_epoch else None, ("train_accuracy",))
                if last or number or (ends_epoch and _is_due(saved)):
                    self._save()
                    saved = time.monotonic()
                if number and not last:
                    raise Interrupted(number, after=f" after step {self.step} of the evaluation")
        if self.replaced:
            where, why = next(iter(self.replaced.items()))
            self.display.say(
                f"{len(self.replaced)} training images cannot be read and others took their place, "
                f"the first one {where}: {why}."
            )

    def _fitting_batch(self) -> int:
        wanted, processes, images = self.settings.batch_size, distributed.world_size(), len(self.source)
        fitting = min(wanted, images // processes * processes)
        if not fitting:
            raise ConfigError(f"{images} training images for {processes} processes: start fewer.")
        if fitting < wanted:
            self.display.say(
                f"there are {images} training images: the batch is {fitting} instead of {wanted}, "
                "and the learning rate is lowered in proportion."
            )
        return fitting

    def _resume(self) -> None:
        claim(self.folder, self.source, self.data, settings=self.settings, seed=self.seed, classifier=self.classifier)
        found, problems = checkpoints.load_newest(self.folder)
        for problem in problems:
            self.display.say(f"warning: {problem} Going on from the checkpoint before it.")
        if found is not None:
            checkpoints.load_strictly(self.classifier.learner, found.model, f"the checkpoint of step {found.step}")
            self.optimizer.load_state_dict(found.optimizer)
            self.step = found.step
            self.counters |= found.counters
            self.display.say(f"resuming after step {self.step} of {self.total_steps}")
        if distributed.is_main():
            tidy(self.folder)
            self.metrics = MetricsWriter(self.folder, after_step=self.step)

    def _read_batches(self) -> Iterator[Batch]:
        batches = self.batches.iterate(self.step, self.total_steps)
        while True:
            with distributed.alone():
                batch = next(batches, None)
            if batch is None:
                return
            self.replaced |= dict(batch.unreadable)
            yield batch

    def _train_step(self, forward: nn.Module, batch: Batch, received: list[int]) -> int:
        """One update. Returns the number of a signal, or 0."""
        # layers that draw random numbers (dropout, stochastic depth) draw them from the step, too
        torch.manual_seed(int(hash_integers(self.seed, batch.step, distributed.rank()) >> 1))
        optim.set_learning_rate(self.optimizer, self._scale(batch.step))
        self.optimizer.zero_grad()
        labels = self.labels[torch.from_numpy(batch.indices).to(self.device)]
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            with torch.no_grad():
                features = self.classifier.frozen(batch.views[0])
            scores = forward(features)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        gradients = [p.grad for p in self.classifier.learner.parameters() if p.grad is not None]
        mine = [loss.detach(), (scores.argmax(1) == labels).to(loss.dtype).mean(),
                diagnostics.is_finite(loss.detach(), *torch._foreach_norm(gradients)).to(loss.dtype),
                loss.new_tensor(received[0] if received else 0)]  # fmt: skip
        # all processes see the numbers of all and take the same decisions
        rows = distributed.gather(torch.stack(mine)[None], sizes=[1] * distributed.world_size()).tolist()
        losses, right, finite, numbers = zip(*rows, strict=True)
        if not all(finite):
            raise self._diverged(f"the loss or its gradient is not finite in step {self.step + 1}")
        self.optimizer.step()
        self.counters["loss"] += sum(losses) / len(losses)
        self.counters["right"] += sum(right) / len(right)
        return int(max(numbers))

    def _scale(self, step: int) -> float:
        """What the rate of every group is multiplied with."""
        epoch = step // self.batches.steps_per_epoch
        peak = self.batch_size / 256
        return optim.learning_rate(epoch, total_steps=self.settings.epochs, warmup_steps=0, peak=peak)

    def _end_epoch(self) -> dict[str, Any]:
        steps = self.batches.steps_per_epoch
        loss, self.counters["train_accuracy"] = self.counters["loss"] / steps, self.counters["right"] / steps
        self.counters |= {"loss": 0.0, "right": 0.0}
        line = {
            "step": self.step,
            "epoch": self.step // steps,
            "seconds": round(self.counters["seconds"], 3),
            "loss": loss,
            "train_accuracy": self.counters["train_accuracy"],
            "learning_rate": self.optimizer.param_groups[-1]["lr"],  # that of the head
        }
        if self.metrics is not None:
            self.metrics.write(line)
        return line

    def _save(self) -> None:
        learner = self.classifier.learner
        if not diagnostics.is_finite(*learner.parameters()):
            raise self._diverged(f"the weights are not finite after step {self.step}")
        if distributed.is_main():
            state = checkpoints.Checkpoint(self.step, learner.state_dict(), self.optimizer.state_dict(), self.counters)
            checkpoints.save_checkpoint(self.folder, state)
        distributed.barrier()

    def _diverged(self, what: str) -> Diverged:
        rates = ", ".join(f"{group['rate']:g}" for group in self.classifier.groups)
        return Diverged(
            f"{what} of the evaluation: lower the learning rate ({rates}) or evaluate in float32; "
            "an encoder whose features are not finite has diverged itself."
        )


def _is_due(saved: float) -> bool:
    return bool(distributed.broadcast_object(time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS))
