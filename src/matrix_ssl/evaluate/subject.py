"""The subject of an evaluation: a run's encoder, training images for the classifiers, and test images."""

import dataclasses
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
from matrix_ssl.runs.files import read_object
from matrix_ssl.runs.folder import SUMMARY, read_config


@dataclass(frozen=True)
class Subject:
    """An encoder and the labelled images on which it is evaluated."""

    run: Path  # a run folder with a finished encoder
    train: Source  # images on which classifiers are trained
    test: Source  # images on which accuracy is measured, with the same classes
    weights: encoders.Weights
    device: torch.device  # device for the computation
    drawn_from: str | None = None  # digest of the dataset from which ``train`` was split; None if it is the whole
    max_unreadable: float | None = None  # fraction of the images that may be unreadable; None: the run's setting

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the run, with this fraction of unreadable images."""
        config = read_config(self.run)
        part = config.data.max_unreadable if self.max_unreadable is None else self.max_unreadable
        return dataclasses.replace(config, data=dataclasses.replace(config.data, max_unreadable=part))

    @cached_property
    def encoder(self) -> nn.Module:
        """The encoder, in evaluation mode."""
        return encoders.load_encoder(self.run, weights=self.weights)

    @cached_property
    def untrained(self) -> tuple[nn.Module, int]:
        """The same network with its initial weights, and the number of its features."""
        return encoders.initialise_encoder(self.config)

    @cached_property
    def is_untrained(self) -> bool:
        """Whether the encoder is the untrained network, as that of ``random/NAME`` is."""
        initial, own = (checkpoint.digest(one.state_dict()) for one in (self.untrained[0], self.encoder))
        return initial == own

    @cached_property
    def folder(self) -> Path:
        """The folder of the results."""
        return results.folder_of(self.run, self.train, self.test, self.weights)

    @cached_property
    def question(self) -> dict[str, Any]:
        """Everything that determines a result, except the settings of the protocol."""
        data = self.config.data
        return {
            "weights": self.weights,
            "encoder_sha256": checkpoint.digest(self.encoder.state_dict()),
            "set": {"train": _describe(self.train), "test": _describe(self.test)},
            "images": [data.image_size, data.crop_fraction, data.mean, data.std]
            + ([data.white_level] if data.white_level else [])  # earlier versions' results lack it and the next ones
            + ([data.channels, data.value_range, data.pages] if data.channels or data.pages != "first" else [])
            + ([data.crop_mode] if data.crop_mode != "centre" else []),
        }

    @cached_property
    def is_own(self) -> bool:
        """Whether the images are those of the pre-training, or the latter are not known."""
        if digest := self.config.data.digest:
            return digest in (self.train.digest, self.drawn_from)
        data = read_object(self.run / SUMMARY).get("data")
        name = data.get("name") if isinstance(data, dict) else None
        return name in (None, self.train.name)

    def fingerprint(self, *settings: Any) -> str:
        """A digest of the question and of the given settings."""
        return results.fingerprint(self.question, *settings)


def _describe(source: Source) -> dict[str, Any]:
    classes = len(source.labelled()[1])
    return {"name": source.name, "images": len(source), "classes": classes, "digest": source.digest}
