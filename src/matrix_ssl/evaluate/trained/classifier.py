"""The common parts of the protocols that train a classifier by gradient steps: settings, classifier, outcome."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig, Fraction, Precision, ViewConfig
from matrix_ssl.config.validation import settings
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.views.augment import normalise
from matrix_ssl.errors import ConfigError, DataError, some
from matrix_ssl.evaluate.probes.inputs import check_datasets

CROP_AND_FLIP = ViewConfig(crop_scale=(0.08, 1.0), flip=0.5)  # the supervised augmentation of ImageNet


@settings
class Settings:
    """How a classifier is trained; every protocol has its own values.

    Learning rates are for a batch of 256 and scale linearly with the batch size. In epoch e, from 0, a rate is its peak
    times (1 + cos(π e / epochs)) / 2. It changes only between epochs and without warm-up, as in the published code of
    SimSiam (main_lincls.py), Barlow Twins and VICReg (evaluate.py). A training of a few epochs should change it between
    steps (``decay``): in a single epoch it would not decrease at all. Images left over after an epoch's last full batch
    are not used in that epoch; the published code makes a smaller batch of them.
    """

    _: KW_ONLY
    optimizer: Literal["sgd", "lars"]
    epochs: PositiveInt
    batch_size: PositiveInt  # over all processes; a smaller dataset is one batch
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 0.0
    decay: Literal["epoch", "step"] = "epoch"  # the rates decrease after each of these
    view: ViewConfig = CROP_AND_FLIP
    precision: Precision = "auto"  # bfloat16 on GPUs that support it, otherwise float32; always float32 on CPUs


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores of images (n, c, s, s) as ``learner(frozen(images))``, (n, classes)."""

    frozen: nn.Module
    learner: nn.Module
    groups: list[dict[str, Any]]  # the learner's parameters, each group with its ``rate``; the head's group is last
    keeps_statistics: bool = False  # the learner's BatchNorm uses its running statistics in training, too
    fitted_head: bool = False  # weights and rate of the head, the learner's last part, are fitted to the images


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a trained classifier on the test images that could be read."""

    scores: Tensor  # float32 (m, classes), on the CPU
    labels: Tensor  # int64 (m,)
    indices: NDArray[np.int64]  # (m,), indices of the test images
    unreadable: list[tuple[str, str]]  # test images that are left out: path, reason
    train_accuracy: float  # over the random views of the last epoch, while the weights were changing
    seconds: float  # of training
    batch_size: int  # as used
    rates: tuple[float, ...]  # for a batch of 256, the head's last
    held_out: tuple[float, ...] = ()  # accuracies by which the rates were chosen, one per candidate; 0 if it diverged


def check_splits(train: Source, test: Source, data: DataConfig) -> None:
    """Rejects images on which no classifier can be trained and tested.

    Raises:
        DataError: labels are missing, the classes differ or are fewer than two, or one has no training image.
        ConfigError: the images do not have the number of channels that the encoder takes.
    """
    check_datasets(train, test)
    for part, source in (("training", train), ("test", test)):
        if source.channels != len(data.mean):
            raise ConfigError(
                f"{source.name!r} has {source.channels}-channel {part} images, but the encoder was trained on "
                f"{len(data.mean)}-channel images."
            )
    labels, classes = train.labelled()
    if absent := [classes[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)]:
        raise DataError(
            f"{len(absent)} of the {len(classes)} classes of {train.name!r} have no training image "
            f"({some(map(repr, absent))}): label at least one of each."
        )


def linear_head(feature_dim: int, classes: int, *, seed: int) -> nn.Linear:
    """A linear layer initialised as in the published protocols.

    The weights are drawn from a normal distribution of standard deviation 0.01, by the seed; the biases are zero.
    """
    head = nn.utils.skip_init(nn.Linear, feature_dim, classes)
    with torch.no_grad():
        head.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    return head


@torch.no_grad()
def score_images(
    classifier: Classifier, source: Source, data: DataConfig, *, device: torch.device
) -> tuple[Tensor, NDArray[np.int64], list[tuple[str, str]]]:
    """Scores the central squares of images in the precision of the learner's weights; DataError if none can be read.

    Returns scores float32 (m, classes) on the CPU, the indices (m,) of the readable images, and the unreadable ones.
    """
    classifier.learner.eval()
    dtype = next(classifier.learner.parameters()).dtype
    parts, indices, unreadable = [], [], []
    with distributed.alone():
        for chosen, pixels, problems in evaluation_batches(source, data, device=device):
            unreadable += problems
            if len(chosen):
                pixels = normalise(pixels, data.mean, data.std).to(dtype, memory_format=torch.channels_last)
                parts.append(classifier.learner(classifier.frozen(pixels)).float().cpu())
                indices.append(chosen)
        if not parts:
            raise DataError(f"none of the {len(source)} images of {source.name!r} can be read.")
    return torch.cat(parts), np.concatenate(indices), unreadable
