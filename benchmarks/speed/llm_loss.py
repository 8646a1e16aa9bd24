"""The fused language-model loss beside a plain head with cross-entropy: CPU seconds, peak memory, errors of the forms.

    python -m benchmarks.speed.llm_loss            (writes benchmarks/results/llm_loss.json; two minutes)
    python -m benchmarks.speed.llm_loss --quick    (tiny sizes)

One call is value and gradients, by hidden states and head, in float32 with one thread. ``cross-entropy`` is the product
with the head and PyTorch's cross-entropy. Variants take turns in one process; a ratio is that of the same round. Memory
is the growth of the peak of a fresh process. Errors are those of the matrix term and of its gradient by the hidden
states, relative to the dense form, on rows that are far from orthogonal.
"""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import command_line, save, spread, take_turns
from benchmarks.speed.loss_memory import resident
from matrix_ssl.llm import Objective, matrix_cross_entropy_loss, matrix_cross_entropy_terms
from matrix_ssl.llm.objective import DEFAULTS

PLAIN = "cross-entropy"
FORMS: dict[str, dict[str, Any]] = {
    "closed": {"form": "closed"},
    "lanczos, 2 steps": {"form": "lanczos", "steps": 2},
    "lanczos, 3 steps": {"form": "lanczos", "steps": 3},
    "top, 16 tokens": {"form": "top", "top": 16},
}
TIMED = ((32_000, 512, 512, 3), (32_000, 1024, 256, 3), (152_000, 256, 128, 3))  # vocabulary, d, positions, rounds
MEASURED = ((32_000, 512, 2048), (152_000, 256, 1024))  # of which the memory is measured
IN_MEMORY = (PLAIN, "closed", "top, 16 tokens")
COMPARED = (2000, 128, 64)
MORE_FORMS: dict[str, dict[str, Any]] = {
    **{f"lanczos, {k} step{'s' * (k > 1)}": {"form": "lanczos", "steps": k} for k in (1, 2, 3, 4, 6, 8, 12)},
    **{f"top, {m} token{'s' * (m > 1)}": {"form": "top", "top": m} for m in (1, 4, 16, 64)},
}

Row = dict[str, Any]


def inputs(vocabulary: int, d: int, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that lean to their targets, rows of a head with a decaying spectrum and a common part, labels."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, d + 1).pow(-0.5)
    head = torch.randn(vocabulary, d, generator=generator) * scales + 0.5 * scales
    labels = torch.randint(0, vocabulary, (1, positions + 1), generator=generator)
    towards = F.normalize(head[labels.roll(-1, 1)], dim=2) * torch.rand(1, positions + 1, 1, generator=generator)
    hidden = 12 * towards + 0.5 * torch.randn(1, positions + 1, d, generator=generator) * scales
    return hidden.requires_grad_(), head.requires_grad_(), labels


def calls(vocabulary: int, d: int, positions: int) -> dict[str, Callable[[], object]]:
    """Value and gradients of every variant, on the same inputs."""
    hidden, head, labels = inputs(vocabulary, d, positions)

    def plain() -> object:
        logits = hidden[:, :-1] @ head.mT
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        del logits
        return torch.autograd.grad(loss, (hidden, head))

    def fused(form: dict[str, Any]) -> Callable[[], object]:
        objective = Objective(**form)
        return lambda: torch.autograd.grad(
            matrix_cross_entropy_loss(hidden, head, labels, objective=objective), (hidden, head)
        )

    return {PLAIN: plain, **{name: fused(form) for name, form in FORMS.items()}}


def measure_time(vocabulary: int, d: int, positions: int, rounds: int) -> Row:
    """Seconds of every variant, and their ratio to the plain one."""
    seconds = take_turns(calls(vocabulary, d, positions), rounds=rounds)
    return {
        "vocabulary": vocabulary, "d": d, "positions": positions,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": {name: spread(np.divide(values, seconds[PLAIN]).tolist()) for name, values in seconds.items()},
    }  # fmt: skip


def measure_memory(vocabulary: int, d: int, positions: int, *, quick: bool) -> Row:
    """MiB by which one call raises the peak of a fresh process, for the variants of ``IN_MEMORY``."""
    context = multiprocessing.get_context("fork" if quick else "spawn")  # the fork says nothing of memory
    found = {}
    for name in IN_MEMORY:
        answer = context.Queue()
        # freed blocks go back to the system at once, so that the peak is what was alive together
        with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}):
            arguments = (vocabulary, d, positions, name, answer)
            process = context.Process(target=peak, args=arguments)  # type: ignore[attr-defined]
            process.start()
        found[name] = answer.get()
        process.join()
    return {"vocabulary": vocabulary, "d": d, "positions": positions, "mib": found}


