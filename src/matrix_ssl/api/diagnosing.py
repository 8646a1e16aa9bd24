"""The diagnosis of an image encoder, block by block, beside a reference."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from matrix_ssl import encoder as encoders
from matrix_ssl.api import evaluation
from matrix_ssl.api.caller import undisturbed
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.augment import each_view
from matrix_ssl.data.base import Source
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Split, check_outside
from matrix_ssl.encoder import Weights
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.blocks import find_blocks
from matrix_ssl.evaluate.diagnose import Progress, diagnose_blocks
from matrix_ssl.evaluate.similarity_matrices import Network, compare_blocks
from matrix_ssl.report.blocks import PAGE, RESULT, write_page
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import check_writable, write_json
from matrix_ssl.runs.folder import lock

UNTRAINED, ITSELF = "untrained", "itself"
IMAGES = 2048  # at most, by default
_COMPARED = 4  # images that a comparison of blocks needs


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
    """Measures every block of an encoder, and compares it with every block of a different one.

    Args:
        where: the encoder, in any of the forms of ``encoder.where``.
        data: the images, as for ``pretraining.pretrain``; None: those of the run.
        out: folder for ``diagnose.json`` and ``diagnose.html``; None: nothing is written.
        reference: an encoder with the same blocks, or ``untrained``, the same network at its initialisation.
        against: an encoder of any architecture, or ``untrained``, whose blocks are compared with these, or ``itself``.
        images: at most so many, chosen at random but always the same.
        split: of the dataset.
        weights: the network of a run.
        device, data_root, download: as for ``evaluation.evaluate``.
        on_progress: called with (images done, number of images).

    Returns:
        What ``diagnose.json`` holds.

    Raises:
        MatrixSSLError: the encoder, the images or the folder are at fault, or the reference has different blocks.
    """
    run = Run(where, download=download)
    config, chosen = run.config, devices.choose_device(device)
    location = config.data.source if data is None else as_data(data)
    if not location:
        raise evaluation.no_dataset(where)
    root, folder = (None if path is None else expanded(path) for path in (data_root, out))
    with contextlib.ExitStack() as stack:
        if folder is not None:
            check_outside(folder, location, data_root=root)
            stack.enter_context(lock(folder))
            for name in (RESULT, PAGE):
                check_writable(folder / name)

        def images_for(data: DataConfig) -> Source:
            return evaluation.open_images(location, data, split=split, data_root=root, download=download)

        source = images_for(config.data)
        _check_count(min(images, len(source)), 2 if against is None else _COMPARED, source.name)
        first, second, *_ = [*each_view(config.views, config.data.image_size)] * 2

        def measure(encoder: nn.Module) -> dict[str, Any]:
            return diagnose_blocks(
                encoder, source, config.data, (first, second), images=images, device=chosen, on_progress=on_progress
            )

        encoder = run.encoder(weights=weights)
        with undisturbed():  # all of them before the work
            other = None if reference is None else _opened(reference, run, download=download).encoder
            network = None if against is None or against == ITSELF else _opened(against, run, download=download)
        if other is not None and list(find_blocks(other)) != list(find_blocks(encoder)):
            raise ConfigError(
                f"--reference {reference} has other blocks than {where}: pass an encoder of the same architecture."
            )
        result = measure(encoder)
        rows = result["rows"]
        if other is not None:
            with undisturbed():
                theirs = measure(other)["rows"]
            rows = [{**row, "reference": their} for row, their in zip(rows, theirs, strict=True)]
        if against is not None:
            result["similarity"] = compare_blocks(
                Network(str(where), encoder, source, config.data),
                network and Network(against, network.encoder, images_for(network.data), network.data),
                images=images, device=chosen, on_progress=on_progress,
            )  # fmt: skip
        result |= {
            "encoder": str(where), "architecture": config.network.encoder, "reference": reference,
            "data": source.name, "rows": rows, "environment": devices.environment(chosen),
        }  # fmt: skip
        if folder is not None:
            write_json(folder / RESULT, result)
            write_page(folder, result)
    return result


def _check_count(count: int, needed: int, name: str) -> None:
    """Raises DataError for fewer images than the measures need."""
    if count < needed:
        raise DataError(f"{name!r}: {count} of its images would be measured, and {needed} are needed: raise --images.")


class _Opened(NamedTuple):
    encoder: nn.Module
    data: DataConfig


def _opened(where: str, run: Run, *, download: bool) -> _Opened:
    """An encoder by WHERE, or the untrained network of a run."""
    if where == UNTRAINED:
        return _Opened(encoders.initialise_encoder(run.config)[0], run.config.data)
    other = Run(where, download=download)
    return _Opened(other.encoder(), other.config.data)
