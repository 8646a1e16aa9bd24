"""The run folder: the names of its files, its lock, and whose it is."""

import fcntl
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from matrix_ssl import config as configuration
from matrix_ssl.config import RunConfig
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.runs.files import TEMPORARY, cannot_write, read_json, read_lines, write_json, write_lines

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.json", "environment.json", "metrics.jsonl", "summary.json"


CHECKPOINTS, ENCODER, EVALUATION, SKIPPED = "checkpoints", "encoder.safetensors", "evaluation.npz", "skipped.jsonl"


_LOCK = ".lock"


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """The temporary files that ``write_atomically`` leaves in a folder when it is killed.

    Args:
        folder: where they lie; one that does not exist has none.
        name: of the file that was being written; None for any.

    Returns:
        The files, sorted. A hidden file of the user has a different form of name and is not among them.
    """
    written = r".+" if name is None else re.escape(name)
    ours = re.compile(rf"\.{written}\.[a-z0-9_]+{re.escape(TEMPORARY)}", re.DOTALL)
    hidden = sorted(folder.glob(f".*{TEMPORARY}"))
    return [path for path in hidden if ours.fullmatch(path.name) and path.is_file() and not path.is_symlink()]


def is_unclaimed(folder: Path, *, first: str) -> bool:
    """Whether a folder is free for a command whose first file there is ``first``.

    It is free where it does not exist or holds nothing but what such a command leaves when it is killed during its
    first write: the lock and unfinished copies of ``first``.

    Raises:
        OSError: the path is not a folder, or the folder cannot be listed.
    """
    if not folder.exists():
        return True
    left = {path.name for path in unfinished(folder, first)} | {_LOCK}
    return all(path.name in left for path in folder.iterdir())


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        RunFolderError: the folder is not a run folder, or its ``config.json`` does not describe a run.
    """
    try:
        return configuration.from_dict(read_json(run / CONFIG))
    except ConfigError as error:
        raise RunFolderError(f"{run / CONFIG} does not fit this version of matrix-ssl: {error}") from error


def check_folder(run: Path) -> None:
    """Lets only a run folder or a folder that ``is_unclaimed`` become a run.

    Raises:
        RunFolderError: it is something else, which is left untouched.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(run)):
        raise RunFolderError(f"{run} is not Unicode, which safetensors files need: choose another folder.")
    try:
        foreign = not (run / CONFIG).exists() and not is_unclaimed(run, first=CONFIG)
    except OSError as error:
        raise RunFolderError(f"{run} cannot be a run folder: {error.strerror}; choose another folder.") from error
    if foreign:
        raise RunFolderError(f"{run} exists and is not a run folder: choose another folder.")


def tidy(run: Path) -> None:
    """Removes what a writer that was killed left half done; only for the process that holds the lock."""
    for folder in (run, run / CHECKPOINTS):
        for path in unfinished(folder):
            path.unlink(missing_ok=True)
    if (run / SKIPPED).exists():
        write_lines(run / SKIPPED, read_lines(run / SKIPPED))  # drops a cut last line: the next one would join it


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Holds a run folder against a second writer until the block ends or the process dies.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / _LOCK).open("w")
    except OSError as error:
        raise cannot_write(run, error) from error
    with file:
        try:
            # not flock: worker processes would inherit it and hold it for seconds after the main one was killed
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFolderError(
                f"{run} is being written by another process: wait for it or choose another folder."
            ) from None
        yield


def take_folder(run: Path, stack: ExitStack, *, fresh: bool, say: Callable[[str], None]) -> None:
    """Checks, locks and tidies the folder of a run until ``stack`` ends; where ``fresh``, a run in it is set aside.

    Raises:
        RunFolderError: as ``check_folder``, ``lock`` and ``set_aside``.
    """
    check_folder(run)
    stack.enter_context(lock(run))
    if fresh and (kept := set_aside(run)):
        say(f"the run that was in {run} is kept as {kept}")
        stack.enter_context(lock(run))
    tidy(run)


def claim_description(run: Path, description: Mapping[str, Any], *, but: Collection[str] = ()) -> None:
    """Writes what a locked folder is for, or makes sure that it is for this.

    Args:
        run: the folder.
        description: nested plain values; those under ``places`` say where things are and may differ.
        but: dotted keys of further values that may differ.

    Raises:
        RunFolderError: the folder is for something else.
    """
    if not (run / CONFIG).exists():
        write_json(run / CONFIG, description)
        return
    found = read_json(run / CONFIG)
    if not isinstance(found, dict):
        raise RunFolderError(f"{run / CONFIG} does not describe a run: use --out for another folder.")
    before, now = ({k: v for k, v in values.items() if k != "places"} for values in (found, description))
    if different := configuration.changes(before, now, but=but):
        raise RunFolderError(
            f"{run} holds a run with other settings ({'; '.join(different[:5])}): use --out for another folder, or "
            f"--fresh to start over (the old folder is kept)."
        )


def set_aside(run: Path) -> Path | None:
    """Renames a run folder to ``NAME.1``, ``NAME.2``, ... and returns the new path; None if it holds no run.

    Raises:
        RunFolderError: the folder above it does not permit it, or the command runs inside it.
    """
    if not (run / CONFIG).exists():
        return None
    if Path.cwd().is_relative_to(run.resolve()):
        raise RunFolderError(f"--fresh renames {run}: start the command in another folder.")
    number = 1
    while (target := run.with_name(f"{run.name}.{number}")).exists():
        number += 1
    try:
        run.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target
