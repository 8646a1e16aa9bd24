"""The commands ``matrix-ssl evaluate`` and ``matrix-ssl embed``."""

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE
from rich.table import Table

from matrix_ssl import config
from matrix_ssl.cli import options
from matrix_ssl.errors import CheckpointError, ConfigError, DataError
from matrix_ssl.runs.folder import check_output, lock

if TYPE_CHECKING:
    from matrix_ssl.report.tables import ResultTable


@click.command()
@options.where
@options.data
@options.out("runs/NAME, from WHERE", what="Folder of the results of an encoder that is not a run")
@click.option("--test-data", metavar="PATH_OR_NAME", help="Test images.  [default: the test split of the "
              "dataset, or a held-out fifth of each class]")  # fmt: skip
@click.option("--protocol", default=",".join(options.PROTOCOLS[:3]), show_default=True, metavar="NAMES",
              help=f"Protocols, separated by commas: {', '.join(options.PROTOCOLS)}.")  # fmt: skip
@options.baseline("gets a column")
@options.baseline_size
@options.weights
@options.assignments("Change a setting of a protocol that trains, such as linear_sgd.epochs=10")
@click.option("--label-list", type=options.PATH, help="File with the names of the labelled images "
              "for semi-supervised, one per line.  [default: 1 % and 10 % of every class]")  # fmt: skip
@click.option("--max-unreadable", type=options.Number(0, 1), metavar="FRACTION", help="Fraction of the images that "
              "may be unreadable, from 0 to 1; ten always may.  [default: that of the run, 0.01]")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Re-run protocols that already have results.")
@options.max_hours
@options.no_report
@options.device
@options.data_root
@options.download
def evaluate(
    where: str, data: Any, out: Path | None, test_data: str | None, protocol: str, baseline: tuple[str, ...],
    baseline_size: Any, weights: Any, assignments: tuple[str, ...], label_list: Path | None,
    max_unreadable: float | None, fresh: bool, no_report: bool, device: str, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Measure an encoder on labelled images, against raw pixels, the untrained network and public encoders.

    WHERE is a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME.
    Results are in the folder `evaluation` of the run; any other encoder is imported as a run first, into --out. Run the
    same command to resume.
    """
    from matrix_ssl.api import evaluation
    from matrix_ssl.evaluate.trained.protocols import PROTOCOLS as TRAINED
    from matrix_ssl.evaluate.trained.protocols import EvaluationSettings

    chosen = options.names(protocol)
    settings = config.override(EvaluationSettings(), assignments)
    if assignments and not any(name in TRAINED for name in chosen):
        options.say(f"--set {assignments[0]} changes nothing: it is for --protocol {', '.join(TRAINED)}.")
    evaluated = evaluation.evaluate(
        where, data, out=out, test_data=test_data, protocols=chosen, baselines=baseline,
        baseline_sizes=baseline_size, settings=settings,
        label_list=label_list, weights=weights, fresh=fresh, max_unreadable=max_unreadable,
        report=not no_report, device=device, data_root=data_root, download=download,
    )  # fmt: skip
    if evaluated.is_main and (results := evaluated.results):
        from matrix_ssl.report.verdict import accuracy_verdict

        sentences = [*filter(None, [accuracy_verdict(results.results)]), *results.remarks]
        options.stdout.print(*map(_terminal, results.tables()), *sentences, sep="\n")
    options.show(report=evaluated.report)


@click.command()
@options.where
@options.data
@click.option("--out", type=options.PATH, required=True, metavar="FILE", help="File to write: .npz, .npy, .csv, "
              ".parquet or .safetensors.")  # fmt: skip
@options.split
@click.option("--layer", metavar="NAME", help="Take the output of this block of the encoder, such as blocks.5.  "
              "[default: the features]")  # fmt: skip
@click.option("--patches", is_flag=True, help="Write the features of every patch, with their grid, from --layer or "
              "the last block.")  # fmt: skip
@click.option("--tta", is_flag=True, help="Average the features of every image and its mirror image.")
@options.weights
@options.device
@options.data_root
@options.download
def embed(
    where: str, data: Any, out: Path, split: Any, layer: str | None, patches: bool, tta: bool, weights: Any,
    device: str, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Compute features of images with the encoder WHERE and write them to a file.

    WHERE is a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME. The
    file holds the features, float32, and the path, SHA-256 and, where there are labels, class of every image; a .npy
    file the features alone, with the rest in FILE.csv. Unreadable images are skipped and listed. Run the same command
    to resume, or to add new images to the file: of a .npz, .parquet or .safetensors file by the same encoder, only
    images that it lacks are computed.
    """
    from matrix_ssl.api.run import Run
    from matrix_ssl.data.sources import check_outside
    from matrix_ssl.data.unreadable import skipped
    from matrix_ssl.evaluate.embedding_files import SELF_DESCRIBING, check_format, read_embedding, read_patches

    check_format(out, patches=patches)
    run = Run(where, download=download)
    check_outside(out, data or run.config.data.source, data_root=data_root)
    check_output(out, where)
    rows, earlier = out.with_name(f".{out.name}.rows"), None
    if out.suffix.lower() in SELF_DESCRIBING and out.exists():
        with contextlib.suppress(DataError):  # a damaged file is replaced as well
            earlier = read_patches(out) if patches else read_embedding(out)
    is_new = not rows.exists()
    try:
        with lock(rows):
            embedding = run.embed(
                data, split=split, weights=weights, device=device, data_root=data_root, download=download, layer=layer,
                patches=patches, tta=tta, keep=rows, earlier=earlier,
            )  # fmt: skip
            embedding.save(out)
    except (ConfigError, DataError, CheckpointError):  # after any other error, the same command resumes
        if is_new:  # else an earlier command resumes there, of which this one may be a mistyped copy
            shutil.rmtree(rows, ignore_errors=True)
        raise
    for line in skipped(embedding.unreadable):
        options.say(line)
    n, k = len(embedding), embedding.features.shape[-1]
    grid = f" in {embedding.grid[0]} x {embedding.grid[1]} patches" if embedding.grid else ""
    options.stdout.print(f"{out}: {n} images, {k} features each{grid}.")
    del embedding  # it is memory-mapped from the rows
    shutil.rmtree(rows, ignore_errors=True)


def _terminal(table: "ResultTable") -> Table:
    """The table for a terminal with 80 columns."""
    result = Table(title=table.title, title_justify="left", box=SIMPLE, padding=0, show_edge=False)
    for i, heading in enumerate(table.columns):
        separator = ", " if ", " in heading else " "
        short = "\n".join(heading.rsplit(separator, 1)) if len(heading) > 7 else heading
        result.add_column(short, no_wrap=True, justify="right" if i else "left")
    for row in table.rows:
        result.add_row(*row)
    return result
