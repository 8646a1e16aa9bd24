"""Which training images keep their labels: random fractions of every class, and published lists of file names.

A list is a text file with one name per line, such as SimCLR's ``1percent.txt`` and ``10percent.txt`` for ImageNet
(github.com/google-research/simclr, imagenet_subsets), with lines like ``n01440764_10026.JPEG``. A name that a line
cannot hold as it is, such as one with leading or trailing spaces or one that is not Unicode, is written as a JSON
string. A .csv file with a column of paths, as the commands on images write it, is such a list, too.
"""

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.csv_table import ENDING, path_column, read_table
from matrix_ssl.config.system import with_slashes
from matrix_ssl.config.untrusted import is_file, read_file, text_lines, why
from matrix_ssl.data.base import Source
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, DataError, some
from matrix_ssl.runs.files import write_text

_STREAM = 0x5AB5E7  # random stream that keeps these draws independent of other random numbers


def stratified(source: Source, fraction: float, *, seed: int = 0) -> NDArray[np.int64]:
    """A random ``fraction`` of the images of every class, at least one from each.

    A pure function of the labels, the fraction and the seed. The subset for a smaller fraction is contained in that for
    a larger one with the same seed.

    Args:
        fraction: in (0, 1]; a class with n images gives the integer nearest to fraction * n.

    Returns:
        Increasing indices into the set.

    Raises:
        ConfigError: the fraction is out of range.
        DataError: the images have no labels, or a class has no image.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"the labelled fraction is {fraction}; expected a number above 0 and at most 1.")
    labels, classes = source.labelled()
    _check_classes(labels, classes, repr(source.name))
    chosen = []
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members)))
        chosen.append(members[permutation(len(members), seed, _STREAM, label)[:count]])
    return np.sort(np.concatenate(chosen))


def from_list(source: Source, path: Path) -> NDArray[np.int64]:
    """The images that a text file names, one per line by file name or by enough of the end of the path to be unique.

    Returns:
        Indices into the set, in the order of the list.

    Raises:
        DataError: the images have no labels; the file cannot be read, is empty or is not UTF-8 text; a name matches no
            image or several, or occurs twice; a class has no image in the list.
    """
    labels, classes = source.labelled()
    wheres = [source.where(index) for index in range(len(source))]
    chosen = match_names(wheres, read_names(path), where=str(path), dataset=source.name)
    _check_classes(labels[chosen], classes, str(path))
    return chosen


def match_names(wheres: Sequence[str], names: Sequence[str], *, where: str, dataset: str) -> NDArray[np.int64]:
    """The images that names match, by file name or by enough of the end of the path to be unique.

    A path matches in whatever way the images were named, relative to the current folder or from the root on; on
    Windows, with / or \\ between folders.

    Args:
        wheres: the paths of all images.
        where, dataset: where the names and the images come from, for messages.

    Returns:
        Indices into the paths, in the order of the names.

    Raises:
        DataError: a name matches no image or several, or occurs twice.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{where}: {len(twice)} names occur twice ({some(map(repr, twice))}): list every image once.")
    by_end = _by_last_part(map(with_slashes, wheres))
    wholes = [with_slashes(str(Path(one).absolute())) for one in wheres]
    indices: list[int] = []
    absent, several = [], []
    for name in names:
        whole, end = with_slashes(str(Path(name).absolute())), with_slashes(name)
        matches = [
            i for i, one in by_end.get(_last_part(end), ())
            if one == end or wholes[i] == whole or one.endswith(f"/{end}") or wholes[i].endswith(f"/{end}")
        ]  # fmt: skip
        indices += matches
        absent += [name] * (not matches)
        several += [name] * (len(matches) > 1)
    if absent:
        raise DataError(
            f"{where}: {len(absent)} of its {len(names)} names match no image of {dataset!r} "
            f"({some(map(repr, absent))}): is it the list of another dataset?"
        )
    if several:
        raise DataError(
            f"{where}: {len(several)} names match several images ({some(map(repr, several))}): "
            "write more of their paths, as in cat/1.jpg."
        )
    chosen = np.array(indices, dtype=np.int64)
    if again := [wheres[int(i)] for i in np.flatnonzero(np.bincount(chosen) > 1)]:
        raise DataError(
            f"{where}: {len(again)} images are named twice in different words "
            f"({some(map(repr, again))}): list every image once."
        )
    return chosen


def list_names(source: Source, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """The lines of a list that ``from_list`` reads back as the same indices, each as short as the dataset permits.

    Raises:
        DataError: two images have the same path.
    """
    wheres = [with_slashes(source.where(index)) for index in range(len(source))]
    by_end = _by_last_part(wheres)
    names = [_shortest_name(wheres[i], [w for _, w in by_end[_last_part(wheres[i])]]) for i in indices]
    return [name if _is_plain(name) else json.dumps(name) for name in names]


def store(path: Path, source: Source, indices: Sequence[int] | NDArray[np.int64]) -> None:
    """Writes the lines of ``list_names``; RunFolderError if the file cannot be written."""
    write_text(path, "".join(f"{name}\n" for name in list_names(source, indices)))


def _check_classes(labels: NDArray[np.int64], classes: list[str], where: str) -> None:
    if absent := [classes[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)]:
        raise DataError(
            f"{where}: {len(absent)} of the {len(classes)} classes have no image ({some(map(repr, absent))}): "
            "add at least one of each."
        )


def read_names(path: Path) -> list[str]:
    """The names in a list: the lines of a text file, or the column of paths of a .csv file that has one.

    Raises:
        DataError: the file cannot be read, is empty or is not UTF-8 text, or a .csv file has rows of unequal length.
    """
    if path.suffix.lower() == ENDING and is_file(path):
        header, rows, _ = read_table(path, errors="surrogateescape")
        if (column := path_column(header)) is not None and rows:
            return [row[column] for row in rows]
    try:
        text = read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: give a list of file names, one a line.") from None
    names = [_read_name(line.strip()) for line in text_lines(text) if line.strip()]
    if not names:
        raise DataError(f"{path} is empty: give a list of file names, one a line.")
    return names


def _by_last_part(wheres: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """The images (index and path) by the last component of the path."""
    places: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, where in enumerate(wheres):
        places[_last_part(where)].append((index, where))
    return places


def _last_part(where: str) -> str:
    return where.rpartition("/")[2]


def _shortest_name(where: str, rivals: list[str]) -> str:
    parts = where.split("/")
    for count in range(1, len(parts) + 1):
        name = "/".join(parts[-count:])
        if sum(rival == name or rival.endswith(f"/{name}") for rival in rivals) == 1:
            return name
    raise DataError(f"two images have the same place {where}: a list cannot tell them apart.")


def _is_plain(name: str) -> bool:
    """Whether a line can hold a name as it is: it is Unicode, and will be neither cut nor mistaken for JSON."""
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in name)
    return is_text and name == name.strip() and text_lines(name) == [name] and not name.startswith(('"', "./"))


def _read_name(line: str) -> str:
    if len(line) > 1 and line[0] == line[-1] == '"':
        with contextlib.suppress(ValueError):
            name = json.loads(line)
            assert isinstance(name, str)  # JSON that begins with a quotation mark is always a string
            return name
    return line.removeprefix("./")
