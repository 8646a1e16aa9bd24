"""Time and peak memory of the toolbox beside plain formulas, for n = 1k, 10k, 50k samples and widths 128 and 2048.

    python -m benchmarks.speed.toolbox           (writes benchmarks/results/toolbox.json, the small sizes first)
    python -m benchmarks.speed.toolbox --quick   (tiny sizes)

Features (n, d) in float32, one thread, values alone, every measurement in a process of its own: CPU seconds, the least
of three calls, and how far the resident memory rose above that of the process with the features in it. ``plain`` is the
formula as it is usually written with NumPy. The command continues where it was stopped. A measurement that would need
more memory than the machine has free, or n x n kernels beyond 10k samples, is left out and listed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.harness import command_line, save
from matrix_ssl import matrix
from matrix_ssl.matrix import of_features

SIZES = ((1000, 128), (10_000, 128), (1000, 2048), (50_000, 128), (10_000, 2048), (50_000, 2048))
QUICK = ((200, 16), (100, 40))
LARGEST_KERNEL = 10_000
CALLS = 3
Rows = NDArray[Any]


def entropy(weights: Rows) -> float:
    p = weights[weights > 0] / weights[weights > 0].sum()
    return float(-(p * np.log(p)).sum())


def unit(x: Rows) -> Rows:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain_cka(x: Rows, y: Rows) -> float:
    a, b = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b))


def plain_mutual_information(x: Rows, y: Rows) -> float:
    first, second = (unit(z) @ unit(z).T for z in (x, y))
    single = sum(entropy(np.linalg.eigvalsh(gram)) for gram in (first, second))
    return single - entropy(np.linalg.eigvalsh(first * second))


QUANTITIES: dict[str, dict[str, Callable[..., Any]]] = {
    "RankMe": {
        "here": lambda x, y: matrix.rank_me(x),
        "plain": lambda x, y: np.exp(entropy(np.linalg.svd(x, compute_uv=False))),
    },
    "effective rank of the covariance": {
        "here": lambda x, y: of_features.effective_rank(x),
        "plain": lambda x, y: np.exp(entropy(np.linalg.eigvalsh(np.cov(x.T)))),
    },
    "Vendi score": {
        "here": lambda x, y: of_features.vendi_score(x),
        "plain": lambda x, y: np.exp(entropy(np.linalg.eigvalsh(unit(x).T @ unit(x)))),
    },
    "all ranks": {"here": lambda x, y: matrix.rank_report(x)},
    "linear CKA": {"here": lambda x, y: matrix.linear_cka(x, y), "plain": plain_cka},
    "mutual information": {
        "here": lambda x, y: of_features.mutual_information(x, y),
        "plain": plain_mutual_information,
    },
}  # fmt: skip
KERNELS = ("mutual information",)  # n x n whatever the width


def main() -> None:
    parser = command_line(__doc__, "toolbox.json")
    parser.add_argument("--one", nargs=4, metavar="VALUE", help=argparse.SUPPRESS)  # in the process of a measurement
    options = parser.parse_args()
    if options.one:
        name, form, n, d = options.one
        print(json.dumps(measure(name, form, int(n), int(d))))
        return
    sizes = QUICK if options.quick else SIZES
    earlier = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    rows: list[dict[str, Any]] = earlier["rows"] if earlier.get("sizes") == [list(size) for size in sizes] else []
    for n, d in sizes:
        for name, forms in QUANTITIES.items():
            for form in forms:
                key = {"quantity": name, "form": form, "n": n, "d": d}
                if any(key.items() <= row.items() for row in rows):
                    continue
                left_out = "n x n kernels of so many samples" if name in KERNELS and n > LARGEST_KERNEL else ""
                rows.append(key | ({"left_out": left_out} if left_out else in_a_process(name, form, n, d)))
                save(options.out, {"unit": "CPU seconds, one thread; MiB", "sizes": sizes, "rows": rows})
                Console().print(rows[-1], markup=False)


def in_a_process(name: str, form: str, n: int, d: int) -> dict[str, Any]:
    """A measurement, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.speed.toolbox", "--one", name, form, str(n), str(d)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    if result.returncode:
        return {"left_out": (result.stderr.strip().splitlines() or [f"ended with {result.returncode}"])[-1]}
    values: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return values


def measure(name: str, form: str, n: int, d: int) -> dict[str, Any]:
    """The least CPU seconds of a few calls, the growth of the peak of resident memory in MiB, and the value."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.arange(1, d + 1) ** -0.5
    x = torch.randn(n, d, generator=generator) * decay
    y = x + 0.5 * torch.randn(n, d, generator=generator) * decay
    pair = (x, y) if form == "here" else (x.numpy(), y.numpy())
    function, seconds = QUANTITIES[name][form], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = None
    for _ in range(CALLS):
        started = time.process_time()
        value = function(*pair)
        seconds.append(time.process_time() - started)
        if seconds[0] > 60:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    number = None if isinstance(value, matrix.RankReport) or value is None else float(value)
    return {"seconds": min(seconds), "peak_mib": peak / 1024, "value": number}


if __name__ == "__main__":
    main()
