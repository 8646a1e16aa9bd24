"""The command ``matrix-ssl pack``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from matrix_ssl.cli import options

if TYPE_CHECKING:
    from matrix_ssl.config.reading import Pages


@click.command()
@click.argument("data", metavar="DATA")
@click.argument("out", type=options.PATH, metavar="OUT")
@click.option("--short-side", type=click.IntRange(0), default=0, metavar="PIXELS", help="Shrink larger images to "
              "this length of their shorter side; 0: keep their size.  [default: 0]")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=90, metavar="1-100", help="JPEG quality of images "
              "that are shrunk.  [default: 90]")  # fmt: skip
@click.option("--shard-mib", type=click.IntRange(1), default=256, metavar="MIB", help="Size of one file, in MiB.  "
              "[default: 256]")  # fmt: skip
@click.option("--channels", type=click.IntRange(-1, 16), default=0, metavar="N", help="Keep N channels at full bit "
              "depth; -1: as many as the first image has; 0: 8-bit RGB.  [default: 0]")  # fmt: skip
@click.option("--pages", type=click.Choice(["first", "all", "channels"]), default="first", show_default=True,
              help="Files with several pages or frames: use the first page, every page as an image, or all as the "
              "channels of one image.")  # fmt: skip
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Processes that read and encode; 0: only the "
              "main one.  [default: one per core, at most 32]")  # fmt: skip
@click.option("--max-unreadable", type=options.Number(0, 1), default=0.01, metavar="FRACTION", help="Fraction of "
              "the images that may be unreadable, from 0 to 1; ten always may.  [default: 0.01]")  # fmt: skip
@options.fresh
@options.data_root
@options.download
def pack(
    data: str, out: Path, short_side: int, quality: int, shard_mib: int, channels: int, pages: "Pages",
    workers: int | None, max_unreadable: float, fresh: bool, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Pack the images of DATA into a few large files in the folder OUT. Run the same command to resume.

    Training reads packed files faster than a folder of small ones, and one machine hands them to another in one go.
    Images keep the bytes of their files unless --short-side makes them smaller. Files have checksums: the same command
    on a finished folder verifies them, and repairs what is damaged.
    """
    from matrix_ssl.api.packing import pack as write
    from matrix_ssl.data.packing import PackSettings
    from matrix_ssl.runs.display import Display

    settings = PackSettings(
        short_side=short_side, quality=quality, shard_mib=shard_mib, channels=channels, pages=pages
    )  # fmt: skip
    with Display(options.stderr).bar("packing") as bar:
        files = write(
            data, out, settings=settings, workers=-1 if workers is None else workers,
            max_unreadable=max_unreadable, fresh=fresh, data_root=data_root, download=download, say=options.say,
            on_progress=lambda split, done, total: bar(done, total),
        )  # fmt: skip
    for image, why in (one for file in files for one in file.unreadable):
        options.say(f"Left out {image}: {why}.")
    for split in dict.fromkeys(file.split for file in files):
        own = [file for file in files if file.split == split]
        images, size = sum(file.images for file in own), sum(file.size for file in own) / 2**20
        count = f"{len(own)} file{'s' * (len(own) > 1)}"
        options.stdout.print(f"{split}: {images:,} images in {count}, {size:,.1f} MiB")
    options.stdout.print(f"next    matrix-ssl pretrain --data {shlex.quote(str(out))}")
