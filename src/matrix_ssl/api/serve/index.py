"""Features of an indexed dataset, and the search for the most similar images in it. Does not import torch."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.api.serve.served import ServedEncoder
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import read_file, why
from matrix_ssl.data.layout import list_images
from matrix_ssl.data.unreadable import skipped
from matrix_ssl.errors import DataError, RunFolderError, UnreadableImage
from matrix_ssl.evaluate.feature_files import ONLY, FeatureFiles, FeaturesInMemory
from matrix_ssl.evaluate.kept import keep, stamp
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import features_cache, fingerprint, in_features_cache
from matrix_ssl.runs.folder import lock

_AT_ONCE = 32  # images that are embedded together
_MOST_BYTES = 2**31  # of an image file


class Index:
    """Features with the path of each image and, if there are labels, the name of its class.

    Args:
        features: (n, k), finite.
        paths: the path of each image.
        labels: the class name of each image.
        digest: digest of the encoder, as computed by ``encoder.identity``; empty: not known.
        name: name shown to the user.

    Attributes:
        units: the features normalised to length one, float32 (n, k); a row of zeros stays zero.

    Raises:
        DataError: the arguments differ in their number of images, there are no images, or a feature is not finite.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        paths: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        digest: str = "",
        name: str = "",
    ):
        rows = np.asarray(features, dtype=np.float32)
        if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
            raise DataError(f"{name}: expected finite features (n, k) of images, not {rows.shape}.")
        if len(paths) != len(rows) or (labels is not None and len(labels) != len(rows)):
            raise DataError(f"{name} has features and places of different numbers of images: write it again.")
        self.paths, self.labels, self.digest, self.name = paths, labels, digest, name
        self.units = _unit(rows)

    def __len__(self) -> int:
        return len(self.paths)

    def check(self, encoder: ServedEncoder) -> None:
        """Raises DataError if the features are not from this encoder."""
        width = self.units.shape[1]
        if width != encoder.width:
            raise DataError(f"{self.name} holds {width} features an image, the encoder gives {encoder.width}.")
        if self.digest and encoder.digest and self.digest != encoder.digest:
            raise DataError(
                f"{self.name} holds features of a different encoder than the one that is served: write them again with "
                "matrix-ssl embed."
            )

    def search(self, queries: NDArray[np.float32], *, k: int) -> list[list[dict[str, Any]]]:
        """The k images with the highest cosine similarity to each query (m, d): rank, path, similarity and label.

        The search is exhaustive. For equal similarities, the lower index comes first.
        """
        answers = []
        for query in _unit(np.asarray(queries, dtype=np.float32)):
            similarities = (self.units @ query).clip(-1.0, 1.0)
            least = np.partition(similarities, len(similarities) - k)[len(similarities) - k]
            candidates = np.flatnonzero(similarities >= least)
            chosen = candidates[np.argsort(-similarities[candidates], kind="stable")[:k]].tolist()
            answers.append([self._row(rank, row, float(similarities[row])) for rank, row in enumerate(chosen, 1)])
        return answers

    def _row(self, rank: int, row: int, similarity: float) -> dict[str, Any]:
        label = {} if self.labels is None else {"label": self.labels[row]}
        return {"rank": rank, "path": self.paths[row], "similarity": round(similarity, 6), **label}


def read_index(path: Path) -> Index:
    """Reads the index from a .npz file of ``matrix-ssl embed``; DataError if it is damaged or is not such a file."""
    try:
        arrays = read_arrays(path, ("features", "where", "labels", "classes", "encoder_digest"))
        features = arrays["features"].astype(np.float32, casting="same_kind", copy=False)
        rows = [f"{path.name}[{row}]" for row in range(len(features))]
        paths = [str(one) for one in arrays["where"].tolist()] if "where" in arrays else rows
        labels = None
        if "labels" in arrays:
            classes = [str(one) for one in arrays["classes"].tolist()] if "classes" in arrays else None
            numbers = arrays["labels"].astype(np.int64, casting="safe").tolist()
            if min(numbers, default=0) < 0:
                raise ValueError("a label is below zero")
            labels = [str(one) if classes is None else classes[one] for one in numbers]
        digest = str(arrays.get("encoder_digest", ""))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} cannot be read as features of matrix-ssl embed: {why(error)}.") from None
    return Index(features, paths, labels=labels, digest=digest, name=path.name)


def index_folders(encoder: ServedEncoder, folders: Sequence[Path], *, display: Display) -> Index:
    """Builds the index of all images below the folders; unreadable images are left out and reported.

    Features are kept in the cache, so that only new and changed images are read. If nothing can be written there, as in
    a container without a place for it, all images are read, and a sentence says so.

    Raises:
        DataError: no image can be read.
        RunFolderError: the cache cannot be written any more, such as for a full disk.
    """
    places = [str(folder / name) for folder in folders for name in list_images(folder).images]
    name = ", ".join(folder.name for folder in folders)
    none = DataError(f"{name}: there is no image that can be read.")
    if not places:
        raise none

    def compute(store: FeatureFiles | FeaturesInMemory, chosen: NDArray[np.int64] | None) -> None:
        with display.bar("features") as show:
            _fill(store, encoder, places, range(len(places)) if chosen is None else chosen.tolist(), show=show)

    def can_read(index: int) -> bool:
        try:
            encoder.square(read_file(places[index], most=_MOST_BYTES), places[index])
        except (UnreadableImage, OSError):
            return False
        return True

    cache = features_cache() / fingerprint(encoder.identity, [str(folder.absolute()) for folder in folders])
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(cache))
        except RunFolderError as error:
            display.say(
                f"Warning: {error} The features of {name} are computed now, but not kept for the next start; the "
                "variable MATRIX_SSL_CACHE names another folder for them."
            )
            store: FeatureFiles | FeaturesInMemory = FeaturesInMemory()
            compute(store, None)
        else:
            stack.enter_context(in_features_cache())
            stamps = [stamp(encoder.identity, place, place)[0] for place in places]
            mark = fingerprint([one.hex() for one in stamps])
            store = keep(
                cache, len(places), compute, mark=mark, stamps=stamps, can_read=can_read, say=display.say
            )  # fmt: skip
        for line in skipped(store.unreadable):
            display.say(line)
        if len(store.unreadable) == len(places):
            raise none
        indices, vectors = store.read()
        return Index(vectors[ONLY], [places[index] for index in indices], digest=encoder.digest, name=name)


def _fill(
    store: FeatureFiles | FeaturesInMemory, encoder: ServedEncoder, places: Sequence[str], chosen: Sequence[int],
    *, show: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Adds the features of those of the chosen images that the store has not seen."""
    for start in range(store.seen, len(chosen), _AT_ONCE):
        squares, readable = [], list[int]()
        problems: list[tuple[str, str]] = []
        for position, index in enumerate(chosen[start : start + _AT_ONCE], start):
            place = places[index]
            try:
                squares.append(encoder.square(read_file(place, most=_MOST_BYTES), place))
                readable.append(position)
            except UnreadableImage as error:
                problems.append((error.where, error.reason))
            except OSError as error:
                problems.append((place, why(error)))
        vectors = {ONLY: encoder.features(np.stack(squares))} if squares else {}
        store.add(np.array(readable, dtype=np.int64), vectors, problems)
        show(store.seen, len(chosen))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    squares: Any = np.einsum("nk,nk->n", rows, rows, dtype=np.float64)  # avoids a copy of the rows in float64
    lengths: NDArray[np.float32] = np.sqrt(squares).astype(np.float32)
    lengths[lengths == 0] = 1
    return rows / lengths[:, None]
