"""The page of a folder of images: their features, what these say, thumbnails, and the page itself."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray

from matrix_ssl.api import evaluation
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import open_file, why
from matrix_ssl.config.validation import Seed, settings
from matrix_ssl.data import Source
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.sources import Data, Split, check_outside
from matrix_ssl.encoder import Weights
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.explore.analysis import Analysis, analyse
from matrix_ssl.evaluate.explore.duplicates import THRESHOLD
from matrix_ssl.evaluate.explore.plane import MAPS, MOST, MapRule, plane
from matrix_ssl.evaluate.feature_files import FeatureFiles
from matrix_ssl.evaluate.features import Features, extract
from matrix_ssl.report.explore.columns import read_columns
from matrix_ssl.report.explore.contents import Categories, Column, Contents, Issue, Numbers
from matrix_ssl.report.explore.page import write_page
from matrix_ssl.report.explore.sheets import Sheets
from matrix_ssl.runs import checkpoint, devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import write_atomically
from matrix_ssl.runs.folder import claim, held

CLAIM = "explore.json"  # says what the folder is for
_FEATURES, _MAP = "features", "map.npz"
_NEIGHBOURS = 12  # of every image, on the page
_OUTLIERS = 500  # that the page ranks


@settings
class ExploreSettings:
    """What the page shows."""

    clusters: Annotated[int, Ge(0)] = 0  # their number; 0: chosen by the silhouette
    threshold: Annotated[float, Ge(0.0), Le(1.0)] = THRESHOLD  # cosine similarity of near-duplicates
    map: MapRule = "tsne"
    thumbnail: Annotated[int, Ge(16), Le(256)] = 96  # side in pixels, at most
    columns: tuple[str, ...] = ()  # CSV files
    seed: Seed = 0


@dataclass(frozen=True)
class Explored:
    """The page, and what it shows."""

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
    split: Split = "train",
    weights: Weights = "student",
    device: str = "auto",
    quiet: bool = False,
    data_root: Path | None = None,
    download: bool = False,
) -> Explored:
    """Writes the page of images into a folder; the same call again resumes.

    Features, map and thumbnails stay in the folder, so that other clusters, thresholds or columns need neither again.
    Other images, or a different encoder, need a different folder.

    Args:
        where: the encoder, in any of the forms of ``encoder.where``, or the .npz file that ``embed`` wrote.
        data: the images; None: those of the run.
        choices: what the page shows.
        split: of the dataset.
        weights: the network of a run.
        quiet: show no messages and no progress.
        device, data_root, download: as for ``evaluation.evaluate``.

    Raises:
        MatrixSSLError: the encoder, the images, a CSV file or the folder are at fault.
    """
    choices, display = choices or ExploreSettings(), Display(quiet=quiet)
    run = None if Path(where).suffix == ".npz" and not Path(where).is_dir() else Run(where, download=download)
    images = DataConfig() if run is None else run.config.data
    location = data or images.source
    if not location:
        raise evaluation.no_dataset(where)
    check_outside(out, location)
    source = evaluation.open_images(location, images, split=split, data_root=data_root, download=download)
    for remark in source.remarks:
        display.say(remark)
    encoder = None if run is None else run.encoder(weights=weights)
    origin = _digest(Path(where)) if encoder is None else checkpoint.digest(encoder.state_dict())
    side = choices.thumbnail if source.images is None else min(choices.thumbnail, max(source.images.shape[-2:]))
    with held(out, fresh=False, say=display.say, first=CLAIM):
        claim(out, {"encoder": origin, "data": source.digest, "thumbnail": side}, first=CLAIM)
        if encoder is None:
            features = _from_file(Path(where), source)
        else:
            fingerprint = f"{origin} {source.digest} {images.image_size} {images.crop_fraction}"
            with display.bar("features") as show:
                features = extract(
                    {"encoder": encoder}, source, images, device=devices.choose_device(device), on_progress=show,
                    files=FeatureFiles(out / _FEATURES, fingerprint=fingerprint),
                )  # fmt: skip
        if len(features.indices) < 2:
            raise DataError(f"{source.name!r} has {len(features.indices)} readable image: a map needs two.")
        for place, reason in features.unreadable:
            display.say(f"Skipped {place}: {reason}.")
        with display.bar("thumbnails") as show:
            sheets = _write_sheets(out, source.subset(features.indices), images, side, show)
        display.say("Searching neighbours, duplicates, clusters and outliers.")
        labels = None if source.labels is None else features.labels.numpy()
        vectors = features.vectors["encoder"]
        analysis = analyse(
            vectors, labels, clusters=choices.clusters or None, threshold=choices.threshold, seed=choices.seed
        )
        points = _points(out, vectors, choices, display.say)
        contents = _contents(source, features, analysis, choices, where=where, points=points, sheets=sheets, side=side)
        for note in contents.notes:
            display.say(note)
        return Explored(write_page(out, contents), contents)


def _digest(path: Path) -> str:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from error


def _from_file(path: Path, source: Source) -> Features:
    """The features of a file for the images of a dataset; DataError where they are of other images."""
    try:
        arrays = read_arrays(path, ("features", "where", "data_digest"))
        vectors = torch.from_numpy(arrays["features"].astype(np.float32))
        places, digest = [str(place) for place in arrays["where"]], str(arrays["data_digest"])
    except KeyError as error:
        raise DataError(f"{path} has no {error.args[0]!r}: write it with matrix-ssl embed.") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from error
    rows = {source.where(index): index for index in range(len(source))}
    if digest != source.digest or vectors.ndim != 2 or len(vectors) != len(places) or not rows.keys() >= {*places}:
        raise DataError(f"{path} has features of other images than {source.name!r}: write it again with embed.")
    indices = np.array([rows[place] for place in places], dtype=np.int64)
    labels = np.full(len(indices), -1) if source.labels is None else source.labels[indices]
    return Features({"encoder": vectors}, indices, torch.from_numpy(labels), [])


def _write_sheets(
    out: Path, source: Source, images: DataConfig, side: int, on_progress: Callable[[int, int], None]
) -> list[str]:
    """The names of the sheets of the central squares of all images; sheets that are there already stay."""
    sheets = Sheets(out, count=len(source), side=side)
    start = sheets.start
    if start < len(source):
        rest = source.subset(np.arange(start, len(source)))
        squares = replace(images, image_size=side, crop_fraction=1.0)
        for chosen, pixels, _ in evaluation_batches(rest, squares, device=torch.device("cpu")):
            sheets.add(chosen + start, (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy())
            on_progress(start + int(chosen.max(initial=0)) + 1, len(source))
        sheets.finish()
    return sheets.names


def _points(
    out: Path, vectors: torch.Tensor, choices: ExploreSettings, say: Callable[[str], None]
) -> NDArray[np.float32]:
    """The map, from an earlier call where that made the same one."""
    question = f"{choices.map} {choices.seed} {MOST} {len(vectors)}"
    try:
        earlier = read_arrays(out / _MAP)
        if str(earlier["question"]) == question and earlier["points"].shape == (len(vectors), 2):
            return earlier["points"]
    except (OSError, ValueError, KeyError):
        pass  # there is none, or it is damaged: it is made again
    say("Placing the images on the map.")
    points = plane(vectors, rule=choices.map, seed=choices.seed)
    write_atomically(out / _MAP, lambda file: np.savez(file, points=points, question=np.array(question)))
    return points


def _contents(
    source: Source,
    features: Features,
    analysis: Analysis,
    choices: ExploreSettings,
    *,
    where: str | Path,
    points: NDArray[np.float32],
    sheets: list[str],
    side: int,
) -> Contents:
    places = [source.where(int(index)) for index in features.indices]
    near, clusters, labels = analysis.neighbours, analysis.clusters, features.labels.numpy()
    columns: list[Column] = []
    issues = None
    if source.classes is not None and analysis.confidence is not None and analysis.issues is not None:
        columns.append(Numbers("confidence", analysis.confidence))
        issues = [
            Issue(int(image), source.classes[labels[image]], source.classes[other], float(confidence))
            for image, other, confidence in zip(*analysis.issues, strict=True)
        ]
    columns.append(Numbers("outlier score", analysis.outlier_scores))
    notes = _notes(source, features, analysis, choices)
    for path in choices.columns:
        more, sentence = read_columns(Path(path).expanduser(), places)
        columns += more
        notes.append(sentence)
    names = [str(number) for number in range(1, len(clusters.representatives) + 1)]
    return Contents(
        title=source.name,
        facts=_facts(source, features, analysis, where),
        notes=notes,
        places=places,
        files=Path(places[0]).is_file(),
        points=points,
        neighbours=near.indices[:, :_NEIGHBOURS],
        similarities=near.similarities[:, :_NEIGHBOURS],
        labels=None if source.classes is None else Categories("label", labels, source.classes),
        clusters=Categories("cluster", clusters.assignments, names),
        representatives=clusters.representatives,
        duplicates=analysis.duplicates,
        outliers=np.argsort(-analysis.outlier_scores, kind="stable")[:_OUTLIERS],
        outlier_scores=analysis.outlier_scores,
        issues=issues,
        columns=columns,
        thumbnail=side,
        sheets=sheets,
    )


def _facts(source: Source, features: Features, analysis: Analysis, where: str | Path) -> list[tuple[str, str]]:
    copies = sum(len(group) - 1 for group in analysis.duplicates)
    facts = [("Images", f"{len(features.indices):,}")]
    if source.classes is not None:
        facts.append(("Classes", f"{len(source.classes):,}"))
    facts += [("Clusters", f"{len(analysis.clusters.representatives):,}"), ("Near-duplicates", f"{copies:,}")]
    if analysis.issues is not None:
        facts.append(("Labels to check", f"{len(analysis.issues.indices):,}"))
    width = features.vectors["encoder"].shape[1]
    return [*facts, ("Encoder", f"{where}, {width} features")]


def _notes(source: Source, features: Features, analysis: Analysis, choices: ExploreSettings) -> list[str]:
    count = len(features.indices)
    some = f" of {MOST:,} images; each other image is placed between those most similar to it"
    notes = [f"The map is {MAPS[choices.map]}{some if choices.map == 'tsne' and count > MOST else ''}."]
    if source.labels is None:
        notes.append(f"There are no labels: {source.unlabelled_because}.")
    if features.unreadable:
        notes.append(f"{len(features.unreadable):,} images cannot be read and are left out.")
    if sum(map(len, analysis.duplicates)) > count / 2:
        notes.append(
            f"More than half of the images count as near-duplicates at a similarity of {choices.threshold:g}: choose a "
            "higher threshold. An encoder that collapsed in training finds all images alike."
        )
    return notes
