"""The settings of a detection run, with the published values as defaults, and the schedule that follows from them.

Numbers of iterations and the learning rate are given for batches of 16 images, as in the papers. Another batch size
keeps the number of images and follows the linear scaling rule: b times the batch size means a b-th of the iterations
and b times the learning rate (Goyal et al., arXiv 1706.02677, 2017).

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

BATCH = 16  # images per iteration in the papers
SCHEDULES = {"1x": 90_000, "2x": 180_000}  # iterations
Architecture = Literal["fpn", "c4"]
Schedule = Literal["1x", "2x"]

# settings that do not affect what a run computes
MAY_CHANGE = ("workers", "max_unreadable", "log_every", "checkpoint_every", "max_bad_steps")
Pixels = Annotated[int, Ge(32)]  # side of an image


def _increasing(values: tuple[float, ...], *, end: float = math.inf) -> tuple[float, ...]:
    if not all(a < b for a, b in itertools.pairwise((0, *values, end))):
        raise ValueError
    return values


@settings
class DetectionSettings:
    """Everything that determines what a detection run computes, except images, annotations and encoder."""

    architecture: Architecture = "c4"  # c4: heads on the last stage of the encoder; fpn: a feature pyramid
    schedule: Schedule = "1x"
    masks: bool = True  # learn and score masks as well as boxes; False: Faster R-CNN
    seed: Seed = 0
    batch_size: PositiveInt = BATCH  # images, over all processes
    iterations: NonNegativeInt = 0  # number of batches of 16 images; 0: that of the schedule
    epochs: NonNegativeFloat = 0.0  # passes over the training images instead of iterations; 0: use iterations
    learning_rate: NonNegativeFloat = 0.02  # for a batch of 16
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 1e-4  # for all parameters except BatchNorm's
    warmup: NonNegativeInt = 1000  # linear warm-up, in batches of 16; at most half of the training
    # fractions of the training after which the learning rate drops
    decay_at: Annotated[
        tuple[float, ...], AfterValidator(partial(_increasing, end=1)), "increasing fractions between 0 and 1"
    ] = (2 / 3, 8 / 9)
    decay: Fraction = 0.1  # factor of each drop
    # shorter side in pixels, drawn at random for each image
    train_sizes: Annotated[tuple[Pixels, ...], MinLen(1)] = (640, 672, 704, 736, 768, 800)
    train_longest: Pixels = 1333  # maximum longer side, pixels
    test_size: Pixels = 800
    test_longest: Pixels = 1333
    flip: Fraction = 0.5  # probability of a left-right flip in training
    # sides in pixels
    anchor_sizes: Annotated[
        tuple[float, float, float, float, float], AfterValidator(_increasing), "five increasing sides above 0"
    ] = (32, 64, 128, 256, 512)
    # channels of the pyramid and of the layers that predict masks; fpn uses four times as many to describe a box
    head_width: PositiveInt = 256
    anchors: Annotated[int, Ge(2)] = 256  # per image, in the proposal loss
    regions: Annotated[int, Ge(4)] = 512  # proposals per image, in the box and mask losses
    score_threshold: Fraction = 0.05  # detections with lower scores are dropped
    detections: PositiveInt = 100  # maximum per image
    # iterations over which BatchNorm's statistics are averaged after training; 0: keep the running averages
    precise_bn: NonNegativeInt = 200
    bootstrap: NonNegativeInt = 200  # resamples of the images for the intervals of AP; 0: no intervals
    precision: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; weights and losses are float32
    workers: Annotated[int, Ge(0), Le(64)] = 4  # threads per process that read images; 0: none
    max_unreadable: Fraction = 0.01  # fraction of the images that may be unreadable before a run ends; ten always may
    log_every: PositiveInt = 20  # iterations between two lines of metrics.jsonl
    checkpoint_every: PositiveInt = 1000  # iterations
    max_bad_steps: PositiveInt = 3  # consecutive iterations with a non-finite loss or gradient before the run stops

    def __post_init__(self) -> None:
        """Raises ConfigError for values that contradict each other."""
        for name, longest, side in (("train_longest", self.train_longest, max(self.train_sizes)),
                                    ("test_longest", self.test_longest, self.test_size)):  # fmt: skip
            if longest < side:
                raise ConfigError(f"{name}={longest} is less than a shorter side of {side} pixels.")
        if self.iterations and self.epochs:
            raise ConfigError(f"iterations={self.iterations} and epochs={self.epochs:g}: set one of them.")


def check_processes(settings: DetectionSettings, processes: int) -> None:
    """Raises ConfigError unless the batch size is divisible by the number of processes."""
    if settings.batch_size % processes:
        raise ConfigError(f"batch_size={settings.batch_size} is not divisible by {processes} processes.")


# settings that earlier versions did not have, with the values that their runs used
LATER = {"masks": True, "head_width": 256, "precision": "float32"}


@dataclass(frozen=True)
class Plan:
    """How long a run trains, and the learning rate of each iteration."""

    total: int  # iterations
    warmup: int
    decays: tuple[int, ...]  # first iterations at each lower rate
    peak: float
    decay: float

    def learning_rate(self, iteration: int) -> float:
        """Linear warm-up to ``peak``, then a drop by the factor ``decay`` at each of ``decays``."""
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
