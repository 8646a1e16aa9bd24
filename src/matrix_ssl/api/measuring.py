"""Label-free measures of features: from files, from encoders on images, and from the checkpoints of a run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from torch import from_numpy, nn

from matrix_ssl import encoder as encoders
from matrix_ssl.api import evaluation
from matrix_ssl.api.caller import undisturbed
from matrix_ssl.api.keywords import listed, optional
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Data, Split
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.loading import load_step
from matrix_ssl.encoder.where import check_where
from matrix_ssl.errors import CheckpointError, ConfigError, check_known, check_whole
from matrix_ssl.evaluate.embedding_files import ENDINGS
from matrix_ssl.evaluate.feature_rows import FeatureRows, open_features, rows_of
from matrix_ssl.evaluate.measure import (
    COMPARISONS,
    Progress,
    check_comparable,
    choose,
    compare_rows,
    meanings,
    measure_rows,
)
from matrix_ssl.evaluate.similarity_matrices import MATRICES, compare_checkpoints
from matrix_ssl.report.measure import PAGE, RESULT, write_page
from matrix_ssl.runs import checkpoint, devices
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import ENCODER, read_config

UNTRAINED = "untrained network"


def measure(
    where: str | Path,
    data: Any = None,
    *,
    against: str | Path | Sequence[str | Path] = (),
    checkpoints: bool = False,
    key: str | None = None,
    population: int | None = None,
    split: Split = "train",
    weights: Weights = "student",
    out: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    data_root: str | Path | None = None,
    download: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures ranks, spectra and similarities of features.

    Args:
        where: a feature file, or an encoder in any form that ``encoder.where`` describes.
        data: the images for the encoders, as for ``pretraining.pretrain``; None: those of the run.
        against: further files or encoders, each of which is compared with the first.
        checkpoints: measure every checkpoint of the run and its untrained network, compare all pairs, and choose one.
        key: the name of the matrix in the files.
        population: number of images to extrapolate to; at least the number measured.
        split: ``train`` or ``test``.
        weights: which network of a run, ``student`` or ``teacher``.
        out: folder for ``measure.json`` and ``measure.html``; None: nothing is written.
        device, quiet, data_root, download: as for ``evaluation.evaluate``.
        on_progress: called with (rows measured, number of rows).

    Returns:
        The contents of ``measure.json``.

    Raises:
        MatrixSSLError: a file, an encoder or the images are at fault.
    """
    check_known("split", split, get_args(Split))
    check_known("weights", weights, get_args(Weights))
    if population is not None:
        check_whole("population", population)
    processor, others = devices.choose_device(device), listed(against)
    for one in (where, *others):
        check_where(one)
    if checkpoints:
        _check_run(where, others)
    root = optional(expanded, data_root)
    options = {"split": split, "device": device, "quiet": quiet, "data_root": root, "download": download}
    images = _Images(optional(as_data, data), weights, key, options)
    folder, first = optional(expanded, out), [images.open(where)]
    # check all before the work starts, one after the other: an external network is in memory while it is open
    locations = [images.checked(one, population) for one in first]
    locations += [images.checked(images.open(other), population) for other in others]
    with evaluation.results_in(folder, (RESULT, PAGE), locations, data_root=root):
        if checkpoints:
            subjects = [images.embed(*one) for one in _checkpoints(expanded(where), weights)]
        else:
            subjects = [images.rows(first.pop()), *(images.rows(images.open(other)) for other in others)]
            subjects = _told_apart(subjects, (where, *others))
        result = _result(subjects, population=population, checkpoints=checkpoints, on_progress=on_progress)
        result |= {
            "unreadable": list(images.unreadable.items()),
            "environment": devices.environment(processor),
        }
        if folder is not None:
            write_json(folder / RESULT, result)
            write_page(folder, result)
        return result


def _check_run(where: str | Path, others: Sequence[str | Path]) -> None:
    """Raises ConfigError if checkpoints cannot be measured."""
    if not expanded(where).is_dir():
        raise ConfigError(f"--checkpoints is for a run, and {where} is not one.")
    if others:
        raise ConfigError(f"--checkpoints compares those of {where} alone: remove --against {others[0]}.")


