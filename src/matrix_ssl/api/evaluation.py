"""A complete evaluation, and the features of a dataset."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from torch import nn

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig
from matrix_ssl.data import Source, has_test_split, open_source, split_source
from matrix_ssl.data.objects import in_colour
from matrix_ssl.data.sources import Data, Split, Splits, check_outside
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.identity import encoder_digest
from matrix_ssl.encoder.opening import nothing_at
from matrix_ssl.encoder.where import PATH, is_folder, read_where
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, check_known
from matrix_ssl.evaluate import features
from matrix_ssl.evaluate.baselines import Sizes, open_baselines
from matrix_ssl.evaluate.features import Embedding, grid_of
from matrix_ssl.evaluate.kept import Earlier
from matrix_ssl.evaluate.kept_embedding import embed_kept, of_embedding, state_of, with_digests
from matrix_ssl.evaluate.protocols import check_protocols, describe_images, run_protocols
from matrix_ssl.evaluate.subject import Subject
from matrix_ssl.evaluate.trained.label_subsets import read_names
from matrix_ssl.evaluate.trained.protocols import SEMI_SUPERVISED, EvaluationSettings
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import check_writable
from matrix_ssl.runs.folder import lock, read_config
from matrix_ssl.runs.session import Session, session

if TYPE_CHECKING:
    from matrix_ssl.report.tables import Evaluation

_HELD_OUT = 0.2  # fraction of every class that is held out for testing if there is no test split
# training and test images, and the digest of the one dataset they were split from; None if they were not split
_Splits = tuple[Source, Source, str | None]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    results: "Evaluation | None"  # all protocols on the dataset so far; None without labels
    is_main: bool  # whether this is the process that writes files and messages
    report: Path | None  # the page, if one was written


def evaluate(
    where: str | Path,
    data: Data | None,
    *,
    out: Path | None = None,
    test_data: Data | None = None,
    protocols: Sequence[str],
    baselines: Sequence[str] = (),
    baseline_sizes: Sizes = "own",
    settings: EvaluationSettings,
    label_list: Path | None = None,
    weights: Weights = "student",
    fresh: bool = False,
    needs_labels: bool = False,
    max_unreadable: float | None = None,
    report: bool = True,
    quiet: bool = False,
    device: str = "auto",
    data_root: Path | None = None,
    download: bool = False,
) -> Evaluated:  # fmt: skip
    """Evaluates an encoder with protocols, in every process of a launcher; calling it again resumes.

    For images without labels, only the map and the gallery of the run's page are produced.

    Args:
        where: the encoder, in any form that ``encoder.where`` describes.
        data: training images for the classifiers; None: those of the run, also for one of its checkpoints.
        out: folder for the results of an encoder that is not a run; None: in ``runs``, under its name.
        test_data: test images; None: the dataset's test split or, without one, a held-out fifth of each class.
        baselines: public encoders to compare with the run's, as ``baselines.open_baselines`` takes them.
        baseline_sizes: the image size for the baselines, as for ``baselines.open_baselines``.
        label_list: file that names the labelled images of ``semi-supervised``.
        weights: which network of the run, ``student`` or ``teacher``.
        fresh: repeat protocols that already have results.
        needs_labels: raise an error for images without labels.
        max_unreadable: fraction of the images, in [0, 1], that may be unreadable; ten always may. None: the run's own.
        report: write the page.
        quiet: show no messages and no progress.
        device, data_root, download: as for ``pretraining.train``.

    Raises:
        MatrixSSLError: the data, the folder or a setting is at fault.
    """
    check_protocols(protocols)
    check_known("weights", weights, get_args(Weights))
    check_known("baseline_sizes", baseline_sizes, get_args(Sizes))
    if label_list is not None and SEMI_SUPERVISED not in protocols:
        raise ConfigError(f"--label-list is for --protocol {SEMI_SUPERVISED}.")
    if label_list is not None:
        read_names(label_list)
    if not is_folder(where):
        if not data and (own := read_where(where).run) is not None:
            data = read_config(own).data.source
        _check_place(where, data, test_data, out=out, weights=weights, data_root=data_root)
    with session(device, quiet=quiet) as s:
        chosen = {
            "protocols": list(protocols), "baselines": list(baselines), "fresh": fresh, "weights": weights,
            "max_unreadable": max_unreadable,
        }  # fmt: skip
        distributed.check_equal(chosen | dataclasses.asdict(settings), "settings")
        run, weights = _run_of(s, where, out=out, weights=weights, download=download)
        images = read_config(run).data
        location = data or images.source
        if not location:
            raise no_dataset(where)
        public = open_baselines(baselines, images, sizes=baseline_sizes, download=download)
        with distributed.together():
            if s.main:
                s.stack.enter_context(lock(run))
        open_splits = partial(_open_splits, location, test_data, images, data_root=data_root, download=download)
        train, test, drawn_from = _open_everywhere(open_splits, s.display.say)
        if needs_labels:
            train.labelled()
        if train.labels is None and public:
            raise DataError(f"{train.name!r} has no labels; --baseline compares accuracies, which need them.")
        subject = Subject(run, train, test, weights, s.device, drawn_from, max_unreadable)
        if train.labels is None:
            _describe(subject, s.display)
        else:
            run_protocols(
                subject, protocols=protocols, settings=settings, baselines=public, label_list=label_list,
                fresh=fresh, display=s.display,
            )  # fmt: skip
        distributed.barrier()  # all files are written
        return _read_results(subject, is_main=s.main, report=report)


def embed(
    encoder: nn.Module, images: DataConfig, data: Data, *, split: Split = "train", device: str = "auto",
    quiet: bool = False, data_root: Path | None = None, download: bool = False, keep: Path | None = None,
    digests: bool = False, earlier: Embedding | None = None,
) -> Embedding:  # fmt: skip
    """Computes the features of a dataset; unreadable images are skipped.

    Args:
        encoder: maps normalised images (n, c, s, s) to features (n, k).
        images: the size and normalisation of its images.
        data: the dataset.
        split: ``train`` (the whole dataset if it has no test split) or ``test``.
        quiet: show no progress.
        device, data_root, download: as for ``pretraining.train``.
        keep: a folder for the features, which are memory-mapped from it; calling this again resumes there, or reads
            only image files that are new or have changed. None: the features are kept in memory.
        digests: read every image once more to compute its SHA-256; empty for one that changes meanwhile.
        earlier: features of some of the images by the same encoder, with their SHA-256, which are not computed again;
            those of another encoder are ignored. Only with ``keep``.

    Raises:
        MatrixSSLError: the data is at fault.
    """
    source = open_images(data, images, split=split, data_root=data_root, download=download)
    return embed_source(
        encoder, images, source, device=device, quiet=quiet, keep=keep, digests=digests, earlier=earlier
    )


def embed_source(
    encoder: nn.Module, images: DataConfig, source: Source, *, device: str, quiet: bool, keep: Path | None = None,
    digests: bool = False, earlier: Embedding | None = None,
) -> Embedding:  # fmt: skip
    """The features of a source that is already open; otherwise as ``embed``."""
    display = Display(quiet=quiet)
    identity, chosen_device = encoder_digest(encoder, images), devices.choose_device(device)
    digest = cache(partial(features.image_digest, source))
    # only what outlives this call must know which version of a file it is of
    state = state_of(source, identity) if digests or keep is not None else None

    def known() -> Earlier | None:
        if earlier is None or (earlier.encoder_digest, earlier.grid) != (identity, grid_of(encoder)):
            return None
        with display.bar("comparing") as show:
            return of_embedding(earlier, source, digest, on_progress=show)

    if keep is None or state is None:
        for remark in source.remarks:
            display.say(remark)
        with display.bar("features") as show:
            embedding = features.embed(encoder, source, images, device=chosen_device, on_progress=show)
    else:
        with lock(keep):
            embedding = embed_kept(
                keep, encoder, source, images, identity=identity, state=state, device=chosen_device, display=display,
                earlier=known,
            )  # fmt: skip
    if digests and state is not None:
        embedding = with_digests(embedding, source, digest, state, identity=identity, say=display.say)
    return replace(embedding, encoder_digest=identity)


def open_images(data: Data, images: DataConfig, *, split: Split, data_root: Path | None, download: bool) -> Source:
    """Opens a dataset as an encoder expects it: in-memory grey images get three channels if the encoder takes three."""
    source = open_source(data, split=split, data_root=data_root, download=download, reading=images.reading)
    return in_colour(source, len(images.mean)) if isinstance(data, Splits) else source


@contextmanager
def results_in(
    folder: Path | None, names: Sequence[str], locations: Iterable[Data], *, data_root: Path | None
) -> Iterator[None]:
    """A block at whose end files are written into a folder, locked for its duration; None: nothing is written.

    Raises:
        DataError: the folder lies among the images of one of the locations.
        RunFolderError: one of the files cannot be written.
    """
    if folder is None:
        yield
        return
    for location in locations:
        check_outside(folder, location, data_root=data_root)
    with lock(folder):
        for name in names:
            check_writable(folder / name)
        yield


def no_dataset(where: str | Path) -> MatrixSSLError:
    """The error for when neither the caller nor the run names images, or there is no run."""
    place = read_where(where)
    if place.kind == PATH and not place.path.exists():
        return nothing_at(where)
    return DataError(f"{where} does not name a dataset: give --data FOLDER.")


def _check_place(
    where: str | Path, data: Data | None, test_data: Data | None, *, out: Path | None, weights: Weights,
    data_root: Path | None,
) -> None:  # fmt: skip
    """Raises if an encoder that is not a run is given without images, or its results would lie among them."""
    from matrix_ssl.encoder.importing import default_run  # takes a second to import

    if not data:
        raise no_dataset(where)
    place = out or default_run(read_where(where), branch=weights)
    for images in (data, test_data or ()):
        check_outside(place, images, data_root=data_root)


def _run_of(
    s: Session, where: str | Path, *, out: Path | None, weights: Weights, download: bool
) -> tuple[Path, Weights]:
    """The run of the encoder WHERE, which the main process imports if it is not a run, and the weights to use."""
    from matrix_ssl.encoder.importing import as_run  # takes a second to import

    run = None
    with distributed.together():
        if s.main:
            run = as_run(where, out=out, weights=weights, download=download, say=s.display.say)
    result: tuple[Path, Weights] = distributed.broadcast_object(run)
    return result


def _describe(subject: Subject, display: Display) -> None:
    """Writes what the page shows for images without labels."""
    train, text = subject.train, "Writing only the embedding map and the nearest-neighbour gallery."
    if not any(train.unlabelled_because in remark for remark in train.remarks):
        text = f"{train.name!r} has no labels: {train.unlabelled_because}. {text}"
    display.say(text)
    with display.bar("features") as show:
        describe_images(
            subject.run, train, weights=subject.weights, device=subject.device, on_progress=show, say=display.say,
            max_unreadable=subject.max_unreadable,
        )  # fmt: skip


def _read_results(subject: Subject, *, is_main: bool, report: bool) -> Evaluated:
    """All results on the dataset so far, and the page that shows them."""
    from matrix_ssl.report import write_report  # takes a second to import
    from matrix_ssl.report.tables import read_evaluation

    results = None if subject.train.labels is None else read_evaluation(subject.folder)
    return Evaluated(results, is_main, write_report(subject.run) if is_main and report else None)


def _open_everywhere(open_splits: Callable[[], _Splits], say: Callable[[str], None]) -> _Splits:
    """Opens the images in every process, all of which must have the same ones; passes remarks on them to ``say``."""
    with distributed.together():
        train, test, drawn_from = open_splits()
    if drawn_from is not None:
        say(
            f"No test split: holding out {_HELD_OUT:.0%} of each class. The encoder may have seen these images during "
            "pre-training."
        )
    used = (train,) if train.labels is None else (train, test)
    for remark in dict.fromkeys(remark for source in used for remark in source.remarks):
        say(remark)
    if distributed.world_size() > 1:
        distributed.check_equal({"training images": train.digest, "test images": test.digest}, "images")
    return train, test, drawn_from


def _open_splits(
    location: Data, test_data: Data | None, images: DataConfig, *, data_root: Path | None, download: bool
) -> _Splits:
    open_split = partial(open_images, images=images, data_root=data_root, download=download)
    train = open_split(location, split="train")
    if test_data:
        is_split = has_test_split(test_data, data_root=data_root, download=download)
        return train, open_split(test_data, split="test" if is_split else "train"), None
    if has_test_split(location, data_root=data_root, download=download):
        return train, open_split(location, split="test"), None
    if train.labels is None:
        return train, train, None
    return *split_source(train, _HELD_OUT, 0), train.digest
