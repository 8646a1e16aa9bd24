"""Trains a classifier by gradient steps, for the protocols whose published form does so.

Scores are ``learner(frozen(image))``: the frozen part runs in evaluation mode without gradients, the learner is
trained with cross-entropy on one random view of every image.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig
from matrix_ssl.config.reading import READING
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import Batch, TrainingBatches, unreadable_images
from matrix_ssl.distributed.batch_norm import synchronise_batch_norm
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.trained.classifier import Classifier, Outcome, Settings, score_images
from matrix_ssl.runs import folder as folders
from matrix_ssl.runs.checkpoint import digest
from matrix_ssl.runs.devices import MixedPrecision
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import cannot_write
from matrix_ssl.runs.metrics import History
from matrix_ssl.training import batch_norm, optim
from matrix_ssl.training.engine import Engine
from matrix_ssl.training.task import Line, Task, TrainingPlan

_TRAINING = "training.json"


class Fitted(NamedTuple):
    """The facts that a finished training reports."""

    train_accuracy: float  # over the random views of the last epoch, while the weights were changing
    seconds: float
    cpu_seconds: float
    batch_size: int  # as used
    rates: tuple[float, ...]  # for a batch of 256, the head's last


def fit(
    classifier: Classifier, train: Source, data: DataConfig,
    *, settings: Settings, folder: Path, device: torch.device, display: Display, seed: int,
) -> Fitted:  # fmt: skip
    """Trains the learner in place, or resumes where an earlier call stopped.

    With several processes, each trains on its part of every batch.

    Args:
        train: labelled images that passed ``check_splits``.
        data: size and normalisation of the images.
        folder: the folder of this training; a finished training is loaded from it, and it may be removed once the
            outcome is stored.
        seed: random seed for the order of the images and their views. PyTorch's generator is reseeded at every step.
    """
    rates = tuple(group["rate"] for group in classifier.groups)
    training = ClassifierTraining(classifier, train, data, settings=settings, device=device, display=display, seed=seed)
    with distributed.together():
        _claim(folder, train, data, settings=settings, seed=seed, classifier=classifier)
    engine = Engine(training, folder)
    engine.run()
    training.renew_statistics(engine)
    if training.skipped:
        where, why = next(iter(training.skipped.items()))
        display.say(f"Replaced {len(training.skipped)} unreadable training images, the first one {where}: {why}.")
    counters = training.counters
    return Fitted(
        counters["train_accuracy"], counters["seconds"], counters["cpu_seconds"], training.plan.batch_size, rates
    )


def score(classifier: Classifier, fitted: Fitted, test: Source, data: DataConfig, *, device: torch.device) -> Outcome:
    """Scores test images with a trained classifier; with several processes, each scores all of them."""
    scores, indices, unreadable = score_images(classifier, test, data, device=device)
    return Outcome(
        scores=scores,
        labels=torch.from_numpy(test.labelled()[0][indices]),
        indices=indices,
        unreadable=unreadable,
        train_accuracy=fitted.train_accuracy,
        seconds=fitted.seconds,
        batch_size=fitted.batch_size,
        rates=fitted.rates,
    )


def fit_and_score(
    classifier: Classifier, train: Source, test: Source, data: DataConfig,
    *, settings: Settings, folder: Path, device: torch.device, display: Display, seed: int,
) -> Outcome:  # fmt: skip
    """Runs ``fit``, then ``score``; ``data`` also gives the central crop of the test images."""
    fitted = fit(classifier, train, data, settings=settings, folder=folder, device=device, display=display, seed=seed)
    return score(classifier, fitted, test, data, device=device)


class Step(NamedTuple):
    """The outputs of a step on this process's part of the batch."""

    loss: Tensor  # (), the mean cross-entropy
    accuracy: Tensor  # (), in [0, 1]


