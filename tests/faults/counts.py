"""The faults that runs survive, how many times each is shown, and what must hold: ``docs/reliability.md``.

Each row is shown by tests that repeat it ``count(number)`` times: a few in the ordinary suite, all of ``full`` by
``python -m benchmarks.experiments.reliability``, which sets a variable of the environment.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault."""

    number: int
    fault: str
    quick: int  # times in the ordinary suite
    full: int  # times that are reported
    holds: str  # what must be so
    tests: tuple[str, ...]  # as pytest takes them
    words: str = ""  # which of these tests, as pytest's -k takes it


_COUNTS = "tests/faults/test_counts_{}.py"
ROWS = (
    Row(1, "kill -9 at a random moment, one process", 3, 200, "resumes; losses and final weights are the same bits",
        (_COUNTS.format("kills"),), "random_moments"),
    Row(2, "kill -9 before each system call of a save", 3, 60, "the newest or the previous checkpoint loads",
        (_COUNTS.format("kills"),), "system_call"),
    Row(3, "kill -9 of one of two processes", 1, 50, "the other ends with an error; the rerun has the same bits",
        (_COUNTS.format("kills"),), "one_of_two"),
    Row(4, "checkpoints cut, flipped, zeroed, deleted, swapped", 25, 500,
        "noticed and named; the one before is used", (_COUNTS.format("files"),), "damaged_checkpoints"),
    Row(5, "SIGTERM, SIGINT, SIGUSR1, also in the first step, a save and the start", 3, 100,
        "one checkpoint, documented exit code; the rerun has the same bits", (_COUNTS.format("kills"),), "signals"),
    Row(6, "no space, quota, read-only, no permission, I/O error, no descriptors left, at any write", 3, 40,
        "one sentence, the older checkpoint loads, no unfinished file", (_COUNTS.format("kills"),), "refused_writes"),
    Row(7, "1, 2 and 1 processes, and 4, 2 and 3, at the same global batch", 1, 10,
        "metrics, weights and moments within 1e-8 of one process, in float64", (_COUNTS.format("kills"),),
        "numbers_of_processes"),
    Row(8, "0, 1 and 2 workers, batches of 1, 2, 3 and 4 processes", 4, 12, "the same images and the same views",
        (_COUNTS.format("numbers"),), "workers_and_parts"),
    Row(9, "a worker of the loader killed", 1, 20, "one sentence within 30 s; nothing lost or doubled after it",
        (_COUNTS.format("numbers"),), "killed_workers"),
    Row(10, "NaN and infinity in loss and gradient", 3, 30,
        "the step leaves no trace, also in BatchNorm and teacher", (_COUNTS.format("numbers"),), "not_finite"),
    Row(11, "images cut, empty, grey, CMYK, of 16 bits, of 1 pixel, damaged, of other kinds", 24, 200,
        "the same pixels or the same reason each time", (_COUNTS.format("files"),), "odd_images"),
    Row(12, "malicious pickles, and names in archives that lead out of them", 6, 30,
        "nothing executed, nothing written elsewhere", (_COUNTS.format("files"),), "malicious"),
    Row(13, "planted secrets", 4, 20, "in no file of the run and in no message", (_COUNTS.format("files"),), "secrets"),
    Row(14, "two writers, a moved run, a clock that jumps", 3, 10,
        "the second writer is refused; the rest resumes", (_COUNTS.format("kills"),), "writers_moves_and_clocks"),
    Row(15, "stored losses of 100 steps, one list a method", 1, 1, "equal within 1e-8, in float64",
        ("tests/methods/test_conformance.py",), "test_stored_trajectory"),
    Row(16, "steps of a tiny model", 110, 10_000, "memory grows under 2 %, file handles stay flat",
        (_COUNTS.format("numbers"),), "many_steps"),
)  # fmt: skip


def variable(number: int) -> str:
    """The variable of the environment that holds the count of a row."""
    return f"MATRIX_SSL_COUNT_{number}"


def count(number: int) -> int:
    """How many times a row is shown in this session."""
    row = next(row for row in ROWS if row.number == number)
    return int(os.environ.get(variable(number), row.quick))
