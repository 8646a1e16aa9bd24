"""Frozen public encoders to compare with a run's, by reference; each uses its own image size and normalisation."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.errors import ConfigError, is_out_of_memory
from matrix_ssl.runs import checkpoint

Sizes = Literal["own", "run", "both"]

_OWN = ("mean", "std", "crop_fraction", "crop_mode")  # preparation of images that belongs to an encoder


@dataclass(frozen=True, eq=False)
class Baseline:
    """An encoder that is not trained here, and the preparation of its images."""

    name: str  # short and unique among the baselines; includes the image size
    reference: str  # as the user wrote it
    encoder: nn.Module  # in evaluation mode; maps normalised images (n, c, s, s) to features (n, k)
    data: DataConfig  # size, normalisation and central crop of its images
    sha256: str  # of the file that it was read from, or of its tensors if they are not in one file
    tensors: str  # human-readable: where they come from and how many there are

    def beside(self, run: DataConfig) -> "Baseline":
        """The same encoder for comparison with a run on other images, with its own size and normalisation."""
        own = {name: getattr(self.data, name) for name in ("image_size", *_OWN)}
        return dataclasses.replace(self, data=dataclasses.replace(run, **own))

    def describe(self) -> dict[str, Any]:
        """The facts about it that are stored as JSON."""
        return {
            "reference": self.reference,
            "sha256": self.sha256,
            "tensors": self.tensors,
            "image_size": self.data.image_size,
            "crop_fraction": self.data.crop_fraction,
            **({"crop_mode": self.data.crop_mode} if self.data.crop_mode != "centre" else {}),
            "mean": self.data.mean,
            "std": self.data.std,
        }


def open_baselines(
    references: Sequence[str], run: DataConfig, *, sizes: Sizes = "own", download: bool = False
) -> list[Baseline]:
    """Opens the encoders of ``references``, each once per image size that ``sizes`` asks for.

    Args:
        references: encoders in any form that ``open_encoder`` accepts.
        run: the image settings of the run that they are compared with.
        sizes: ``"own"``, the image size that the encoder was trained on; ``"run"``, that of the run, with the encoder's
            own normalisation; or ``"both"``, only once if the two are equal.
        download: as for ``open_encoder``.

    Raises:
        CheckpointError, ConfigError, RunFolderError: as ``open_encoder``.
        ConfigError: a reference is given twice, or an encoder does not take images of the run's size.
    """
    if twice := [reference for reference, count in Counter(references).items() if count > 1]:
        raise ConfigError(f"--baseline {twice[0]} is given twice; remove one.")
    short = [_short(reference) for reference in references]
    baselines = []
    for reference, name in zip(references, short, strict=True):
        opened = open_encoder(reference, download=download)
        own = opened.config.data
        sides = {"own": [own.image_size], "run": [run.image_size], "both": [own.image_size, run.image_size]}[sizes]
        for side in dict.fromkeys(sides):
            data = dataclasses.replace(run, image_size=side, **{name: getattr(own, name) for name in _OWN})
            _check_size(reference, opened.encoder, data, own.image_size)
            label = name if short.count(name) == 1 else reference
            baselines.append(Baseline(
                f"{label}, {side} px", reference, opened.encoder, data,
                opened.sha256 or checkpoint.digest(opened.encoder.state_dict()), opened.text,
            ))  # fmt: skip
    return baselines


def _short(reference: str) -> str:
    """The last part of the path if it exists, otherwise the reference itself."""
    path = expanded(reference)
    return path.resolve().name if path.exists() else reference


def _check_size(reference: str, encoder: nn.Module, data: DataConfig, own: int) -> None:
    if data.image_size == own:
        return
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, len(data.mean), data.image_size, data.image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"--baseline {reference} takes images of {own} pixels, not of {data.image_size}; use --baseline-size own."
        ) from None
