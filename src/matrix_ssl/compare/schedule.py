"""Runs the jobs of a comparison in processes of their own, as many side by side as devices allow, and resumes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_ssl import config as configuration
from matrix_ssl.compare.job import JOB, OUTPUT, RESULT
from matrix_ssl.compare.plan import Job
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs import signals
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import set_aside
from matrix_ssl.runs.signals import Interrupted

_POLL = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True, eq=False)  # two cores are two places, though nothing tells them apart
class Place:
    """Where a job runs."""

    device: str  # as ``--device`` takes it
    visible: str | None  # the value of CUDA_VISIBLE_DEVICES
    threads: int  # 0: PyTorch's own choice


@dataclass
class _Running:
    job: Job
    place: Place
    process: subprocess.Popen[bytes]


def places(device_type: str, *, jobs: int) -> list[Place]:
    """A place for every job that runs side by side.

    Args:
        device_type: of ``devices.choose_device``.
        jobs: how many; 0: one for each GPU, or for each core of this process.
    """
    if device_type == "cuda":
        import torch

        count = torch.cuda.device_count()
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        # CUDA leaves out a name that is no device, and all after it
        names = [name.strip() for name in given.split(",")][:count] if given else [str(i) for i in range(count)]
        return [Place("cuda", names[i % len(names)], 0) for i in range(jobs or len(names))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = jobs or (cores if device_type == "cpu" else 1)
    return [Place(device_type, None, max(1, cores // count)) for _ in range(count)]


def read_result(out: Path, job: Job) -> dict[str, Any] | None:
    """What a job has found, or None while it has not ended or where the result is that of other settings."""
    path = out / job.folder / RESULT
    return read_json(path) if path.exists() and not _is_another(out / job.folder, job) else None


def _is_another(folder: Path, job: Job) -> bool:
    """Whether a folder holds a job with other settings, as after a change of a method's defaults."""
    if not (folder / JOB).exists():
        return False
    try:
        before = configuration.from_dict(read_json(folder / JOB)["config"])
    except ConfigError:  # of another version of this package
        return True
    return bool(configuration.differences(before, job.config))


def run_jobs(
    out: Path,
    waiting: Callable[[], list[Job]],
    where: list[Place],
    *,
    data_root: Path | None,
    ended: Callable[[Job, dict[str, Any]], None],
    running: Callable[[list[Job]], None],
) -> None:
    """Runs jobs until none is left.

    Args:
        out: the folder of the comparison.
        waiting: gives the jobs that may run now and have no result yet, the most urgent first; asked again whenever
            one has ended, since what follows may depend on it.
        where: places, each for one job at a time.
        data_root: where named sets lie.
        ended: told every job that has ended, with its result or its error.
        running: told which jobs run, whenever that changes.

    Raises:
        Interrupted: a signal came; the jobs have stopped after a checkpoint.
    """
    active: list[_Running] = []
    failed: set[Path] = set()
    ready: list[Job] = waiting()
    told = 0
    with signals.collected() as received:
        while True:
            while told < len(received):  # here and not in the handler: it may come while a job is being started
                for other in active:
                    other.process.send_signal(received[told])
                told += 1
            free = [place for place in where if all(other.place != place for other in active)]
            if free and ready and not received:
                for place, job in zip(free, ready, strict=False):
                    active.append(_Running(job, place, _start(out, job, place, data_root)))
                ready = ready[len(free) :]
                running([other.job for other in active])
            if not active:
                break
            time.sleep(_POLL)
            over = [other for other in active if other.process.poll() is not None]
            for other in over:
                active.remove(other)
                result = read_result(out, other.job)
                if result is None and not received:
                    failed.add(other.job.folder)
                    result = {"error": _reason(out / other.job.folder, other.process.returncode)}
                if result is not None:
                    ended(other.job, result)
                running([still.job for still in active])
            if over:
                busy = {other.job.folder for other in active}
                ready = [job for job in waiting() if job.folder not in busy | failed]
    if received:
        raise Interrupted(received[0])


def _start(out: Path, job: Job, place: Place, data_root: Path | None) -> subprocess.Popen[bytes]:
    folder = out / job.folder
    if _is_another(folder, job) and set_aside(folder) is None:
        (folder / RESULT).unlink(missing_ok=True)  # of baselines, which are no run to be kept
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "stage": job.stage,
        "method": job.method,
        "config": configuration.to_dict(job.config),
        "device": place.device,
        "threads": place.threads,
        "data_root": None if data_root is None else str(data_root.resolve()),
    }
    write_json(folder / JOB, values)
    environment = dict(os.environ)
    if place.visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place.visible
    if place.threads:
        environment["OMP_NUM_THREADS"] = str(place.threads)
    with (folder / OUTPUT).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "matrix_ssl.compare.job", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which forwards it once
        )  # fmt: skip


def _reason(folder: Path, code: int) -> str:
    """Why a process ended without a result, from what it wrote last."""
    lines = (folder / OUTPUT).read_text(errors="replace").strip().splitlines()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the process ended with {how}: {lines[-1] if lines else 'it wrote nothing'} (see {folder / OUTPUT})"
