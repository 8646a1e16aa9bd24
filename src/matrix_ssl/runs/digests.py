"""Digests of all files in a folder that a library writes, with the identity of the run to which it belongs."""

from pathlib import Path
from typing import Any

from matrix_ssl.config.untrusted import file_sha256, why
from matrix_ssl.errors import CheckpointError, RunFolderError
from matrix_ssl.runs.files import read_object, write_json
from matrix_ssl.runs.folder import check_owner, identity

DIGESTS = "digests.json"


def file_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path relative to it."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.name != DIGESTS and not path.is_dir():
            digests[path.relative_to(folder).as_posix()] = file_sha256(path)
    return digests


def write_digests(folder: Path, run: Path) -> None:
    """Writes ``digests.json``, which marks the folder as complete and as belonging to the run."""
    write_json(folder / DIGESTS, {"run": identity(run), "files": file_digests(folder)})


def check_digests(folder: Path, run: Path) -> None:
    """Raises CheckpointError if files of the folder are missing, new or changed, or belong to a different run."""
    try:
        recorded = read_object(folder / DIGESTS, "run", "files")
        check_owner(folder / DIGESTS, recorded["run"], run)
    except RunFolderError as error:
        raise CheckpointError(str(error)) from error
    compare_digests(folder, recorded["files"])


def compare_digests(folder: Path, recorded: Any, *, others: bool = False) -> None:
    """Raises CheckpointError if the files of the folder are not those that were recorded.

    Args:
        others: whether there may be other files, too, such as a model card, scores, or what a file manager leaves.
    """
    try:
        present = file_digests(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {why(error)}.") from error
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{folder} has no digests of its files.")
    for name in sorted(recorded if others else {*recorded, *present}):
        if recorded.get(name) != present.get(name):
            what = "is missing" if name not in present else "is new" if name not in recorded else "has changed"
            raise CheckpointError(f"{folder / name} {what} since it was written.")
