"""The diagnosis of an image encoder, block by block, optionally compared with a reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from matrix_ssl import encoder as encoders
from matrix_ssl.api import evaluation
from matrix_ssl.api.caller import undisturbed
from matrix_ssl.api.keywords import optional
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig, RunConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.base import Source
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Data, Split
from matrix_ssl.data.views.augment import each_view
from matrix_ssl.encoder import Weights
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.blocks import find_blocks
from matrix_ssl.evaluate.diagnose import Progress, diagnose_blocks
from matrix_ssl.evaluate.similarity_matrices import Network, compare_blocks
from matrix_ssl.report.blocks import PAGE, RESULT, write_page
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import write_json

UNTRAINED, ITSELF = "untrained", "itself"
IMAGES = 2048  # default maximum
_COMPARED = 4  # least number of images for a comparison of blocks


def diagnose(
    where: str | Path,
    data: Any = None,
    *,
    out: str | Path | None = None,
    reference: str | None = None,
    against: str | None = None,
    images: int = IMAGES,
    split: Split = "train",
    weights: Weights = "student",
    device: str = "auto",
    data_root: str | Path | None = None,
    download: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures every block of an encoder and, on request, compares it with every block of another encoder.

    Args:
        where: the encoder, in any form that ``encoder.where`` describes.
        data: the images, as for ``pretraining.pretrain``; None: those of the run.
        out: folder for ``diagnose.json`` and ``diagnose.html``; None: nothing is written.
        reference: an encoder with the same blocks, or ``untrained``, the same network at its initialisation.
        against: an encoder of any architecture whose blocks are compared with these, or ``untrained``, or ``itself``.
        images: maximum number of images; they are a random sample, but always the same one.
        split: split of the dataset.
        weights: which network of a run, ``student`` or ``teacher``.
        device, data_root, download: as for ``evaluation.evaluate``.
        on_progress: called with (images done, number of images).

    Returns:
        The contents of ``diagnose.json``.

    Raises:
        MatrixSSLError: the encoder, the images or the folder is at fault, or the reference has different blocks.
    """
    run = Run(where, download=download)
    location = run.config.data.source if data is None else as_data(data)
    if not location:
        raise evaluation.no_dataset(where)
    root, folder = optional(expanded, data_root), optional(expanded, out)
    chosen = _Images(location, split, images, devices.choose_device(device), root, download, on_progress)
    with evaluation.results_in(folder, (RESULT, PAGE), [location], data_root=root):
        source = chosen.of(run.config.data)
        _check_count(source, images, 2 if against is None else _COMPARED)
        encoder = run.encoder(weights=weights)
        with undisturbed():  # open all networks before the work starts
            other = None if reference is None else _reference(reference, run, encoder, download=download)
            network = None if against is None or against == ITSELF else _opened(against, run, download=download)
        result = chosen.diagnosis(encoder, source, run.config)
        if other is not None:
            with undisturbed():
                theirs = chosen.diagnosis(other, source, run.config)["rows"]
            rows = zip(result["rows"], theirs, strict=True)
            result["rows"] = [{**row, "reference": their} for row, their in rows]
        if against is not None:
            first = Network(str(where), encoder, source, run.config.data)
            result["similarity"] = chosen.similarity(first, against, network)
        result |= {
            "encoder": str(where), "architecture": run.config.network.encoder, "reference": reference,
            "data": source.name, "environment": devices.environment(chosen.device),
        }  # fmt: skip
        if folder is not None:
            write_json(folder / RESULT, result)
            write_page(folder, result)
    return result


class _Opened(NamedTuple):
    encoder: nn.Module
    data: DataConfig


@dataclass(frozen=True)
class _Images:
    """The images of a diagnosis, and the measurements made on them."""

    location: Data
    split: Split
    count: int  # maximum number of images
    device: torch.device
    root: Path | None
    download: bool
    on_progress: Progress | None

    def of(self, data: DataConfig) -> Source:
        """The images in the form that an encoder expects."""
        return evaluation.open_images(
            self.location, data, split=self.split, data_root=self.root, download=self.download
        )

    def diagnosis(self, encoder: nn.Module, source: Source, config: RunConfig) -> dict[str, Any]:
        """The measures of every block of a network, on images and two views of each."""
        first, second, *_ = [*each_view(config.views, config.data.image_size)] * 2
        return diagnose_blocks(
            encoder, source, config.data, (first, second), images=self.count, device=self.device,
            on_progress=self.on_progress,
        )  # fmt: skip

    def similarity(self, first: Network, name: str, other: _Opened | None) -> dict[str, Any]:
        """Compares blocks with those of a different network; None: with those of the same one."""
        second = None if other is None else Network(name, other.encoder, self.of(other.data), other.data)
        return compare_blocks(first, second, images=self.count, device=self.device, on_progress=self.on_progress)


def _check_count(source: Source, most: int, needed: int) -> None:
    """Raises DataError if the images, at most ``most`` of them, are fewer than the measures need."""
    count = min(most, len(source))
    if count < needed:
        remedy = "raise --images" if len(source) >= needed else "add images"
        raise DataError(f"{source.name!r}: {count} of its images would be measured, and {needed} are needed: {remedy}.")


def _reference(reference: str, run: Run, encoder: nn.Module, *, download: bool) -> nn.Module:
    """The network of ``reference``; ConfigError if its blocks differ from those of the encoder."""
    other = _opened(reference, run, download=download).encoder
    if list(find_blocks(other)) != list(find_blocks(encoder)):
        raise ConfigError(
            f"--reference {reference} has other blocks than {run.where}: pass an encoder of the same architecture."
        )
    return other


def _opened(where: str, run: Run, *, download: bool) -> _Opened:
    """An encoder by WHERE, or the untrained network of a run."""
    if where == UNTRAINED:
        return _Opened(encoders.initialise_encoder(run.config)[0], run.config.data)
    other = Run(where, download=download)
    return _Opened(other.encoder(), other.config.data)
