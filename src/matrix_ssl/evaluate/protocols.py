"""Evaluation of an encoder: the list of protocols, and how they run on one subject."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matrix_ssl import distributed
from matrix_ssl import encoder as encoders
from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, DataError, did_you_mean
from matrix_ssl.evaluate import results, unreadable
from matrix_ssl.evaluate.baselines import Baseline
from matrix_ssl.evaluate.feature_files import FeatureFiles
from matrix_ssl.evaluate.features import Features, RawPixels, extract
from matrix_ssl.evaluate.map import write_map
from matrix_ssl.evaluate.probes import protocols as frozen
from matrix_ssl.evaluate.probes.inputs import check_datasets
from matrix_ssl.evaluate.probes.protocols import Predictions, Say
from matrix_ssl.evaluate.results import Answers
from matrix_ssl.evaluate.subject import Subject
from matrix_ssl.evaluate.trained import protocols as trained
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import EVALUATION, read_config

TRANSFER = "transfer"
PROTOCOLS = (*frozen.PROTOCOLS, TRANSFER, *trained.PROTOCOLS)
_MAPPED = 2000  # maximum number of unlabelled images that the map and the gallery are computed from
_STREAM = 0x6A11  # random stream that samples them

OnProgress = Callable[[int, int], None]


def check_protocols(protocols: Sequence[str]) -> None:
    """Raises ConfigError for a protocol that does not exist, or if none is given."""
    if not protocols:
        raise ConfigError(f"--protocol is empty. Choose from {', '.join(PROTOCOLS)}.")
    for name in protocols:
        if name not in PROTOCOLS:
            raise ConfigError(f"--protocol {name!r} does not exist.{did_you_mean(name, PROTOCOLS)}")


def run_protocols(
    subject: Subject,
    *,
    protocols: Sequence[str],
    settings: trained.EvaluationSettings,
    baselines: Sequence[Baseline] = (),
    label_list: Path | None = None,
    fresh: bool = False,
    display: Display,
) -> None:
    """Runs protocols and writes their results to ``subject.folder``; calling it again resumes.

    If the images are those of the pre-training, ``evaluation.npz`` is written as well, with the map and the gallery of
    neighbours for the run's page.

    Args:
        baselines: public encoders that the protocols on frozen features measure as well.
        label_list: file that names the labelled images of ``semi-supervised``; None: a stratified subset.
        fresh: repeat protocols that train and already have results.
        display: shows progress and messages for the user, such as what is skipped.

    Raises:
        ConfigError: a protocol cannot run with several processes.
        DataError: the datasets are unlabelled or their classes differ.
    """
    check_datasets(subject.train, subject.test)
    on_features = [name for name in protocols if name not in trained.PROTOCOLS]
    if on_features and distributed.world_size() > 1:
        raise ConfigError(
            f"{', '.join(on_features)}: these protocols run in one process. Give torchrun only "
            f"--protocol {','.join(trained.PROTOCOLS)}."
        )
    if trained.SEMI_SUPERVISED in protocols:
        trained.check_parts(subject, label_list)
    if on_features:
        _run_frozen(subject, on_features, baselines, display)
    elif baselines:
        raise ConfigError(f"--baseline is for the protocols on frozen features: {', '.join(PROTOCOLS[:4])}.")
    for name in protocols:
        if name in trained.PROTOCOLS:
            trained.run_trained(subject, name, settings=settings, label_list=label_list, fresh=fresh, display=display)
    if distributed.is_main():
        _compare_probes(subject.folder)


def describe_images(
    run: Path, source: Source, *, weights: encoders.Weights, device: torch.device, on_progress: OnProgress, say: Say,
    max_unreadable: float | None = None,
) -> None:  # fmt: skip
    """Writes ``evaluation.npz``, the map and the gallery of nearest neighbours, for at most 2000 of the images.

    Unreadable images are listed in the results folder. More than the fraction ``max_unreadable``, by default that of
    the run, is an error.
    """
    data, folder = read_config(run).data, run / "evaluation"
    part = data.max_unreadable if max_unreadable is None else max_unreadable
    if len(source) > _MAPPED:
        source = source.subset(np.sort(permutation(len(source), _STREAM)[:_MAPPED]))
    network = {"encoder": encoders.load_encoder(run, weights=weights)}
    features = extract(
        network, source, data, device=device, on_progress=on_progress,
        on_unreadable=partial(
            unreadable.refuse_many, source=source, folder=folder, part=part, workers=data.workers, say=say
        ),
    )  # fmt: skip
    unreadable.report(features.unreadable, folder, what="images", say=say)
    write_map(run / EVALUATION, source, features)


def _run_frozen(subject: Subject, protocols: Sequence[str], baselines: Sequence[Baseline], display: Display) -> None:
    """Runs the protocols on frozen features of the encoder and of the baselines; one pass over the images serves all.

    Each public encoder needs a pass of its own, since its images are prepared differently.
    """
    started, say = time.monotonic(), display.say
    networks: dict[str, nn.Module] = {"encoder": subject.encoder, "raw_pixels": RawPixels()}
    if not subject.is_untrained:
        networks["random_network"] = subject.untrained[0]
    files = subject.folder / "features"
    train, test = _features(subject, networks, subject.config.data, files, display=display)
    unreadable.report([*train.unreadable, *test.unreadable], subject.folder, what="training and test images", say=say)
    if train.unreadable or test.unreadable:
        unreadable.write_list(subject.folder, [*train.unreadable, *test.unreadable])
    requested = [name for name in frozen.PROTOCOLS if name in protocols or (name == "linear" and TRANSFER in protocols)]
    predictions = {}
    with display.bar("probes", "networks") as show:
        for done, name in enumerate(networks):
            show(done, len(networks))
            # the baselines skip the same protocols, silently
            predictions[name] = _predict(subject, name, train, test, requested, say if name == "encoder" else _silent)
    predictions.setdefault("random_network", predictions["encoder"])
    answers = Answers.of(subject.test, test.indices)
    public = [_measure(subject, one, answers, files, requested, display) for one in baselines]
    for protocol in protocols:
        chosen = {name: _of_protocol(protocol, measures) for name, measures in predictions.items()}
        values = {
            "protocol": protocol,
            "measures": {name: results.describe(one, answers) for name, one in chosen["encoder"].items()},
            "baselines": {
                baseline: {name: results.describe(one, answers, by_class=False) for name, one in measures.items()}
                for baseline, measures in chosen.items()
                if baseline != "encoder"
            },
            "differences": {
                baseline: _differences(chosen["encoder"], measures, answers)
                for baseline, measures in chosen.items()
                if baseline != "encoder"
            },
            "public": {
                one.name: description | _against(_of_protocol(protocol, measures), chosen["encoder"], answers)
                for one, (measures, description) in zip(baselines, public, strict=True)
            },
            **subject.question,
            "pretraining_images": subject.is_own,
            "training_images": len(train.indices),
            "unreadable": len(train.unreadable) + len(test.unreadable),
            "seconds": time.monotonic() - started,
            "environment": devices.environment(subject.device),
        }
        results.write(subject.folder, protocol, values, chosen["encoder"], answers)
    if set(protocols) != {TRANSFER} and subject.is_own:
        write_map(subject.run / EVALUATION, subject.test, test)
    shutil.rmtree(files)


def _features(
    subject: Subject, networks: Mapping[str, nn.Module], data: DataConfig, folder: Path, *question: Any,
    display: Display,
) -> tuple[Features, Features]:  # fmt: skip
    """Features of the training and of the test images; a call with the same question resumes."""
    own = subject.config.data
    with display.bar("features") as show:
        train, test = (
            extract(
                networks, source, data, device=subject.device, on_progress=show,
                files=FeatureFiles(folder / split, fingerprint=subject.fingerprint(split, *question)),
                on_unreadable=partial(
                    unreadable.refuse_many, source=source, folder=subject.folder, part=own.max_unreadable,
                    workers=own.workers, say=display.say,
                ),
            )
            for split, source in (("train", subject.train), ("test", subject.test))
        )  # fmt: skip
    return train, test


def _predict(
    subject: Subject, name: str, train: Features, test: Features, protocols: Sequence[str], say: Say
) -> dict[str, Predictions]:
    """The predictions of all protocols on the features of one network."""
    return frozen.predict(
        train.vectors[name], train.labels, test.vectors[name],
        classes=subject.train.labelled()[1],
        protocols=protocols,
        device=subject.device if subject.device.type == "cuda" else None,
        say=say,
    )  # fmt: skip


def _measure(
    subject: Subject, baseline: Baseline, answers: Answers, folder: Path, protocols: Sequence[str], display: Display
) -> tuple[dict[str, Predictions], dict[str, Any]]:
    """The predictions of a public encoder, and the facts about it that are stored as JSON."""
    display.say(f"Baseline {baseline.name}: {baseline.tensors}")
    started, description = time.monotonic(), baseline.describe()
    where = folder / results.fingerprint(description)
    networks = {"encoder": baseline.encoder}
    train, test = _features(subject, networks, baseline.data, where, description, display=display)
    seconds = time.monotonic() - started
    if not np.array_equal(Answers.of(subject.test, test.indices).where, answers.where):
        raise DataError(f"The test images changed during the evaluation of {baseline.name}. Evaluate again.")
    predictions = _predict(subject, "encoder", train, test, protocols, _silent)
    return predictions, description | {"feature_seconds": seconds}


def _against(
    public: Mapping[str, Predictions], own: Mapping[str, Predictions], answers: Answers
) -> dict[str, dict[str, Any]]:
    """The measures of a public encoder, and the differences of the run's encoder from it."""
    return {
        "measures": {name: results.describe(one, answers, by_class=False) for name, one in public.items()},
        "differences": _differences(own, public, answers),
    }


def _differences(
    own: Mapping[str, Predictions], others: Mapping[str, Predictions], answers: Answers
) -> dict[str, dict[str, Any]]:
    """The measures of the run's encoder minus those of a different network."""
    return {name: results.difference(own[name], one, answers) for name, one in others.items()}


def _of_protocol(protocol: str, predictions: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The measures of one protocol, selected from those of all."""
    if protocol == TRANSFER:
        return {TRANSFER: predictions["linear"]}
    start = protocol.replace("-", "_")
    return {name: one for name, one in predictions.items() if name.startswith(start)}


def _compare_probes(folder: Path) -> None:
    """Writes the paired difference of the two linear protocols if both have results on the same images."""
    first = results.read_predictions(folder, trained.LINEAR_SGD, "linear_sgd")
    second = results.read_predictions(folder, "linear", "linear")
    if first and second and np.array_equal(first[1].where, second[1].where):
        write_json(folder / "linear-sgd-against-linear.json", results.difference(first[0], second[0], first[1]))


def _silent(_: str) -> None:
    return None
