"""A whole evaluation, and the features of a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matrix_ssl import distributed
from matrix_ssl.data import Source, has_test_split, open_source, split_source
from matrix_ssl.data.sources import Split
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.importing import as_run
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate import protocols as every
from matrix_ssl.evaluate.baselines import Sizes, open_baselines
from matrix_ssl.evaluate.features import Features, write_features
from matrix_ssl.evaluate.subject import Subject
from matrix_ssl.evaluate.trained.protocols import SEMI_SUPERVISED, EvaluationSettings
from matrix_ssl.report import write_report
from matrix_ssl.report.tables import Evaluation, read_evaluation
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import check_writable
from matrix_ssl.runs.folder import lock, read_config
from matrix_ssl.runs.session import session

HELD_OUT = 0.2  # part of every class that is tested on where there is no test split


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    results: Evaluation | None  # of all protocols on the dataset so far; None without labels
    is_main: bool  # whether this process is the one that writes files and messages
    report: Path | None  # the page, where one was written


def evaluate(
    where: str | Path,
    data: str | None,
    *,
    out: Path | None = None,
    test_data: str | None = None,
    protocols: Sequence[str],
    baselines: Sequence[str] = (),
    baseline_sizes: Sizes = "own",
    settings: EvaluationSettings,
    label_list: Path | None = None,
    weights: Weights = "student",
    fresh: bool = False,
    report: bool = True,
    device: str = "auto",
    data_root: Path | None = None,
    download: bool = False,
) -> Evaluated:  # fmt: skip
    """Measures an encoder by protocols, in all processes of a launcher; the same call again resumes.

    Images without labels get the map and the gallery of the run's page alone.

    Args:
        where: the encoder, in any of the forms of ``encoder.where``.
        data: training images of the classifiers; None: those of the run.
        out: folder of the results of an encoder that is not a run; None: in ``runs``, under its name.
        test_data: test images; None: the test split of the dataset, else a held-out fifth of each class.
        baselines: public encoders beside that of the run, as ``baselines.open_baselines`` takes them.
        baseline_sizes: the size of their images.
        label_list: file that names the labelled images of ``semi-supervised``.
        weights: the network of the run.
        fresh: repeat protocols that already have results.
        report: write the page.
        device, data_root, download: as for ``pretraining.train``.

    Raises:
        MatrixSSLError: the data, the folder or a setting is at fault.
    """
    every.check_protocols(protocols)
    if label_list is not None and SEMI_SUPERVISED not in protocols:
        raise ConfigError(f"--label-list is for --protocol {SEMI_SUPERVISED}.")
    if not data and not Path(where).is_dir():
        raise _no_dataset(where)
    with session(device) as s:
        prepared = None
        with distributed.together():
            if s.main:
                prepared = as_run(where, out=out, weights=weights, download=download, say=s.display.say)
        run, weights = distributed.broadcast_object(prepared)
        location = data or read_config(run).data.source
        if not location:
            raise _no_dataset(where)
        public = open_baselines(baselines, read_config(run).data, sizes=baseline_sizes, download=download)
        with distributed.together():
            if s.main:
                s.stack.enter_context(lock(run))
        with distributed.together():
            train, test, drawn_from = _open_splits(location, test_data, data_root, download, say=s.display.say)
        if train.labels is None and public:
            raise DataError(f"{train.name!r} has no labels; --baseline compares accuracies, which need them.")
        if train.labels is None:
            s.display.say("No labels found: writing only the embedding map and the nearest-neighbour gallery.")
            with s.display.bar("features") as show:
                every.describe_images(run, train, weights=weights, device=s.device, on_progress=show)
        else:
            subject = Subject(run, train, test, weights, s.device, drawn_from)
            every.run_protocols(
                subject, protocols=protocols, settings=settings, baselines=public, label_list=label_list,
                fresh=fresh, say=s.display.say, display=s.display, bar=s.display.bar,
            )  # fmt: skip
        results = read_evaluation(subject.folder) if s.main and train.labels is not None else None
        return Evaluated(results, s.main, write_report(run) if s.main and report else None)


def embed(
    where: str | Path, data: str | None, out: Path, *, split: Split = "train", weights: Weights = "student",
    device: str = "auto", data_root: Path | None = None, download: bool = False,
) -> Features:  # fmt: skip
    """Writes the features of images, None: those of the run, to an .npz file; unreadable ones are skipped.

    The encoder is ``where``, in any of the forms of ``encoder.where``; nothing but ``out`` is written.
    """
    check_writable(out)
    opened = open_encoder(where, weights=weights, download=download)
    location = data or opened.config.data.source
    if not location:
        raise _no_dataset(where)
    source = open_source(location, split=split, data_root=data_root, download=download)
    with Display().bar("features") as show:
        return write_features(
            opened.encoder, source, opened.config.data, out, device=devices.choose_device(device), on_progress=show
        )


def _no_dataset(where: str | Path) -> DataError:
    return DataError(f"{where} does not name a dataset: give --data FOLDER.")


def _open_splits(
    location: str, test_data: str | None, data_root: Path | None, download: bool, *, say: Callable[[str], None]
) -> tuple[Source, Source, str | None]:
    """Training and test images, and the digest of the dataset that both are splits of; None if each is whole."""
    open_split = partial(open_source, data_root=data_root, download=download)
    train = open_split(location, split="train")
    if test_data:
        is_split = has_test_split(test_data, data_root=data_root, download=download)
        return train, open_split(test_data, split="test" if is_split else "train"), None
    if has_test_split(location, data_root=data_root, download=download):
        return train, open_split(location, split="test"), None
    if train.labels is None:
        return train, train, None
    say("No test split: holding out 20% of each class. The encoder may have seen these images during pre-training.")
    return *split_source(train, HELD_OUT, 0), train.digest
