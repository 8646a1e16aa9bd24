"""Images in .tar files, such as WebDataset shards, read in place without unpacking.

In a WebDataset shard, the files of a sample have the same name up to the first dot: next to ``0001.jpg``, the text of
``0001.cls`` is its class, as a number or a name. Without such files, the first-level folders are the classes, as in a
folder; a folder that holds everything, such as the one that was packed, is not counted. Only regular files count, and
hidden or system files do not. Links and devices in an archive are left out, and nothing is written anywhere. Of several
files with the same name the last one counts, as it would after unpacking.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.untrusted import open_file, why
from matrix_ssl.data.base import Classes, Labels, Places, as_labels
from matrix_ssl.data.files.open_files import why_unreadable
from matrix_ssl.data.kinds.encoded import EncodedSource
from matrix_ssl.data.layout import TEST_NAMES, TRAIN_NAMES, Listing, describe_classes, is_image, sort_member
from matrix_ssl.errors import DataError, UnreadableImage

ENDING = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_CLASS = ".cls"
_LONGEST_CLASS = 256  # bytes
_MOST_DIGITS = 18  # of a label, so that it fits into 64 bits


@dataclass(frozen=True)
class Archive:
    """The images of one file."""

    path: Path
    names: list[str]
    spans: NDArray[np.int64]  # (n, 2): start and size of each, in bytes
    labels: list[str | None] | None  # of the .cls files, None for an image without one; None: there are no such files
    remark: str  # on what is left out; empty if nothing is


class TarSource(EncodedSource):
    """Image files inside archives."""

    def __init__(self, name: str, archives: Sequence[Archive], *, labels: Labels, classes: Classes, within: str = ""):
        """``within`` is the folder that holds all images and is left out of their names, with a slash at its end."""
        places = Places.whole([str(one.path) for one in archives], [len(one.names) for one in archives])
        super().__init__(name, places, labels=labels, classes=classes)
        self._archives, self._within = archives, within

    def encoded(self, index: int) -> bytes:
        _, (_, size) = self._place(index)
        content = self._read_start(index, size)
        if len(content) < size:
            raise UnreadableImage(self.where(index), "the archive is cut off")
        return content

    def loaded(self, *, most: int | None = None) -> "TarSource":
        return self  # images in memory would lose their names

    def where(self, index: int) -> str:
        archive, _ = self._place(index)
        return f"{archive.path}/{archive.names[self.places.entry[index]]}"

    def _place(self, index: int) -> tuple[Archive, tuple[int, int]]:
        archive = self._archives[self.places.file[index]]
        start, size = archive.spans[self.places.entry[index]].tolist()
        return archive, (start, size)

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        rows = [self._place(index) for index in range(len(self))]
        entries = zip(rows, self.places.entry.tolist(), strict=True)
        names = [archive.names[entry].removeprefix(self._within) for (archive, _), entry in entries]
        return names, np.array([size for _, (_, size) in rows], dtype=np.int64)

    def _read_start(self, index: int, count: int) -> bytes:
        archive, (start, size) = self._place(index)
        try:
            with open_file(archive.path) as file:
                file.seek(start)
                return file.read(min(count, size))
        except OSError as error:
            raise UnreadableImage(self.where(index), why_unreadable(error)) from None


def open_archives(paths: Sequence[Path], *, name: str, classes: list[str] | None = None) -> TarSource:
    """Opens archives as one dataset, with the images in the order of the files; the images are not read.

    Args:
        classes: those of the training split, by which the labels of a test split are numbered.

    Raises:
        DataError: an archive is compressed, damaged or has no images, or has both splits in it, or a class is not in
            ``classes``.
    """
    archives = [_list(path) for path in paths]
    numbered = all(archive.labels is not None for archive in archives)
    with_classes = any(archive.labels is not None for archive in archives)
    within = "" if with_classes else _within([one for archive in archives for one in archive.names], classes or ())
    texts = [text for archive in archives for text in _texts(archive, within)]
    if not with_classes and classes is None:
        _refuse_splits(paths, {text for text in texts if text is not None})
    remarks = [archive.remark for archive in archives if archive.remark]
    if None in texts or len(set(texts)) < (1 if classes else 2):
        source = TarSource(name, archives, labels=None, classes=None, within=within)
        source.unlabelled_because = _why_unlabelled(texts)
    else:
        labels, names = _labels([text for text in texts if text is not None], classes, str(paths[0]), numbered=numbered)
        source = TarSource(name, archives, labels=labels, classes=names, within=within)
        remarks += [describe_classes(paths[0], names, what="")] if classes is None else []
    source.remarks = tuple(remarks)
    return source


def is_archive(path: Path) -> bool:
    """Whether a file is, by its name, an archive; DataError for one that is compressed as a whole."""
    name = path.name.lower()
    if name.endswith(COMPRESSED):
        raise DataError(f"{path} is compressed, so its images cannot be read one by one: decompress it to a .tar file.")
    return name.endswith(ENDING)


def _within(names: Sequence[str], classes: Sequence[str]) -> str:
    """The folder in which every image is in a folder of its own, as after packing a folder by its name; else empty.

    A folder that is a class of the training split is never left out.
    """
    within = ""
    while True:
        folder = _folder(names[0].removeprefix(within))
        if folder is None or folder in classes:
            return within
        below = names[0][: names[0].index(f"{folder}/", len(within)) + len(folder) + 1]
        if not all(name.startswith(below) and _folder(name.removeprefix(below)) for name in names):
            return within
        within = below


def _texts(archive: Archive, within: str) -> list[str | None]:
    """The class of every image, by its .cls file or else by its first-level folder; None for one without."""
    return archive.labels or [_folder(name.removeprefix(within)) for name in archive.names]


def _refuse_splits(paths: Sequence[Path], folders: set[str]) -> None:
    """Raises DataError if first-level folders are a training and a test split, which would become classes."""
    train = sorted(name for name in folders if name.lower() in TRAIN_NAMES)
    test = sorted(name for name in folders if name.lower() in TEST_NAMES)
    if train and test:
        raise DataError(
            f"{paths[0]}: its folders {train[0]!r} and {test[0]!r} are splits, not classes: pack each into an archive "
            f"of its own, {TRAIN_NAMES[0]}.tar and {TEST_NAMES[0]}.tar, and name the folder of the two."
        )


def _why_unlabelled(texts: Sequence[str | None]) -> str:
    if None in texts:
        return f"not every image has a {_CLASS} file beside it or a first-level folder of its own"
    return f"all images are of the class {texts[0]!r}, by their first-level folder or their {_CLASS} files"


def _labels(
    texts: list[str], classes: list[str] | None, where: str, *, numbered: bool
) -> tuple[NDArray[np.int64], list[str]]:
    """Labels (n,) and the names of the classes; if ``numbered``, texts that are all numbers are labels themselves.

    Folder names are not: a folder 2019 is one class, whatever others there are, as it would be after unpacking.
    """
    if numbered and all(text.isdecimal() for text in texts):
        if too_long := next((text for text in texts if len(text.lstrip("0")) > _MOST_DIGITS), ""):
            raise DataError(f"{where}: the label {too_long:.40} is too large; number the classes from 0.")
        return as_labels(np.array(texts, dtype=np.int64), classes, len(texts), where=where)
    names = classes or sorted(set(texts))
    number = {label: k for k, label in enumerate(names)}
    if unknown := sorted(set(texts) - set(names)):
        raise DataError(f"{where}: the class {unknown[0]!r} is not in the training split; remove its images.")
    return np.array([number[text] for text in texts], np.int64), names


def _list(path: Path) -> Archive:
    spans, classes, listing = dict[str, tuple[int, int]](), dict[str, str](), Listing()
    try:
        with open_file(path) as file:
            for member in _members(file):
                if not sort_member(member.name, listing) or member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    listing.special["links, devices or pipes"] += 1
                elif is_image(member.name):
                    listing.special["earlier files of the same name"] += member.name in spans
                    spans[member.name] = member.offset_data, member.size
                elif member.name.endswith(_CLASS) and member.size <= _LONGEST_CLASS:
                    content = os.pread(file.fileno(), member.size, member.offset_data)
                    classes[_sample(member.name)] = content.decode().strip()
                else:
                    listing.leave_out(member.name)
    except PermissionError:
        raise DataError(f"{path}: no permission to read the file; allow it.") from None
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path}: not a .tar file, or a damaged one ({why(error)}); fetch it again.") from None
    names = list(spans)
    if not names:
        left_out = f" {remark}" if (remark := listing.remark(path)) else ""
        raise DataError(f"{path} contains no images; choose an archive that does.{left_out}")
    labels = [classes.get(_sample(name)) for name in names] if classes else None
    listing.images = names
    places = np.array(list(spans.values()), dtype=np.int64)
    return Archive(path, names, places, labels, listing.remark(path))


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, one in memory at a time; ReadError if it is cut off, which tarfile may ignore."""
    whole = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else all of them stay in memory
            if member.isreg() and not member.issparse() and member.offset_data + member.size > whole:
                raise tarfile.ReadError("it is cut off")
            yield member
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, archive.offset) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")


def _sample(name: str) -> str:
    """The name of a file up to the first dot after its folders, by which WebDataset groups files."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _folder(name: str) -> str | None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return parts[0] if len(parts) > 1 else None
