"""The run folder: the names of its files, its lock, and the description of what it is for."""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from matrix_ssl import config as configuration
from matrix_ssl.config import RunConfig, system
from matrix_ssl.config.untrusted import expanded, read_file
from matrix_ssl.errors import OFFERED, ConfigError, RunFolderError
from matrix_ssl.runs.files import (
    cannot_write,
    check_writable,
    read_json,
    read_lines,
    unfinished,
    write_json,
    write_lines,
)
from matrix_ssl.runs.terminal import redact_values

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.json", "environment.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, ENCODER, EVALUATION, SKIPPED = "checkpoints", "encoder.safetensors", "evaluation.npz", "skipped.jsonl"
STEP = re.compile(r"step-\d{9}\.safetensors")  # a file of CHECKPOINTS
VIEWS, FOLLOWED = "views.npz", "followed.npz"  # data about the training for the page of a run
METHOD, MODULE = "own-method.py", "own-encoder.json"  # of a method and an encoder that are not part of this package
_LOCK = ".lock"
_OWN = {
    CONFIG, ENVIRONMENT, METRICS, SUMMARY, ENCODER, EVALUATION, VIEWS, FOLLOWED, SKIPPED, METHOD, MODULE, _LOCK,
}  # fmt: skip
_FOREIGN = "wandb"  # folder of W&B
_BEFORE = (ENVIRONMENT, METRICS, SKIPPED, METHOD, MODULE)  # beside CONFIG, what a run writes before its first step


def is_unclaimed(folder: Path, *, first: str) -> bool:
    """Whether a folder is free for a command whose first file there is ``first``.

    It is free if it does not exist or contains nothing but what such a command leaves when it is killed during its
    first write: the lock and unfinished copies of ``first``.
    """
    if not folder.exists():
        return True
    left = {path.name for path in unfinished(folder, first)} | {_LOCK}
    return all(path.name in left for path in folder.iterdir())


