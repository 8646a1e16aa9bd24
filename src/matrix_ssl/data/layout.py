"""How a folder of images is laid out: its splits, and which of its files are images.

Names of splits are those that Hugging Face's package ``datasets`` knows, in upper or lower case. What is left out, and
how a folder was interpreted, is put into words for the user.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matrix_ssl.data.files.opening import (
    ARRAY_EXTENSION,
    AVIF_EXTENSIONS,
    DICOM_EXTENSIONS,
    EXTENSIONS,
    HEIF_EXTENSIONS,
)
from matrix_ssl.errors import DataError, install_command, some

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev")  # in order of preference

# folders in which systems keep thumbnails, deleted files and notes of their own
_SYSTEM_FOLDERS = frozenset([
    "@eadir", "#recycle", "@recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information",
    "lost+found", ".thumbnails", ".thumb", ".thumbs", ".picasaoriginals", ".trashes", ".trash",
])  # fmt: skip
_SYSTEM_FILES = frozenset(["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"])

# files that are not images here but may be for the user: what to do with them
_REMEDIES = {
    "Convert these images to JPEG or PNG": (
        ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".svg", ".ico", ".tga", ".exr", ".pnm", ".apng",
    ),
    f"To read HEIC images, run {install_command('heic')}": HEIF_EXTENSIONS,
    "To read AVIF images, install Pillow 11.3 or newer": AVIF_EXTENSIONS,
    f"To read DICOM files, run {install_command('dicom')}": DICOM_EXTENSIONS,
    "Develop raw images into TIFF or JPEG": (
        ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw",
    ),
    "Export scans as 16-bit PNG or TIFF": (".nii", ".mha", ".mhd", ".svs", ".ndpi", ".czi", ".nd2"),
    "Extract the frames of videos": (".mp4", ".mov", ".avi", ".mkv", ".webm"),
    "To use a table of paths and labels, name the table itself": (".csv", ".tsv"),
    "Unpack archives": (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"),
}  # fmt: skip


@dataclass(frozen=True)
class SplitFolders:
    """The folders of the splits, and a remark on how they were chosen; empty if the whole folder is one dataset."""

    train: Path
    test: Path | None
    remark: str = ""


@dataclass
class Listing:
    """The files below a folder, relative to it."""

    images: list[str] = field(default_factory=list)  # sorted by path
    others: Counter[str] = field(default_factory=Counter)  # visible files that are not images, by lower-case extension
    thumbnails: Counter[str] = field(default_factory=Counter)  # images of the system, by the name of their folder
    special: Counter[str] = field(default_factory=Counter)  # what is not a file, by kind

    def leave_out(self, path: str) -> None:
        """Counts a visible file that is not an image."""
        self.others[Path(path).suffix.lower() or "none"] += 1

    def remark(self, folder: Path) -> str:
        """What is left out, in words; empty if nothing is."""
        parts = []
        if self.others:
            total = sum(self.others.values())
            parts.append(f"{total} of {total + len(self.images)} files, by their extensions: {self.extensions()}")
        if self.thumbnails:
            total = sum(self.thumbnails.values())
            parts.append(f"{total} thumbnails or copies of the system ({some(sorted(self.thumbnails))})")
        parts += [f"{count} {kind}" for kind, count in sorted(self.special.items()) if count]
        if not parts:
            return ""
        remedies = "".join(f" {remedy}." for remedy in self.remedies())
        return f"Left out of {folder}: {'; '.join(parts)}.{remedies}"

    def extensions(self) -> str:
        """The most frequent other extensions with their numbers."""
        return some(f"{extension} ({count})" for extension, count in self.others.most_common())

    def remedies(self) -> list[str]:
        """What the user can do about other files that may be images."""
        return [remedy for remedy, extensions in _REMEDIES.items() if not self.others.keys().isdisjoint(extensions)]


def find_split_folders(folder: Path) -> SplitFolders:
    """The folders of the training and the test split.

    A training folder (``TRAIN_NAMES``) is the training split if there is a test folder (``TEST_NAMES``) as well, or if
    it is the only folder; next to other folders it is a class like them. Of several test folders, one with class
    folders wins, then the order above. Without this layout, the folder itself is the training split, without a test
    split.

    Raises:
        DataError: the only folder has such splits, or each of several has, as in k-fold cross-validation.
    """
    entries = list_folder(folder)
    inside = {entry.name.lower(): Path(entry.path) for entry in entries if _is_folder(entry)}
    train = next((inside[name] for name in TRAIN_NAMES if name in inside), None)
    tests = [inside[name] for name in TEST_NAMES if name in inside]
    if train is None or not (tests or len(inside) == 1):
        _refuse_folds(folder, list(inside.values()))
        return SplitFolders(folder, None, _named_as_splits(folder, inside))
    with_classes = [test for test in tests if sum(map(_is_folder, list_folder(test))) > 1]
    test = next(iter(with_classes + tests), None)
    unused = sorted(path.name for path in inside.values() if path not in (train, test))
    unused += sorted(
        entry.name for entry in entries if is_image(entry.name) and not entry.is_symlink() and entry.is_file()
    )
    remark = describe_splits(str(folder), [train.name], [test.name] if test else [], unused)
    return SplitFolders(train, test, remark or f"{folder}: training images from {train.name}.")


def list_images(folder: Path, *, may_refuse: bool = False) -> Listing:
    """The files below a folder, at any depth; hidden and system files do not count as images.

    NumPy arrays are images if there are no others: next to images they are taken for labels, features and so on.

    Args:
        may_refuse: pass over folders that may not be listed.

    Raises:
        DataError: a folder may not be listed.
    """
    listing, arrays = Listing(), list[str]()
    for path, is_kept in _walk(folder, listing.special, may_refuse=may_refuse):
        if not is_kept:
            if is_image(path):
                listing.thumbnails[_place(path)] += 1
        elif is_image(path):
            listing.images.append(path)
        elif path.lower().endswith(ARRAY_EXTENSION):
            arrays.append(path)
        else:
            listing.leave_out(path)
    if listing.images and arrays:
        listing.others[ARRAY_EXTENSION] = len(arrays)
    listing.images = listing.images or arrays
    listing.images.sort(key=lambda file: Path(file).parts)
    return listing


def packed_files(folder: Path) -> list[Path]:
    """The .npz files directly in a folder, sorted by name."""
    return [Path(entry.path) for entry in list_folder(folder) if entry.name.lower().endswith(".npz")]


def holds_images(folder: Path) -> bool:
    """Whether any image is below the folder."""
    return any(is_kept and is_image(path) for path, is_kept in _walk(folder, Counter()))


def sort_member(name: str, listing: Listing) -> bool:
    """Whether a file in an archive counts, by its name; thumbnails are noted in the listing, hidden files are not."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    left_out = [part for part in parts if not _is_kept(part)]
    if is_image(name) and left_out and all(part.lower() in _SYSTEM_FOLDERS for part in left_out):
        listing.thumbnails[left_out[0]] += 1
    return not left_out


