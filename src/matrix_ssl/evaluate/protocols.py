"""Evaluation of an encoder: which protocols there are, and running them on one subject after another."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matrix_ssl import distributed
from matrix_ssl import encoder as encoders
from matrix_ssl.data.base import Source
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, did_you_mean
from matrix_ssl.evaluate import results
from matrix_ssl.evaluate.feature_files import FeatureFiles
from matrix_ssl.evaluate.features import Features, RawPixels, extract
from matrix_ssl.evaluate.map import embedding_map, gallery
from matrix_ssl.evaluate.probes import protocols as frozen
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.evaluate.probes.inputs import check_sets
from matrix_ssl.evaluate.probes.protocols import Predictions, Say
from matrix_ssl.evaluate.results import Answers
from matrix_ssl.evaluate.subject import Subject
from matrix_ssl.evaluate.trained import protocols as trained
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json, write_atomically, write_json
from matrix_ssl.runs.folder import EVALUATION, SUMMARY, read_config

TRANSFER = "transfer"
PROTOCOLS = (*frozen.PROTOCOLS, TRANSFER, *trained.PROTOCOLS)
BASELINES = ("raw_pixels", "random_network")
_GALLERY, _GALLERY_NEIGHBOURS = 10, 7
_DESCRIBED = 2000  # images that a map and a gallery without evaluation are made from
_QUERIES = 0x6A11  # coordinate of the choice of query images

OnProgress = Callable[[int, int], None]


def check_protocols(protocols: Sequence[str]) -> None:
    """Raises ConfigError for a protocol that does not exist, or when there is none."""
    if not protocols:
        raise ConfigError(f"--protocol names no protocol: give some of {', '.join(PROTOCOLS)}.")
    for name in protocols:
        if name not in PROTOCOLS:
            raise ConfigError(f"--protocol {name!r} does not exist.{did_you_mean(name, PROTOCOLS)}")


def evaluate(
    subject: Subject,
    *,
    protocols: Sequence[str],
    settings: trained.EvaluationSettings,
    label_list: Path | None = None,
    fresh: bool = False,
    say: Say,
    display: Display,
    bar: Callable[..., AbstractContextManager[OnProgress]],
) -> dict[str, dict[str, Any]]:
    """Runs protocols and writes what they find into ``RUN/evaluation/SET/``; the same call again goes on.

    ``summary.json`` and ``evaluation.npz``, which hold what the page of the run begins with, follow unless the images
    are others than those of the pre-training.

    Args:
        subject: encoder and images.
        protocols: some of ``PROTOCOLS``.
        settings: of the protocols that train.
        label_list: file names of the labelled images of ``semi-supervised``; a stratified part when left out.
        fresh: measure again what has been measured.
        say: takes sentences for the person, such as what was left out.
        display: progress of protocols that train.
        bar: a progress bar by its title and unit; what it gives is called with (done, in all).

    Returns:
        By protocol, the content of its JSON file.

    Raises:
        ConfigError: a protocol is unknown, or cannot run with several processes.
        DataError: the sets are unlabelled or their classes differ.
    """
    check_protocols(protocols)
    check_sets(subject.train, subject.test)
    on_features = [name for name in protocols if name not in trained.PROTOCOLS]
    if on_features and distributed.world_size() > 1:
        raise ConfigError(
            f"{', '.join(on_features)}: these protocols run in one process; give torchrun only "
            f"--protocol {','.join(trained.PROTOCOLS)}."
        )
    found: dict[str, dict[str, Any]] = {}
    if on_features:
        found |= _evaluate_features(subject, on_features, say=say, bar=bar)
    for name in protocols:
        if name in trained.PROTOCOLS:
            found[name] = trained.evaluate(
                subject, name, settings=settings, label_list=label_list, fresh=fresh, say=say, display=display
            )
    if distributed.is_main():
        _compare_probes(subject, say)
    return found


def describe_images(
    run: Path,
    source: Source,
    *,
    weights: encoders.Weights,
    device: torch.device,
    on_progress: OnProgress,
) -> None:
    """Writes ``evaluation.npz``, the map and the gallery of nearest neighbours, for at most 2000 of the images."""
    if len(source) > _DESCRIBED:
        source = source.subset(np.sort(permutation(len(source), _QUERIES)[:_DESCRIBED]))
    network = {"encoder": encoders.load_encoder(run, weights=weights)}
    _write_images(run, source, extract(network, source, read_config(run).data, device=device, on_progress=on_progress))


def _evaluate_features(
    subject: Subject,
    protocols: Sequence[str],
    *,
    say: Say,
    bar: Callable[..., AbstractContextManager[OnProgress]],
) -> dict[str, dict[str, Any]]:
    """The protocols on frozen features, of the encoder and of the baselines, whose features come of the same pass."""
    started = time.monotonic()
    networks: dict[str, nn.Module] = {
        "encoder": subject.encoder, "raw_pixels": RawPixels(), "random_network": subject.untrained[0]
    }  # fmt: skip
    files = subject.folder / "features"
    with bar("features") as show:
        learn, judge = (
            extract(
                networks, source, subject.config.data,
                device=subject.device, on_progress=show,
                files=FeatureFiles(files / part, fingerprint=subject.fingerprint(part)),
            )
            for part, source in (("train", subject.train), ("test", subject.test))
        )  # fmt: skip
    for part, features in (("training", learn), ("test", judge)):
        if features.unreadable:
            where, why = features.unreadable[0]
            say(
                f"{len(features.unreadable)} {part} images cannot be read and are left out, "
                f"the first one {where}: {why}."
            )
    assert subject.train.classes is not None and learn.labels is not None and judge.labels is not None  # checked
    wanted = [name for name in frozen.PROTOCOLS if name in protocols or (name == "linear" and TRANSFER in protocols)]
    made = {}
    with bar("probes", "networks") as show:
        for done, name in enumerate(networks):
            show(done, len(networks))
            made[name] = frozen.predict(
                learn.vectors[name], learn.labels, judge.vectors[name],
                classes=subject.train.classes,
                protocols=wanted,
                device=subject.device if subject.device.type == "cuda" else None,
                say=say if name == "encoder" else _silent,  # what is left out is left out for the baselines, too
            )  # fmt: skip
    answers = Answers.of(subject.test, judge.indices)
    found = {}
    for protocol in protocols:
        values = _describe(protocol, made, answers) | subject.question
        values |= {
            "training_images": len(learn.indices),
            "unreadable": len(learn.unreadable) + len(judge.unreadable),
            "seconds": time.monotonic() - started,
            "environment": devices.environment(subject.device),
        }
        results.write(subject.folder, protocol, values, _of(protocol, made["encoder"]), answers)
        found[protocol] = values
    if set(protocols) != {TRANSFER} and _is_own(subject):
        _write_images(subject.run, subject.test, judge)
        _write_summary(subject, made, learn, judge, answers, seconds=time.monotonic() - started)
    shutil.rmtree(files)
    return found


def _of(protocol: str, made: dict[str, Predictions]) -> dict[str, Predictions]:
    """The measures of a protocol among those of all."""
    if protocol == TRANSFER:
        return {TRANSFER: made["linear"]}
    start = protocol.replace("-", "_")
    return {name: one for name, one in made.items() if name.startswith(start)}


def _describe(protocol: str, made: dict[str, dict[str, Predictions]], answers: Answers) -> dict[str, Any]:
    measures, *others = (_of(protocol, made[name]) for name in ("encoder", *BASELINES))
    return {
        "protocol": protocol,
        "measures": {name: results.describe(one, answers) for name, one in measures.items()},
        "baselines": {
            baseline: {name: results.describe(one, answers, by_class=False) for name, one in other.items()}
            for baseline, other in zip(BASELINES, others, strict=True)
        },
    }


def _is_own(subject: Subject) -> bool:
    """Whether the images are those of the pre-training, or those are not known."""
    if digest := subject.config.data.digest:
        return digest in (subject.train.digest, subject.drawn_from)
    name = read_json(subject.run / SUMMARY).get("data", {}).get("name")
    return name in (None, subject.train.name)


def _write_summary(
    subject: Subject,
    made: dict[str, dict[str, Predictions]],
    learn: Features,
    judge: Features,
    answers: Answers,
    *,
    seconds: float,
) -> None:
    found = {
        name: {key: summarise((one.labels == answers.labels).double().mean(dim=1)) for key, one in measures.items()}
        for name, measures in made.items()
    }
    summary = read_json(subject.run / SUMMARY)
    judged = {
        "name": subject.test.name,
        "digest": results.fingerprint(subject.train.digest, subject.test.digest),
        "train": len(learn.indices),
        "test": len(judge.indices),
        "classes": len(answers.classes),
        "unreadable": len(learn.unreadable) + len(judge.unreadable),
    }
    if (summary.get("weights"), summary.get("evaluated_on")) == (subject.weights, judged):  # others stay beside these
        found["encoder"] = summary["evaluation"] | found["encoder"]
        found |= {name: summary["baselines"][name] | found[name] for name in BASELINES}
    summary |= {"weights": subject.weights, "evaluated_on": judged}
    summary |= {"evaluation": found.pop("encoder"), "baselines": found}
    summary["seconds_evaluation"] = seconds
    summary["seconds"] = summary["seconds_training"] + seconds
    write_json(subject.run / SUMMARY, summary)


def _compare_probes(subject: Subject, say: Say) -> None:
    """Says how far the two linear protocols differ where both have been run on the same images."""
    first = results.read_predictions(subject.folder, trained.LINEAR_SGD, "linear_sgd")
    second = results.read_predictions(subject.folder, "linear", "linear")
    if first is None or second is None or not np.array_equal(first[1].where, second[1].where):
        return
    found = results.difference(first[0], second[0], first[1])
    write_json(subject.folder / "linear-sgd-against-linear.json", found)
    low, high = found["interval"]
    say(
        f"linear-sgd less linear: {100 * found['difference']:+.1f} points (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
    )


def _write_images(run: Path, source: Source, features: Features) -> None:
    vectors = features.vectors["encoder"]
    chosen, coordinates = embedding_map(vectors)
    labels = torch.full((len(vectors),), -1) if features.labels is None else features.labels
    arrays: dict[str, Any] = {
        "map": coordinates.astype(np.float32),
        "map_labels": labels.numpy()[chosen],
        "classes": np.array(source.classes or [], dtype=np.str_),
    }
    if len(vectors) > 1:
        queries = torch.from_numpy(permutation(len(vectors), _QUERIES)[:_GALLERY])
        neighbours = min(_GALLERY_NEIGHBOURS, len(vectors) - 1)
        arrays |= gallery(
            vectors, features.labels, lambda i: source.read(int(features.indices[i])), queries=queries, k=neighbours
        )
    write_atomically(run / EVALUATION, lambda file: np.savez_compressed(file, **arrays))


def _silent(_: str) -> None:
    return None
