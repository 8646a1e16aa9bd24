"""Image files by name, from a folder or an uncompressed tar archive."""

import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from matrix_ssl.config.untrusted import MOST_TEXT, open_file, read_file
from matrix_ssl.data.files.open_files import why_unreadable
from matrix_ssl.data.identity import content_digest
from matrix_ssl.data.kinds.folder import file_sizes
from matrix_ssl.errors import DataError, UnreadableImage

_LISTED = 3  # missing files named in an error


class ImageFiles:
    """Reads image files by their names in the annotations, from a folder or directly from a .tar file.

    Can safely be shared between threads.
    """

    def __init__(self, location: Path):
        if not location.exists():
            raise DataError(f"{location} does not exist; name a folder of images or a .tar file.")
        self.location = location
        # name: offset and size of the content
        self._members: dict[str, tuple[int, int]] | None = None if location.is_dir() else _index(location)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names for which there is no file."""
        if self._members is not None:
            return [name for name in names if name not in self._members]
        try:
            return [name for name in names if not (self.location / name).is_file()]
        except PermissionError:
            raise DataError(f"{self.location}: no permission to read the folder; allow it.") from None

    def check(self, names: list[str]) -> None:
        """Raises DataError, with some of the names, if files are missing."""
        missing = self.missing(names)
        if missing:
            some = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
            raise DataError(
                f"{self.location} lacks {len(missing)} of {len(names)} images that the annotations list ({some}); "
                f"name the folder or archive that the file names are relative to."
            )

    def digest(self, names: Sequence[str]) -> str:
        """A digest that distinguishes these images from others with the same names, as in ``data.identity``."""
        if self._members is None:
            sizes = file_sizes(self.location, names)
        else:
            sizes = np.array([self._members[name][1] for name in names], dtype=np.int64)
        return content_digest(names, sizes, lambda index, count: self._read_start(names[index], count))

    def where(self, name: str) -> str:
        """The path of an image, for messages."""
        return f"{self.location}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file; UnreadableImage if it is missing or cannot be read."""
        try:
            if self._members is None:
                return read_file(self.location / name, most=MOST_TEXT)
            offset, size = self._members[name]
            with open_file(self.location) as file:  # opened on each call: threads would share its position
                file.seek(offset)
                content = file.read(size)
        except KeyError:
            raise UnreadableImage(self.where(name), "the file does not exist") from None
        except OSError as error:
            raise UnreadableImage(self.where(name), why_unreadable(error, setting="workers")) from None
        if len(content) < size:
            raise UnreadableImage(self.where(name), "the archive is cut off")
        return content

    def _read_start(self, name: str, count: int) -> bytes:
        try:
            return self.read(name)[:count]
        except UnreadableImage:
            return b""


def check_name(name: str, where: str) -> str:
    """Normalises a file name from an annotation file; DataError unless it is a path inside the folder."""
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{where}: file_name {name!r} must be a relative path inside the folder of images; fix it.")
    return str(path)


def _index(location: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every regular file by name, also without the folder that all files share, if any."""
    try:
        with open_file(location) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = {
                str(PurePosixPath(m.name)): (m.offset_data, m.size) for m in archive if m.isreg() and not m.sparse
            }
    except PermissionError:
        raise DataError(f"{location}: no permission to read the file; allow it.") from None
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"{location} is neither a folder nor a whole, uncompressed .tar file ({error}); unpack it or pack it again."
        ) from None
    tops = {PurePosixPath(name).parts[0] for name in members}
    if len(tops) == 1 and all("/" in name for name in members):
        members |= {name.partition("/")[2]: place for name, place in members.items()}
    return members
