"""Fine-tuning: the encoder and a linear layer on top of it are trained together, on all labels or only a few."""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import MinLen
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig
from matrix_ssl.config.validation import settings
from matrix_ssl.data.base import Source
from matrix_ssl.data.sources import split_source
from matrix_ssl.errors import Diverged
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.trained.classifier import Classifier, Outcome, Settings, check_splits, linear_head
from matrix_ssl.evaluate.trained.first_head import FrozenFeatures, frozen_features
from matrix_ssl.evaluate.trained.supervised import Fitted, fit, score
from matrix_ssl.runs.display import Display

_HELD_OUT = 0.2  # fraction of the labelled images on which learning rates are compared

# (encoder, head), for a batch of 256, from published runs with few ImageNet labels: Barlow Twins with 1 %, VICReg with
# 1 % and with 10 % (READMEs of github.com/facebookresearch/barlowtwins and github.com/facebookresearch/vicreg)
PUBLISHED_RATES = ((0.002, 0.5), (0.03, 0.08), (0.01, 0.1))


@settings
class FineTune(Settings):
    """How encoder and head are trained; the defaults are those of Barlow Twins with 1 % of ImageNet's labels.

    Reference: Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021;
    github.com/facebookresearch/barlowtwins, README and evaluate.py.
    """

    _: KW_ONLY
    optimizer: Literal["sgd", "lars"] = "sgd"
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 256
    # candidates (encoder, head); if there are several, the best on a held-out fifth of the labelled images is used
    rates: Annotated[tuple[tuple[PositiveFloat, PositiveFloat], ...], MinLen(1)] = PUBLISHED_RATES[:1]
    # the features that the head's rates are meant for: as they are, or "unit", with a mean square norm of 1. For
    # "unit", the rate of the weights is divided by the mean square norm before the first step, and that of the biases
    # by the number of features, so that a rate fits encoders of any scale and width
    scale: Literal["as_it_is", "unit"] = "as_it_is"
    # the head's weights before the first step; "regression": those of a logistic regression on the frozen features
    head: Literal["random", "regression"] = "random"
    # the statistics that BatchNorm uses in training: of the batch, or "kept", the running ones, which do not change
    statistics: Literal["batch", "kept"] = "batch"


# with all labels; 30 epochs, no decay and 0.16 for a batch of 1024 as in Chen et al., "Big Self-Supervised Models are
# Strong Semi-Supervised Learners", NeurIPS 2020, section 3 (the rate is not verified)
ALL_LABELS = FineTune(epochs=30, rates=((0.04, 0.04),))


class Tuned(NamedTuple):
    """A trained classifier, and how it was obtained."""

    classifier: Classifier
    fitted: Fitted  # its seconds are those of all trainings, including the candidates tried
    settings: FineTune  # those used, with one pair of rates
    held_out: tuple[float, ...] = ()  # accuracies by which the rates were chosen, one per candidate; 0 if it diverged


def fine_tune(
    encoder: nn.Module, feature_dim: int, train: Source, test: Source, data: DataConfig,
    *, settings: FineTune, folder: Path, device: torch.device, display: Display, seed: int = 0,
) -> Outcome:  # fmt: skip
    """Runs ``tune`` on ``train``, then scores the images of ``test``.

    Raises:
        DataError, ConfigError: as in ``classifier.check_splits``, and as ``tune``.
    """
    check_splits(train, test, data)
    tuned = tune(
        encoder, feature_dim, train, data, settings=[settings], folder=folder, device=device, display=display, seed=seed
    )
    outcome = score(tuned.classifier, tuned.fitted, test, data, device=device)
    return dataclasses.replace(outcome, held_out=tuned.held_out)


