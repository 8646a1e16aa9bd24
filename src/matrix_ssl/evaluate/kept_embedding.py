"""``features.embed`` with features that are kept in a folder, as ``kept`` describes, and the digests of its images.

Files may change while features are computed. What identifies them is therefore taken before they are read: at worst,
features of a new version are kept for the old one, and computed again.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.identity import is_whole
from matrix_ssl.errors import UnreadableImage, some
from matrix_ssl.evaluate.feature_files import ONLY, FeatureFiles
from matrix_ssl.evaluate.features import Embedding, embed, fill
from matrix_ssl.evaluate.kept import Earlier, keep, stamp
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import fingerprint


@dataclass(frozen=True)
class State:
    """The files of a dataset at one moment."""

    stamps: list[bytes]  # (n,), of every image and the file that holds it, by ``kept.stamp``
    sizes: NDArray[np.int64]  # (n,), bytes of that file
    are_apart: bool  # whether every image is a file of its own


def state_of(source: Source, identity: str) -> State:
    """The files of a dataset as they are now; ``identity`` as for ``embed_kept``."""
    pairs = [_stamp(source, index, identity) for index in range(len(source))]
    are_apart = all(source.file(index) is not None for index in range(len(source)))
    return State([one for one, _ in pairs], np.array([size for _, size in pairs], dtype=np.int64), are_apart)


def with_digests(
    embedding: Embedding, source: Source, digest: Callable[[int], str], before: State, *, identity: str,
    say: Callable[[str], None],
) -> Embedding:  # fmt: skip
    """An embedding with the SHA-256 of its images; empty for those whose file has changed or gone since ``before``.

    Their features may be those of either version, so they must not be found by the digest of one.

    Args:
        digest: of an image of the dataset; it may raise UnreadableImage.
        before: the files before features were computed.
        identity: as for ``embed_kept``.
        say: called with a warning.
    """
    readable, digests, changed = set(embedding.paths), [], []
    for index in range(len(source)):
        if (where := source.where(index)) not in readable:
            continue
        found = ""
        with contextlib.suppress(UnreadableImage):
            found = digest(index)
        digests.append(found if _stamp(source, index, identity)[0] == before.stamps[index] else "")
        changed += [where] * (not digests[-1])
    if changed:
        say(
            f"Warning: {len(changed):,} of {len(digests):,} images changed or disappeared while features were "
            f"computed, which may be those of either version: {some(changed)}. Compute them again."
        )
    return replace(embedding, digests=digests)


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
    folder: Path, encoder: nn.Module, source: Source, data: DataConfig, *, identity: str, state: State,
    device: torch.device, display: Display, earlier: Callable[[], Earlier | None],
) -> Embedding:  # fmt: skip
    """The features of a dataset, of which only those of new and changed images are computed.

    Args:
        folder: as for ``kept.keep``.
        identity: of the encoder and of how it reads images.
        state: the files of the dataset, from ``state_of``.
        earlier: what ``kept.keep`` takes by that name; called when the identity of the dataset is known.

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

    stamps = state.stamps if state.are_apart else None
    # the digest of a large dataset does not cover all of its bytes
    more = [] if stamps is None or is_whole(state.sizes) else [hashlib.sha256(b"".join(stamps)).hexdigest()]
    mark = fingerprint(identity, source.name, source.digest, *more)
    files = keep(
        folder, len(source), compute, mark=mark, stamps=stamps, can_read=can_read, say=display.say, earlier=earlier()
    )
    return embed(encoder, source, data, device=device, files=files)


def _stamp(source: Source, index: int, identity: str) -> tuple[bytes, int]:
    return stamp(identity, source.where(index), source.held_by(index) or "")
