"""The commands ``matrix-ssl evaluate`` and ``matrix-ssl embed``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE
from rich.table import Table

from matrix_ssl.cli import options
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.runs.display import image_bar

if TYPE_CHECKING:
    from matrix_ssl.data import Source
    from matrix_ssl.report.tables import ResultTable


@click.command()
@options.run
@options.data
@click.option("--test-data", metavar="PATH_OR_NAME", help="Test images.  [default: the test split of the "
              "dataset, or a held-out fifth of each class]")  # fmt: skip
@click.option("--protocol", default=",".join(options.PROTOCOLS[:3]), show_default=True, metavar="NAMES",
              help=f"Protocols, with commas between: {', '.join(options.PROTOCOLS)}.")  # fmt: skip
@options.baseline("gets a column")
@options.baseline_size
@options.weights
@options.assignments("Change a setting of a protocol that trains, such as linear_sgd.epochs=10")
@click.option("--label-list", type=options.PATH, help="File that names the labelled images of "
              "semi-supervised, one a line.  [default: 1 % and 10 % of every class]")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Re-run protocols that already have results.")
@options.no_report
@options.device
@options.data_root
@options.download
def evaluate(
    run: Path, data: str | None, test_data: str | None, protocol: str, baseline: tuple[str, ...], baseline_size: Any,
    weights: Any, assignments: tuple[str, ...], label_list: Path | None, fresh: bool, no_report: bool, device: str,
    data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Measure the encoder of RUN on labelled images, beside raw pixels, the untrained network and public encoders.

    Run the same command to resume. Results are in RUN/evaluation.
    """
    options.existing_run(run)
    from matrix_ssl import config, distributed
    from matrix_ssl.evaluate import protocols
    from matrix_ssl.evaluate.baselines import open_baselines
    from matrix_ssl.evaluate.subject import Subject
    from matrix_ssl.evaluate.trained.protocols import SEMI_SUPERVISED, EvaluationSettings
    from matrix_ssl.report import write_report
    from matrix_ssl.report.tables import read_evaluation
    from matrix_ssl.runs.folder import lock, read_config
    from matrix_ssl.runs.session import session

    names = options.names(protocol)
    protocols.check_protocols(names)
    settings = config.override(EvaluationSettings(), assignments)
    if label_list is not None and SEMI_SUPERVISED not in names:
        raise ConfigError(f"--label-list is for --protocol {SEMI_SUPERVISED}.")
    images = read_config(run).data
    location = data or images.source
    if not location:
        raise DataError(f"{run} does not name a dataset: give --data FOLDER.")
    public = open_baselines(baseline, images, sizes=baseline_size)
    with session(device) as s:
        with distributed.together():
            if s.main:
                s.stack.enter_context(lock(run))
        with distributed.together():
            train, test, drawn_from = _open_splits(location, test_data, data_root, download, say=s.display.say)
        bar = partial(image_bar, options.stderr)
        if train.labels is None and public:
            raise DataError(f"{train.name!r} has no labels; --baseline compares accuracies, which need them.")
        if train.labels is None:
            s.display.say("No labels found: writing only the embedding map and the nearest-neighbour gallery.")
            with bar("features") as show:
                protocols.describe_images(run, train, weights=weights, device=s.device, on_progress=show)
        else:
            subject = Subject(run, train, test, weights, s.device, drawn_from)
            protocols.run_protocols(
                subject, protocols=names, settings=settings, baselines=public, label_list=label_list, fresh=fresh,
                say=s.display.say, display=s.display, bar=bar,
            )  # fmt: skip
        if s.main:
            if train.labels is not None and (evaluation := read_evaluation(subject.folder)):
                tables = map(_terminal, evaluation.tables())
                options.stdout.print(*tables, *evaluation.remarks, sep="\n", markup=False)
            if not no_report:
                options.show(report=write_report(run))


@click.command()
@options.run
@options.data
@click.option("--out", type=options.PATH, required=True, metavar="FILE", help="The .npz file to write.")
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True, help="Split of the "
              "dataset.")  # fmt: skip
@options.weights
@options.device
@options.data_root
@options.download
def embed(
    run: Path, data: str | None, out: Path, split: Any, weights: Any, device: str, data_root: Path | None,
    download: bool,
) -> None:  # fmt: skip
    """Write the features of images to an .npz file.

    It holds `features` float32 (n, k), `where` (the path of every image), `data_digest` (which dataset it was) and,
    for labelled images, `labels` and `classes`. Unreadable images are skipped and listed.
    """
    options.existing_run(run)
    from matrix_ssl.data import open_source
    from matrix_ssl.evaluate.features import write_features
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.files import check_writable
    from matrix_ssl.runs.folder import read_config

    check_writable(out)
    location = data or read_config(run).data.source
    source = open_source(location, split=split, data_root=data_root, download=download)
    with image_bar(options.stderr, "features") as show:
        features = write_features(
            run, source, out, weights=weights, device=devices.choose_device(device), on_progress=show
        )
    for where, why in features.unreadable:
        options.say(f"Skipped {where}: {why}.")
    n, k = features.vectors["encoder"].shape
    options.stdout.print(f"{out}: {n} images, {k} features each.", markup=False)


def _terminal(table: "ResultTable") -> Table:
    """A table for a terminal of 80 columns."""
    result = Table(title=table.title, title_justify="left", box=SIMPLE, padding=0, show_edge=False)
    for i, heading in enumerate(table.columns):
        separator = ", " if ", " in heading else " "
        short = "\n".join(heading.rsplit(separator, 1)) if len(heading) > 7 else heading
        result.add_column(short, no_wrap=True, justify="right" if i else "left")
    for row in table.rows:
        result.add_row(*row)
    return result


def _open_splits(
    location: str, test_data: str | None, data_root: Path | None, download: bool, *, say: Any
) -> tuple["Source", "Source", str | None]:
    """Training and test images, and the digest of the dataset that both are splits of; None if each is whole."""
    from matrix_ssl.data import has_test_split, open_source, split_source

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
    return *split_source(train, 0.2, 0), train.digest