def tune(
    encoder: nn.Module, feature_dim: int, train: Source, data: DataConfig,
    *, settings: Sequence[FineTune], folder: Path, device: torch.device, display: Display, seed: int = 0,
) -> Tuned:  # fmt: skip
    """Trains a copy of the encoder and a linear head on ``train``.

    If BatchNorm uses batch statistics, they are those of the whole batch over all processes. Every pair of rates in
    each of the settings is a candidate. If there are several, they are first trained on four fifths of ``train``, each
    in its own folder inside ``folder``, and compared on the rest; a candidate that diverges is excluded.

    Args:
        encoder: maps images (n, c, s, s) to features (n, feature_dim); it is not changed.
        data, folder, device, display, seed: as in ``supervised.fit``, whose errors are raised, too.

    Raises:
        DataError: there are several candidates, and every class has a single image.
    """
    candidates = [dataclasses.replace(one, rates=(pair,)) for one in settings for pair in one.rates]
    features = functools.cache(functools.partial(frozen_features, encoder, data=data, device=device))

    def attempt(candidate: FineTune, learn: Source, where: Path) -> tuple[Classifier, Fitted]:
        classifier = attach_head(encoder, feature_dim, len(train.labelled()[1]), rates=candidate.rates[0], seed=seed)
        if candidate.scale == "unit" or candidate.head == "regression":
            classifier = _adjust_head(classifier, features(learn, statistics=candidate.statistics), candidate)
        if candidate.statistics == "kept":
            classifier = dataclasses.replace(classifier, keeps_statistics=True)
        return classifier, fit(
            classifier, learn, data, settings=candidate, folder=where, device=device, display=display, seed=seed
        )

    if len(candidates) == 1:
        return Tuned(*attempt(candidates[0], train, folder), candidates[0])
    learn, judge = split_source(train, _HELD_OUT, seed)
    accuracies: list[float] = []
    usable: list[int] = []  # candidates that did not diverge, even if their accuracy is 0
    seconds = cpu_seconds = 0.0
    for number, candidate in enumerate(candidates):
        ((encoder_rate, head_rate),) = candidate.rates
        display.say(f"trying the learning rates {encoder_rate:g} (encoder) and {head_rate:g} (head)")
        try:
            classifier, fitted = attempt(candidate, learn, folder / f"candidate-{number}")
        except Diverged as error:
            display.say(f"left out: {error}")
            accuracies.append(0.0)
            continue
        outcome = score(classifier, fitted, judge, data, device=device)
        usable.append(number)
        accuracies.append(accuracy(outcome.scores.argmax(dim=1), outcome.labels))
        seconds, cpu_seconds = seconds + fitted.seconds, cpu_seconds + fitted.cpu_seconds
    if not usable:
        raise Diverged("none of the pairs of learning rates can be used: try lower ones.")
    accuracies = distributed.broadcast_object(accuracies)  # the same choice everywhere, despite rounding
    best = max(usable, key=lambda number: accuracies[number])
    classifier, fitted = attempt(candidates[best], train, folder)
    fitted = fitted._replace(seconds=fitted.seconds + seconds, cpu_seconds=fitted.cpu_seconds + cpu_seconds)
    return Tuned(classifier, fitted, candidates[best], tuple(accuracies))


def attach_head(
    encoder: nn.Module, feature_dim: int, classes: int, *, rates: tuple[float, float], seed: int
) -> Classifier:
    """A classifier before training: a copy of the encoder and a new linear head, each with its learning rate."""
    learner = nn.Sequential(copy.deepcopy(encoder), linear_head(feature_dim, classes, seed=seed))
    groups = [{"params": list(part.parameters()), "rate": r} for part, r in zip(learner, rates, strict=True)]
    return Classifier(nn.Identity(), learner, groups)


def _adjust_head(classifier: Classifier, features: FrozenFeatures, settings: FineTune) -> Classifier:
    """Adapts the head, in place, and its rate to these features as the settings ask."""
    _, head = classifier.learner.children()
    assert isinstance(head, nn.Linear)
    groups = classifier.groups
    if settings.scale == "unit":  # features scaled up by a call for weights, and steps, scaled down by a
        *others, own = groups
        weight = {"params": [head.weight], "rate": own["rate"] / features.square_norm}
        bias = {"params": [head.bias], "rate": own["rate"] / head.in_features}
        groups = [*others, bias, weight]
    if settings.head == "regression":
        with torch.no_grad():
            for parameter, value in zip((head.weight, head.bias), features.regression(), strict=True):
                parameter.copy_(value)
    return dataclasses.replace(classifier, groups=groups, fitted_head=True)
