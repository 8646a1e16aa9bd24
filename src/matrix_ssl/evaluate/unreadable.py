"""Images that an evaluation cannot read: all of them are listed, and too many of them stop it."""

from collections.abc import Callable, Iterable
from pathlib import Path

from matrix_ssl.data.base import Source
from matrix_ssl.data.files.images import Unreadable
from matrix_ssl.data.loading import unreadable_images
from matrix_ssl.runs.files import cannot_write, write_lines
from matrix_ssl.runs.folder import SKIPPED
from matrix_ssl.training.engine import check_unreadable, most_unreadable


def refuse_many(
    unreadable: list[Unreadable], source: Source, folder: Path, *, part: float, workers: int, say: Callable[[str], None]
) -> None:
    """Stops an evaluation as soon as too many images are known to be unreadable, after checking all of them.

    Args:
        unreadable: the unreadable images known so far.
        source: the dataset.
        folder: the results folder, in which all unreadable images are listed.
        part: fraction of the images, in [0, 1], that may be unreadable; ten always may.
        workers: processes that check all images.

    Raises:
        DataError: more images are unreadable; it names the list and the option that accepts the loss.
    """
    if len(unreadable) <= most_unreadable(len(source), part):
        return
    say("Too many images cannot be read. Looking for all of them.")
    images = list(unreadable_images(source, workers=workers))
    write_list(folder, images)
    check_unreadable(
        images, len(source), f"All are in {folder / SKIPPED}", part=part, option="--max-unreadable "
    )  # fmt: skip


def report(unreadable: list[Unreadable], folder: Path, *, what: str, say: Callable[[str], None]) -> None:
    """Lists the images that are left out in the results folder, and says how many there are."""
    if unreadable:
        where, why = unreadable[0]
        write_list(folder, unreadable)
        say(
            f"Left out because they cannot be read: {len(unreadable):,} of the {what}. The first is {where}: {why}. "
            f"All are in {folder / SKIPPED}."
        )


def write_list(folder: Path, images: Iterable[Unreadable]) -> None:
    """Writes the list of unreadable images, one line each with the path and the reason."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_lines(folder / SKIPPED, [{"where": where, "why": why} for where, why in images])
