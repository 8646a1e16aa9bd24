"""Measures of features without labels: of files, of encoders on images, and of the checkpoints of a run."""

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import from_numpy, nn

from matrix_ssl import encoder as encoders
from matrix_ssl.api import evaluation
from matrix_ssl.api.caller import undisturbed
from matrix_ssl.api.keywords import listed
from matrix_ssl.api.run import Run
from matrix_ssl.config import DataConfig
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.objects import as_data
from matrix_ssl.data.sources import Split, check_outside
from matrix_ssl.encoder import Weights
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.feature_rows import ENDINGS, FeatureRows, open_features, rows_of
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
from matrix_ssl.runs.files import check_writable, write_json
from matrix_ssl.runs.folder import ENCODER, lock, read_config

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
    """Ranks, spectra and similarities of features.

    Args:
        where: a file of features, or an encoder in any of the forms of ``encoder.where``.
        data: the images of the encoders, as for ``pretraining.pretrain``; None: those of the run.
        against: further files or encoders, each compared with the first.
        checkpoints: measure every checkpoint of the run and its untrained network, compare each with each, choose one.
        key: the name of the matrix in the files.
        population: a larger number of images, for what to expect of it.
        split: of the dataset.
        weights: the network of a run.
        out: folder for ``measure.json`` and ``measure.html``; None: nothing is written.
        device, quiet, data_root, download: as for ``evaluation.evaluate``.
        on_progress: called with the number of rows that are measured, and of all.

    Returns:
        What ``measure.json`` holds.

    Raises:
        MatrixSSLError: a file, an encoder or the images are at fault.
    """
    data = None if data is None else as_data(data)
    root, folder = (None if path is None else expanded(path) for path in (data_root, out))
    others = listed(against)
    if checkpoints and (is_features(where) or not Path(where).is_dir()):
        raise ConfigError(f"--checkpoints is for a run; {where} is none.")
    if checkpoints and others:
        raise ConfigError(f"--checkpoints compares those of {where} alone: remove --against {others[0]}.")
    opened = [_open(one, data, key=key, download=download) for one in (where, *others)]
    with contextlib.ExitStack() as stack:
        if folder is not None:
            for one in opened:
                if isinstance(one, Run):
                    check_outside(folder, data or one.config.data.source, data_root=root)
            stack.enter_context(lock(folder))
            for name in (RESULT, PAGE):
                check_writable(folder / name)

        unreadable: dict[str, str] = {}  # place and reason

        def rows(one: FeatureRows | Run) -> FeatureRows:
            if isinstance(one, FeatureRows):
                return one
            return embed(one.encoder(weights=weights), one.config.data, str(one.where))

        def embed(encoder: nn.Module, images: DataConfig, name: str) -> FeatureRows:
            embedding = evaluation.embed(
                encoder,
                images,
                data or images.source,
                split=split,
                device=device,
                quiet=quiet,
                data_root=root,
                download=download,
            )
            unreadable.update(embedding.unreadable)
            return rows_of(from_numpy(embedding.features), name, digest=embedding.digest)

        subjects = []
        if checkpoints:
            images = read_config(Path(where)).data
            subjects = [embed(encoder, images, name) for name, encoder in _checkpoints(Path(where), weights)]
        else:
            subjects = [rows(one) for one in opened]
        for other in subjects[1:]:
            check_comparable(subjects[0], other)
        measured = [measure_rows(one, population=population, on_progress=on_progress) for one in subjects]
        trained = [one for one in measured if one["name"] != UNTRAINED]
        result = {
            "features": measured,
            "comparisons": [compare_rows(subjects[0], other) for other in subjects[1:]],
            "checkpoints": compare_checkpoints(subjects) if checkpoints and len(subjects) > 1 else None,
            "choice": choose(trained) if checkpoints and len(trained) > 1 else None,
            "population": population,
            "unreadable": list(unreadable.items()),
            "meanings": {"ranks": meanings(), "comparisons": COMPARISONS, "checkpoints": MATRICES},
            "environment": devices.environment(devices.choose_device(device)),
        }
        if folder is not None:
            write_json(folder / RESULT, result)
            write_page(folder, result)
        return result


def _open(where: str | Path, data: Any, *, key: str | None, download: bool) -> FeatureRows | Run:
    """A file of features, or an encoder for which there are images; DataError where there are none."""
    if is_features(where) and not (data and Path(where).suffix == ".safetensors"):
        return open_features(Path(where), key=key)
    run = Run(where, download=download)
    if not (data or run.config.data.source):
        raise evaluation.no_dataset(where)
    return run


def is_features(where: str | Path) -> bool:
    """Whether WHERE names a file of features; a safetensors file may hold an encoder instead."""
    return Path(where).suffix.lower() in ENDINGS and not Path(where).is_dir()


def _checkpoints(run: Path, weights: Weights) -> list[tuple[str, nn.Module]]:
    """The untrained network, the checkpoints of a run and its finished encoder, by name, in the order of training."""
    config, prefix = read_config(run), {"student": "encoder.", "teacher": "teacher.encoder."}[weights]
    with undisturbed():
        result = [(UNTRAINED, encoders.initialise_encoder(config)[0])]
    for path in checkpoint.list_checkpoints(run):
        saved = checkpoint.load_checkpoint(path)
        tensors = {name.removeprefix(prefix): x for name, x in saved.model.items() if name.startswith(prefix)}
        network = copy.deepcopy(result[0][1])
        checkpoint.load_strictly(network, tensors, str(path))
        result.append((f"step {saved.step}", network.eval()))
    if (run / ENCODER).exists():
        result.append(("finished encoder", encoders.load_encoder(run, weights=weights)))
    return result
