"""The settings of a detection run, with the published values as defaults, and what they say about each iteration.

Numbers of iterations and the learning rate are given for batches of 16 images, as in the papers. Another batch keeps
the number of images and follows the linear rule: b times the batch, a b-th of the iterations, b times the learning
rate (Goyal et al., arXiv 1706.02677, 2017).

The defaults are those of He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
section 4.2 and appendix, and of the configuration files published with it.
"""

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveInt

from matrix_ssl.config import Fraction, Seed
from matrix_ssl.config.validation import settings
from matrix_ssl.errors import ConfigError

BATCH = 16  # images of an iteration in the papers
SCHEDULES = {"1x": 90_000, "2x": 180_000}  # iterations
Architecture = Literal["fpn", "c4"]
Schedule = Literal["1x", "2x"]

# settings that do not decide what a run computes
MAY_CHANGE = ("workers", "max_unreadable", "log_every", "checkpoint_every", "max_bad_steps")
Pixels = Annotated[int, Ge(32)]  # side of an image


def _increasing(values: tuple[float, ...], *, end: float = math.inf) -> tuple[float, ...]:
    if not all(a < b for a, b in itertools.pairwise((0, *values, end))):
        raise ValueError
    return values


@settings
class DetectionSettings:
    """Everything but images, annotations and encoder that decides what a detection run computes."""

    architecture: Architecture = "c4"  # c4: heads on the last stage of the encoder; fpn: a feature pyramid
    schedule: Schedule = "1x"
    masks: bool = True  # whether masks are learned and scored beside boxes; without: Faster R-CNN
    seed: Seed = 0
    batch_size: PositiveInt = BATCH  # images, over all processes
    iterations: NonNegativeInt = 0  # of batches of 16 images; 0: those of the schedule
    epochs: NonNegativeFloat = 0.0  # passes over the training images instead of iterations; 0: iterations count
    learning_rate: NonNegativeFloat = 0.02  # for a batch of 16
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 1e-4  # of all parameters but those of BatchNorm
    warmup: NonNegativeInt = 1000  # iterations of batches of 16, linear; half of the training at most
    # fractions of the training after which the rate falls
    decay_at: Annotated[
        tuple[float, ...], AfterValidator(partial(_increasing, end=1)), "increasing fractions between 0 and 1"
    ] = (2 / 3, 8 / 9)
    decay: Fraction = 0.1  # factor of each fall
    # shorter side in pixels, one drawn for each image
    train_sizes: Annotated[tuple[Pixels, ...], MinLen(1)] = (640, 672, 704, 736, 768, 800)
    train_longest: Pixels = 1333  # longer side at most, pixels
    test_size: Pixels = 800
    test_longest: Pixels = 1333
    flip: Fraction = 0.5  # probability of a left-right flip in training
    # sides in pixels
    anchor_sizes: Annotated[
        tuple[float, float, float, float, float], AfterValidator(_increasing), "five increasing sides above 0"
    ] = (32, 64, 128, 256, 512)
    # channels of the pyramid and of the layers that predict masks; fpn describes a box by four times as many
    head_width: PositiveInt = 256
    anchors: Annotated[int, Ge(2)] = 256  # for each image in the loss of the proposals
    regions: Annotated[int, Ge(4)] = 512  # proposals for each image in the losses of boxes and masks
    score_threshold: Fraction = 0.05  # detections below it are dropped
    detections: PositiveInt = 100  # for each image at most
    # iterations over which BatchNorm's statistics are averaged after training; 0: the running averages stay
    precise_bn: NonNegativeInt = 200
    bootstrap: NonNegativeInt = 200  # resamples of the images for the intervals of AP; 0: none
    precision: Literal["float32", "bfloat16"] = "float32"  # of the layers' forward; weights and losses are float32
    workers: Annotated[int, Ge(0), Le(64)] = 4  # threads of each process that read images; 0: none
    max_unreadable: Fraction = 0.01  # part of the images that may be unreadable before a run ends; ten always may
    log_every: PositiveInt = 20  # iterations between two lines of metrics.jsonl
    checkpoint_every: PositiveInt = 1000  # iterations
    max_bad_steps: PositiveInt = 3  # iterations in a row with a loss or gradient not finite before the run stops

    def __post_init__(self) -> None:
        """Raises ConfigError for values that contradict each other."""
        for name, longest, side in (("train_longest", self.train_longest, max(self.train_sizes)),
                                    ("test_longest", self.test_longest, self.test_size)):  # fmt: skip
            if longest < side:
                raise ConfigError(f"{name}={longest} is less than a shorter side of {side} pixels.")
        if self.iterations and self.epochs:
            raise ConfigError(f"iterations={self.iterations} and epochs={self.epochs:g}: set one of them.")


def check_processes(settings: DetectionSettings, processes: int) -> None:
    """Raises ConfigError unless the batch divides by the number of processes."""
    if settings.batch_size % processes:
        raise ConfigError(f"batch_size={settings.batch_size} does not divide by {processes} processes.")


# settings that earlier versions did not have, with the values that their runs were computed with
LATER = {"masks": True, "head_width": 256, "precision": "float32"}


@dataclass(frozen=True)
class Plan:
    """How long a run trains, and the learning rate of each iteration."""

    total: int  # iterations
    warmup: int
    decays: tuple[int, ...]  # first iterations with a lower rate
    peak: float
    decay: float

    def learning_rate(self, iteration: int) -> float:
        """Linear warm-up to ``peak``, which then falls by the factor ``decay`` at each of ``decays``."""
        if iteration < self.warmup:
            return self.peak * (iteration + 1) / (self.warmup + 1)
        return self.peak * self.decay ** sum(iteration >= first for first in self.decays)


def make_plan(settings: DetectionSettings, *, images: int) -> Plan:
    """The schedule for a number of training images."""
    scale = BATCH / settings.batch_size
    iterations = settings.iterations or SCHEDULES[settings.schedule]
    length = settings.epochs * images / settings.batch_size if settings.epochs else iterations * scale
    total = max(1, round(length))
    return Plan(
        total=total,
        warmup=min(round(settings.warmup * scale), total // 2),
        decays=tuple(round(part * total) for part in settings.decay_at),
        peak=settings.learning_rate / scale,
        decay=settings.decay,
    )
