"""Pre-training as a scikit-learn transformer from images to features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from matrix_ssl.api import evaluation
from matrix_ssl.api.pretraining import pretrain
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.data.loading import largest_batch
from matrix_ssl.data.objects import as_data
from matrix_ssl.errors import UnreadableImage
from matrix_ssl.methods import Method
from matrix_ssl.runs.files import temporary_folder

_MOST = 2**31 - 1


class EncoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learns an encoder from images without labels; ``transform`` returns their features.

    ``X`` is anything that ``pretrain`` accepts as ``data``. Labels ``y`` are ignored, so a pipeline may end in a
    classifier. ``fit`` leaves out images that cannot be read, as ``pretrain`` does; ``transform`` raises an error for
    them, since every image must have a row.

    Args:
        recipe: a name listed by ``matrix-ssl recipes``; the default is meant for a CPU.
        encoder: an architecture, or a module that maps images to features (n, k).
        method: a name, a Python file or a class; None: the recipe's method.
        epochs: passes over the images; None: the recipe's number.
        batch_size: images per step; None: the recipe's batch size or, with fewer images than that, the largest power of
            two that fits.
        settings: settings of the run by their full names, such as ``{"data.image_size": 32}``.
        random_state: the seed of the run.
        out: a folder for the run, from which a later ``fit`` resumes; None: a temporary folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        verbose: show progress.

    Attributes:
        encoder_: the encoder, a module in evaluation mode with ``preprocess``.
        config_: the settings of the run.
        metrics_: the lines of the run's metrics.
        n_features_in_: values per image (height times width times channels), if all images have the same shape.
    """

    def __init__(
        self,
        *,
        recipe: str = "images_small",
        encoder: str | nn.Module | None = None,
        method: str | type[Method] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = None,
        out: str | Path | None = None,
        device: str = "auto",
        verbose: bool = False,
    ):
        self.recipe = recipe
        self.encoder = encoder
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.settings = settings
        self.random_state = random_state
        self.out = out
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Pre-trains on the images; ``y`` is ignored."""
        data = as_data(X)
        source = open_source(data, split="train", data_root=None)
        keywords: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self._batch_size(len(source)),
            "seed": self._seed(),
        }
        with temporary_folder() as temporary:
            run = pretrain(
                data, recipe=self.recipe, encoder=self.encoder, method=self.method,
                out=temporary / "run" if self.out is None else self.out, settings=self.settings or {},
                report=self.out is not None, quiet=not self.verbose, device=self.device,
                **{name: value for name, value in keywords.items() if value is not None},
            )  # fmt: skip
            self.encoder_ = run.encoder()
            self.config_ = run.config
            self.metrics_ = run.metrics
        self.__dict__.pop("n_features_in_", None)  # of an earlier fit
        if source.images is not None:
            self.n_features_in_ = source.images[0].numel()
        images = self.config_.data
        with torch.no_grad():
            features = self.encoder_(torch.zeros(1, len(images.mean), images.image_size, images.image_size))
        self._n_features_out = features.shape[1]  # where scikit-learn looks for it
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The features (n, k) of the images, one row per image.

        Raises:
            DataError: ``X`` does not hold images.
            UnreadableImage: an image cannot be read, so there would be no row for it.
        """
        check_is_fitted(self)
        embedding = evaluation.embed(
            self.encoder_, self.config_.data, as_data(X), device=self.device, quiet=not self.verbose
        )
        if embedding.unreadable:
            raise UnreadableImage(*embedding.unreadable[0])
        return embedding.features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags

    def _batch_size(self, images: int) -> int | None:
        usual = find_recipe(self.recipe).batch_size
        return largest_batch(images) if self.batch_size is None and images < usual else self.batch_size

    def _seed(self) -> int | None:
        return None if self.random_state is None else int(check_random_state(self.random_state).randint(_MOST))
