"""Images that an evaluation cannot read: all of them are listed, and too many of them end it."""

from collections.abc import Callable, Iterable
from pathlib import Path

from matrix_ssl.data.base import Source
from matrix_ssl.data.images import Unreadable
from matrix_ssl.data.loading import unreadable_images
from matrix_ssl.runs.files import cannot_write, write_lines
from matrix_ssl.runs.folder import SKIPPED
from matrix_ssl.training.engine import check_unreadable, most_unreadable


def refuse_many(
    unreadable: list[Unreadable], source: Source, folder: Path, *, part: float, workers: int, say: Callable[[str], None]
) -> None:
    """Ends an evaluation as soon as too many images are known that cannot be read, after a look at all.

    Args:
        unreadable: those that are known so far.
        source: the dataset.
        folder: of the results; all unreadable images are listed there.
        part: in [0, 1], of the images that may be unreadable; ten may in any case.
        workers: processes that look for all.

    Raises:
        DataError: there are more; it names the list and the option that accepts the loss.
    """
    if len(unreadable) <= most_unreadable(len(source), part):
        return
    say("Too many images cannot be read. Looking for all of them.")
    images = list(unreadable_images(source, workers=workers))
    write_list(folder, images)
    check_unreadable(
        len(images), len(source), f"All are in {folder / SKIPPED}", part=part, option="--max-unreadable "
    )  # fmt: skip


def report(unreadable: list[Unreadable], folder: Path, *, what: str, say: Callable[[str], None]) -> None:
    """Lists the images that are left out in the folder of the results, and says how many they are."""
    if unreadable:
        where, why = unreadable[0]
        write_list(folder, unreadable)
        say(
            f"Left out because they cannot be read: {len(unreadable):,} of the {what}. The first is {where}: {why}. "
            f"All are in {folder / SKIPPED}."
        )


def write_list(folder: Path, images: Iterable[Unreadable]) -> None:
    """Writes the list of unreadable images, where and why, a line each."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_lines(folder / SKIPPED, [{"where": where, "why": why} for where, why in images])
