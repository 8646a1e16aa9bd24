"""Finds a dataset by name or path and opens its training or test split."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from matrix_ssl.config.csv_table import split_suffix
from matrix_ssl.config.reading import COLOURS, Reading
from matrix_ssl.config.untrusted import expanded, why
from matrix_ssl.data import layout
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.images import read_or_replace
from matrix_ssl.data.kinds import huggingface, tables
from matrix_ssl.data.kinds.archives import ENDING, is_archive, open_archives
from matrix_ssl.data.kinds.folder import open_folder
from matrix_ssl.data.kinds.joined import JoinedSource
from matrix_ssl.data.kinds.named import (
    DATA_ROOT_VARIABLE,
    HUGGING_FACE,
    IN_MEMORY,
    NAMED_SETS,
    TORCHVISION_SETS,
    Split,
    open_digits,
    open_torchvision,
)
from matrix_ssl.data.kinds.packed import check_folder, is_packed, open_packed, split_packed
from matrix_ssl.data.layout import find_split_folders, holds_images, is_image, list_folder, packed_files
from matrix_ssl.data.lists import listed
from matrix_ssl.data.randomness import permutation
from matrix_ssl.data.remarks import on_reading
from matrix_ssl.errors import OFFERED, ConfigError, DataError, check_known, some

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Splits:
    """How to open the splits of a dataset; ``test`` is None when it has no test split."""

    train: Callable[[], Source]
    test: Callable[[], Source] | None
    memory: str = ""  # what the dataset is, such as "array", if it exists only in the memory of this process


Data = str | tuple[str, ...] | Splits  # a name or path, several of them, or a dataset that is already open


def open_source(
    data: Data, *, split: Split, data_root: Path | None, download: bool = False, reading: Reading = COLOURS
) -> Source:
    """Opens one split of a dataset.

    Args:
        data: a folder (``layout.find_split_folders`` describes the layouts), a packed .npz file or a folder of them, a
            .tar file or a folder of them, a .csv table of paths and labels (``tables``), a .txt file that lists
            datasets (``listed``), ``hf:NAME``, or a name. Names in ``NAMED_SETS`` always mean those datasets; for
            such a folder, write ``./cifar10``. Any other may be a folder in the data root. Several are joined into one.
            For Python objects, see ``objects.as_data``.
        split: ``"train"`` or ``"test"``. Without a test split, the training split is the whole dataset.
        data_root: the folder that holds named datasets; None: the environment variable MATRIX_SSL_DATA.
        download: let torchvision fetch a named dataset that is absent.
        reading: how files become pixels.

    Raises:
        ConfigError: the split is neither of the two.
        DataError: the dataset is absent, empty or damaged, or has no such split.
        MissingExtra: ``hf:`` without the package ``datasets``.
    """
    check_known("split", split, get_args(Split))
    splits = find_splits(data, data_root=data_root, download=download)
    if split == "train":
        return _as_read(splits.train(), reading)
    if splits.test is None:
        raise DataError(
            f"{describe(data)} has no test split: no folder or .npz file is named {' or '.join(layout.TEST_NAMES)}; "
            f"add one, or hold out some of the training images."
        )
    return _as_read(splits.test(), reading)


def _as_read(source: Source, reading: Reading) -> Source:
    """A dataset as it is to be read, with remarks on images that become nearly black and on pages left out."""
    source = read_as(source, reading).loaded()
    source.remarks += tuple(remark for remark in on_reading(source) if remark not in source.remarks)
    return source


def read_as(source: Source, reading: Reading) -> Source:
    """A dataset with its files read as given, and with the number of channels of the first image if that is -1."""
    if reading.channels == -1:
        reading = dataclasses.replace(reading, channels=_channels(source.with_reading(reading)))
    return source.with_reading(reading)


def _channels(source: Source) -> int:
    """The number of channels of the first image that can be read."""
    values, _, _ = read_or_replace(source.values, 0, len(source))
    return int(values.shape[2])


def has_test_split(data: Data, *, data_root: Path | None, download: bool = False) -> bool:
    """Whether ``open_source`` can open the split "test"; if not, ``split_source`` can hold one out."""
    return find_splits(data, data_root=data_root, download=download).test is not None


def split_source(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """The training and the held-out images, both in their original order.

    A random ``fraction`` in (0, 1) of every class, or of all images if unlabelled, is held out: at least one image and
    never all. A class with a single image stays in training; the remarks of the held-out images name it.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: no class, or not even the whole dataset, has two images.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The held-out fraction {fraction} must be between 0 and 1.")
    labels = np.zeros(len(source), dtype=np.int64) if source.labels is None else source.labels
    held_out = np.zeros(len(source), dtype=bool)
    single: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            single.append(int(label))
            continue
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out[members[permutation(len(members), seed, int(label))[:count]]] = True
    if not held_out.any():
        what = "the dataset" if source.classes is None else "every class"
        raise DataError(f"{source.name}: {what} has a single image, so none can be held out; add images.")
    learn, judge = source.subset(np.flatnonzero(~held_out)), source.subset(np.flatnonzero(held_out))
    if single and source.classes is not None:
        names = some(repr(source.classes[label]) for label in single)
        classes = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        judge.remarks += (f"{classes} a single image, which is used for training and not judged: {names}.",)
    return learn, judge


