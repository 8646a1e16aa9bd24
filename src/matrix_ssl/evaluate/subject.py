"""What is evaluated on what: the encoder of a run, a set to learn from and a set to be judged by."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matrix_ssl import encoder as encoders
from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.evaluate import results
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.folder import read_config


@dataclass(frozen=True)
class Subject:
    """An encoder and the labelled images that it is evaluated on.

    Args:
        run: a run folder with a finished encoder.
        train: images that classifiers learn from.
        test: images that accuracy is measured on, with the same classes.
        weights: student or teacher.
        device: where the work is done.
        drawn_from: digest of the dataset that ``train`` is a part of, where it is not the whole.
    """

    run: Path
    train: Source
    test: Source
    weights: encoders.Weights
    device: torch.device
    drawn_from: str | None = None

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return read_config(self.run)

    @cached_property
    def encoder(self) -> nn.Module:
        """The encoder, in evaluation mode."""
        return encoders.load_encoder(self.run, weights=self.weights)

    @cached_property
    def untrained(self) -> tuple[nn.Module, int]:
        """The same network with its initial weights, and the width of its features."""
        return encoders.initialise_encoder(self.config)

    @cached_property
    def folder(self) -> Path:
        """Where the results are written."""
        return results.folder_of(self.run, self.train, self.test, self.weights)

    @cached_property
    def question(self) -> dict[str, Any]:
        """What decides a result, except for the settings of the protocol."""
        data = self.config.data
        return {
            "weights": self.weights,
            "encoder_sha256": checkpoint.digest(self.encoder.state_dict()),
            "set": {"train": _describe(self.train), "test": _describe(self.test)},
            "images": [data.image_size, data.crop_fraction, data.mean, data.std],
        }

    def fingerprint(self, *settings: Any) -> str:
        """A digest of the question and of settings."""
        return results.fingerprint(self.question, *settings)


def _describe(source: Source) -> dict[str, Any]:
    assert source.classes is not None  # checked before
    return {"name": source.name, "images": len(source), "classes": len(source.classes), "digest": source.digest}
