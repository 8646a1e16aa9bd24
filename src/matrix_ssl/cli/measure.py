"""The commands ``matrix-ssl measure`` and ``diagnose``."""

from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options
from matrix_ssl.data.unreadable import skipped


@click.command()
@click.argument("where", metavar="FEATURES_OR_WHERE")
@options.data
@click.option("--against", metavar="FEATURES_OR_WHERE", multiple=True, help="Another encoder to compare with, or its "
              "features of the same images; may be repeated.")  # fmt: skip
@click.option("--checkpoints", is_flag=True, help="Measure all checkpoints of the run, and choose one by its rank.")
@click.option("--key", metavar="NAME", help="Matrix in a file of several, or column of a Parquet file.  [default: "
              "features, or the only one]")  # fmt: skip
@click.option("--population", type=click.IntRange(1), metavar="IMAGES", help="Number of images for which to "
              "extrapolate the ranks.")  # fmt: skip
@options.split
@click.option("--out", type=options.PATH, metavar="FOLDER", help="Folder for measure.json and measure.html.  "
              "[default: none, only the table]")  # fmt: skip
@options.weights
@options.device
@options.data_root
@options.download
def measure(
    where: str, data: Any, against: tuple[str, ...], checkpoints: bool, key: str | None, population: int | None,
    split: Any, out: Path | None, weights: Any, device: str, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Measure features without labels: ranks with intervals, spectrum, similarity of encoders.

    FEATURES is a .npy, .npz, .safetensors or .parquet file with one row an image, read in batches. WHERE is a run
    folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME, measured on --data.
    Definitions: docs/ranks.md.
    """
    from matrix_ssl.api import measuring
    from matrix_ssl.report.measure import PAGE, RESULT, terminal

    with options.stderr.status("reading") as status:
        result = measuring.measure(
            where, data, against=against, checkpoints=checkpoints, key=key, population=population, split=split,
            weights=weights, out=out, device=device, quiet=True, data_root=data_root, download=download,
            on_progress=lambda done, total: status.update(f"{done:,} of {total:,} rows"),
        )  # fmt: skip
    _say_unreadable(result)
    options.stdout.print(*terminal(result), sep="\n")
    if out is not None:
        options.show(results=out / RESULT, page=out / PAGE)


@click.command()
@options.where
@options.data
@click.option("--reference", metavar="WHERE|untrained", help="Encoder of the same architecture to compare with; "
              "untrained: the same network at its initialisation.")  # fmt: skip
@click.option("--against", metavar="WHERE|untrained|itself", help="Encoder of any architecture; every pair of "
              "blocks is compared. itself: the blocks with each other.")  # fmt: skip
@click.option("--images", type=click.IntRange(2), metavar="IMAGES", help="Measure at most this many images, chosen at "
              "random.  [default: 2048]")  # fmt: skip
@options.split
@options.out(None, what="Folder for diagnose.json and diagnose.html")
@options.weights
@options.device
@options.data_root
@options.download
def diagnose(
    where: str, data: Any, reference: str | None, against: str | None, images: int | None, split: Any, out: Path,
    weights: Any, device: str, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Measure the encoder WHERE block by block, without labels: entropies, ranks, LiDAR, similarity.

    WHERE is a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME. Every
    image is seen as in evaluation and as two random views. Definitions: docs/measure.md.
    """
    from matrix_ssl.api import diagnosing
    from matrix_ssl.report.blocks import PAGE, RESULT, terminal

    with options.stderr.status("opening") as status:
        result = diagnosing.diagnose(
            where, data, out=out, reference=reference, against=against, split=split, weights=weights, device=device,
            data_root=data_root, download=download, **options.given(images=images),
            on_progress=lambda done, total: status.update(f"{done:,} of {total:,} images"),
        )  # fmt: skip
    _say_unreadable(result)
    options.stdout.print(*terminal(result), sep="\n")
    options.show(results=out / RESULT, page=out / PAGE)


def _say_unreadable(result: dict[str, Any]) -> None:
    for line in skipped(result["unreadable"]):
        options.say(line)
