"""The identity of a dataset: a digest of its content, the same wherever it is stored and whatever its folder is called.

The digest covers the relative name and the size in bytes of every image, the labels and the names of the classes, and
contents: all bytes of a dataset of at most ``WHOLE`` bytes, else the first ``START`` bytes of each of ``SAMPLE``
images, spread evenly over the dataset from the first to the last. A change within a large dataset therefore goes
unnoticed if it keeps every name, every size and all of the sampled bytes.

An image is what is stored: a file, an entry of a packed file, or the pixels of a dataset in memory. The last two have
no names.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

WHOLE = 2**30  # bytes, 1 GiB
SAMPLE = 4096  # images of a larger dataset
START = 2**16  # bytes, 64 KiB
ABSENT = -1  # the size of an image that does not exist or is not a regular file


def content_digest(
    names: Iterable[str],
    sizes: NDArray[np.int64],
    read: Callable[[int, int], bytes],
    *,
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] | None = None,
) -> str:
    """The digest of a dataset by the rule above, 16 hexadecimal digits of SHA-256.

    Names are relative to the dataset, sizes bytes or ``ABSENT``; ``read(index, count)`` returns the first bytes.
    """
    digest = hashlib.sha256()
    for part in ("\0".join(names), "\0".join(classes or ())):
        _add(digest.update, part.encode(errors="surrogateescape"))
    _add(digest.update, sizes.astype("<i8").tobytes())
    _add(digest.update, b"" if labels is None else labels.astype("<i8").tobytes())
    present = np.flatnonzero(sizes != ABSENT)
    small = is_whole(sizes)
    if not small and len(present) > SAMPLE:
        present = present[np.linspace(0, len(present) - 1, SAMPLE).astype(np.int64)]
    for index in present.tolist():
        _add(digest.update, read(index, int(sizes[index]) if small else START))
    return digest.hexdigest()[:16]


def copies(sizes: NDArray[np.int64], read: Callable[[int, int], bytes]) -> list[tuple[int, int]]:
    """Images that are stored as an earlier one is, byte for byte, each with the first such; none if not ``is_whole``.

    Only images of equal size are read; arguments as for ``content_digest``.
    """
    if not is_whole(sizes):
        return []
    _, number, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    first, found = dict[tuple[int, bytes], int](), []
    for index in np.flatnonzero((counts[number] > 1) & (sizes > 0)).tolist():
        content = read(index, int(sizes[index]))
        if not content:  # it cannot be read
            continue
        earlier = first.setdefault((int(sizes[index]), hashlib.sha256(content).digest()), index)
        if earlier != index:
            found.append((index, earlier))
    return found


def is_whole(sizes: NDArray[np.int64]) -> bool:
    """Whether the digest of images of these sizes covers all of their bytes."""
    return int(sizes[sizes != ABSENT].sum()) <= WHOLE


def _add(update: Callable[[bytes], None], part: bytes) -> None:
    """Adds bytes after their number, so that no two lists of parts give the same digest."""
    update(len(part).to_bytes(8, "little"))
    update(part)
