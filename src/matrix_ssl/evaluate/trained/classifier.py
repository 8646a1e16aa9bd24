"""What the protocols that train a classifier by gradient steps have in common: settings, classifier, outcome."""

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
from matrix_ssl.data.augment import normalise
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.inputs import check_datasets

CROP_AND_FLIP = ViewConfig(crop_scale=(0.08, 1.0), flip=0.5)  # the supervised augmentation of ImageNet


@settings
class Settings:
    """How a classifier is trained; every protocol has its own values.

    Rates are for a batch of 256 and follow the batch linearly. In epoch e, from 0, a rate is its peak times
    (1 + cos(π e / epochs)) / 2: it changes between epochs only, without a warm-up, as in the published code of
    SimSiam (main_lincls.py), Barlow Twins and VICReg (evaluate.py). A training of a few epochs should change it between
    steps (``decay``): in a single epoch it would not decrease at all. What is left over of an epoch after its last
    whole batch is not seen in it; the published code makes a smaller batch of it.
    """

    _: KW_ONLY
    optimizer: Literal["sgd", "lars"]
    epochs: PositiveInt
    batch_size: PositiveInt  # over all processes; of a smaller dataset, the whole of it
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 0.0
    decay: Literal["epoch", "step"] = "epoch"  # after which a rate decreases
    view: ViewConfig = CROP_AND_FLIP
    precision: Precision = "auto"  # bfloat16 on GPUs that have it, else float32, on CPUs always


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores of images (n, c, s, s) as ``learner(frozen(images))``, (n, classes)."""

    frozen: nn.Module
    learner: nn.Module
    groups: list[dict[str, Any]]  # the learner's parameters, each group with its ``rate``, that of the head last
    keeps_statistics: bool = False  # BatchNorm of the learner normalises by its running statistics in training, too
    fitted_head: bool = False  # weights and rate of the head, the learner's last part, are fitted to the images


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained classifier on the test images that could be read."""

    scores: Tensor  # float32 (m, classes), on the CPU
    labels: Tensor  # int64 (m,)
    indices: NDArray[np.int64]  # (m,), which test images
    unreadable: list[tuple[str, str]]  # test images that are left out: where, why
    train_accuracy: float  # over the random views of the last epoch, while the weights changed
    seconds: float  # of training
    batch_size: int  # that was used
    rates: tuple[float, ...]  # for a batch of 256, that of the head last
    held_out: tuple[float, ...] = ()  # accuracies that the rates were chosen by, one a candidate; 0 if it diverged


def check_splits(train: Source, test: Source, data: DataConfig) -> None:
    """Refuses images that no classifier can be trained and judged on.

    Raises:
        DataError: labels are missing, the classes differ or are fewer than two, or one has no training image.
        ConfigError: the images do not have the channels that the encoder takes.
    """
    check_datasets(train, test)
    for part, source in (("training", train), ("test", test)):
        if source.channels != len(data.mean):
            raise ConfigError(
                f"the {part} images of {source.name!r} have {source.channels} channels, "
                f"the encoder was trained on {len(data.mean)}."
            )
    labels, classes = train.labelled()
    if absent := [classes[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)]:
        names = ", ".join(map(repr, absent[:8]))
        raise DataError(
            f"{len(absent)} of the {len(classes)} classes of {train.name!r} have no training image ({names}): "
            "label at least one of each."
        )


def linear_head(feature_dim: int, classes: int, *, seed: int) -> nn.Linear:
    """A linear layer with weights from a normal distribution of standard deviation 0.01, a function of the seed, and
    biases of zero: the start of the published protocols."""
    head = nn.utils.skip_init(nn.Linear, feature_dim, classes)
    with torch.no_grad():
        head.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(seed))
        head.bias.zero_()
    return head


@torch.no_grad()
def score_images(
    classifier: Classifier, source: Source, data: DataConfig, *, device: torch.device
) -> tuple[Tensor, NDArray[np.int64], list[tuple[str, str]]]:
    """Scores of images as central squares, in the precision of the learner's weights: float32 (m, classes) on the CPU,
    the indices (m,) of the images that could be read, and the unreadable ones. DataError if none can be read.
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