def has_begun(run: Path) -> bool:
    """Whether a folder holds a run with more than a run writes before its first step, or a file of another program.

    A run without, such as one whose images could not be read, has nothing to protect: its folder is free for a run with
    other settings. Its environment shows that ``config.json`` is that of a run.
    """
    if not (run / CONFIG).exists():
        return False
    environment = read_json(run / ENVIRONMENT) if (run / ENVIRONMENT).exists() else None
    if not isinstance(environment, dict) or environment.get("run") != identity(run):
        return True
    left = {path.name for path in unfinished(run)} | {CONFIG, *_BEFORE, _LOCK}
    return any(path.name not in left or (path.name == METRICS and path.stat().st_size > 0) for path in run.iterdir())


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder; raises RunFolderError if it is not a run folder or is damaged."""
    if (run / "compare.json").is_file() and (compared := sorted(run.glob(f"runs/*/*/{CONFIG}"))):
        raise RunFolderError(f"{run} is a comparison, not a run: name one of its runs, such as {compared[0].parent}.")
    try:
        return configuration.from_dict(read_json(run / CONFIG))
    except ConfigError as error:
        raise RunFolderError(f"{run / CONFIG} does not fit this version of matrix-ssl: {error}") from error


def identity(run: Path) -> str:
    """What identifies a run: a digest of its settings; empty for a folder without ``config.json``.

    Checkpoints, weights, metrics, summary and results carry it, so that a file of a different run is noticed. Settings
    at their defaults are left out, so that it stays the same in later versions that have more settings.
    """
    values = read_json(run / CONFIG) if (run / CONFIG).exists() else None
    if not isinstance(values, dict):
        return ""
    try:
        chosen = configuration.identifying(configuration.from_dict(values))
    except ConfigError:  # from a fine-tuning or a detection
        chosen = {key: value for key, value in configuration.flatten(values) if not key.startswith("places.")}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def is_same_method(run: Path, recorded: str, name: str) -> bool:
    """Whether a method is that of a run: by name or, for a Python file elsewhere, by the source that the run kept.

    Args:
        recorded: the name in the settings of the run.
        name: the method's name or path.
    """
    if recorded == name or not (recorded.endswith(".py") and name.endswith(".py")):
        return recorded == name
    try:
        return read_file(run / METHOD) == read_file(expanded(name))
    except OSError:
        return False


def check_owner(path: Path, owner: Any, run: Path) -> None:
    """Raises RunFolderError for a file that carries the identity of a run other than that of its folder.

    ``owner`` is the identity in the file; None, from an earlier version, matches any run.
    """
    if owner is not None and owner != identity(run):
        raise RunFolderError(f"{path} belongs to a different run than {run / CONFIG}: put the run's own file back.")


def check_output(path: Path, *inputs: str | Path | None) -> None:
    """Raises RunFolderError for a file that cannot be written, that the command reads, or that belongs to a run.

    Called before the work, so that nothing is lost and no work is done in vain.
    """
    check_writable(path)
    target = path.resolve()
    if any(target == expanded(one).resolve() for one in inputs if one is not None):
        raise RunFolderError(f"{path} is read by this command: choose another place for what it writes.")
    of_run = path.name in _OWN and (path.parent / CONFIG).exists()
    if of_run or (path.parent.name == CHECKPOINTS and (path.parent.parent / CONFIG).exists()):
        raise RunFolderError(f"{path} is a file of the run itself: choose another name for what is written.")


def check_folder(folder: Path, *, first: str = CONFIG) -> None:
    """Raises RunFolderError unless a folder has the file ``first`` or ``is_unclaimed``."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        other = sys.getfilesystemencoding() != "utf-8"  # in which names written elsewhere may not be valid
        remedy = "set the variable PYTHONUTF8=1 or choose another folder" if other else "choose another folder"
        raise RunFolderError(f"{folder} is not Unicode, which safetensors files need: {remedy}.")
    try:
        foreign = not (folder / first).exists() and not is_unclaimed(folder, first=first)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be a run folder: {error.strerror}; choose another folder.") from error
    if foreign:
        raise RunFolderError(f"{folder} is not empty and has no {first}: choose another folder.")


def tidy(run: Path) -> None:
    """Removes the unfinished files of a killed writer; only for the process that holds the lock."""
    for folder in (run, run / CHECKPOINTS, *_results(run)):
        for path in unfinished(folder):
            path.unlink(missing_ok=True)
    if (run / SKIPPED).exists():
        write_lines(run / SKIPPED, read_lines(run / SKIPPED))  # drops a cut last line, which the next would join


def _results(run: Path) -> list[Path]:
    """The folders with results in a run folder."""
    return [path for path in (run / "evaluation").glob("**/") if path.is_dir()]


def refuse_links(folder: Path) -> None:
    """Raises RunFolderError if a link leads out of a folder, or if it contains a pipe, a device or a socket.

    This keeps writes into the folder from going elsewhere, and reads from it from blocking.
    """
    root = folder.resolve()
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if not Path(os.path.realpath(entry.path)).is_relative_to(root):
                        raise RunFolderError(
                            f"{entry.path} is a link that leads out of {folder}: replace it by what it points to."
                        )
                elif entry.is_dir():
                    if entry.path != str(folder / _FOREIGN):  # only W&B writes there, and it links its logs
                        pending.append(Path(entry.path))
                elif not entry.is_file():
                    raise RunFolderError(f"{entry.path} is a pipe, a device or a socket: remove it.")


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Locks a run folder against other writers until the block ends or the process dies.

    A folder that is created for a block which then fails before writing anything is removed again.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(system.locked(run / _LOCK))
            refuse_links(run)
        except BlockingIOError as error:
            raise RunFolderError(
                f"{run} is being written by {error.strerror}: wait for it or choose another folder."
            ) from None
        except OSError as error:
            raise cannot_write(run, error) from error
        try:
            yield
        except BaseException:
            _remove_unused(made)
            raise


