"""Text files that list datasets, one per line."""

from pathlib import Path

from matrix_ssl.config.csv_table import split_suffix
from matrix_ssl.config.untrusted import expanded, is_file, is_there, read_file, why
from matrix_ssl.data.kinds.named import is_name
from matrix_ssl.errors import DataError

_ENDING = ".txt"
_LONGEST = 2**24  # bytes


def listed(data: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The same data with every text file that lists datasets replaced by what it lists.

    Each line is a dataset, with its path relative to the folder of the file. Empty lines and those that begin with #
    are ignored.

    Raises:
        DataError: a file lists nothing or is not UTF-8 text.
    """
    names: list[str] = []
    for name in (data,) if isinstance(data, str) else data:
        path = expanded(name)
        if path.suffix.lower() == _ENDING and is_file(path):
            names += _lines(path)
        else:
            names.append(name)
    return names[0] if isinstance(data, str) and len(names) == 1 else tuple(names)


def _lines(path: Path) -> list[str]:
    try:
        text = read_file(path, most=_LONGEST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a list of datasets, one on each line, in UTF-8 ({why(error)}).") from None
    names: list[str] = []
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        names.append(line if is_name(line) else str(path.parent / expanded(line)))
        if not is_name(line) and not is_there(Path(split_suffix(names[-1])[0])):
            raise DataError(
                f"{path}, line {number}: {names[-1]} does not exist; write a folder or dataset on each line."
            )
    if not names:
        raise DataError(f"{path} lists nothing; write a folder on each line.")
    return names
