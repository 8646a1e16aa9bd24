"""The run folder: configuration, environment, metrics and summary, written so that a kill at any moment loses nothing.

Every whole file goes through ``write_atomically``. ``metrics.jsonl`` grows by one line a write; a resumed run first
drops the lines behind its checkpoint, and a last line cut by a kill is ignored.
"""

import errno
import fcntl
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from matrix_ssl import config as configuration
from matrix_ssl.config import RunConfig
from matrix_ssl.errors import ConfigError, MissingExtra, RunFolderError

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.json", "environment.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, ENCODER, EVALUATION, SKIPPED = "checkpoints", "encoder.safetensors", "evaluation.npz", "skipped.jsonl"
_LOCK, _TEMPORARY = ".lock", ".tmp"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file completely or not at all: temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        write: gets the open temporary file.

    Raises:
        RunFolderError: the disk is full, read-only or not permitted; nothing is left behind and an older file stays.
    """
    temporary = ""
    try:
        _refuse_to_replace(path)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp makes it private
            os.fsync(descriptor)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """The temporary files that ``write_atomically`` leaves in a folder when it is killed.

    Args:
        folder: where they lie; one that does not exist has none.
        name: of the file that was being written; None for any.

    Returns:
        The files, sorted. A hidden file of the user has a different form of name and is not among them.
    """
    written = r".+" if name is None else re.escape(name)
    ours = re.compile(rf"\.{written}\.[a-z0-9_]+{re.escape(_TEMPORARY)}", re.DOTALL)
    hidden = sorted(folder.glob(f".*{_TEMPORARY}"))
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


def check_writable(path: Path) -> None:
    """Raises RunFolderError for a file that cannot be written, before the work for it is done."""
    try:
        _refuse_to_replace(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """The error for a file that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free space there or choose another place" if full else "choose another place"
    return RunFolderError(f"cannot write {path}: {error.strerror or error}; {remedy}.")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, readable by a person."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # a file name that is not Unicode holds surrogates: written with a backslash they are JSON's own escapes
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path.parent} is not a run folder: it has no {path.name}.") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}.") from error


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        RunFolderError: the folder is not a run folder, or its ``config.json`` does not describe a run.
    """
    try:
        return configuration.from_dict(read_json(run / CONFIG))
    except ConfigError as error:
        raise RunFolderError(f"{run / CONFIG} does not fit this version of matrix-ssl: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, none if it does not exist; a last line cut by a kill is left out.

    Raises:
        RunFolderError: another line is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}.") from error


class MetricsWriter:
    """Appends to ``metrics.jsonl``, each line in one write, and to TensorBoard events if asked."""

    def __init__(self, run: Path, *, after_step: int, events: Path | None = None):
        """Keeps the lines up to ``after_step`` and drops the rest.

        Raises:
            MissingExtra: ``events`` is given and TensorBoard is not installed.
        """
        self.history = [line for line in read_lines(run / METRICS) if line["step"] <= after_step]
        self._path = run / METRICS
        _write_lines(self._path, self.history)
        self._events = None if events is None else _event_writer(events, after_step)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line; numbers that are not finite become null."""
        self.history.append(line)
        append_line(self._path, line)
        if self._events is not None:
            for key, value in line.items():
                if isinstance(value, (int, float)) and key != "step":
                    self._events.add_scalar(key, value, line["step"])
            self._events.flush()


def check_tensorboard() -> None:
    """Raises MissingExtra where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "tensorboard")


def _event_writer(folder: Path, after_step: int) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=after_step + 1)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON line in a single write, so that lines of several processes do not mix.

    Raises:
        RunFolderError: it could not be written.
    """
    content = _json_line(line).encode()
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(content) < len(content):  # how a disk that has just become full answers
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise cannot_write(path, error) from error


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
        _write_lines(run / SKIPPED, read_lines(run / SKIPPED))  # drops a cut last line: the next one would join it


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


def environment(*, device: str, device_name: str, threads: int, processes: int) -> dict[str, Any]:
    """What a reader needs to judge a figure: versions, hardware, commit."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy", "matrix-ssl")}
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): version for name, version in versions.items()},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": device,
        "device_name": device_name,
        "threads": threads,
        "processes": processes,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """Commit of the source tree this package runs from, marked when files differ; None for an installed package."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        inside = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if inside.returncode == 0 else None


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(_json_line(line) for line in lines)
    write_atomically(path, lambda file: file.write(text.encode()))


def _json_line(line: dict[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_to_replace(path: Path) -> None:
    """A rename would put a file in the place of a device such as /dev/null."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is not a file")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