def choose_subset(source: Source, count: int, *, seed: int) -> Source:
    """A random choice of images, in their original order; all of them if ``count`` is 0 or there are no more."""
    if not count or count >= len(source):
        return source
    return source.subset(np.sort(permutation(len(source), seed)[:count]))


def describe(data: Data) -> str:
    """A dataset as ``config.json`` and messages name it; several are separated by commas."""
    if isinstance(data, Splits):
        return f"{IN_MEMORY}{data.memory}"
    return data if isinstance(data, str) else ", ".join(data)


def absolute(data: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Names and paths, with the full path of what exists here, so that they hold in every folder; names as they are."""
    if not isinstance(data, str):
        return tuple(str(absolute(one)) for one in data)
    prefix = HUGGING_FACE if data.startswith(HUGGING_FACE) else ""
    name = data.removeprefix(prefix)
    if not name or (not prefix and (name in NAMED_SETS or name.startswith(IN_MEMORY))):
        return data
    place, suffix = split_suffix(name)
    path = _expanded(place)
    return f"{prefix}{path.absolute()}{suffix}" if _exists(path) else data


def check_outside(path: Path, data: Data, *, data_root: Path | None = None) -> None:
    """Raises DataError for an output inside a folder of images, where it would count as data, or over a packed file."""
    root = _root(data_root)
    names = () if isinstance(data, Splits) else listed(data)
    for name in (names,) if isinstance(names, str) else names:
        folder = _expanded(split_suffix(name)[0]) if name and name not in NAMED_SETS else None
        if folder is not None and root is not None and len(folder.parts) == 1 and not _exists(folder):
            folder = root / folder
        if folder is not None and folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{path} is inside the images' folder {folder}: choose another place for it.")
        if folder is not None and folder.is_file() and path.resolve() == folder.resolve():
            raise DataError(f"{path} is the dataset itself: choose another place for what is written.")


def find_splits(data: Data, *, data_root: Path | None, download: bool = False) -> Splits:
    """Finds a dataset without reading its images; arguments and errors as in ``open_source``."""
    if isinstance(data, Splits):
        return data
    data = listed(data)
    if isinstance(data, tuple) and len(data) != 1:
        return _several(data, data_root, download)
    return _find(data if isinstance(data, str) else data[0], data_root=data_root, download=download)


def _several(names: tuple[str, ...], data_root: Path | None, download: bool) -> Splits:
    """The training splits of several datasets as one, and the test splits of those that have one."""
    if not names:
        raise DataError("The list of datasets is empty; name a folder.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{twice[0]} is named twice; name every dataset once.")
    splits = [_find(name, data_root=data_root, download=download) for name in names]
    tests = [one.test for one in splits if one.test is not None]

    def train() -> Source:
        return JoinedSource([one.train() for one in splits])

    def test() -> Source:
        return JoinedSource([opener() for opener in tests], classes=train().classes)

    return Splits(train, test if tests else None)


def _find(name_or_path: str, *, data_root: Path | None, download: bool) -> Splits:
    if not name_or_path:
        raise DataError(f"The dataset is empty; name a folder, an .npz file or one of {', '.join(NAMED_SETS)}.")
    if name_or_path.startswith(IN_MEMORY):
        raise DataError(
            f"The images of this run were in the memory of a program ({name_or_path.removeprefix(IN_MEMORY)}), not in "
            f"a file: name images with --data, or in Python pass them again as data."
        )
    if name_or_path.startswith(HUGGING_FACE):
        return _hugging_face(name_or_path.removeprefix(HUGGING_FACE))
    if name_or_path == "digits":
        return Splits(partial(open_digits, "train"), partial(open_digits, "test"))
    root = _root(data_root)
    if name_or_path in TORCHVISION_SETS:
        return _torchvision(name_or_path, root, download=download)
    place, suffix = split_suffix(name_or_path)
    path = _expanded(place)
    if _exists(path):
        return _at(path, suffix)
    bare = len(path.parts) == 1
    if bare and root is not None and _exists(root / place):
        return _at(root / place, suffix)
    raise DataError(_missing(place, path, root if bare else None))


def _root(data_root: Path | None) -> Path | None:
    """The folder of named datasets, from the option or from the environment."""
    if data_root is None and (variable := os.environ.get(DATA_ROOT_VARIABLE)):
        return expanded(variable)
    return data_root


def _at(path: Path, suffix: str = "") -> Splits:
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return Splits(partial(open_packed, [path], name=path.stem), None)
        if is_archive(path):
            return Splits(partial(open_archives, [path], name=path.stem), None)
        if path.suffix.lower() in tables.ENDINGS:
            training, open_test = tables.open_table(path, suffix)
            return Splits(lambda: training, open_test)
        kind = "a single image" if is_image(path.name) else f"a file of type {path.suffix or 'unknown'}"
        raise DataError(
            f"{path} is {kind}; name a folder of images (unpack archives first), a packed .npz file or "
            "a .csv table of the paths of images."
        )
    if not path.is_dir():
        raise DataError(f"{path} is a pipe, a device or a socket; name a folder of images or a packed .npz file.")
    name = path.resolve().name
    packed = packed_files(path)
    has_images = bool(packed) and holds_images(path)
    if packed and not (has_images and not any(map(is_packed, packed))):  # else they are other files next to images
        check_folder(path, packed)
        train_files, test_files = split_packed(packed)
        if not train_files:
            raise DataError(f"{path}: every .npz file is named as a test split; name the training split with 'train'.")
        packed_test = partial(open_packed, test_files, name=name, training=train_files) if test_files else None
        remarks = [_split_remark(path, packed, train_files, test_files)]
        remarks += [f"{path} has packed files, so its image files are not used."] if has_images else []
        return Splits(partial(_remarked, partial(open_packed, train_files, name=name), *remarks), packed_test)
    archives = [Path(entry.path) for entry in list_folder(path) if entry.name.lower().endswith(ENDING)]
    if archives and not holds_images(path):
        return _of_archives(archives, name)
    folders = find_split_folders(path)
    test = partial(_open_test_folder, folders.train, folders.test, name=name) if folders.test else None
    return Splits(partial(_remarked, partial(open_folder, folders.train, name=name), folders.remark), test)


def _of_archives(paths: list[Path], name: str) -> Splits:
    """The splits of archives by their names, as for packed files."""
    train, test = split_packed(paths)
    if not train:
        raise DataError(
            f"{paths[0].parent}: every archive is named as a test split; name the training split with 'train'."
        )

    def open_test() -> Source:
        return open_archives(test, name=name, classes=open_archives(train, name=name).classes)

    open_train = partial(open_archives, train, name=name)
    remark = _split_remark(paths[0].parent, paths, train, test)
    return Splits(partial(_remarked, open_train, remark), open_test if test else None)


def _split_remark(folder: Path, paths: list[Path], train: list[Path], test: list[Path]) -> str:
    unused = [path.name for path in paths if path not in train + test]
    return layout.describe_splits(str(folder), [one.name for one in train], [one.name for one in test], unused)


def _remarked(opener: Callable[[], Source], *remarks: str) -> Source:
    """A dataset with sentences on its layout, except empty ones, before its own remarks."""
    source = opener()
    source.remarks = (*filter(None, remarks), *source.remarks)
    return source


def _open_test_folder(train_folder: Path, test_folder: Path, *, name: str) -> Source:
    """Numbers the classes as the training split does, even if the test split lacks one."""
    return open_folder(test_folder, name=name, classes=open_folder(train_folder, name=name).classes)


def _torchvision(name: str, root: Path | None, *, download: bool) -> Splits:
    if root is None:
        here = f" To open the folder of that name, write ./{name}." if Path(name).is_dir() else ""
        raise DataError(
            f"{name}: the folder that holds it is unknown; use --data-root or set {DATA_ROOT_VARIABLE} "
            f"(and --download to fetch it there).{here}"
        )
    own = root / name
    if own.is_dir() and (packed_files(own) or holds_images(own)):
        return _at(own)
    train = partial(open_torchvision, name, "train", folder=root, download=download)
    test = partial(open_torchvision, name, "test", folder=root, download=download)
    return Splits(train, None if name == "stl10-unlabeled" else test)


def _hugging_face(place: str) -> Splits:
    splits, name = huggingface.load_splits(place), Path(place).name

    def open_split(split: "Dataset", training: "Dataset | None" = None) -> Source:
        classes = None if training is None else open_split(training).classes
        return huggingface.open_split(split, where=f"hf:{place}/{split.split or 'train'}", name=name, classes=classes)

    open_train = partial(_remarked, partial(open_split, splits.train), splits.remark)
    return Splits(open_train, None if splits.test is None else partial(open_split, splits.test, splits.train))


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"{name}: there is no such home folder. For a folder of that name, write ./{name}.") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise DataError(f"{path}: no permission to read the folder above it; allow it.") from None
    except OSError as error:  # the name is too long
        raise DataError(f"{path!s:.200}: {why(error)}; name a folder of images.") from None


def did_you_mean_path(path: Path, known: Iterable[str] = ()) -> str:
    """``" Did you mean 'x'?"`` for the name nearest to the first part of a path that is missing; empty for none.

    ``known`` are names that would do as well.
    """
    absent = next(part for part in [*reversed(path.parents), path] if not part.exists())
    near = {sibling: str(absent.parent / sibling) for sibling in _names_in(absent.parent)}
    near |= {name: name for name in known}
    close = difflib.get_close_matches(absent.name, near, n=1)
    return f" Did you mean {near[close[0]]!r}?" if close else ""


def _missing(name: str, path: Path, root: Path | None) -> str:
    """The places searched, and what may have been meant."""
    known = (*NAMED_SETS, *(_names_in(root) if root else ())) if len(path.parts) == 1 else ()
    hint = did_you_mean_path(path, known)
    if path.is_absolute():  # such as the place that a run has recorded
        moved = OFFERED.first(" If it was moved, name its new place by --data.", otherwise=" Write another path.")
        return f"{name!r} is not a file or folder here.{hint}{moved}"
    searched = f" or in {root}" if root else ""
    return (
        f"{name!r} is not a file or folder here{searched}, nor a named dataset ({', '.join(NAMED_SETS)}).{hint} "
        f"Write a path, or name the folder that holds it by --data-root or {DATA_ROOT_VARIABLE}."
    )


def _names_in(folder: Path) -> list[str]:
    readable = folder.is_dir() and os.access(folder, os.R_OK)
    return [entry.name for entry in folder.iterdir()] if readable else []
