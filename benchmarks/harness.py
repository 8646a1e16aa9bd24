"""What every benchmark shares: the command line, variants that take turns, and a result that says how it was made."""

import argparse
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from matrix_ssl.runs.environment import environment
from matrix_ssl.runs.files import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def command_line(description: str | None, result: str) -> argparse.ArgumentParser:
    """A parser with ``--quick`` and ``--out``, by default ``benchmarks/results/RESULT``.

    PyTorch and the BLAS of NumPy and SciPy get one thread.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Tiny sizes: whether it runs, not how fast.")
    parser.add_argument("--out", type=Path, default=RESULTS / result, help="The JSON file to write.")
    return parser


def page_command_line(description: str | None, *, docs: str = "docs") -> argparse.ArgumentParser:
    """A parser with ``--results`` and ``--docs``, the folders of JSON files and of pages, here by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="Folder of the results.")
    parser.add_argument("--docs", type=Path, default=ROOT / docs, help="Folder of the pages.")
    return parser


def command() -> str:
    """The command line of this program, as typed in the root of the repository; of absolute paths the last part."""
    program = Path(sys.argv[0])
    if program.is_relative_to(ROOT):
        launch = ["python", "-m", ".".join(program.relative_to(ROOT).with_suffix("").parts)]
    else:
        launch = ["python", program.name]
    return shlex.join([*launch, *map(without_folders, sys.argv[1:])])


def without_folders(word: str) -> str:
    """A word of a command with the last part of an absolute path in its place: folders of one machine say nothing."""
    start, equals, value = word.rpartition("=")
    return f"{start}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def save(
    path: Path, content: Mapping[str, Any], *, processes: int = 1, versions: Mapping[str, str] | None = None
) -> None:
    """Writes a result measured on one CPU thread per process, with its command, environment and the machine's load."""
    where = environment(device="cpu", device_name="cpu", threads=1, processes=processes)
    path.parent.mkdir(parents=True, exist_ok=True)
    load = [round(value, 1) for value in os.getloadavg()]
    head = {"command": command(), "load_average": load}
    write_json(path, {**head, **content, "environment": {**where, **(versions or {})}})
    Console().print(f"written: {path}", markup=False)


def resume(path: Path, head: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What an earlier call has saved, to go on from; empty where there is none. Ends if its commit or head differs."""
    if not path.exists():
        return {}
    content: dict[str, Any] = read_json(path)
    then, now = content["environment"]["commit"], environment(device="cpu", device_name="cpu", threads=1, processes=1)
    if then != now["commit"]:
        raise SystemExit(
            f"{path}: measured at commit {then}, and this is {now['commit']}. Remove it or use that commit."
        )
    for name, value in (head or {}).items():
        if content[name] != value:
            raise SystemExit(
                f"{path}: measured with {name} {content[name]}, and this is {value}. Choose a different --out."
            )
    return content


def take_turns(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """CPU seconds of this process for every variant in every round; the warm-up round does not count.

    Variants take turns so that the noise of the machine meets all of them alike. The order is drawn anew for every
    round: what runs after a call that freed much memory pays to get it again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1 if warm_up else 0, rounds):
        for name in random.Random(turn).sample(list(variants), len(variants)):
            started = time.process_time()
            variants[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    return dict(zip(names, np.percentile(values, (0, 25, 50, 75, 100)).tolist(), strict=True))
