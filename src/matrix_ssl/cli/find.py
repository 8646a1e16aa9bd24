"""The commands ``search``, ``duplicates``, ``outliers``, ``cluster``, ``mislabels`` and ``select`` on images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matrix_ssl.cli import options
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.folder import check_output

if TYPE_CHECKING:
    from matrix_ssl.api.collection import Collection
    from matrix_ssl.data.base import Source
    from matrix_ssl.data.sources import Data
    from matrix_ssl.report.listing import Listing

_RULES = ("log-determinant", "facility-location", "k-centre")  # the first is the default
_OPTIONS = (
    options.where_or_features,
    options.data,
    options.features,
    options.split,
    click.option("--out", type=options.PATH, metavar="FILE", help="CSV file for all rows."),
    click.option("--page", type=options.PATH, metavar="FILE", help="HTML page with thumbnails, which opens offline."),
    options.weights, options.device, options.data_root, options.download,
)  # fmt: skip


def _on_images(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument and options that all commands on a collection share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@_on_images
@click.option("--query", metavar="IMAGE", multiple=True, required=True, help="Image file, folder of images, or path, "
              "unique end of a path or number of an image of the dataset; may be repeated.")  # fmt: skip
@click.option("-k", "k", type=click.IntRange(1), default=20, show_default=True, help="Results per query.")
@click.option("--approximate", is_flag=True, help="Search with a faiss index (the extra search) and report its recall.")
def search(query: tuple[str, ...], k: int, approximate: bool, **common: Any) -> None:
    """Find the images that are most similar to a query.

    WHERE is a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME;
    FEATURES a file that `embed` wrote. All images are compared, by the cosine similarity of their features.
    """
    from matrix_ssl.api.questions import check_search

    def check(source: "Source") -> None:
        check_search(source, query, k=k, approximate=approximate)

    _answer(common, lambda images: images.search(query, k=k, approximate=approximate), check=check, reads=query)


@click.command()
@_on_images
@click.option("--threshold", type=float, metavar="COSINE", help="Minimum similarity of two duplicates, above -1 and "
              "at most 1.  [default: 0.9]")  # fmt: skip
def duplicates(threshold: float | None, **common: Any) -> None:
    """Find groups of images that are nearly the same.

    WHERE and FEATURES are as for `matrix-ssl search`.
    """
    from matrix_ssl.evaluate.explore.duplicates import check_threshold

    if threshold is not None:
        check_threshold(threshold)
    _answer(common, lambda images: images.duplicates(**options.given(threshold=threshold)))


@click.command()
@_on_images
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Number of images to list.")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True, help="Neighbours by which the outlier "
              "score is computed.")  # fmt: skip
def outliers(count: int, k: int, **common: Any) -> None:
    """Find images that resemble no others.

    WHERE and FEATURES are as for `matrix-ssl search`.
    """
    _answer(common, lambda images: images.outliers(count=count, k=k))


@click.command()
@_on_images
@click.option("--count", type=click.IntRange(1), metavar="CLUSTERS", help="Number of clusters.  [default: 2 to 50, "
              "chosen by silhouette]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the starting centres.")
def cluster(count: int | None, seed: int, **common: Any) -> None:
    """Sort images into clusters, each with representative images.

    WHERE and FEATURES are as for `matrix-ssl search`.
    """
    from matrix_ssl.api.questions import check_clusters

    _answer(
        common,
        lambda images: images.clusters(count=count, seed=seed),
        check=lambda source: check_clusters(source, count),
    )


@click.command()
@_on_images
@click.option("--count", type=click.IntRange(1), required=True, help="Number of images to choose.")
@click.option("--rule", type=click.Choice(_RULES), default=_RULES[0], show_default=True, help="Rule; "
              "log-determinant: new directions; facility-location: typical images; k-centre: odd ones.")  # fmt: skip
@click.option("--labelled", type=options.PATH, metavar="FILE", help="Images that are labelled already: a text "
              "file with one name per line, or a .csv file with a column path.")  # fmt: skip
def select(count: int, rule: Any, labelled: Path | None, **common: Any) -> None:
    """Choose a diverse subset of images, such as those to label first.

    WHERE and FEATURES are as for `matrix-ssl search`.
    """
    from matrix_ssl.api.questions import check_selection

    _answer(
        common, lambda images: images.select(count, rule=rule, **options.given(labelled=labelled)),
        check=lambda source: check_selection(source, count, labelled=labelled), reads=[labelled] if labelled else [],
    )  # fmt: skip


@click.command()
@_on_images
@click.option("--by", type=click.Choice(["neighbours", "linear"]), default="neighbours", show_default=True,
              help="Judge labels by the votes of neighbours, or by linear probes fitted without them.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the folds of the probes.")
def mislabels(by: Any, seed: int, **common: Any) -> None:
    """Find images whose label is probably wrong, by confident learning.

    WHERE and FEATURES are as for `matrix-ssl search`.
    """
    from matrix_ssl.api.questions import check_labels

    _answer(common, lambda images: images.label_issues(by=by, seed=seed), check=check_labels)


def _answer(
    common: dict[str, Any], ask: "Callable[[Collection], Listing]", *, check: "Callable[[Source], None] | None" = None,
    reads: Sequence[str | Path] = (),
) -> None:  # fmt: skip
    """Opens the collection, asks the question, and shows and writes the answer.

    Args:
        check: called with the images before their features are computed; raises if they cannot answer.
        reads: files and folders that the command reads in addition to those of the collection.
    """
    from matrix_ssl.api.collection import Collection
    from matrix_ssl.api.gathered import check_outputs
    from matrix_ssl.report.listing import PAGE, ROWS, check_ending

    out, page = common.pop("out"), common.pop("page")
    if out is not None and out == page:
        raise ConfigError(f"--out and --page are both {out}: name two files.")
    written = [path for path in (out, page) if path is not None]
    for path in written:
        check_output(path, common["where"], common["features"], *reads)
    check_outputs(written, (), data_root=common["data_root"], reads=reads)
    for path, endings in ((out, ROWS), (page, PAGE)):
        if path is not None:
            check_ending(path, endings)

    def check_all(location: "Data", source: "Source") -> None:
        check_outputs(written, location, data_root=common["data_root"])
        if check is not None:
            check(source)

    images = Collection(**common, check=check_all)
    for path in written:
        images.check_outside(path)
    with options.stderr.status("comparing images"):
        listing = ask(images)
    options.stdout.print(*listing.terminal(saved=out), sep="\n")
    if out is not None:
        listing.save(out)
    if page is not None:
        listing.page(page)
    options.show(rows=out, page=page)
