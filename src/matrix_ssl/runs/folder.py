"""The run folder: the names of its files, its lock, and the description that says what it is for."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from matrix_ssl import config as configuration
from matrix_ssl.config import RunConfig, system
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.runs.files import TEMPORARY, cannot_write, read_json, read_lines, write_json, write_lines

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.json", "environment.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, ENCODER, EVALUATION, SKIPPED = "checkpoints", "encoder.safetensors", "evaluation.npz", "skipped.jsonl"
METHOD, MODULE = "own-method.py", "own-encoder.json"  # of a method and an encoder that are not of this package
_LOCK = ".lock"


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """The temporary files, sorted, that a killed ``write_atomically`` left of the file ``name``; None: of any file.

    A hidden file of the user has a different form of name and is not among them.
    """
    written = r".+" if name is None else re.escape(name)
    ours = re.compile(rf"\.{written}\.[a-z0-9_]+{re.escape(TEMPORARY)}", re.DOTALL)
    hidden = sorted(folder.glob(f".*{TEMPORARY}"))
    return [path for path in hidden if ours.fullmatch(path.name) and path.is_file() and not path.is_symlink()]


def is_unclaimed(folder: Path, *, first: str) -> bool:
    """Whether a folder is free for a command whose first file there is ``first``.

    It is free where it does not exist or holds nothing but what such a command leaves when it is killed during its
    first write: the lock and unfinished copies of ``first``.
    """
    if not folder.exists():
        return True
    left = {path.name for path in unfinished(folder, first)} | {_LOCK}
    return all(path.name in left for path in folder.iterdir())


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder; raises RunFolderError where it is none, or is damaged."""
    try:
        return configuration.from_dict(read_json(run / CONFIG))
    except ConfigError as error:
        raise RunFolderError(f"{run / CONFIG} does not fit this version of matrix-ssl: {error}") from error


def check_folder(folder: Path, *, first: str = CONFIG) -> None:
    """Raises RunFolderError for a folder that neither has the file ``first`` nor ``is_unclaimed``."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        raise RunFolderError(f"{folder} is not Unicode, which safetensors files need: choose another folder.")
    try:
        foreign = not (folder / first).exists() and not is_unclaimed(folder, first=first)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be a run folder: {error.strerror}; choose another folder.") from error
    if foreign:
        raise RunFolderError(f"{folder} is not empty and has no {first}: choose another folder.")


def tidy(run: Path) -> None:
    """Removes the unfinished files of a writer that was killed; only for the process that holds the lock."""
    for folder in (run, run / CHECKPOINTS):
        for path in unfinished(folder):
            path.unlink(missing_ok=True)
    if (run / SKIPPED).exists():
        write_lines(run / SKIPPED, read_lines(run / SKIPPED))  # drops a cut last line: the next one would join it


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Holds a run folder against a second writer until the block ends or the process dies."""
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(system.locked(run / _LOCK))
        except BlockingIOError:
            raise RunFolderError(
                f"{run} is being written by another process: wait for it or choose another folder."
            ) from None
        except OSError as error:
            raise cannot_write(run, error) from error
        yield


@contextmanager
def held(folder: Path, *, fresh: bool, say: Callable[[str], None], first: str = CONFIG) -> Iterator[None]:
    """Checks, locks and tidies a folder until the block ends; ``fresh`` sets aside a run that is in it."""
    check_folder(folder, first=first)
    with ExitStack() as stack:
        stack.enter_context(lock(folder))
        if fresh and not system.MOVES_HELD_FOLDERS:
            stack.close()
        if fresh and (kept := set_aside(folder, first=first)):
            say(f"Kept the previous run as {kept}.")
        if fresh:
            stack.enter_context(lock(folder))
        tidy(folder)
        yield


def claim(
    folder: Path, description: RunConfig | Mapping[str, Any], *, may_change: Collection[str] = (), first: str = CONFIG
) -> None:
    """Writes the file ``first``, which says what a locked folder is for, or makes sure that it says this.

    Args:
        description: the configuration of a run, or nested plain values; what ``places`` holds may differ.
        may_change: dotted keys of further values that may differ.
    """
    check_claim(folder, description, may_change=may_change, first=first)
    if not (folder / first).exists():
        values = configuration.to_dict(description) if isinstance(description, RunConfig) else description
        write_json(folder / first, values)


def check_claim(
    folder: Path, description: RunConfig | Mapping[str, Any], *, may_change: Collection[str] = (), first: str = CONFIG
) -> None:
    """Raises RunFolderError where a folder is for something else, as ``claim`` does, but writes nothing."""
    if not (folder / first).exists():
        return
    if isinstance(description, RunConfig):
        different = configuration.differences(read_config(folder), description)
    else:
        before, now = read_json(folder / first), json.loads(json.dumps(description))
        if not isinstance(before, dict):
            raise RunFolderError(f"{folder / first} does not describe a run: choose another folder.")
        values = ({key: value for key, value in each.items() if key != "places"} for each in (before, now))
        different = configuration.changes(*values, but=may_change)
    if different:
        raise RunFolderError(
            f"{folder} was started with other settings ({'; '.join(different[:5])}): choose another folder, or use "
            "--fresh to start over."
        )


def set_aside(run: Path, *, first: str = CONFIG) -> Path | None:
    """Renames a run folder to ``NAME.1``, ``NAME.2``, ... and returns the new path; None without a file ``first``."""
    if not (run / first).exists():
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