def describe_splits(place: str, train: Sequence[str], test: Sequence[str], unused: Sequence[str]) -> str:
    """What is used as which split, in words; empty if everything is the training split."""
    if not (test or unused):
        return ""
    remark = f"{place}: training images from {some(train)}" + (f", test images from {some(test)}" if test else "")
    return remark + (f"; not used: {some(unused)}." if unused else ".")


def is_image(file: str) -> bool:
    """Whether the extension is that of an image."""
    return Path(file).suffix.lower() in EXTENSIONS


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are neither hidden nor the system's, sorted by name."""
    return [entry for entry in _entries(folder) if _is_kept(entry.name)]


def describe_classes(folder: Path, classes: Sequence[str], *, what: str = " folders") -> str:
    """What became classes, in words."""
    return f"Classes of {folder}: {len(classes)}{what} ({some(classes)})."


def _is_kept(name: str) -> bool:
    return not (name.startswith(".") or name.lower() in _SYSTEM_FOLDERS or name.lower() in _SYSTEM_FILES)


def _place(path: str) -> str:
    """The system folder that a left-out image is in, or "hidden files" for a hidden image."""
    folders = Path(path).parts[:-1]
    return next((name for name in folders if not _is_kept(name)), "hidden files")


def _walk(folder: Path, special: Counter[str], *, may_refuse: bool = False) -> Iterator[tuple[str, bool]]:
    """Every file below the folder, relative to it, and whether it counts; links to folders are followed unless they
    form a cycle. Of hidden folders, only ``_SYSTEM_FOLDERS`` are entered; ``special`` counts what is not a file.

    torchvision's ImageFolder cannot do this: it needs class folders, never ends on a link to an ancestor, and stops at
    the first broken link, which here counts as a file, so that it is reported as unreadable.
    """
    root = folder.stat()
    pending = [("", True, frozenset([(root.st_dev, root.st_ino)]))]
    while pending:
        relative, is_kept, ancestors = pending.pop()
        for entry in _entries(folder / relative, may_refuse=may_refuse or not is_kept):
            path = os.path.join(relative, entry.name)  # noqa: PTH118, a Path for every file is slow
            keeps = is_kept and _is_kept(entry.name)
            if _is_folder(entry):
                if entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_FOLDERS:
                    continue
                status = entry.stat()
                identity = (status.st_dev, status.st_ino)
                if identity not in ancestors:
                    pending.append((path, keeps, ancestors | {identity}))
            elif entry.is_symlink() or entry.is_file():
                yield path, keeps
            elif keeps:
                special["pipes, sockets or devices"] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link to itself leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: Path, *, may_refuse: bool = False) -> list[os.DirEntry[str]]:
    """The entries sorted by name; none if refused and ``may_refuse``, as for lost+found, which only root can list."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        if may_refuse:
            return []
        raise DataError(f"{folder}: no permission to list the folder; allow it.") from None


def _refuse_folds(folder: Path, inside: Sequence[Path]) -> None:
    """Raises DataError if each of the folders has a training and a test folder of its own."""

    def is_split(path: Path) -> bool:
        names = {entry.name.lower() for entry in list_folder(path) if _is_folder(entry)}
        return not names.isdisjoint(TRAIN_NAMES) and not names.isdisjoint(TEST_NAMES)

    if inside and all(is_split(path) for path in inside):
        names = sorted(path.name for path in inside)
        if len(names) == 1:
            raise DataError(f"{folder}: its only folder has a training and a test split: name {folder / names[0]}.")
        raise DataError(
            f"{folder}: each of its {len(names)} folders ({some(names)}) has a training and a test split of its own; "
            f"name one of them, such as {folder / names[0]}."
        )


def _named_as_splits(folder: Path, inside: dict[str, Path]) -> str:
    named = sorted(path.name for name, path in inside.items() if name in TRAIN_NAMES + TEST_NAMES)
    if not named or len(inside) < 2:
        return ""
    return (
        f"Warning: {folder} has no training and test split: beside {some(named)} there "
        f"{'is no training folder' if not any(name in inside for name in TRAIN_NAMES) else 'are no test folders'} "
        f"({TRAIN_NAMES[0]} and {TEST_NAMES[0]}, for example), so all {len(inside)} folders are used."
    )
