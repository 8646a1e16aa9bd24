"""Evaluation of a run: the encoder, raw pixels and the untrained network under the same protocols."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matrix_ssl import encoder as encoders
from matrix_ssl import record
from matrix_ssl.data.base import Source
from matrix_ssl.errors import ConfigError, DataError, did_you_mean
from matrix_ssl.evaluate.accuracy import accuracy, summarise
from matrix_ssl.evaluate.embedding_map import embedding_map, gallery
from matrix_ssl.evaluate.features import Features, RawPixels, extract
from matrix_ssl.evaluate.knn import knn_predict
from matrix_ssl.evaluate.linear import fit_logistic_regression
from matrix_ssl.evaluate.low_shot import low_shot
from matrix_ssl.randomness import permutation

PROTOCOLS = ("knn", "linear", "low-shot")
BASELINES = ("raw_pixels", "random_network")
_NEIGHBOURS = (1, 20)
_SHOTS = (1, 5, 10)
_GALLERY, _GALLERY_NEIGHBOURS = 10, 7
_DESCRIBED = 2000  # pictures that a map and a gallery without evaluation are made from
_QUERIES = 0x6A11  # coordinate of the choice of query pictures

Result = dict[str, float | int]
Say = Callable[[str], None]


def evaluate(
    run: Path,
    train: Source,
    test: Source,
    *,
    protocols: Sequence[str],
    weights: encoders.Weights,
    device: torch.device,
    say: Say,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Evaluates a run's encoder beside its baselines and writes ``summary.json`` and ``evaluation.npz``.

    Args:
        run: a run folder with a finished encoder.
        train: labelled pictures that probes learn from.
        test: labelled pictures that accuracy is measured on, with the same classes.
        protocols: some of ``PROTOCOLS``.
        weights: student or teacher.
        device: where features are computed.
        say: takes sentences for the person, such as what was left out.
        on_progress: called with (pictures done, pictures in all) while features are computed.

    Returns:
        The summary.

    Raises:
        ConfigError: a protocol is unknown.
        DataError: the sets are unlabelled or their classes differ.
    """
    check_protocols(protocols)
    _check_classes(train, test)
    started = time.monotonic()
    config = record.read_config(run)
    networks: dict[str, nn.Module] = {
        "encoder": encoders.load_encoder(run, weights=weights),
        "raw_pixels": RawPixels(),
        "random_network": encoders.build_encoder(config)[0],
    }
    learn = extract(networks, train, config.data, device=device, on_progress=on_progress)
    judge = extract(networks, test, config.data, device=device, on_progress=on_progress)
    for part, features in (("training", learn), ("test", judge)):
        if features.unreadable:
            where, why = features.unreadable[0]
            say(
                f"{len(features.unreadable)} {part} pictures cannot be read and are left out, "
                f"the first one {where}: {why}."
            )
    assert learn.labels is not None and judge.labels is not None and train.classes is not None  # checked on entry
    results = {
        name: measure(
            learn.vectors[name], learn.labels, judge.vectors[name], judge.labels,
            classes=train.classes,
            protocols=protocols,
            say=say if name == "encoder" else _silent,  # what is left out is left out for the baselines, too
        )
        for name in networks
    }  # fmt: skip
    _write_pictures(run, test, judge)
    summary = record.read_json(run / record.SUMMARY)
    judged = {
        "name": test.name,
        "train": len(learn.indices),
        "test": len(judge.indices),
        "classes": len(train.classes),
        "unreadable": len(learn.unreadable) + len(judge.unreadable),
    }
    if (summary.get("weights"), summary.get("evaluated_on")) == (weights, judged):  # other protocols stay beside these
        results["encoder"] = summary["evaluation"] | results["encoder"]
        results |= {name: summary["baselines"][name] | results[name] for name in BASELINES}
    summary |= {"weights": weights, "evaluated_on": judged}
    summary |= {"evaluation": results.pop("encoder"), "baselines": results}
    summary["seconds_evaluation"] = time.monotonic() - started
    summary["seconds"] = summary["seconds_training"] + summary["seconds_evaluation"]
    record.write_json(run / record.SUMMARY, summary)
    return summary


def describe_pictures(
    run: Path,
    source: Source,
    *,
    weights: encoders.Weights,
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> None:
    """Writes ``evaluation.npz``, the map and the gallery of nearest neighbours, for at most 2000 of the pictures."""
    if len(source) > _DESCRIBED:
        source = source.subset(np.sort(permutation(len(source), _QUERIES)[:_DESCRIBED]))
    network = {"encoder": encoders.load_encoder(run, weights=weights)}
    _write_pictures(
        run, source, extract(network, source, record.read_config(run).data, device=device, on_progress=on_progress)
    )


def check_protocols(protocols: Sequence[str]) -> None:
    """Raises ConfigError for a protocol that does not exist."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise ConfigError(f"--protocol {name!r} does not exist.{did_you_mean(name, PROTOCOLS)}")


def measure(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    classes: Sequence[str],
    protocols: Sequence[str] = PROTOCOLS,
    say: Say,
) -> dict[str, Result]:
    """Runs protocols on features.

    Args:
        x: (n, k) training features; ``y`` (n,) their labels, from 0; ``x_test`` (m, k); ``y_test`` (m,).
        classes: the name of every label.
        protocols: some of ``PROTOCOLS``.
        say: is told what had to be left out for lack of pictures.

    Returns:
        ``knn_1``, ``knn_20``, ``linear``, ``low_shot_1``, ``low_shot_5``, ``low_shot_10``, each mean, sd and n.
    """
    results: dict[str, Result] = {}
    if "knn" in protocols:
        for k in _NEIGHBOURS:
            if k > len(x):
                say(f"knn_{k} is left out: there are {len(x)} training pictures.")
            else:
                results[f"knn_{k}"] = summarise([accuracy(knn_predict(x, y, x_test, k=k), y_test)])
    if "linear" in protocols:
        probe = fit_logistic_regression(x, y, classes=len(classes))
        if not probe.converged:
            say("warning: the linear probe did not converge.")
        results["linear"] = summarise([accuracy(probe.predict(x_test), y_test)])
    if "low-shot" in protocols:
        counts = torch.bincount(y, minlength=len(classes))
        for shots in _SHOTS:
            if int(counts.min()) < shots:
                fewest = int(counts.argmin())
                had = int(counts[fewest])
                say(f"low_shot_{shots} is left out: class {classes[fewest]!r} has {had} training pictures.")
            else:
                results[f"low_shot_{shots}"] = summarise(low_shot(x, y, x_test, y_test, shots=shots))
    return results


def _write_pictures(run: Path, source: Source, features: Features) -> None:
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
    record.write_atomically(run / record.EVALUATION, lambda file: np.savez_compressed(file, **arrays))


def _check_classes(train: Source, test: Source) -> None:
    for part, source in (("training", train), ("test", test)):
        if source.labels is None:
            raise DataError(
                f"the {part} pictures of {source.name!r} have no labels: put each class in a folder of its own."
            )
    if train.classes != test.classes:
        different = sorted(set(train.classes or []) ^ set(test.classes or []))
        raise DataError(f"training and test pictures have different classes: {', '.join(different[:8])}.")


def _silent(_: str) -> None:
    return None