@dataclass(frozen=True)
class _Images:
    """The images for the encoders, how they are opened, and which of them cannot be read."""

    data: Data | None
    weights: Weights
    key: str | None
    options: dict[str, Any]  # of ``evaluation.embed``
    unreadable: dict[str, str] = field(default_factory=dict)  # place and reason

    def open(self, where: str | Path) -> FeatureRows | Run:
        """Opens a feature file, or an encoder for which there are images; DataError if there are none."""
        path = expanded(where)
        is_encoder = path.is_dir() or (self.data and path.suffix.lower() == ".safetensors")
        if path.suffix.lower() in ENDINGS and not is_encoder:
            return open_features(path, key=self.key)
        run = Run(where, download=self.options["download"])
        if not (self.data or run.config.data.source):
            raise evaluation.no_dataset(where)
        return run

    def checked(self, one: FeatureRows | Run, population: int | None) -> Data:
        """The location of its images, ``()`` for a feature file; ConfigError if they outnumber the population."""
        location = (self.data or one.config.data.source) if isinstance(one, Run) else ()
        if population is not None:
            if isinstance(one, Run):
                opening = {name: self.options[name] for name in ("split", "data_root", "download")}
                source = evaluation.open_images(location, one.config.data, **opening)
                count, what = len(source), f"images of {source.name!r}"
            else:
                count, what = one.count, f"rows of {one.name}"
            if population < count:
                raise ConfigError(
                    f"--population {population} is less than the {count} {what}: it is a larger number of images to "
                    "extrapolate to."
                )
        return location

    def rows(self, one: FeatureRows | Run) -> FeatureRows:
        """The features of an encoder, or from a file."""
        if isinstance(one, FeatureRows):
            return one
        return self.embed(str(one.where), one.encoder(weights=self.weights), one.config.data)

    def embed(self, name: str, encoder: nn.Module, images: DataConfig) -> FeatureRows:
        """The features of a network that takes images of this configuration."""
        embedding = evaluation.embed(encoder, images, self.data or images.source, **self.options)
        self.unreadable.update(embedding.unreadable)
        return rows_of(from_numpy(embedding.features), name, digest=embedding.digest)


def _result(
    subjects: Sequence[FeatureRows], *, population: int | None, checkpoints: bool, on_progress: Progress | None
) -> dict[str, Any]:
    """Measures of all features, comparisons of the first with the others and, for checkpoints, of all pairs."""
    for other in subjects[1:]:
        check_comparable(subjects[0], other)
    measured = [measure_rows(one, population=population, on_progress=on_progress) for one in subjects]
    trained = [one for one in measured if one["name"] != UNTRAINED]
    return {
        "features": measured,
        "comparisons": [compare_rows(subjects[0], other) for other in subjects[1:]],
        "checkpoints": compare_checkpoints(subjects) if checkpoints and len(subjects) > 1 else None,
        "choice": choose(trained) if checkpoints and len(trained) > 1 else None,
        "population": population,
        "meanings": {"ranks": meanings(), "comparisons": COMPARISONS, "checkpoints": MATRICES},
    }


def _told_apart(subjects: Sequence[FeatureRows], places: Sequence[str | Path]) -> list[FeatureRows]:
    """Features that share their name, as ``features.npz`` in two folders do, by the whole place instead."""
    counts = Counter(one.name for one in subjects)
    return [
        one if counts[one.name] == 1 else replace(one, name=str(place))
        for one, place in zip(subjects, places, strict=True)
    ]


def _checkpoints(run: Path, weights: Weights) -> Iterator[tuple[str, nn.Module, DataConfig]]:
    """Name, network and image settings of the untrained network, a run's checkpoints and its finished encoder.

    They come one at a time, in the order of training. CheckpointError for a damaged one is raised before the first.
    """
    config = read_config(run)
    paths, is_finished = checkpoint.list_checkpoints(run), (run / ENCODER).exists()
    for path in paths:
        try:
            checkpoint.load_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Remove it, or put the right file back.") from error
    finished = encoders.load_encoder(run, weights=weights) if is_finished else None
    with undisturbed():
        untrained = encoders.initialise_encoder(config)[0]
    yield UNTRAINED, untrained, config.data
    for path in paths:
        step = int(path.stem.removeprefix("step-"))
        yield f"step {step}", load_step(path, weights=weights), config.data
    if finished is not None:
        yield "finished encoder", finished, config.data
