"""Features that are kept in a folder: they are resumed, and only new and changed images are read again.

The rows are ``feature_files``. The file ``stamps`` beside them holds the mark of their dataset and, for every image, a
hash of the encoder and of the path, size and times of change of its file. In another version of the dataset, an image
with a known hash keeps its row.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.errors import UnreadableImage
from matrix_ssl.evaluate.feature_files import FeatureFiles, fingerprint_of
from matrix_ssl.evaluate.features import Embedding, embed, fill
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import fingerprint, write_atomically

_SIZE = 16  # bytes of a hash, and characters of a mark
_ROWS = 4096  # that are copied at once


@dataclass(frozen=True)
class Earlier:
    """Features that were computed before, by the same encoder."""

    vectors: Tensor  # float32 (m, k)
    row: NDArray[np.int64]  # (n,), for every image of the dataset its row, or -1; at least one has a row


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
    return Earlier(torch.from_numpy(embedding.features).flatten(1), row) if (row >= 0).any() else None


def embed_kept(
    folder: Path, encoder: nn.Module, source: Source, data: DataConfig, *, identity: str, device: torch.device,
    display: Display, earlier: Earlier | None = None,
) -> Embedding:  # fmt: skip
    """``features.embed`` with features that are kept in a folder, which no other process may use.

    Args:
        identity: of the encoder and of how it reads images.
        earlier: the features that some of the images have already, if the folder has none of an earlier version.

    Raises:
        RunFolderError: a file in the folder cannot be written; or as ``features.embed``.
    """
    mark = fingerprint(identity, source.name, source.digest)
    stamps = _stamps(source, identity)
    rows = folder / "rows"

    def compute(files: FeatureFiles, images: Source) -> None:
        if files.seen == len(images):
            return
        if files.seen:
            display.say(f"Resuming after {files.seen:,} of {len(images):,} images.")
        for remark in images.remarks:
            display.say(remark)
        try:
            with display.bar("features") as show:
                fill(files, {"encoder": encoder}, images, data, device=device, on_progress=show)
        finally:
            if files.seen:
                files.save()

    if not rows.exists() and fingerprint_of(folder / "next") == mark:  # a process was killed while it renamed them
        (folder / "next").rename(rows)
    if fingerprint_of(rows) != mark and (earlier := _of_folder(folder, stamps) or earlier) is not None:
        fresh = np.flatnonzero(earlier.row < 0)
        display.say(
            f"{len(fresh):,} of {len(source):,} images are new or have changed; the features of the others are kept."
        )
        new = FeatureFiles(folder / "new", fingerprint=mark)
        compute(new, source.subset(fresh))
        _merge(folder, mark, earlier, fresh, new)
    files = FeatureFiles(rows, fingerprint=mark)
    if stamps is not None and _read_stamps(folder)[0] != mark:
        write_atomically(folder / "stamps", lambda file: file.write(mark.encode() + b"".join(stamps)))
    compute(files, source)
    _clear(folder)
    return embed(encoder, source, data, device=device, files=files)


def _stamps(source: Source, identity: str) -> list[bytes] | None:
    """A hash of every image; None if an image is not a file of its own."""
    stamps = []
    for index in range(len(source)):
        file = source.file(index)
        if file is None:
            return None
        try:
            status = os.stat(file)  # noqa: PTH116, a Path for every file is slow
            facts = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except (OSError, ValueError):
            facts = "absent"
        text = f"{identity}\0{source.where(index)}\0{facts}"
        stamps.append(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:_SIZE])
    return stamps


def _read_stamps(folder: Path) -> tuple[str, list[bytes]]:
    """The mark and the hashes; both empty if there are none."""
    try:
        content = (folder / "stamps").read_bytes()
    except OSError:
        return "", []
    parts = [content[start : start + _SIZE] for start in range(0, len(content), _SIZE)]
    return parts[0].decode(errors="replace") if parts else "", parts[1:]


def _of_folder(folder: Path, stamps: list[bytes] | None) -> Earlier | None:
    """The features in the folder, of an earlier version of the dataset; None if no image is known."""
    mark, earlier = _read_stamps(folder)
    if stamps is None or fingerprint_of(folder / "rows") != mark:
        return None
    files = FeatureFiles(folder / "rows", fingerprint=mark)
    if files.seen == len(files.unreadable):
        return None
    indices, vectors = files.read()
    if indices.max() >= len(earlier):
        return None
    row_of = {earlier[index]: row for row, index in enumerate(indices.tolist())}
    row = np.array([row_of.get(stamp, -1) for stamp in stamps], dtype=np.int64)
    return Earlier(vectors["encoder"], row) if (row >= 0).any() else None


def _merge(folder: Path, mark: str, earlier: Earlier, fresh: NDArray[np.int64], new: FeatureFiles) -> None:
    """Replaces the rows in the folder by earlier and new ones, in the order of the images."""
    rows, following = folder / "rows", folder / "next"
    shutil.rmtree(following, ignore_errors=True)
    merged = FeatureFiles(following, fingerprint=mark)
    row, is_new = earlier.row.copy(), np.zeros(len(earlier.row), dtype=bool)
    vectors = earlier.vectors[:0]
    if new.seen > len(new.unreadable):
        positions, read = new.read()
        vectors, is_new[fresh[positions]] = read["encoder"], True
        row[fresh[positions]] = np.arange(len(positions))
    present = np.flatnonzero(row >= 0)
    for start in range(0, len(present), _ROWS):
        chosen = present[start : start + _ROWS]
        at, from_new = torch.from_numpy(row[chosen]), torch.from_numpy(is_new[chosen])
        block = torch.empty(len(chosen), earlier.vectors.shape[1])
        block[from_new], block[~from_new] = vectors[at[from_new]], earlier.vectors[at[~from_new]]
        merged.add(chosen, {"encoder": block}, [])
    merged.add(np.zeros(0, dtype=np.int64), {}, new.unreadable)
    merged.save()
    if rows.exists():
        rows.rename(folder / "old")
    following.rename(rows)


def _clear(folder: Path) -> None:
    for name in ("new", "next", "old"):
        shutil.rmtree(folder / name, ignore_errors=True)
