"""The explore page of a folder of images: features, their analysis, thumbnails, and the page itself."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray

from matrix_ssl.api.collection import Collection, too_alike, too_many_issues
from matrix_ssl.api.gathered import check_outputs
from matrix_ssl.config import DataConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import expanded, is_file
from matrix_ssl.config.validation import Seed, settings
from matrix_ssl.data import Source
from matrix_ssl.data.files.pixels import viewable
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.sources import Data, Split
from matrix_ssl.encoder import Weights
from matrix_ssl.errors import DataError, RunFolderError
from matrix_ssl.evaluate.explore.analysis import Analysis, analyse
from matrix_ssl.evaluate.explore.appearance import Appearance, appearance
from matrix_ssl.evaluate.explore.clusters import check_count
from matrix_ssl.evaluate.explore.duplicates import THRESHOLD
from matrix_ssl.evaluate.explore.plane import MAPS, MOST, MapRule, check_rule, plane
from matrix_ssl.evaluate.features import Embedding
from matrix_ssl.report.explore.columns import read_columns
from matrix_ssl.report.explore.contents import Categories, Column, Contents, Issue, Numbers
from matrix_ssl.report.explore.page import write_page
from matrix_ssl.report.explore.sheets import Sheets
from matrix_ssl.report.formats import common_folder
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_object, write_atomically
from matrix_ssl.runs.folder import check_folder, claim, held

CLAIM = "explore.json"  # records what the folder is for
_MAP = "map.npz"
_NEIGHBOURS = 12  # per image on the page
_OUTLIERS = 500  # ranked on the page


@settings
class ExploreSettings:
    """What the page shows."""

    clusters: Annotated[int, Ge(0)] = 0  # number of clusters; 0: chosen by the silhouette score
    threshold: Annotated[float, Ge(0.0), Le(1.0)] = THRESHOLD  # cosine similarity from which images are near-duplicates
    map: MapRule = "tsne"
    thumbnail: Annotated[int, Ge(16), Le(256)] = 96  # maximum side in pixels
    columns: tuple[str, ...] = ()  # CSV files
    seed: Seed = 0


@dataclass(frozen=True)
class Explored:
    """The path of the page, and its contents."""

    page: Path
    contents: Contents

    def __repr__(self) -> str:
        return f"Explored({str(self.page)!r}: {len(self.contents.places)} images)"


def explore(
    where: str | Path,
    data: Data | None = None,
    *,
    out: Path,
    choices: ExploreSettings | None = None,
    features: Path | None = None,
    split: Split = "train",
    weights: Weights = "student",
    device: str = "auto",
    quiet: bool = False,
    data_root: Path | None = None,
    download: bool = False,
) -> Explored:
    """Writes the page for a set of images into a folder; calling it again resumes.

    The map and the thumbnails are kept in the folder and the features in their cache, so a change of clusters,
    threshold or columns recomputes none of them. Other images or a different encoder need a different folder.

    Args:
        where: the encoder, or its feature file, as for ``Collection``.
        data: the images; None: those of the run, or the files whose paths are stored with the features.
        out: the folder of the page.
        choices: what the page shows.
        features, split, weights, device, quiet, data_root, download: as for ``Collection``.

    Raises:
        MatrixSSLError: the encoder, the images, a CSV file or the folder is at fault.
    """
    choices = choices or ExploreSettings()
    check_rule(choices.map)
    for file in choices.columns:
        if not is_file(expanded(file)):
            raise DataError(f"--columns {file} is not a file: name a CSV file with the path of an image in every row.")
    check_folder(out, first=CLAIM)

    def check(location: Data, source: Source) -> None:
        check_outputs([out], location, data_root=data_root)
        _check(choices, [source.where(index) for index in range(len(source))], source.name)

    images = Collection(
        where, data, features=features, split=split, weights=weights, device=device, quiet=quiet, data_root=data_root,
        download=download, check=check,
    )  # fmt: skip
    return explore_collection(images, out, choices, quiet=quiet)


def explore_collection(images: Collection, out: Path, choices: ExploreSettings, *, quiet: bool = False) -> Explored:
    """As ``explore``, for images whose features are already computed."""
    display, embedding, source = Display(quiet=quiet), images.embedding, images.source()
    images.check_outside(out)
    check_rule(choices.map)
    columns, sentences = _check(choices, embedding.paths, source.name)
    side = choices.thumbnail if source.images is None else min(choices.thumbnail, max(source.images.shape[-2:]))
    with held(out, fresh=False, say=display.say, first=CLAIM):
        identity = _identity(embedding)
        if (out / CLAIM).exists() and read_object(out / CLAIM).get("features", identity) != identity:
            raise RunFolderError(
                f"{out} is the page of other features, of a different encoder or of one that was trained since: choose "
                "another folder with --out, or remove this one."
            )
        claim(out, {"features": identity, "data": source.digest, "thumbnail": side}, first=CLAIM)
        with display.bar("thumbnails") as show:
            sheets = _write_sheets(out, source, side, show)
        display.say("Searching neighbours, duplicates, clusters and outliers.")
        analysis = analyse(
            embedding.features, embedding.labels, clusters=choices.clusters or None, threshold=choices.threshold,
            seed=choices.seed,
        )  # fmt: skip
        points = _points(out, embedding.features, choices, display.say)
        contents = _contents(
            source, images, analysis, choices, points=points, sheets=sheets, side=side, columns=columns,
            notes=[*_notes(source, embedding, choices), *sentences],
        )  # fmt: skip
        for note in (*contents.notes, *contents.doubts):
            display.say(note)
        return Explored(write_page(out, contents), contents)


def _check(choices: ExploreSettings, places: Sequence[str], name: str) -> tuple[list[Column], list[str]]:
    """The columns for the images from all CSV files, with a sentence about each file.

    Raises:
        DataError: there are too few images for a map, or a file is at fault.
        ConfigError: more clusters are requested than there are images.
    """
    if len(places) < 2:
        raise DataError(f"{name!r} has {len(places)} readable image: a map needs two.")
    if choices.clusters:
        check_count(choices.clusters, len(places), name="clusters")
    columns: list[Column] = []
    sentences = []
    for path in choices.columns:
        more, sentence = read_columns(expanded(path), places)
        columns += more
        sentences.append(sentence)
    return columns, sentences


def _identity(embedding: Embedding) -> str:
    """A digest that identifies the features, wherever the folder of their images is."""
    start = len(common_folder(embedding.paths))
    digest = hashlib.sha256("\0".join(path[start:] for path in embedding.paths).encode(errors="surrogateescape"))
    for rows in np.array_split(embedding.features, max(1, len(embedding) // 4096)):
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def _write_sheets(out: Path, source: Source, side: int, on_progress: Callable[[int, int], None]) -> Sheets:
    """Writes sheets with the central squares of all images; sheets that already exist are kept."""
    sheets = Sheets(out, count=len(source), side=side)
    start = sheets.start
    if start < len(source):
        rest = source.subset(np.arange(start, len(source)))
        squares = DataConfig(image_size=side, crop_fraction=1.0)
        for chosen, pixels, _ in evaluation_batches(rest, squares, device=torch.device("cpu")):
            plain = source.dtype == torch.uint8
            colours = (pixels * 255).round().byte() if plain else torch.stack([viewable(one) for one in pixels])
            sheets.add(chosen + start, colours.permute(0, 2, 3, 1).numpy())
            on_progress(start + int(chosen.max(initial=0)) + 1, len(source))
        sheets.finish()
    return sheets


def _appearance(sheets: Sheets) -> list[Column]:
    """Brightness and sharpness of the thumbnails as columns."""
    measured = zip(*(appearance(luma) for luma in sheets.read_luma()), strict=True)
    return [Numbers(name, np.concatenate(values)) for name, values in zip(Appearance._fields, measured, strict=True)]


def _points(
    out: Path, vectors: NDArray[np.float32], choices: ExploreSettings, say: Callable[[str], None]
) -> NDArray[np.float32]:
    """The map, reused from an earlier call that made the same one."""
    question = f"{choices.map} {choices.seed} {MOST} {len(vectors)}"
    try:
        earlier = read_arrays(out / _MAP)
        points = earlier["points"]
        fits = points.shape == (len(vectors), 2) and points.dtype.kind == "f" and np.isfinite(points).all()
        if str(earlier["question"]) == question and fits:
            return points
    except (OSError, ValueError, KeyError):
        pass  # missing or damaged, so it is made again
    say("Placing the images on the map.")
    points = plane(vectors, rule=choices.map, seed=choices.seed)
    write_atomically(out / _MAP, lambda file: np.savez(file, points=points, question=np.array(question)))
    return points


def _contents(
    source: Source,
    images: Collection,
    analysis: Analysis,
    choices: ExploreSettings,
    *,
    points: NDArray[np.float32],
    sheets: Sheets,
    side: int,
    columns: Sequence[Column],
    notes: list[str],
) -> Contents:
    embedding, near, clusters = images.embedding, analysis.neighbours, analysis.clusters
    places, labels, classes = embedding.paths, embedding.labels, embedding.classes
    computed: list[Column] = []
    issues = None
    if labels is not None and classes is not None and analysis.confidence is not None and analysis.issues is not None:
        computed.append(Numbers("confidence", analysis.confidence.astype(np.float32)))
        issues = [
            Issue(int(image), classes[labels[image]], classes[other], float(confidence))
            for image, other, confidence in zip(*analysis.issues, strict=True)
        ]
    computed += [Numbers("outlier score", analysis.outlier_scores.astype(np.float32)), *_appearance(sheets)]
    names = [str(number) for number in range(1, len(clusters.representatives) + 1)]
    return Contents(
        title=source.name,
        facts=_facts(images, analysis),
        notes=notes,
        doubts=_doubts(len(embedding), analysis, choices),
        places=places,
        files=is_file(places[0]),
        points=points,
        neighbours=near.indices[:, :_NEIGHBOURS],
        similarities=near.similarities[:, :_NEIGHBOURS],
        labels=None if labels is None or classes is None else Categories("label", labels, classes),
        clusters=Categories("cluster", clusters.assignments, names),
        representatives=clusters.representatives,
        duplicates=analysis.duplicates,
        outliers=np.argsort(-analysis.outlier_scores, kind="stable")[:_OUTLIERS],
        outlier_scores=analysis.outlier_scores,
        issues=issues,
        columns=[*computed, *columns],
        thumbnail=side,
        sheets=sheets.names,
    )


def _facts(images: Collection, analysis: Analysis) -> list[tuple[str, str]]:
    embedding = images.embedding
    facts = [("Images", f"{len(embedding):,}")]
    if embedding.classes is not None:
        facts.append(("Classes", f"{len(embedding.classes):,}"))
    copies = sum(len(group) - 1 for group in analysis.duplicates)
    facts += [("Clusters", f"{len(analysis.clusters.representatives):,}"), ("Near-duplicates", f"{copies:,}")]
    if analysis.issues is not None:
        facts.append(("Labels to check", f"{len(analysis.issues.indices):,}"))
    return [*facts, ("Encoder", f"{images.encoder}, {embedding.features.shape[1]:,} features")]


def _notes(source: Source, embedding: Embedding, choices: ExploreSettings) -> list[str]:
    count = len(embedding)
    some = f" of {MOST:,} images; each other image is placed between those most similar to it"
    notes = [f"The map is {MAPS[choices.map]}{some if choices.map == 'tsne' and count > MOST else ''}."]
    if embedding.labels is None:
        notes.append(f"There are no labels: {source.unlabelled_because}.")
    if embedding.unreadable:
        notes.append(f"Images left out because they cannot be read: {len(embedding.unreadable):,}.")
    return notes


def _doubts(count: int, analysis: Analysis, choices: ExploreSettings) -> list[str]:
    """Sentences for lists that say more about the encoder than about the ``count`` images."""
    issues = 0 if analysis.issues is None else len(analysis.issues.indices)
    about = [f"Labels to check: {issues:,}. {doubt}" for doubt in too_many_issues(issues, count)]
    return [*too_alike(analysis.duplicates, count, choices.threshold), *about]
