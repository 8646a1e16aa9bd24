"""``features.embed`` with features that are kept in a folder, as ``kept`` describes."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.identity import is_whole
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

    def can_read(index: int) -> bool:
        try:
            source.read(index)
        except UnreadableImage:
            return False
        return True

    stamps, sizes = _stamps(source, identity)
    # the digest of a large dataset does not cover all of its bytes
    state = [] if stamps is None or is_whole(sizes) else [hashlib.sha256(b"".join(stamps)).hexdigest()]
    files = keep(
        folder, len(source), compute, mark=fingerprint(identity, source.name, source.digest, *state), stamps=stamps,
        can_read=can_read, say=display.say, earlier=earlier,
    )  # fmt: skip
    return embed(encoder, source, data, device=device, files=files)


def _stamps(source: Source, identity: str) -> tuple[list[bytes] | None, NDArray[np.int64]]:
    """The hash of every image, None if an image is not a file of its own; and the sizes of the files."""
    stamps, sizes = [], np.zeros(len(source), dtype=np.int64)
    for index in range(len(source)):
        file = source.file(index)
        if file is None:
            return None, sizes
        one, sizes[index] = stamp(identity, source.where(index), file)
        stamps.append(one)
    return stamps, sizes
