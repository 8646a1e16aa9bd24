"""Images with their features: search, duplicates, outliers, clusters, suspicious labels and diverse subsets."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl import config as configuration
from matrix_ssl.api.gathered import Gathered
from matrix_ssl.api.keywords import assignments
from matrix_ssl.api.questions import IN_MEMORY, Query, as_queries, check_neighbours
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, DataError, check_whole
from matrix_ssl.evaluate.explore.clusters import REPRESENTATIVES, cluster
from matrix_ssl.evaluate.explore.duplicates import THRESHOLD, near_duplicates
from matrix_ssl.evaluate.explore.mislabels import Judge, label_issues
from matrix_ssl.evaluate.explore.neighbours import ApproximateIndex, Neighbours, nearest, recall
from matrix_ssl.evaluate.explore.outliers import outlier_scores
from matrix_ssl.evaluate.explore.selection import Rule, select
from matrix_ssl.evaluate.trained.label_subsets import match_names, read_names
from matrix_ssl.report.listing import MOST_IMAGES, Cell, Listing, numbered

_MOST_ISSUES = 0.2  # fraction of the labels that may look wrong before the encoder is to blame
_TRIED, _STREAM = 200, 0x5EA  # images on which the recall of approximate search is measured; stream that samples them


class Collection(Gathered):
    """Images and their features, computed once and kept, with the questions that can be asked about them.

    See ``Gathered`` for the arguments.
    """

    def search(self, queries: Query | Sequence[Query], *, k: int = 20, approximate: bool = False) -> Listing:
        """Finds the k images most similar to each query, by the cosine similarity of the features.

        Args:
            queries: image files, folders of image files, or images of the dataset by path or by index from 0; or Pillow
                images and arrays, as ``encoder.preprocess`` takes them. An image of the dataset that is named is never
                among its own neighbours.
            k: number of images to return.
            approximate: search with a faiss index (extra ``search``) and report its recall.

        Raises:
            MatrixSSLError: a query is none of these, its encoder is not known, or there are fewer than k images.
        """
        names, vectors, own = self._queries(as_queries(queries))
        answers, note = self._neighbours(vectors, own, k, approximate=approximate)
        rows: list[tuple[Cell, ...]] = []
        for name, indices, similarities in zip(names, answers.indices, answers.similarities, strict=True):
            chosen = zip(indices.tolist(), similarities.tolist(), strict=True)
            rows += [(name, rank, round(s, 6), *self._image(i)) for rank, (i, s) in enumerate(chosen, 1) if i >= 0]
        what = "query" if len(names) == 1 else "queries"
        text = f"The {k} nearest of {len(self):,} images for {len(names)} {what}."
        return self._listing("Search", [text, *note], ("query", "rank", "similarity"), rows, group="query")

    def duplicates(self, *, threshold: float = THRESHOLD) -> Listing:
        """Groups of images connected by cosine similarities of at least ``threshold``, the largest group first."""
        groups = near_duplicates(self.embedding.features, threshold=threshold)
        rows: list[tuple[Cell, ...]] = []
        for number, group in enumerate(groups, 1):
            unit = _unit(self.embedding.features[group])
            rows += [(number, round(float(u @ unit[0]), 6), *self._image(i)) for i, u in zip(group, unit, strict=True)]
        extra = len(rows) - len(groups)
        text = (
            f"Groups of near-duplicates at a similarity of {threshold:g}: {len(groups):,}. Images that repeat another "
            f"one: {extra:,} of {len(self):,}."
        )
        below = any(float(row[1]) < threshold for row in rows)
        chains = ["Similarities are to the first image of a group, which others are connected with by way of the rest."]
        sentences = [text, *(chains if below else ()), *too_alike(groups, len(self), threshold)]
        return self._listing("Near-duplicates", sentences, ("group", "similarity"), rows, group="group", shown=12)

    def outliers(self, *, count: int = 100, k: int = 10) -> Listing:
        """The ``count`` images farthest from their k nearest neighbours, the most unusual first."""
        check_whole("count", count)
        if count < 1:
            raise ConfigError(f"count={count}: expected at least 1 image.")
        scores = outlier_scores(self.embedding.features, k=k)
        order = np.argsort(-scores, kind="stable")[:count]
        rows = numbered([(round(float(scores[i]), 6), *self._image(i)) for i in order])
        median = float(np.median(scores))
        text = f"The {len(rows)} oddest of {len(self):,} images; the median distance of an image is {median:.4g}."
        return self._listing("Outliers", [text], ("rank", "distance"), rows)

    def clusters(self, *, count: int | None = None, seed: int = 0) -> Listing:
        """Assigns every image to a cluster; the largest cluster, and in each the most central images, come first."""
        result = cluster(self.embedding.features, count=count, seed=seed)
        rows: list[tuple[Cell, ...]] = []
        for number, representatives in enumerate(result.representatives):
            chosen = set(representatives.tolist())
            rest = [int(i) for i in np.flatnonzero(result.assignments == number) if int(i) not in chosen]
            rows += [(number + 1, "yes", *self._image(i)) for i in representatives]
            rows += [(number + 1, "", *self._image(i)) for i in rest]
        sizes = np.bincount(result.assignments)
        each = f"{sizes.min():,} to {sizes.max():,}" if sizes.min() < sizes.max() else f"{sizes.max():,}"
        text = f"Clusters of {each} images: {len(sizes)}."
        columns = ("cluster", "representative")
        return self._listing("Clusters", [text], columns, rows, group="cluster", shown=REPRESENTATIVES)

    def label_issues(self, *, by: Judge = "neighbours", seed: int = 0) -> Listing:
        """Images whose label is probably wrong according to confident learning, the most suspicious first.

        Args:
            by: ``neighbours`` or ``linear``; see ``evaluate.explore.mislabels``.
            seed: random seed for the folds of the linear probes.

        Raises:
            DataError: the images have no labels.
        """
        labels, classes = self.embedding.labels, self.embedding.classes
        if labels is None or classes is None:
            if self._images is not None:
                raise DataError(f"{self._images.name!r} has no labels: {self._images.unlabelled_because}.")
            raise DataError(f"{self._where}: the images have no labels; compute the features of images in class "
                            "folders, or of a .csv table with labels.")  # fmt: skip
        issues = label_issues(self.embedding.features, labels, by=by, seed=seed)
        found = zip(issues.indices, issues.suggested, issues.confidence, strict=True)
        rows = numbered([(classes[s], round(float(p), 4), *self._image(i)) for i, s, p in found])
        text = f"Images that look as if their label is wrong: {len(rows):,} of {len(self):,}."
        sentences = [text, *too_many_issues(len(rows), len(self))]
        return self._listing("Labels to check", sentences, ("rank", "suggested", "probability"), rows)

    def select(
        self, count: int, *, rule: Rule = "log-determinant", labelled: str | Path | Sequence[str | Path] = ()
    ) -> Listing:
        """Selects a diverse subset, in the order in which to label the images.

        Args:
            count: number of images to select.
            rule: ``k-centre``, ``facility-location`` or ``log-determinant``; see ``evaluate.explore.selection``.
            labelled: images that are already selected, each by its name or by enough of the end of its path to be
                unique; a list, a text file with one image per line, or a .csv file with a column of paths.

        Raises:
            MatrixSSLError: the count is out of range, or a name matches no image or more than one.
        """
        names = read_names(expanded(labelled)) if isinstance(labelled, (str, Path)) else list(map(_name, labelled))
        where = str(labelled) if isinstance(labelled, (str, Path)) else "labelled"
        start = match_names(self.embedding.paths, names, where=where, dataset=str(self._where)) if names else ()
        chosen = select(self.embedding.features, count=count, rule=rule, start=start)
        pairs = zip(chosen.indices, chosen.gains, strict=True)
        rows = numbered([(round(float(gain), 6), *self._image(i)) for i, gain in pairs])
        beside = f", beside {len(start):,} that are labelled" if len(start) else ""
        text = f"{len(rows):,} of {len(self):,} images by {rule}{beside}, in the order of choice."
        return self._listing("A diverse subset", [text], ("rank", "gain"), rows)

    def explore(self, out: str | Path, *, settings: Mapping[str, Any] | Iterable[str] | None = None) -> Path:
        """Writes a page with an interactive map of the images into a folder and returns the path of the page.

        Args:
            out: the folder; calling this again with the same folder resumes.
            settings: fields of ``exploring.ExploreSettings``, such as ``{"clusters": 12, "map": "umap"}`` or
                ``["clusters=12", "map=umap"]``.

        Raises:
            MatrixSSLError: the images, a setting, a CSV file or the folder is at fault.
        """
        from matrix_ssl.api.exploring import ExploreSettings, explore_collection

        choices = configuration.override(ExploreSettings(), assignments(settings))
        return explore_collection(self, expanded(out), choices, quiet=self._quiet).page

    def _queries(self, asked: Sequence[Query]) -> tuple[list[str], NDArray[np.float32], NDArray[np.int64]]:
        """Names and features of all queries, and the row of each in the collection; -2 for images not in it."""
        names: list[str] = []
        own: list[int] = []
        vectors = []
        for number, query in enumerate(asked):
            row = None
            if isinstance(query, IN_MEMORY):
                names.append(f"image {number}")
                vectors.append(self.embed_image(query))
            elif (row := self.row(query)) is None:
                embedded = self.embed(Path(str(query)))
                names += embedded.paths
                vectors.append(embedded.features)
            else:
                names.append(self.embedding.paths[row])
                vectors.append(self.embedding.features[row : row + 1])
            own += [-2 if row is None else row] * len(vectors[-1])
        return names, np.concatenate(vectors), np.array(own)

    def _neighbours(
        self, vectors: NDArray[np.float32], own: NDArray[np.int64], k: int, *, approximate: bool
    ) -> tuple[Neighbours, list[str]]:
        """The k nearest images to queries (m, d), themselves excluded; also a sentence on the recall if approximate."""
        features = self.embedding.features
        check_neighbours(k, len(self), own=bool((own >= 0).any()), where=str(self._where))
        if not approximate:
            return _without(nearest(features, vectors, k=min(k + 1, len(self))), own, k), []
        index = ApproximateIndex(features)
        return _without(index.nearest(vectors, k=min(k + 1, len(self))), own, k), self._recall(index, k)

    def _recall(self, index: ApproximateIndex, k: int) -> list[str]:
        """A sentence on the share of the neighbours of sampled images, themselves excluded, that the search finds."""
        count, features = min(k, len(self) - 1), self.embedding.features
        if not count:  # a single image has no neighbours
            return []
        tried = permutation(len(self), _STREAM)[:_TRIED]
        found = _without(index.nearest(features[tried], k=count + 1), tried, count)
        share = recall(found, _without(nearest(features, features[tried], k=count + 1), tried, count))
        return [f"The search was approximate: it finds {100 * share:.1f} % of the neighbours of {len(tried)} images."]

    def _image(self, row: int) -> tuple[str, ...]:
        """The cells that describe an image in every table: its path, and its class if it has one."""
        path = self.embedding.paths[row]
        if self.embedding.labels is None or self.embedding.classes is None:
            return (path,)
        return path, self.embedding.classes[self.embedding.labels[row]]

    def _listing(
        self, title: str, sentences: Sequence[str], columns: tuple[str, ...], rows: Sequence[Sequence[Any]],
        *, group: str = "", shown: int = MOST_IMAGES,
    ) -> Listing:  # fmt: skip
        image = ("path",) if self.embedding.labels is None else ("path", "label")
        facts = [("Images", f"{len(self):,}"), ("Encoder", self.encoder)]
        return Listing(
            title, tuple(sentences), (*columns, *image), tuple(map(tuple, rows)), group, shown, self.thumbnail,
            tuple(facts),
        )  # fmt: skip


def _name(image: object) -> str:
    """The path of an image as text; ConfigError for anything else."""
    if not isinstance(image, (str, Path)):
        raise ConfigError(f"labelled: an image of type {type(image).__name__}; name every image by its path.")
    return str(image)


def too_alike(groups: Iterable[Sized], count: int, threshold: float) -> list[str]:
    """A sentence if most of ``count`` images are in groups of near-duplicates; otherwise an empty list."""
    if sum(map(len, groups)) <= count / 2:
        return []
    return [
        f"More than half of the images count as near-duplicates at a similarity of {threshold:g}: choose a higher "
        "threshold. An encoder that learned little, or collapsed in training, finds all images alike."
    ]


def too_many_issues(issues: int, count: int) -> list[str]:
    """A sentence if too many labels look suspicious for all of them to be wrong; otherwise an empty list."""
    if issues <= count * _MOST_ISSUES:
        return []
    return [
        f"These are more than {100 * _MOST_ISSUES:.0f} % of the images: an encoder that cannot tell the classes apart "
        "fills the list with right labels."
    ]


def _without(near: Neighbours, own: NDArray[np.int64], k: int) -> Neighbours:
    """The first k neighbours of each query that are not the query itself."""
    keep = near.indices != own[:, None]
    keep &= np.cumsum(keep, axis=1) <= k
    return Neighbours(near.indices[keep].reshape(-1, k), near.similarities[keep].reshape(-1, k))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1.0, lengths)
