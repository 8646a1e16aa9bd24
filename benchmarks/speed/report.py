"""The report of a run, and its resuming, with a million lines of metrics: CPU seconds and memory.

    python -m benchmarks.speed.report            (writes benchmarks/results/report.json; minutes)
    python -m benchmarks.speed.report --quick    (a thousand lines)

``report`` writes the page of the run, ``resume`` opens the lines as a resumed training does, which reads all of them,
writes them anew and remembers a few. Each works in a process of its own, on runs of different lengths; memory is the
highest of the process.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.harness import ROOT, command_line, save
from matrix_ssl.config import RunConfig, to_dict
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import CONFIG, METRICS

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
EVERY = 10  # steps from a line to the next
_NUMBERS = (
    "loss", "alignment", "uniformity", "effective_rank", "matrix_entropy", "effective_rank_projection",
    "spread_projection", "teacher_similarity", "images_per_second",
)  # fmt: skip


def make_run(folder: Path, lines: int) -> None:
    """A run folder with so many lines of metrics, as long as those of a training."""
    write_json(folder / CONFIG, to_dict(RunConfig(recipe="benchmark")))
    draw = np.random.default_rng(0)
    with (folder / METRICS).open("w") as file:
        for start in range(0, lines, 1000):
            for number, values in enumerate(draw.random((1000, len(_NUMBERS))).tolist(), start + 1):
                step = EVERY * number
                text = ", ".join(f'"{name}": {value!r}' for name, value in zip(_NUMBERS, values, strict=True))
                file.write(
                    f'{{"step": {step}, "epoch": {step / 5000!r}, "seconds": {step / 3:.3f}, {text}, "learning_rate": '
                    f'{0.06 / number!r}, "teacher_momentum": 0.996, "negative_determinants": 0, "bad_steps": 0}}\n'
                )


WORK = {
    "report": "from matrix_ssl.report.run.page import write_report as work",
    "resume": "from matrix_ssl.runs.metrics import MetricsWriter\n"
    "def work(run): MetricsWriter(run, after_step=10**12).close(finished=False)",
}


def measure(what: str, run: Path) -> dict[str, float]:
    """CPU seconds and the highest memory in MiB of a process that does it."""
    code = (
        f"import sys, time\nfrom pathlib import Path\n{WORK[what]}\nwork(Path(sys.argv[1]))\n"
        "print(time.process_time())\nprint(Path('/proc/self/status').read_text())"
    )
    command = [sys.executable, "-c", code, str(run)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, _, status = result.stdout.partition("\n")
    highest = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": float(seconds), "mib": int(highest.split()[1]) / 1024}


def main() -> None:
    arguments = command_line(__doc__, "report.json").parse_args()
    rows: list[dict[str, Any]] = []
    for count in COUNTS[:1] if arguments.quick else COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            make_run(Path(folder), count)
            size = (Path(folder) / METRICS).stat().st_size / 2**20
            for what in WORK:
                row = {"lines": count, "file_mib": size, "what": what, **measure(what, Path(folder))}
                rows.append(row)
                text = f"{count:,} lines, {what}: {row['seconds']:.1f} CPU s, {row['mib']:.0f} MiB"
                Console().print(text, markup=False)
        save(arguments.out, {"rows": rows})


if __name__ == "__main__":
    main()
