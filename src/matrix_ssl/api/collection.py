"""Images with their features: search, duplicates, outliers, clusters, suspicious labels and diverse subsets."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from matrix_ssl import config as configuration
from matrix_ssl.api import evaluation
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.folder import FolderSource, open_folder
from matrix_ssl.data.images import read_image
from matrix_ssl.data.loading import unreadable_images
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.randomness import permutation
from matrix_ssl.data.sources import Split, Splits, absolute, check_outside
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder import where as places
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.embedding_files import ENDINGS, check_format, read_embedding
from matrix_ssl.evaluate.explore.clusters import REPRESENTATIVES, cluster
from matrix_ssl.evaluate.explore.duplicates import THRESHOLD, near_duplicates
from matrix_ssl.evaluate.explore.mislabels import label_issues
from matrix_ssl.evaluate.explore.neighbours import ApproximateIndex, Neighbours, nearest, recall
from matrix_ssl.evaluate.explore.outliers import outlier_scores
from matrix_ssl.evaluate.explore.selection import Rule, select
from matrix_ssl.evaluate.feature_rows import KEY
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.evaluate.results import fingerprint
from matrix_ssl.evaluate.trained.label_subsets import match_names, read_names
from matrix_ssl.report.listing import MOST_IMAGES, Listing, numbered
from matrix_ssl.runs.caches import features_cache
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import check_writable

_SIDE = 160  # of a thumbnail, in pixels
_TRIED, _STREAM = 200, 0x5EA  # images on which the recall of an approximate search is measured, and their choice


class Collection:
    """Images and their features, computed once and kept.

    Args:
        where: an encoder, in any of the forms that ``open`` takes; or a file of features that ``embed`` or a different
            program wrote.
        data: the images, as for ``pretrain``; None: those of the run. With a file of features only thumbnails need
            them, and only where the file does not say where the images are.
        features: the file that keeps the features of the encoder, written if it does not exist; None: a cache.
        split: ``train``, the whole dataset where it has no test split, or ``test``.
        weights: ``student``, or ``teacher``, its moving average.
        device, quiet, data_root, download: as for ``pretrain``.

    Attributes:
        embedding: the features with the place and the label of every image.
        data: the images; None where they are not known.

    Raises:
        MatrixSSLError: the encoder, the images or the file are at fault.
    """

    def __init__(
        self, where: str | Path, data: Any = None, *, features: str | Path | None = None, split: Split = "train",
        weights: Weights = "student", device: str = "auto", quiet: bool = False, data_root: str | Path | None = None,
        download: bool = False,
    ):  # fmt: skip
        self._where, self._weights, self._device, self._quiet, self._split = where, weights, device, quiet, split
        self._data_root, self._download = None if data_root is None else Path(data_root).expanduser(), download
        self.data = None if data is None else as_data(data)
        if is_features(where):
            if features is not None:
                raise ConfigError(f"{where} is a file of features: remove --features {features}.")
            self.embedding = read_embedding(Path(where))
        else:
            run = Run(where, download=download)
            self.data = self.data or run.config.data.source or None
            if self.data is None:
                raise evaluation.no_dataset(where)
            self.embedding = self._of_encoder(run, None if features is None else Path(features).expanduser())
        if self.embedding.features.ndim != 2:
            raise DataError(f"{where} holds the features of patches: compute those of whole images.")
        for place, why in self.embedding.unreadable:
            Display(quiet=quiet).say(f"Skipped {place}: {why}.")

    def __len__(self) -> int:
        return len(self.embedding)

    def __repr__(self) -> str:
        return f"Collection({str(self._where)!r}: {self.embedding!r})"

    def search(
        self, queries: str | Path | int | Sequence[str | Path | int], *, k: int = 20, approximate: bool = False
    ) -> Listing:
        """The k images most similar to each query, by the cosine similarity of the features.

        Args:
            queries: image files, folders of them, places of images of the dataset, or their numbers from 0. An image of
                the dataset is not among its own neighbours.
            k: number of images.
            approximate: search by an index of faiss, the extra ``search``, and state its recall.

        Raises:
            MatrixSSLError: a query is neither, the encoder for it is not known, or there are fewer than k images.
        """
        asked = [queries] if isinstance(queries, (str, Path, int)) else list(queries)
        if not asked:
            raise ConfigError("There is no query: name an image, a folder or the number of an image.")
        names, vectors, own = self._queries(asked)
        answers, note = self._neighbours(vectors, own, k, approximate=approximate)
        rows: list[tuple[str | int | float, ...]] = []
        for name, indices, similarities in zip(names, answers.indices, answers.similarities, strict=True):
            chosen = zip(indices.tolist(), similarities.tolist(), strict=True)
            rows += [(name, rank, round(s, 6), *self._image(i)) for rank, (i, s) in enumerate(chosen, 1) if i >= 0]
        what = "query" if len(names) == 1 else "queries"
        text = f"The {k} nearest of {len(self):,} images for {len(names)} {what}."
        return self._listing("Search", [text, *note], ("query", "rank", "similarity"), rows, group="query")

    def duplicates(self, *, threshold: float = THRESHOLD) -> Listing:
        """Groups of images that are connected by cosine similarities of at least ``threshold``, the largest first."""
        groups = near_duplicates(self.embedding.features, threshold=threshold)
        rows: list[tuple[str | int | float, ...]] = []
        for number, group in enumerate(groups, 1):
            unit = _unit(self.embedding.features[group])
            rows += [(number, round(float(u @ unit[0]), 6), *self._image(i)) for i, u in zip(group, unit, strict=True)]
        extra = len(rows) - len(groups)
        text = (
            f"Groups of near-duplicates at a similarity of {threshold:g}: {len(groups):,}. Images that repeat another "
            f"one: {extra:,} of {len(self):,}."
        )
        return self._listing("Near-duplicates", [text], ("group", "similarity"), rows, group="group", shown=12)

    def outliers(self, *, count: int = 100, k: int = 10) -> Listing:
        """The ``count`` images that are farthest from their k nearest neighbours, the oddest first."""
        if count < 1:
            raise ConfigError(f"count={count}: expected at least 1 image.")
        scores = outlier_scores(self.embedding.features, k=k)
        order = np.argsort(-scores, kind="stable")[:count]
        rows = numbered([(round(float(scores[i]), 6), *self._image(i)) for i in order])
        median = float(np.median(scores))
        text = f"The {len(rows)} oddest of {len(self):,} images; the median distance of an image is {median:.4g}."
        return self._listing("Outliers", [text], ("rank", "distance"), rows)

    def clusters(self, *, count: int | None = None, seed: int = 0) -> Listing:
        """Every image with its cluster, the largest cluster first and in it the most central images first."""
        result = cluster(self.embedding.features, count=count, seed=seed)
        rows: list[tuple[str | int | float, ...]] = []
        for number, representatives in enumerate(result.representatives):
            chosen = set(representatives.tolist())
            rest = [int(i) for i in np.flatnonzero(result.assignments == number) if int(i) not in chosen]
            rows += [(number + 1, "yes", *self._image(i)) for i in representatives]
            rows += [(number + 1, "", *self._image(i)) for i in rest]
        sizes = np.bincount(result.assignments)
        text = f"Clusters of {sizes.max():,} to {sizes.min():,} images: {len(sizes)}."
        columns = ("cluster", "representative")
        return self._listing("Clusters", [text], columns, rows, group="cluster", shown=REPRESENTATIVES)

    def label_issues(self, *, seed: int = 0) -> Listing:
        """Images whose label is probably wrong, by confident learning, the most suspicious first.

        Raises:
            DataError: the images have no labels.
        """
        labels, classes = self.embedding.labels, self.embedding.classes
        if labels is None or classes is None:
            raise DataError(f"{self._where}: the images have no labels; put each class in a folder of its own.")
        issues = label_issues(self.embedding.features, labels, seed=seed)
        found = zip(issues.indices, issues.suggested, issues.confidence, strict=True)
        rows = numbered([(classes[s], round(float(p), 4), *self._image(i)) for i, s, p in found])
        text = f"Images that look as if their label is wrong: {len(rows):,} of {len(self):,}."
        return self._listing("Labels to check", [text], ("rank", "suggested", "probability"), rows)

    def select(
        self, count: int, *, rule: Rule = "log-determinant", labelled: str | Path | Sequence[str] = ()
    ) -> Listing:
        """A diverse subset, in the order of choice: which images to label first.

        Args:
            count: images to choose.
            rule: ``k-centre``, ``facility-location`` or ``log-determinant``; see ``evaluate.explore.selection``.
            labelled: images that are chosen already, by name or as much of the end of their path as is unique; a text
                file with one a line, or a list.

        Raises:
            MatrixSSLError: the count is out of range, or a name matches no image or several.
        """
        names = read_names(Path(labelled)) if isinstance(labelled, (str, Path)) else list(labelled)
        where = str(labelled) if isinstance(labelled, (str, Path)) else "labelled"
        start = match_names(self.embedding.paths, names, where=where, dataset=str(self._where)) if names else ()
        chosen = select(self.embedding.features, count=count, rule=rule, start=start)
        pairs = zip(chosen.indices, chosen.gains, strict=True)
        rows = numbered([(round(float(gain), 6), *self._image(i)) for i, gain in pairs])
        beside = f", beside {len(start):,} that are labelled" if len(start) else ""
        text = f"{len(rows):,} of {len(self):,} images by {rule}{beside}, in the order of choice."
        return self._listing("A diverse subset", [text], ("rank", "gain"), rows)

    def explore(self, out: str | Path, *, settings: Mapping[str, Any] | None = None) -> Path:
        """Writes the page with an interactive map into a folder, and returns its place.

        Args:
            out: the folder; the same one again resumes.
            settings: of ``exploring.ExploreSettings``, such as ``{"clusters": 12, "map": "umap"}``.

        Raises:
            MatrixSSLError: the images, a setting, a CSV file or the folder are at fault.
        """
        from matrix_ssl.api.exploring import ExploreSettings, explore_collection

        choices = configuration.override(ExploreSettings(), (settings or {}).items())
        return explore_collection(self, Path(out).expanduser(), choices, quiet=self._quiet).page

    @property
    def encoder(self) -> str:
        """The encoder, or the file of features that does not say which it is, by a short name."""
        return places.read_where(self.embedding.encoder or str(self._where)).label

    def source(self) -> Source:
        """The images themselves, in the order of the features.

        Raises:
            DataError: some are not where they were, or not known.
        """
        paths = self.embedding.paths
        if self.data is None:
            missing = next((path for path in paths if not Path(path).is_file()), "")
            if missing:
                raise DataError(f"{missing} is not here: name the images of {self._where} with --data.")
            name, labels, classes = Path(paths[0]).parent.name, self.embedding.labels, self.embedding.classes
            return FolderSource(name, Path(), paths, labels=labels, classes=classes)
        source, indices = self._source
        whole = {str(Path(path).absolute()): index for path, index in indices.items()}
        rows = [whole.get(str(Path(path).absolute()), -1) for path in paths]
        if -1 in rows:
            missing = paths[rows.index(-1)]
            raise DataError(f"{missing} of {self._where} is not among the images of {source.name!r}: name its --data.")
        return source.subset(rows)

    @cached_property
    def _rows(self) -> dict[str, int]:
        """The row of every place, also by the whole path."""
        rows = {str(Path(path).absolute()): row for row, path in enumerate(self.embedding.paths)}
        return rows | {path: row for row, path in enumerate(self.embedding.paths)}

    @cached_property
    def _source(self) -> tuple[Source, dict[str, int]]:
        """The dataset, and the index of every place in it."""
        assert self.data is not None
        images = Run(self._where).config.data if not is_features(self._where) else DataConfig()
        source = evaluation.open_images(
            self.data, images, split=self._split, data_root=self._data_root, download=self._download
        )
        return source, {source.where(index): index for index in range(len(source))}

    def _of_encoder(self, run: Run, file: Path | None) -> Embedding:
        """The features of the images by an encoder: from the file, or computed and kept in it or in the cache."""
        encoder, images = run.encoder(weights=self._weights), run.config.data
        assert self.data is not None
        identity = evaluation.encoder_digest(encoder, images)
        if file is not None:
            check_format(file)
            if file.exists():
                return self._checked(read_embedding(file), file, identity)
            check_outside(file, self.data)
            check_writable(file)
        keep = None
        if not isinstance(self.data, Splits):
            keep = features_cache() / fingerprint(identity, absolute(self.data), self._split)
        embedding = evaluation.embed(
            encoder, images, self.data, split=self._split, device=self._device, quiet=self._quiet,
            data_root=self._data_root, download=self._download, keep=keep, digests=file is not None,
        )  # fmt: skip
        embedding = replace(embedding, encoder=places.absolute(str(self._where)))
        if file is not None:
            embedding.save(file)
        return embedding

    def _checked(self, embedding: Embedding, file: Path, identity: str) -> Embedding:
        if embedding.encoder_digest != identity:
            raise DataError(f"{file} holds features of a different encoder than {self._where}: name another file.")
        assert self.data is not None
        source, _ = self._source
        if embedding.digest != source.digest:
            raise DataError(f"{file} holds features of other images than {source.name!r}: name another file.")
        return embedding

    def _queries(self, asked: Sequence[str | Path | int]) -> tuple[list[str], NDArray[np.float32], NDArray[np.int64]]:
        """Names and features of all queries, and which row of the collection each is; -2 for images of elsewhere."""
        names: list[str] = []
        vectors, own = [], []
        for query in asked:
            row = self._row(query)
            embedded = self._embed(Path(query)) if row is None else None  # type: ignore[arg-type]
            names += [self.embedding.paths[row]] if embedded is None else embedded.paths  # type: ignore[index]
            vectors.append(self.embedding.features[[row]] if embedded is None else embedded.features)
            own += [-2 if row is None else row] * len(vectors[-1])
        return names, np.concatenate(vectors), np.array(own)

    def _neighbours(
        self, vectors: NDArray[np.float32], own: NDArray[np.int64], k: int, *, approximate: bool
    ) -> tuple[Neighbours, list[str]]:
        """The k nearest images of queries (m, d) but themselves, and of an approximate search a sentence on its recall."""
        features = self.embedding.features
        if not 1 <= k <= (most := len(self) - bool((own >= 0).any())):
            raise ConfigError(f"k={k}: expected 1 to {most} images, as many as there are beside the query.")
        if not approximate:
            return _without(nearest(features, vectors, k=min(k + 1, len(self))), own, k), []
        index = ApproximateIndex(features)
        tried = features[permutation(len(self), _STREAM)[:_TRIED]]
        share = recall(index.nearest(tried, k=k), nearest(features, tried, k=k))
        note = (
            f"The search was approximate: it finds {100 * share:.1f} % of the neighbours of {len(tried)} of the images."
        )
        return _without(index.nearest(vectors, k=min(k + 1, len(self))), own, k), [note]

    def _row(self, query: str | Path | int) -> int | None:
        """The image of the dataset that a query names; None for files of elsewhere."""
        text = str(query)
        for name in (text, str(Path(text).expanduser().absolute())):
            if name in self._rows:
                return self._rows[name]
        if Path(text).expanduser().exists():
            return None
        if text.isdecimal():
            if int(text) >= len(self):
                raise ConfigError(f"--query {text}: the images have the numbers 0 to {len(self) - 1}.")
            return int(text)
        raise DataError(f"--query {text!r} is no file or folder, nor the place or the number of one of the images.")

    def _embed(self, path: Path) -> Embedding:
        """The features of a file, or of the images in a folder, by the encoder of the collection."""
        file = is_features(self._where)
        if file and not self.embedding.encoder:
            raise DataError(
                f"{self._where} does not say which encoder its features are of: query by one of its images, or name "
                f"the encoder in its place."
            )
        run = Run(self.embedding.encoder if file else self._where, download=self._download)
        encoder, images = run.encoder(weights=self._weights), run.config.data
        if self.embedding.encoder_digest not in ("", evaluation.encoder_digest(encoder, images)):
            raise DataError(
                f"{self._where} holds features of a different encoder or block than {run.where}: query by one of its "
                f"images."
            )
        path = path.expanduser()
        source = FolderSource("queries", path.parent, [path.name], labels=None, classes=None)
        if path.is_dir():
            source = open_folder(path, name=path.name)
        for place, why in unreadable_images(source, workers=0):
            raise DataError(f"--query {place} cannot be read: {why}.")
        return evaluation.embed(encoder, images, as_data(source), device=self._device, quiet=True)

    def _image(self, row: int) -> tuple[str, ...]:
        """The cells that every table has of an image: its place, and its class where it has one."""
        path = self.embedding.paths[row]
        if self.embedding.labels is None or self.embedding.classes is None:
            return (path,)
        return path, self.embedding.classes[self.embedding.labels[row]]

    def _listing(
        self, title: str, sentences: Sequence[str], columns: tuple[str, ...], rows: Sequence[Sequence[Any]],
        *, group: str = "", shown: int = MOST_IMAGES,
    ) -> Listing:  # fmt: skip
        image = ("path",) if self.embedding.labels is None else ("path", "label")
        facts = [
            ("Of", f"{len(self):,}"),
            ("Encoder", self.encoder),
        ]
        return Listing(
            title, tuple(sentences), (*columns, *image), tuple(map(tuple, rows)), group, shown, self._thumbnail,
            tuple(facts),
        )  # fmt: skip

    def _thumbnail(self, place: str) -> bytes:
        """A JPEG file of an image at most 160 pixels wide and high."""
        pixels = self._read(place)
        array = pixels.permute(1, 2, 0).numpy() if len(pixels) != 1 else pixels[0].numpy()
        image = Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    def _read(self, place: str) -> torch.Tensor:
        if self.data is not None:
            source, indices = self._source
            if place in indices:
                return source.read(indices[place])
        if not Path(place).is_file():
            raise DataError(f"{place} is not here, so the page cannot show it: name its images with --data.")
        return read_image(Path(place))


def is_features(where: str | Path) -> bool:
    """Whether WHERE is a file of features, not an encoder: of a safetensors file its tensors decide."""
    path = Path(where).expanduser()
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        return False
    if path.suffix.lower() != ".safetensors" or not path.exists():
        return path.suffix.lower() != ".safetensors"
    try:
        with safe_open(path, framework="np") as file:
            return KEY in file.keys()  # noqa: SIM118, is no mapping
    except (OSError, SafetensorError):
        return False


def _without(near: Neighbours, own: NDArray[np.int64], k: int) -> Neighbours:
    """The first k neighbours of each query that are not the query itself."""
    keep = near.indices != own[:, None]
    keep &= np.cumsum(keep, axis=1) <= k
    return Neighbours(near.indices[keep].reshape(-1, k), near.similarities[keep].reshape(-1, k))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1.0, lengths)
