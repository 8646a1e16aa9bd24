"""``features.embed`` with features that are kept in a folder, as ``kept`` describes."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.errors import UnreadableImage
from matrix_ssl.evaluate.feature_files import ONLY, FeatureFiles
from matrix_ssl.evaluate.features import Embedding, embed, fill
from matrix_ssl.evaluate.kept import Earlier, keep, stamp
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import fingerprint


def of_embedding(
    embedding: Embedding, source: Source, digest: Callable[[int], str], *, on_progress: Callable[[int, int], None]
) -> Earlier | None:
    """The features of those images of a dataset whose SHA-256 an embedding knows; None if there is none.

    ``digest`` is that of an image of the dataset; it may raise UnreadableImage.
    """
    row_of = {known: row for row, known in enumerate(embedding.digests or ()) if known}
    row = np.full(len(source), -1, dtype=np.int64)
    for index in range(len(source) if row_of else 0):
        with contextlib.suppress(UnreadableImage):
            row[index] = row_of.get(digest(index), -1)
        on_progress(index + 1, len(source))
    return Earlier(embedding.features.reshape(len(embedding), -1), row) if (row >= 0).any() else None


def embed_kept(
    folder: Path, encoder: nn.Module, source: Source, data: DataConfig, *, identity: str, device: torch.device,
    display: Display, earlier: Earlier | None = None,
) -> Embedding:  # fmt: skip
    """The features of a dataset, of which only those of new and changed images are computed.

    Args:
        folder, earlier: as for ``kept.keep``.
        identity: of the encoder and of how it reads images.

    Raises:
        RunFolderError: a file in the folder cannot be written; or as ``features.embed``.
    """

    def compute(files: FeatureFiles, chosen: NDArray[np.int64] | None) -> None:
        images = source if chosen is None else source.subset(chosen)
        for remark in images.remarks:
            display.say(remark)
        with display.bar("features") as show:
            fill(files, {ONLY: encoder}, images, data, device=device, on_progress=show)

    mark, stamps = fingerprint(identity, source.name, source.digest), _stamps(source, identity)
    files = keep(folder, len(source), compute, mark=mark, stamps=stamps, say=display.say, earlier=earlier)
    return embed(encoder, source, data, device=device, files=files)


def _stamps(source: Source, identity: str) -> list[bytes] | None:
    """The hash of every image; None if an image is not a file of its own."""
    stamps = []
    for index in range(len(source)):
        file = source.file(index)
        if file is None:
            return None
        stamps.append(stamp(identity, source.where(index), file))
    return stamps
