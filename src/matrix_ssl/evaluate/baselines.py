"""Frozen public encoders beside that of a run, by reference; each gets images of its own size and normalisation."""

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


@dataclass(frozen=True, eq=False)
class Baseline:
    """An encoder that nobody trains, and the images that it gets."""

    name: str  # short and unique among the baselines, with the side of its images
    reference: str  # as the user wrote it
    encoder: nn.Module  # in evaluation mode: images (n, c, s, s), normalised, to features (n, k)
    data: DataConfig  # size, normalisation and central part of its images
    sha256: str  # of the file that it was read from, or of its tensors if it is not one file
    tensors: str  # where they come from and how many there are, for people

    def beside(self, run: DataConfig) -> "Baseline":
        """The same encoder beside a run of other images, with its own size and normalisation."""
        own = {name: getattr(self.data, name) for name in ("image_size", "mean", "std", "crop_fraction")}
        return dataclasses.replace(self, data=dataclasses.replace(run, **own))

    def describe(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "reference": self.reference,
            "sha256": self.sha256,
            "tensors": self.tensors,
            "image_size": self.data.image_size,
            "crop_fraction": self.data.crop_fraction,
            "mean": self.data.mean,
            "std": self.data.std,
        }


def open_baselines(
    references: Sequence[str], run: DataConfig, *, sizes: Sizes = "own", download: bool = False
) -> list[Baseline]:
    """The encoders of ``references``, each as often as ``sizes`` says.

    Args:
        references: as ``open_encoder`` takes them.
        run: the images of the run beside which they stand.
        sizes: ``"own"``, the images that the encoder was trained on; ``"run"``, those of the run in size, with the
            encoder's own normalisation; or ``"both"``, once where they are equal.
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
            data = dataclasses.replace(
                run, image_size=side, mean=own.mean, std=own.std, crop_fraction=own.crop_fraction
            )
            _check_size(reference, opened.encoder, data, own.image_size)
            label = name if short.count(name) == 1 else reference
            baselines.append(Baseline(
                f"{label}, {side} px", reference, opened.encoder, data,
                opened.sha256 or checkpoint.digest(opened.encoder.state_dict()), opened.text,
            ))  # fmt: skip
    return baselines


def _short(reference: str) -> str:
    """The last part of a path that exists, else the reference."""
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
