"""Which training images keep their labels: random fractions of every class, and published lists of file names.

A list is a text file with one name per line, such as SimCLR's ``1percent.txt`` and ``10percent.txt`` for ImageNet
(github.com/google-research/simclr, imagenet_subsets), with lines like ``n01440764_10026.JPEG``. A name that a line
cannot hold as it is, such as one with leading or trailing spaces or one that is not Unicode, is written as a JSON
string. A .csv file with a column of paths, as the commands on images write it, is such a list, too.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    ends = list(map(with_slashes, names))
    wholes = [_whole(name) for name in names]
    found = _with_ends(wheres, {*ends, *wholes})
    indices: list[int] = []
    absent, several = [], []
    for name, end, whole in zip(names, ends, wholes, strict=True):
        matches = sorted(found[end] | found[whole])
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
    chosen = {_last_part(wheres[i]) for i in indices}
    counts = Counter(end for where in wheres if _last_part(where) in chosen for end in _ends(where))
    names = [_shortest_name(wheres[i], counts) for i in indices]
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


def _whole(where: str) -> str:
    return with_slashes(str(Path(where).absolute()))


def _with_ends(wheres: Sequence[str], ends: Collection[str]) -> dict[str, set[int]]:
    """The images whose path, as it is or from the root on, ends in each of ``ends``.

    Each path is cut only where one of them may begin, because the images may all have the same name.
    """
    found: dict[str, set[int]] = {end: set() for end in ends}
    depths = {end.count("/") for end in ends}
    for image, where in enumerate(wheres):
        for place in (with_slashes(where), _whole(where)):
            parts = place.split("/")
            for depth in depths:
                if depth < len(parts) and (end := "/".join(parts[-depth - 1 :])) in found:
                    found[end].add(image)
    return found


def _last_part(where: str) -> str:
    return where.rpartition("/")[2]


def _ends(where: str) -> Iterator[str]:
    """The ends of a path by which a list may name it, the shortest first."""
    parts = where.split("/")
    return ("/".join(parts[-count:]) for count in range(1, len(parts) + 1))


def _shortest_name(where: str, counts: Mapping[str, int]) -> str:
    """The shortest end of a path that no other has, by the number of paths with it."""
    name = next((end for end in _ends(where) if counts[end] == 1), None)
    if name is None:
        raise DataError(f"two images have the same place {where}: a list cannot tell them apart.")
    return name


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
