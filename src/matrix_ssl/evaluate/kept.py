"""Features that are kept in a folder: they are resumed, and only new and changed images are read again.

The rows are ``feature_files``. The file ``stamps`` beside them holds the mark of their dataset and, for every image, a
hash of the encoder and of the path, size and times of change of its file. In another version of the dataset, an image
with a known hash keeps its row.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.evaluate.feature_files import FeatureFiles, fingerprint_of
from matrix_ssl.evaluate.features import Embedding, embed, fill
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import fingerprint, write_atomically

_SIZE = 16  # bytes of a hash, and characters of a mark
_ROWS = 4096  # that are copied at once


def embed_kept(
    folder: Path, encoder: nn.Module, source: Source, data: DataConfig, *, identity: str, device: torch.device,
    display: Display,
) -> Embedding:  # fmt: skip
    """``features.embed`` with features that are kept in a folder, which no other process may use.

    Args:
        identity: of the encoder and of how it reads images.

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
    if fingerprint_of(rows) != mark and (known := _known_rows(folder, stamps)) is not None:
        fresh = np.flatnonzero(known < 0)
        display.say(
            f"{len(fresh):,} of {len(source):,} images are new or have changed; the features of the others are kept."
        )
        new = FeatureFiles(folder / "new", fingerprint=mark)
        compute(new, source.subset(fresh))
        _merge(folder, mark, known, fresh, new)
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


def _known_rows(folder: Path, stamps: list[bytes] | None) -> NDArray[np.int64] | None:
    """For every image the row of its features in an earlier version of the dataset, or -1; None if there is no row."""
    mark, earlier = _read_stamps(folder)
    if stamps is None or fingerprint_of(folder / "rows") != mark:
        return None
    files = FeatureFiles(folder / "rows", fingerprint=mark)
    if files.seen == len(files.unreadable):
        return None
    indices, _ = files.read()
    if indices.max() >= len(earlier):
        return None
    row_of = {earlier[index]: row for row, index in enumerate(indices.tolist())}
    known = np.array([row_of.get(stamp, -1) for stamp in stamps], dtype=np.int64)
    return known if (known >= 0).any() else None


def _merge(folder: Path, mark: str, known: NDArray[np.int64], fresh: NDArray[np.int64], new: FeatureFiles) -> None:
    """Replaces the rows of an earlier version of the dataset by those of this one, in the order of its images."""
    rows, following = folder / "rows", folder / "next"
    _, earlier = FeatureFiles(rows, fingerprint=_read_stamps(folder)[0]).read()
    shutil.rmtree(following, ignore_errors=True)
    merged = FeatureFiles(following, fingerprint=mark)
    old, width = earlier["encoder"], earlier["encoder"].shape[1]
    is_new = np.zeros(len(known), dtype=bool)
    if new.seen > len(new.unreadable):
        positions, vectors = new.read()
        is_new[fresh[positions]] = True
        row = known.copy()
        row[fresh[positions]] = np.arange(len(positions))
    else:
        vectors, row = {"encoder": torch.empty(0, width)}, known
    present = np.flatnonzero((known >= 0) | is_new)
    for start in range(0, len(present), _ROWS):
        chosen = present[start : start + _ROWS]
        block, from_new = torch.empty(len(chosen), width), torch.from_numpy(is_new[chosen])
        at = torch.from_numpy(row[chosen])
        block[from_new] = vectors["encoder"][at[from_new]]
        block[~from_new] = old[at[~from_new]]
        merged.add(chosen, {"encoder": block}, [])
    merged.add(np.zeros(0, dtype=np.int64), {}, new.unreadable)
    merged.save()
    rows.rename(folder / "old")
    following.rename(rows)


def _clear(folder: Path) -> None:
    for name in ("new", "next", "old"):
        shutil.rmtree(folder / name, ignore_errors=True)
