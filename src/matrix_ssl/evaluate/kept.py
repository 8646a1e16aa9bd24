"""Features that are kept in a folder: they are resumed, and only new and changed images are read again.

The rows are ``feature_files``. The file ``stamps`` beside them holds the mark of their dataset and, for every image, a
hash of the encoder and of the path, size and times of change of its file. In another version of the dataset, an image
with a known hash keeps its row. Imports no torch.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.evaluate.feature_files import ONLY, FeatureFiles, fingerprint_of
from matrix_ssl.runs.files import cannot_write, fingerprint, write_atomically

_SIZE = 16  # bytes of a hash, and characters of a mark
_ROWS = 4096  # that are copied at once
_TRIED = 64  # images that could not be read, which are tried again


@dataclass(frozen=True)
class Earlier:
    """Features that were computed before, by the same encoder."""

    vectors: NDArray[np.float32]  # (m, k)
    row: NDArray[np.int64]  # (n,), for every image of the dataset its row, or -1; at least one has a row


def stamp(identity: str, where: str, file: str) -> tuple[bytes, int]:
    """A hash of an image: of the identity of its encoder, its place, and the size and times of change of its file.

    The place is taken from the root on, so it does not matter from which folder, or in which words, it is named.

    Also returns that size in bytes; 0 for a file that is absent.
    """
    size = 0
    try:
        status = os.stat(file)  # noqa: PTH116, a Path for every file is slow
        size, facts = status.st_size, f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    except (OSError, ValueError):
        facts = "absent"
    text = f"{identity}\0{os.path.abspath(where)}\0{facts}"  # noqa: PTH100, a Path for every file is slow
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:_SIZE], size


def keep(
    folder: Path, count: int, compute: Callable[[FeatureFiles, NDArray[np.int64] | None], None], *, mark: str,
    stamps: Sequence[bytes] | None, can_read: Callable[[int], bool], say: Callable[[str], None],
    earlier: Earlier | None = None,
) -> FeatureFiles:  # fmt: skip
    """The features of a dataset in a folder, which no other process may use; those that it lacks are computed.

    Args:
        folder: the folder.
        count: the number of images.
        compute: called with files and the indices of images, None for all. It adds the features by ``ONLY`` of these
            images, from the one on that the files have not seen.
        mark: 16 hexadecimal digits that stand for the encoder and the dataset, or its stamps.
        stamps: the hash of every image; None: an image is not a file of its own, so all are computed again.
        can_read: whether an image, which could not be read, can be now.
        say: called with sentences for the user.
        earlier: the features that some of the images have already, if the folder has none of an earlier version.

    Raises:
        RunFolderError: a file in the folder cannot be written.
    """
    rows = folder / "rows"

    def complete(files: FeatureFiles, chosen: NDArray[np.int64] | None) -> None:
        number = count if chosen is None else len(chosen)
        if files.seen == number:
            return
        if files.seen:
            say(f"Resuming after {files.seen:,} of {number:,} images.")
        try:
            compute(files, chosen)
        finally:
            if files.seen:
                files.save()

    _put_back(folder, mark, count)
    what = "could not be read before"
    if fingerprint_of(rows) == mark:
        earlier = _readable_now(rows, mark, count, can_read)
    else:
        what, earlier = "are new or have changed", _of_folder(folder, stamps) or earlier
    if earlier is not None:
        fresh = np.flatnonzero(earlier.row < 0)
        say(f"{len(fresh):,} of {count:,} images {what}; the features of the others are kept.")
        which = [index if stamps is None else stamps[index].hex() for index in fresh.tolist()]
        new = FeatureFiles(folder / "new", fingerprint=fingerprint(mark, which))
        complete(new, fresh)
        _merge(folder, mark, earlier, fresh, new)
    files = FeatureFiles(rows, fingerprint=mark)
    if stamps is not None and _read_stamps(folder)[0] != mark:
        write_atomically(folder / "stamps", lambda file: file.write(mark.encode() + b"".join(stamps)))
    complete(files, None)
    _clear(folder)
    return files


def _read_stamps(folder: Path) -> tuple[str, list[bytes]]:
    """The mark and the hashes; both empty if there are none."""
    try:
        content = (folder / "stamps").read_bytes()
    except OSError:
        return "", []
    parts = [content[start : start + _SIZE] for start in range(0, len(content), _SIZE)]
    return parts[0].decode(errors="replace") if parts else "", parts[1:]


def _of_folder(folder: Path, stamps: Sequence[bytes] | None) -> Earlier | None:
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
    return Earlier(vectors[ONLY], row) if (row >= 0).any() else None


def _readable_now(rows: Path, mark: str, count: int, can_read: Callable[[int], bool]) -> Earlier | None:
    """The complete features in a folder if an image that could not be read can be now, as with a package installed."""
    files = FeatureFiles(rows, fingerprint=mark)
    if files.seen < count or not files.unreadable:
        return None
    if len(files.unreadable) == count:
        shutil.rmtree(rows, ignore_errors=True)
        return None
    indices, vectors = files.read()
    row = np.full(count, -1, dtype=np.int64)
    row[indices] = np.arange(len(indices))
    tried = np.flatnonzero(row < 0)
    tried = tried[:: -(-len(tried) // _TRIED)]
    return Earlier(vectors[ONLY], row) if any(map(can_read, tried.tolist())) else None


def _merge(folder: Path, mark: str, earlier: Earlier, fresh: NDArray[np.int64], new: FeatureFiles) -> None:
    """Replaces the rows in the folder by earlier and new ones, in the order of the images."""
    rows, following = folder / "rows", folder / "next"
    shutil.rmtree(following, ignore_errors=True)
    merged = FeatureFiles(following, fingerprint=mark)
    row, is_new = earlier.row.copy(), np.zeros(len(earlier.row), dtype=bool)
    vectors = earlier.vectors[:0]
    if new.seen > len(new.unreadable):
        positions, read = new.read()
        vectors, is_new[fresh[positions]] = read[ONLY], True
        row[fresh[positions]] = np.arange(len(positions))
    present = np.flatnonzero(row >= 0)
    for start in range(0, len(present), _ROWS):
        chosen = present[start : start + _ROWS]
        at, from_new = row[chosen], is_new[chosen]
        block = np.empty((len(chosen), earlier.vectors.shape[1]), dtype=np.float32)
        block[from_new], block[~from_new] = vectors[at[from_new]], earlier.vectors[at[~from_new]]
        merged.add(chosen, {ONLY: block}, [])
    merged.add(np.zeros(0, dtype=np.int64), {}, new.unreadable)
    merged.save()
    shutil.rmtree(folder / "old", ignore_errors=True)  # of a process that was killed
    if rows.exists():
        _rename(rows, folder / "old")
    _rename(following, rows)


def _put_back(folder: Path, mark: str, count: int) -> None:
    """Renames the rows that a process had merged, or else those before, if it was killed between the two renames."""
    if not (folder / "rows").exists():
        is_merged = FeatureFiles(folder / "next", fingerprint=mark).seen == count
        found = folder / ("next" if is_merged else "old")
        if found.exists():
            _rename(found, folder / "rows")


def _rename(path: Path, to: Path) -> None:
    try:
        path.rename(to)
    except OSError as error:
        raise cannot_write(to, error) from error


def _clear(folder: Path) -> None:
    for name in ("new", "next", "old"):
        shutil.rmtree(folder / name, ignore_errors=True)