def _remove_unused(folders: Sequence[Path]) -> None:
    """Removes folders, the innermost first, as long as they contain nothing but a lock."""
    with suppress(OSError):
        for folder in folders:
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
            folder.rmdir()


@contextmanager
def held(folder: Path, *, fresh: bool, say: Callable[[str], None], first: str = CONFIG) -> Iterator[None]:
    """Checks, locks and tidies a folder until the block ends; ``fresh`` sets aside an existing run."""
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
    folder: Path, description: RunConfig | Mapping[str, Any], *, may_change: Collection[str] = (), first: str = CONFIG,
    configurations: Collection[str] = (),
) -> None:  # fmt: skip
    """Writes the file ``first``, which says what a locked folder is for, or checks that an existing one agrees.

    What a run that has not begun has left is removed, and its ``config.json`` is replaced.

    Args:
        description: the configuration of a run, or nested plain values; values under ``places`` may differ.
        may_change: dotted keys of further values that may differ.
        configurations: keys of nested values that are configurations of runs; settings that an earlier version lacked
            there have their defaults.
    """
    if first == CONFIG and (folder / CONFIG).exists() and not has_begun(folder):
        for name in (*_BEFORE, CONFIG):
            (folder / name).unlink(missing_ok=True)
    check_claim(folder, description, may_change=may_change, first=first, configurations=configurations)
    if not (folder / first).exists():
        values = configuration.to_dict(description) if isinstance(description, RunConfig) else description
        write_json(folder / first, redact_values(values))


def check_claim(
    folder: Path, description: RunConfig | Mapping[str, Any], *, may_change: Collection[str] = (), first: str = CONFIG,
    configurations: Collection[str] = (),
) -> None:  # fmt: skip
    """Raises RunFolderError if a folder is for something else, as ``claim`` does, but writes nothing."""
    if not (folder / first).exists():
        return
    if isinstance(description, RunConfig):
        recorded = read_config(folder)
        if is_same_method(folder, recorded.method.name, description.method.name):
            method = dataclasses.replace(description.method, name=recorded.method.name)
            description = dataclasses.replace(description, method=method)
        different = configuration.differences(recorded, description)
    else:
        before, now = read_json(folder / first), json.loads(json.dumps(redact_values(description)))
        if not isinstance(before, dict):
            raise RunFolderError(f"{folder / first} does not describe a run: choose another folder.")
        before |= {key: configuration.completed(before[key]) for key in configurations if key in before}
        values = ({key: value for key, value in each.items() if key != "places"} for each in (before, now))
        different = configuration.changes(*values, but=may_change)
    if different:
        raise RunFolderError(
            f"{folder} was started with other settings ({'; '.join(different[:5])}): choose another folder"
            f"{OFFERED.first(', or use --fresh to start over')}."
            f"{_train_further(folder, different) if isinstance(description, RunConfig) else ''}"
        )


def _train_further(run: Path, different: Sequence[str]) -> str:
    """The remedy if only the images have changed, or only the number of epochs, which sets the decay, is larger."""
    start = f"start a second run from it: --from {shlex.quote(str(run))}"
    if all(line.startswith(("data.digest: ", "data.images: ")) for line in different):
        return OFFERED.first(f" To train its encoder further on these images, {start}.")
    more = re.fullmatch(r"epochs: (\d+) -> (\d+)", different[0])
    if len(different) > 1 or more is None or int(more[2]) < int(more[1]):
        return ""
    return OFFERED.first(f" To train its encoder further, {start} --set epochs={int(more[2]) - int(more[1])}.")


def set_aside(run: Path, *, first: str = CONFIG) -> Path | None:
    """Renames a run folder to ``NAME.1``, ``NAME.2``, ... and returns the new path; None if it has no ``first``."""
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
