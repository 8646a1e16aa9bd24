"""Small comparisons on handwritten digits for tests, and how to look at them; see ``runs`` and ``forked_jobs``."""

from pathlib import Path
from typing import Any

from matrix_ssl.runs.files import read_json
from tests.support.runs import TINY, Ended, check_failure, run, tensors

TWO_DRAWS = (  # of labelled images instead of ten, which take most of the time of a small job
    "import functools, matrix_ssl.evaluate.probes.protocols as probes\n"
    "probes.low_shot = functools.partial(probes.low_shot, draws=2)\n"
)
# a thread a job on any machine, since those of several jobs and tests would wait for each other
ONE_THREAD = "import matrix_ssl.config.system as system; system.cores = lambda: 1\n"
FORKED = f"import forked_jobs\n{ONE_THREAD}{TWO_DRAWS}"
FEW = ("data.subset=300",)  # 4 steps an epoch, 3 in a trial
CLOCK = ("seconds", "cpu_seconds", "images_per_second", "peak_memory_mib")


def words(
    *options: str, methods: str = "matrix_ssl,simsiam", settings: tuple[str, ...] = FEW, out: str = "c"
) -> list[str]:
    """Arguments of ``compare`` on the digits with tiny networks, two jobs side by side."""
    given = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    return ["compare", "demo", "--methods", methods, "--out", out, "--device", "cpu", "--jobs", "2", *given, *options]


def compare(folder: Path, arguments: list[str], *, before: str = "") -> Ended:
    """Runs a comparison, its jobs forked, after the Python code ``before``, and demands exit code 0."""
    ended = run(folder, arguments, before=FORKED + before)
    assert ended.code == 0, ended
    return ended


def fail(folder: Path, arguments: list[str], *, before: str = "", code: int | None = None) -> str:
    """Runs a comparison that must fail and returns the line that it ends with."""
    return check_failure(run(folder, arguments, before=FORKED + before), code=code)


def at_step(job: str, step: int, action: str) -> str:
    """Code that lets the jobs whose folder ends with ``job`` act before they do the step with this number."""
    return (
        "import os, signal, time, matrix_ssl.training.engine as e\n"
        "real = e.Engine.update\n"
        "def update(self, batch, received):\n"
        f"    if str(self.folder).endswith({job!r}) and self.task.step == {step}:\n"
        f"        {action}\n"
        "    return real(self, batch, received)\n"
        "e.Engine.update = update\n"
    )


def signal_comparison(number: int) -> str:
    """An action of a job or a stage: it signals what started it and waits to be told."""
    return f"os.kill(os.getppid(), {int(number)}); end = time.monotonic() + 60; " + (
        "[time.sleep(0.01) for _ in iter(lambda: not received and time.monotonic() < end, False)]"
    )


def results(folder: Path, out: str = "c") -> dict[str, Any]:
    """What ``compare.json`` holds."""
    return read_json(folder / out / "compare.json")


def timeless(value: Any) -> Any:
    """Results without what the clock decides."""
    if isinstance(value, dict):
        return {key: timeless(member) for key, member in value.items() if key not in CLOCK}
    return [timeless(member) for member in value] if isinstance(value, list) else value


def job_folders(folder: Path) -> list[Path]:
    """The folders of the trainings, below the folder in which the comparison is called ``c``."""
    return sorted(path.parent.relative_to(folder) for path in (folder / "c").rglob("job.json"))


def moments(folder: Path) -> dict[str, int]:
    """When every result was written."""
    return {str(p.parent.relative_to(folder)): p.stat().st_mtime_ns for p in (folder / "c").rglob("result.json")}


def assert_same(folder: Path, expected: Path) -> None:
    """The same results, weights and optimizer states, to the bit."""
    assert timeless(results(folder)) == timeless(results(expected))
    assert job_folders(folder) == job_folders(expected)
    for job in job_folders(folder):
        if job.name != "baselines":
            assert tensors(folder / job) == tensors(expected / job), job


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