def peak(vocabulary: int, d: int, positions: int, name: str, answer: Any) -> None:
    """What a process of its own measures."""
    calls(32, 8, 4)[name]()  # loads what is loaded at first use
    call = calls(vocabulary, d, positions)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    call()
    answer.put((resident("VmHWM") - before) / 1024)


def measure_errors(vocabulary: int, d: int, positions: int) -> Row:
    """The matrix term of every form and the relative errors of its value and gradient, in float64."""
    hidden, head, labels = inputs(vocabulary, d, positions)
    hidden, head = hidden.detach().double().requires_grad_(), head.detach().double()

    def of(**form: Any) -> tuple[float, Tensor]:
        plain = matrix_cross_entropy_loss(hidden, head, labels, objective=Objective(weight=0.0))
        terms = matrix_cross_entropy_terms(hidden, head, labels, objective=Objective(**form))
        return terms.mce.item(), torch.autograd.grad(terms.loss - plain, hidden)[0]

    value, gradient = of(form="dense")
    rows = {"dense": {"mce": value, "value": 0.0, "gradient": 0.0}}
    for name, form in MORE_FORMS.items():
        own_value, own = of(**form)
        error = ((own - gradient).norm() / gradient.norm()).item()
        rows[name] = {"mce": own_value, "value": abs(own_value - value) / value, "gradient": error}
    ce = matrix_cross_entropy_terms(hidden.detach(), head, labels).ce.item()
    return {"vocabulary": vocabulary, "d": d, "positions": positions, "ridge": DEFAULTS.ridge, "ce": ce, "forms": rows}


def tables(result: Row) -> list[str]:
    """The tables of docs/llm-loss.md: time, memory, errors."""
    names = [PLAIN, *FORMS]
    lines = [f"| vocabulary, d, positions | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in result["rows"]:
        plain = f"{row['seconds'][PLAIN]['median']:.2f} s"
        ratios = [f"{row['ratio'][name]['median']:.2f}" for name in FORMS]
        lines.append(f"| {row['vocabulary']}, {row['d']}, {row['positions']} | {' | '.join([plain, *ratios])} |")
    lines += ["", f"| vocabulary, d, positions | {' | '.join(IN_MEMORY)} |", "|---" * (len(IN_MEMORY) + 1) + "|"]
    for row in result["memory"]:
        sizes = " | ".join(f"{row['mib'][name]:.0f} MiB" for name in IN_MEMORY)
        lines.append(f"| {row['vocabulary']}, {row['d']}, {row['positions']} | {sizes} |")
    lines += ["", "| form | matrix term | error of the value | error of its gradient |", "|---|---|---|---|"]
    for name, row in sorted(result["errors"]["forms"].items(), key=lambda item: item[1]["mce"]):
        errors = "reference | reference" if name == "dense" else f"{row['value']:.1%} | {row['gradient']:.1%}"
        lines.append(f"| {name} | {row['mce']:.3f} | {errors} |")
    return "\n".join(lines).split("\n\n")


def main() -> None:
    arguments = command_line(__doc__, "llm_loss.json").parse_args()
    torch.set_num_threads(1)
    timed, measured, compared = (
        (((64, 16, 6, 2),), ((64, 16, 6),), (80, 16, 4)) if arguments.quick else (TIMED, MEASURED, COMPARED)
    )
    result = {
        "unit": "CPU seconds and MiB, one thread, float32, value and gradients by hidden states and head",
        "rows": [measure_time(*case) for case in timed],
        "memory": [measure_memory(*case, quick=arguments.quick) for case in measured],
        "errors": measure_errors(*compared),
    }
    save(arguments.out, result)
    Console().print(Markdown("\n\n".join(tables(result))))


if __name__ == "__main__":
    main()
