"""The linear evaluation that papers report: a linear layer trained on frozen features of augmented images.

Unlike the regression of ``linear``, which is solved to convergence on features of central squares, its result depends
on a learning rate and a number of epochs. It is provided for comparison with published numbers.
"""

import copy
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.config.validation import settings
from matrix_ssl.data.base import Source
from matrix_ssl.evaluate.trained.classifier import Classifier, Outcome, Settings, check_splits, linear_head
from matrix_ssl.evaluate.trained.supervised import fit_and_score
from matrix_ssl.runs.display import Display


@settings
class LinearSGD(Settings):
    """How the linear layer is trained; the defaults are those of SimSiam's code with ``--lars``.

    Reference: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021; github.com/facebookresearch/
    simsiam, main_lincls.py. The optimizer there is LARC of github.com/NVIDIA/apex with a trust coefficient of 0.001 and
    no clipping, that is, LARS that scales the bias as well. Without weight decay it equals ``optim.LARS`` up to a
    constant of 1e-8 added to the norm of the gradient.
    """

    _: KW_ONLY
    optimizer: Literal["sgd", "lars"] = "lars"
    epochs: PositiveInt = 90
    batch_size: PositiveInt = 4096
    rate: PositiveFloat = 0.1  # for a batch of 256, so 1.6 for 4096
    batch_norm: bool = False  # standardise the features by the batch statistics, without learnable parameters


# github.com/xinliu20/MEC, benchmarks/linearprob (Liu et al., NeurIPS 2022): SimSiam's code with these changes
MEC = LinearSGD(epochs=100, rate=0.03, batch_norm=True)


def linear_sgd(
    encoder: nn.Module, feature_dim: int, train: Source, test: Source, data: DataConfig,
    *, settings: LinearSGD, folder: Path, device: torch.device, display: Display, seed: int = 0,
) -> Outcome:  # fmt: skip
    """Trains a linear layer on the frozen features of ``train`` and scores the images of ``test``.

    A copy of the encoder runs in evaluation mode and without gradients, so nothing in the encoder changes, including
    its BatchNorm statistics.

    Args:
        encoder: maps images (n, c, s, s) to features (n, feature_dim).
        data, folder, device, display, seed: as in ``supervised.fit_and_score``, whose errors are raised, too.

    Raises:
        DataError, ConfigError: as in ``classifier.check_splits``.
    """
    check_splits(train, test, data)
    head = linear_head(feature_dim, len(train.labelled()[1]), seed=seed)
    learner: nn.Module = head
    if settings.batch_norm:
        learner = nn.Sequential(nn.BatchNorm1d(feature_dim, affine=False, eps=1e-6), head)
    groups = [{"params": list(head.parameters()), "rate": settings.rate, "scale_vectors": True}]
    return fit_and_score(
        Classifier(copy.deepcopy(encoder), learner, groups), train, test, data,
        settings=settings, folder=folder, device=device, display=display, seed=seed,
    )  # fmt: skip
