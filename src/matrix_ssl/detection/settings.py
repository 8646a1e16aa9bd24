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
from typing import Literal

from matrix_ssl.errors import ConfigError

BATCH = 16  # images of an iteration in the papers
SCHEDULES = {"1x": 90_000, "2x": 180_000}  # iterations
Architecture = Literal["fpn", "c4"]
Schedule = Literal["1x", "2x"]

# settings that do not decide what a run computes
MAY_CHANGE = ("workers", "log_every", "checkpoint_every", "max_bad_steps")


@dataclass(frozen=True)
class DetectionSettings:
    """Everything but images, annotations and encoder that decides what a detection run computes."""

    architecture: Architecture = "c4"  # c4: heads on the last stage of the encoder; fpn: a feature pyramid
    schedule: Schedule = "1x"
    seed: int = 0
    batch_size: int = BATCH  # images, over all processes
    iterations: int = 0  # of batches of 16 images; 0: those of the schedule, 90000 or 180000
    epochs: float = 0.0  # passes over the training images, in the place of iterations; 0: iterations count
    learning_rate: float = 0.02  # for a batch of 16
    momentum: float = 0.9
    weight_decay: float = 1e-4  # of all parameters but those of BatchNorm
    warmup: int = 1000  # iterations of batches of 16, linear; half of the training at most
    decay_at: tuple[float, ...] = (2 / 3, 8 / 9)  # parts of the training after which the rate falls
    decay: float = 0.1  # factor of each fall
    train_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # shorter side in pixels, one drawn for each image
    train_longest: int = 1333  # longer side at most, pixels
    test_size: int = 800
    test_longest: int = 1333
    flip: float = 0.5  # probability of a left-right flip in training
    anchor_sizes: tuple[float, float, float, float, float] = (32, 64, 128, 256, 512)  # sides in pixels; rising
    anchors: int = 256  # for each image in the loss of the proposals
    regions: int = 512  # proposals for each image in the losses of boxes and masks
    score_threshold: float = 0.05  # detections below it are dropped
    detections: int = 100  # for each image at most
    precise_bn: int = (
        200  # iterations over which BatchNorm's statistics are averaged after training; 0: left as they are
    )
    bootstrap: int = 200  # resamples of the images for the intervals of AP; 0: none
    workers: int = 4  # threads of each process that read images; 0: none
    log_every: int = 20  # iterations between two lines of metrics.jsonl
    checkpoint_every: int = 1000  # iterations
    max_bad_steps: int = 3  # iterations in a row with a loss or gradient that is not finite before the run stops


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "batch_size": (1, math.inf),
    "iterations": (0, math.inf),
    "epochs": (0, math.inf),
    "learning_rate": (0, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "warmup": (0, math.inf),
    "decay": (0, 1),
    "train_longest": (32, math.inf),
    "test_size": (32, math.inf),
    "test_longest": (32, math.inf),
    "flip": (0, 1),
    "anchors": (2, math.inf),
    "regions": (4, math.inf),
    "score_threshold": (0, 1),
    "detections": (1, math.inf),
    "precise_bn": (0, math.inf),
    "bootstrap": (0, math.inf),
    "workers": (0, 64),
    "log_every": (1, math.inf),
    "checkpoint_every": (1, math.inf),
    "max_bad_steps": (1, math.inf),
}


def check_settings(settings: DetectionSettings, *, processes: int) -> None:
    """Raises ConfigError for a value outside the range in which it means something."""
    for key, (low, high) in _RANGES.items():
        value = getattr(settings, key)
        if not low <= value <= high:
            upper = f" and at most {high:g}" if high < 2**53 else ""
            raise ConfigError(f"{key}={value}: expected at least {low:g}{upper}.")
    if not settings.train_sizes or min(settings.train_sizes) < 32:
        raise ConfigError(
            f"train_sizes={settings.train_sizes}: expected sides of at least 32 pixels, with commas between."
        )
    for longest, sides in (("train_longest", settings.train_sizes), ("test_longest", (settings.test_size,))):
        if getattr(settings, longest) < max(sides):
            raise ConfigError(
                f"{longest}={getattr(settings, longest)} is less than a shorter side of {max(sides)} pixels."
            )
    if not _rising((0, *settings.anchor_sizes)):
        raise ConfigError(f"anchor_sizes={settings.anchor_sizes}: expected five rising sides above zero.")
    if not _rising((0, *settings.decay_at, 1)):
        raise ConfigError(f"decay_at={settings.decay_at}: expected rising parts between 0 and 1.")
    if settings.iterations and settings.epochs:
        raise ConfigError(f"iterations={settings.iterations} and epochs={settings.epochs:g}: give one of them.")
    if settings.batch_size % processes:
        raise ConfigError(f"batch_size={settings.batch_size} does not divide by {processes} processes.")


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
    total = settings.epochs * images / settings.batch_size if settings.epochs else iterations * scale
    total = max(1, round(total))
    return Plan(
        total=total,
        warmup=min(round(settings.warmup * scale), total // 2),
        decays=tuple(round(part * total) for part in settings.decay_at),
        peak=settings.learning_rate / scale,
        decay=settings.decay,
    )


def _rising(values: tuple[float, ...]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))
