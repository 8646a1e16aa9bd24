"""What ``compile=true`` gains and costs: steps with and without, and the seconds until the first step.

    python -m benchmarks.speed.compiled            (writes benchmarks/results/compiled.json; minutes)
    python -m benchmarks.speed.compiled --quick    (tiny sizes; a C++ compiler is needed, too)

Matrix-SSL with tiny_resnet on drawn images in memory. Steps take turns in one process; times are CPU seconds of it and
of its children, on one thread. The first step has the compilation in it, with empty caches.
"""

import os
import tempfile
import time
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import command_line, resume, save, spread, take_turns
from benchmarks.speed.growth import drawn
from benchmarks.speed.loops import Case, ours

CASE = Case("tiny_resnet", 32, 64, width=16)
QUICK = Case("tiny_resnet", 8, 8, hidden=16, output=8, width=8)
ROUNDS = 5
CPU = torch.device("cpu")


def seconds() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(case: Case, precision: str, *, rounds: int) -> list[dict[str, Any]]:
    """A row with and a row without."""
    images, loops, first = drawn(10 * case.batch, case.side), {}, {}
    for compiled in ("false", "true"):
        loops[compiled] = ours(case, images, device=CPU, settings=[f"precision={precision}", f"compile={compiled}"])
        started, clock = seconds(), time.monotonic()
        next(loops[compiled])
        first[compiled] = {"cpu_seconds": seconds() - started, "clock_seconds": time.monotonic() - clock}
    spent = take_turns({name: lambda steps=steps: next(steps) for name, steps in loops.items()}, rounds=rounds)
    ratios = [plain / fast for plain, fast in zip(spent["false"], spent["true"], strict=True)]
    return [
        {"precision": precision, "compile": name == "true", "first": first[name], "seconds": spread(spent[name])}
        | ({"times_as_fast": spread(ratios)} if name == "true" else {})
        for name in loops
    ]


def main() -> None:
    arguments = command_line(__doc__, "compiled.json").parse_args()
    case, rounds = (QUICK, 1) if arguments.quick else (CASE, ROUNDS)
    rows: list[dict[str, Any]] = resume(arguments.out).get("rows", [])
    for precision in ("float32",) if arguments.quick else ("float32", "bfloat16"):
        if any(row["precision"] == precision for row in rows):
            continue
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            rows += measure(case, precision, rounds=rounds)
        save(arguments.out, {"case": vars(case), "rows": rows})
        plain, fast = rows[-2:]
        Console().print(
            f"{precision}: step {plain['seconds']['median']:.3f} s, compiled {fast['seconds']['median']:.3f} s, "
            f"{fast['times_as_fast']['median']:.2f} times as fast; first step {fast['first']['cpu_seconds']:.0f} CPU s",
            markup=False,
        )


if __name__ == "__main__":
    main()
