"""The command ``matrix-ssl explore``."""

from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options


@click.command()
@options.where_or_features
@options.data
@options.out(None, what="Folder of the page")
@options.features
@click.option("--columns", type=options.PATH, multiple=True, metavar="FILE.csv", help="CSV file with the path of an "
              "image in every row, whose columns can colour the map; may be repeated.")  # fmt: skip
@click.option("--clusters", type=click.IntRange(1), metavar="NUMBER", help="Number of clusters.  [default: 2 to 50, "
              "chosen by silhouette]")  # fmt: skip
@click.option("--threshold", type=options.Number(0, 1), metavar="COSINE", help="Minimum similarity of "
              "near-duplicates.  [default: 0.9]")  # fmt: skip
@click.option("--map", "map_rule", type=click.Choice(["tsne", "umap", "pca"]), help="Layout of the map: t-SNE, UMAP "
              "(with the extra umap) or principal components.  [default: tsne]")  # fmt: skip
@click.option("--thumbnail", type=click.IntRange(16, 256), metavar="PIXELS", help="Side of a thumbnail; smaller images "
              "are not enlarged.  [default: 96]")  # fmt: skip
@options.split
@options.weights
@options.device
@options.data_root
@options.download
def explore(
    where: str, data: Any, out: Path, features: Path | None, columns: tuple[Path, ...], clusters: int | None,
    threshold: float | None, map_rule: Any, thumbnail: int | None, split: Any, weights: Any, device: str,
    data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Write a page that shows a folder of images: an interactive map, neighbours, clusters, duplicates, outliers.

    WHERE is a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME;
    FEATURES a file that `embed` wrote. Open OUT/index.html in a browser: it needs no server and no network. Run the
    same command to resume.
    """
    from matrix_ssl.api import exploring

    choices = exploring.ExploreSettings(
        columns=tuple(map(str, columns)),
        **options.given(clusters=clusters, threshold=threshold, map=map_rule, thumbnail=thumbnail),
    )
    explored = exploring.explore(
        where, data, out=out, choices=choices, features=features, split=split, weights=weights, device=device,
        data_root=data_root, download=download,
    )  # fmt: skip
    options.show(page=explored.page)
