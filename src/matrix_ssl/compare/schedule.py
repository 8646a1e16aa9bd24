"""Runs the jobs of a comparison in separate processes, one per place at a time, and resumes them."""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_ssl import config as configuration
from matrix_ssl.compare.job import JOB, OUTPUT, RESULT, file_name, identify, source_digest, with_method
from matrix_ssl.compare.plan import Job
from matrix_ssl.config import system
from matrix_ssl.config.untrusted import read_end
from matrix_ssl.data.workers import MOST_WORKERS
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.runs import signals
from matrix_ssl.runs.files import fingerprint, read_object, write_json
from matrix_ssl.runs.folder import set_aside
from matrix_ssl.runs.processes import Processes
from matrix_ssl.runs.signals import Interrupted

_MOST_OUTPUT = 2**16  # bytes of a job's output that are read to find its last line


@dataclass(frozen=True, eq=False)  # two cores are two places, although all their values are equal
class Place:
    """Where a job runs."""

    device: str  # as ``--device`` takes it
    visible: str | None  # the value of CUDA_VISIBLE_DEVICES
    threads: int  # 0: PyTorch's own choice
    workers: int = -1  # processes that decode the job's images if ``data.workers`` is -1


def places(device_type: str, *, jobs: int) -> list[Place]:
    """A place for each of the ``jobs`` that run at once; 0: one for each GPU, or for each core of this process."""
    if device_type == "cuda":
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        # CUDA ignores a name that is not a device, and all names after it
        names = [name.strip() for name in visible.split(",")][:count] if visible else [str(i) for i in range(count)]
        count = jobs or len(names)
        return [Place("cuda", names[i % len(names)], 0, _share(count)) for i in range(count)]
    count = jobs or (system.cores() if device_type == "cpu" else 1)
    return [Place(device_type, None, _share(count), _share(count)) for _ in range(count)]


def _share(count: int) -> int:
    """The number of cores for each of ``count`` jobs."""
    return max(1, system.cores() // count)


def read_result(out: Path, job: Job) -> dict[str, Any] | None:
    """The result of a job; None if it has not ended, or if the result is for other settings.

    Raises:
        RunFolderError: the result is damaged, belongs to a different job, or nothing says to which.
    """
    path = out / job.folder / RESULT
    if not path.exists() or _is_outdated(out / job.folder, job):
        return None
    values = read_object(path)
    mark = values.pop("job", None)
    if mark is None and not (out / job.folder / JOB).exists():  # an earlier version marked none, but kept its job
        raise RunFolderError(f"{path} does not say which job it is the result of: remove it to run its job again.")
    if mark not in (None, identify(job.stage, job.method, job.config), _earlier_identity(out, job)):
        raise RunFolderError(f"{path} belongs to a different job: put its own file back, or remove it to run it again.")
    return values


def _is_outdated(folder: Path, job: Job) -> bool:
    """Whether a folder has a job with other settings or source, as after a change to a method's defaults or file."""
    if not (folder / JOB).exists():
        return False
    values = read_object(folder / JOB, "config")
    try:
        before = configuration.from_dict(values["config"])
    except ConfigError:  # from another version of this package
        return True
    if values.get("source") not in (None, _source(job)):  # None: from an earlier version, or a method of this package
        return True
    return bool(configuration.differences(with_method(before, file_name), with_method(job.config, file_name)))


def _earlier_identity(out: Path, job: Job) -> str:
    """The identity that a job had if it was named by another path: of its method's file, or of a public encoder.

    Earlier versions included the full path of a method's file. The folder of a public encoder has its digest.
    """
    values = read_object(out / job.folder / JOB) if (out / job.folder / JOB).exists() else {}
    path = values.get("method")
    if job.stage == "public" and isinstance(path, str) and path != job.method:
        return identify(job.stage, path, job.config)
    if not isinstance(path, str) or path == job.method or file_name(path) != file_name(job.method):
        path = job.method
    config = with_method(job.config, lambda name: path if name.endswith(".py") else name)
    return fingerprint(job.stage, path, configuration.identifying(config))


@functools.cache
def _digest(method: str) -> str | None:
    return source_digest(method)  # read once: a comparison keeps the methods that it was started with


def _source(job: Job) -> str | None:
    """The digest of the file of the method that a job trains; None if there is none or it is built in."""
    return _digest(job.config.method.name) if job.stage in ("tuning", "run") else None


def run_jobs(
    out: Path, waiting: Callable[[], list[Job]], where: list[Place], *, data_root: Path | None,
    ended: Callable[[Job, dict[str, Any]], None], running: Callable[[list[Job]], None],
) -> None:  # fmt: skip
    """Runs jobs until none are left.

    Args:
        waiting: returns the jobs that may run now and have no result yet, the most urgent first; called again whenever
            a job has ended, since what follows may depend on it.
        where: places, each of which runs one job at a time.
        ended: called with every job that has ended, and its result or error.
        running: called with the running jobs whenever they change.

    Raises:
        Interrupted: after a signal; the jobs have stopped after a checkpoint.
    """
    failed: set[Path] = set()
    ready: list[Job] = waiting()
    with signals.collected() as received:
        processes: Processes[tuple[Job, Place]] = Processes(received)
        while True:
            busy = [place for _, place in processes.active]
            free = [place for place in where if place not in busy]
            if free and ready and not received:
                for place, job in zip(free, ready, strict=False):
                    _start(processes, out, job, place, data_root)
                running([job for job, _ in processes.active])
            if not processes.active:
                break
            for (job, _), code in processes.wait():
                result = read_result(out, job)
                if result is None and not received:
                    failed.add(job.folder)
                    result = {"error": _reason(out / job.folder, code)}
                if result is not None:
                    ended(job, result)
            running([job for job, _ in processes.active])
            unavailable = failed | {job.folder for job, _ in processes.active}
            ready = [job for job in waiting() if job.folder not in unavailable]
    if received:
        raise Interrupted(received[0])


def _start(processes: Processes[tuple[Job, Place]], out: Path, job: Job, place: Place, data_root: Path | None) -> None:
    folder = out / job.folder
    if _is_outdated(folder, job) and set_aside(folder) is None:
        (folder / RESULT).unlink(missing_ok=True)  # of the baselines, which are not a run
    folder.mkdir(parents=True, exist_ok=True)
    config = job.config
    if config.data.workers == -1:  # otherwise each of the jobs would have a worker for every core
        config = configuration.override(config, [f"data.workers={min(place.workers, MOST_WORKERS)}"])
    values = {
        "stage": job.stage,
        "method": job.method,
        "config": configuration.to_dict(config),
        "device": place.device,
        "threads": place.threads,
        "source": _source(job),
        "data_root": None if data_root is None else str(data_root.resolve()),
    }
    write_json(folder / JOB, values)
    environment = {} if place.visible is None else {"CUDA_VISIBLE_DEVICES": place.visible}
    if place.threads:
        environment["OMP_NUM_THREADS"] = str(place.threads)
    command = [sys.executable, "-m", "matrix_ssl.compare.job", str(folder), str(os.getpid())]
    processes.start((job, place), command, log=folder / OUTPUT, environment=environment)


def _reason(folder: Path, code: int) -> str:
    """Why a process ended without a result, according to its last output."""
    lines = read_end(folder / OUTPUT, most=_MOST_OUTPUT).decode(errors="replace").strip().splitlines()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"The process ended with {how}: {lines[-1] if lines else 'no output'} (see {folder / OUTPUT})"