class ClassifierTraining(Task[Batch, Step]):
    """The training of a classifier's learner, in place, with the arguments of ``fit``."""

    def __init__(
        self,
        classifier: Classifier,
        source: Source,
        data: DataConfig,
        *,
        settings: Settings,
        device: torch.device,
        display: Display,
        seed: int,
    ):
        self.classifier, self.settings, self.source, self.workers = classifier, settings, source, data.workers
        self.precision = MixedPrecision.choose(settings.precision, device)
        size = _fitting_batch(settings, len(source), display)
        self.loader = TrainingBatches(
            source, dataclasses.replace(data, view_backend="torch"), (settings.view,), batch_size=size, seed=seed,
            rank=distributed.rank(), world_size=distributed.world_size(), device=device, dtype=self.precision.weights,
        )  # fmt: skip
        # in place, except for a learner that is a single layer
        synchronise_batch_norm(classifier.learner, device.type)
        for module in (classifier.frozen.eval(), classifier.learner):
            self.precision.place(module)
        optimizer = optim.build_optimizer(
            classifier.learner, name=settings.optimizer, momentum=settings.momentum,
            weight_decay=settings.weight_decay, groups=classifier.groups,
        )  # fmt: skip
        rates = ", ".join(f"{group['rate']:g}" for group in classifier.groups)
        plan = TrainingPlan(
            seed=seed,
            images=len(source),
            batch_size=size,
            total_steps=settings.epochs * self.loader.steps_per_epoch,
            steps_per_epoch=self.loader.steps_per_epoch,
            max_bad_steps=1,
            advice=f"Lower the learning rate ({rates}) or evaluate in float32; an encoder whose features are not "
            "finite has diverged itself.",
            max_unreadable=data.max_unreadable,
            unreadable_option="--max-unreadable ",
        )
        super().__init__(classifier.learner, optimizer, plan, display=display)
        self.labels = torch.from_numpy(source.labelled()[0]).to(device)
        # sums over the steps of the current epoch, and the accuracy of the last complete one
        self.counters |= {"loss": 0.0, "right": 0.0, "train_accuracy": 0.0}

    def train_mode(self) -> None:
        super().train_mode()
        if self.classifier.keeps_statistics:
            batch_norm.keep_statistics(self.module)

    def renew_statistics(self, engine: Engine[Batch, Step]) -> None:
        """Recomputes BatchNorm's statistics if the training was too short for the running ones.

        They are averaged over random views of the training images; the result depends only on the trained weights."""
        if self.classifier.keeps_statistics or not batch_norm.are_stale(self.module, self.plan.total_steps):
            return
        first, steps = self.plan.total_steps, -(-batch_norm.VIEWS // self.plan.batch_size)
        self.module.eval()
        for layer in batch_norm.layers(self.module):
            layer.train()
        with (
            torch.no_grad(),
            batch_norm.averaged(self.module),
            contextlib.closing(engine.read(first, first + steps)) as batches,
        ):
            for batch in batches:
                with self.precision.autocast():
                    self.module(self.classifier.frozen(batch.views[0]))

    def find_unreadable(self) -> Iterable[tuple[str, str]]:
        return unreadable_images(self.source, workers=self.workers)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        yield from self.loader.iterate(start, stop)

    def learning_rate(self, step: int) -> float:
        """The factor for every group's learning rate: half a cosine over the epochs, or over the steps."""
        peak, total, done = self.plan.batch_size / 256, self.settings.epochs, step // self.plan.steps_per_epoch
        if self.settings.decay == "step":
            total, done = self.plan.total_steps, step
        return optim.learning_rate(done, total_steps=total, warmup_steps=0, peak=peak)

    def compute(self, forward: nn.Module, batch: Batch) -> Step:
        labels = self.labels[torch.from_numpy(batch.indices).to(self.device)]
        with self.precision.autocast():
            with torch.no_grad():
                features = self.classifier.frozen(batch.views[0])
            scores = forward(features)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        loss = F.cross_entropy(scores, labels)
        return Step(loss, (scores.argmax(1) == labels).to(loss.dtype).mean())

    def after_step(self, batch: Batch, output: Step) -> None:
        """Adds the means over all processes to the sums of the epoch."""
        mine = torch.stack([output.loss.detach(), output.accuracy])
        losses, right = zip(*distributed.gather(mine[None], sizes=[1] * distributed.world_size()).tolist(), strict=True)
        self.counters["loss"] += sum(losses) / len(losses)
        self.counters["right"] += sum(right) / len(right)

    def is_logged(self) -> bool:
        return self.step % self.plan.steps_per_epoch == 0

    def describe(self, output: Step, history: History) -> Line:
        """Means over the epoch."""
        steps = self.plan.steps_per_epoch
        loss, accuracy = self.counters["loss"] / steps, self.counters["right"] / steps
        self.counters |= {"loss": 0.0, "right": 0.0, "train_accuracy": accuracy}
        return {
            "step": self.step,
            "epoch": self.step // steps,
            "seconds": round(self.counters["seconds"], 3),
            "loss": loss,
            "train_accuracy": accuracy,
            "learning_rate": self.optimizer.param_groups[-1]["lr"],  # the head's
        }

    def terms(self, output: Step) -> tuple[str, ...]:
        return ("train_accuracy",)


def _claim(
    folder: Path, source: Source, data: DataConfig, *, settings: Settings, seed: int, classifier: Classifier
) -> None:
    """Records in the folder what is trained there, or checks that it is the same; images are compared by content."""
    if not distributed.is_main():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    learner, rates = classifier.learner, {"rates": [group["rate"] for group in classifier.groups]}
    if classifier.fitted_head:  # determined by settings and images, up to the last digits, in which machines differ
        learner, rates = next(learner.children()), {}
    description = {
        "settings": dataclasses.asdict(settings) | rates,
        "seed": seed,
        "images": {"classes": source.classes, "digest": source.digest},
        "data": {name: getattr(data, name) for name in ("image_size", "mean", "std")}
        | {name: value for name in READING if (value := getattr(data, name)) not in (0, (), "first")},
        "weights": {"frozen": digest(classifier.frozen.state_dict()), "learner": digest(learner.state_dict())},
    }
    folders.claim(folder, description, first=_TRAINING)


def _fitting_batch(settings: Settings, images: int, display: Display) -> int:
    processes = distributed.world_size()
    fitting = min(settings.batch_size, images // processes * processes)
    if not fitting:
        raise ConfigError(f"{images} training images for {processes} processes: start fewer processes.")
    if fitting < settings.batch_size:
        display.say(
            f"Batch size reduced from {settings.batch_size} to {fitting}, the number of training images; learning rate "
            "scaled accordingly."
        )
    return fitting
