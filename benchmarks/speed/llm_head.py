"""The closed form beside head + cross-entropy and a chunked cross-entropy: CPU seconds and peak memory at V 32k.

    python -m benchmarks.speed.llm_head            (writes benchmarks/results/llm_head.json; some minutes)
    python -m benchmarks.speed.llm_head --quick    (tiny sizes)
    python -m benchmarks.speed.llm_head --products (what of uniform labels is products; llm_head_products.json)

One call is value and gradients, by hidden states and head, in float32 with one thread. ``chunked`` is a cross-entropy
in the manner of Liger's fused linear cross-entropy (Hsu et al., arXiv 2410.10989, 2024), written here by PyTorch's
operations: a chunk of positions at a time, and the gradients computed in the forward. Labels
are drawn as words are: the k-th of them with probability 1/k (Zipf), or, as ``uniform``, all alike. Variants take turns
in one process; a ratio is that of the same round. Memory is the growth of the peak of a fresh process.
"""

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import RESULTS, command_line, save, spread, take_turns
from benchmarks.speed.loss_memory import resident
from matrix_ssl.llm import matrix_cross_entropy_loss

PLAIN, CHUNKED, CLOSED = "cross-entropy", "chunked", "closed"
CHUNK = 256  # positions, as of the closed form
SIZES = ((32_000, 512, 512), (32_000, 512, 2048), (32_000, 1024, 2048))  # vocabulary, d, positions
PRODUCTS = ((32_000, 512, 512), (32_000, 1024, 512))
ROUNDS = 3

Row = dict[str, Any]


def inputs(vocabulary: int, d: int, positions: int, labels: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, rows of a head and labels."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(vocabulary, d, generator=generator) / d**0.5
    hidden = torch.randn(1, positions + 1, d, generator=generator)
    chances = 1 / torch.arange(1, vocabulary + 1) if labels == "zipf" else torch.ones(vocabulary)
    drawn = torch.multinomial(chances, positions + 1, replacement=True, generator=generator)
    return hidden.requires_grad_(), head.requires_grad_(), drawn.unsqueeze(0)


class Chunked(torch.autograd.Function):
    """The mean cross-entropy of positions (n, d), whose gradients are computed in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        by_hidden, by_head, total = torch.empty_like(hidden), torch.zeros_like(head), hidden.new_zeros(())
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden[part] @ head.mT
            own = targets[part].unsqueeze(1)
            total += (logits.logsumexp(1) - logits.gather(1, own).squeeze(1)).sum()
            slope = logits.softmax(1).scatter_add_(1, own, logits.new_full((len(own), 1), -1.0)).div_(len(hidden))
            by_hidden[part] = slope @ head
            by_head.addmm_(slope.mT, hidden[part])
        ctx.save_for_backward(by_hidden, by_head)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients times the incoming one."""
        by_hidden, by_head = ctx.saved_tensors
        return by_hidden * scale, by_head * scale, None


def calls(vocabulary: int, d: int, positions: int, labels: str) -> dict[str, Callable[[], object]]:
    """Value and gradients of every variant, on the same inputs."""
    hidden, head, drawn = inputs(vocabulary, d, positions, labels)

    def plain() -> object:
        logits = hidden[0, :-1] @ head.mT
        loss = F.cross_entropy(logits, drawn[0, 1:])
        del logits
        return torch.autograd.grad(loss, (hidden, head))

    return {
        PLAIN: plain,
        CHUNKED: lambda: torch.autograd.grad(Chunked.apply(hidden[0, :-1], head, drawn[0, 1:]), (hidden, head)),
        CLOSED: lambda: torch.autograd.grad(matrix_cross_entropy_loss(hidden, head, drawn), (hidden, head)),
    }


def peak(size: tuple[int, int, int], name: str, answer: Any) -> None:
    """What a process of its own measures: MiB by which one call raises the peak."""
    calls(32, 8, 4, "zipf")[name]()  # loads what is loaded at first use
    call = calls(*size, "zipf")[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    call()
    answer.put((resident("VmHWM") - before) / 1024)


def memory(size: tuple[int, int, int]) -> dict[str, float]:
    """MiB of every variant."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name in (PLAIN, CHUNKED, CLOSED):
        answer = context.Queue()
        # freed blocks go back to the system at once, so that the peak is what was alive together
        with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}):
            process = context.Process(target=peak, args=(size, name, answer))
            process.start()
        found[name] = answer.get()
        process.join()
    return found


def measure(size: tuple[int, int, int], labels: str, rounds: int) -> Row:
    """Seconds of every variant, and their ratio to the plain one in the same round."""
    seconds = take_turns(calls(*size, labels), rounds=rounds)
    return {"vocabulary": size[0], "d": size[1], "positions": size[2], "labels": labels} | ratios(seconds)


def ratios(seconds: dict[str, list[float]]) -> Row:
    """The spread of seconds, and of their ratio to the plain one in the same round."""
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": {name: spread(np.divide(values, seconds[PLAIN]).tolist()) for name, values in seconds.items()},
    }


def products(size: tuple[int, int, int], rounds: int) -> Row:
    """CPU seconds of both losses at labels drawn alike, and of their three and four products with the head alone."""
    vocabulary, _, positions = size
    hidden, head, drawn = (x.detach() for x in inputs(*size, "uniform"))
    rows, slope = head[drawn[0, 1:]], torch.randn(CHUNK, vocabulary)
    by_head = torch.zeros_like(head)

    def multiply(*, with_rows: bool) -> None:
        for start in range(0, positions, CHUNK):
            part = hidden[0, start : start + CHUNK]
            torch.mm(part, head.mT)
            torch.mm(slope[: len(part)], head)
            by_head.addmm_(slope[: len(part)].mT, part)
            if with_rows:
                torch.mm(rows[start : start + CHUNK], head.mT)

    both = {name: call for name, call in calls(*size, "uniform").items() if name in (PLAIN, CLOSED)}
    alone = {"three products": partial(multiply, with_rows=False), "four products": partial(multiply, with_rows=True)}
    seconds = take_turns({**both, **alone}, rounds=rounds)
    return dict(zip(("vocabulary", "d", "positions"), size, strict=True)) | ratios(seconds)


def main() -> None:
    """Measures, prints and saves."""
    parser = command_line(__doc__, "llm_head.json")
    parser.add_argument("--products", action="store_true", help="The losses beside their products with the head alone.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.products:
        default = arguments.out == RESULTS / "llm_head.json"
        place = arguments.out.with_name("llm_head_products.json") if default else arguments.out
        rows = [products(size, ROUNDS) for size in (((64, 8, 16),) if arguments.quick else PRODUCTS)]
        save(place, {"rows": rows})
        for row in rows:
            Console().print(row["d"], {name: round(value["median"], 3) for name, value in row["ratio"].items()})
        return
    sizes = ((64, 8, 16),) if arguments.quick else SIZES
    rows = [measure(size, labels, 1 if arguments.quick else ROUNDS) for size in sizes for labels in ("zipf", "uniform")]
    result = {"rows": rows, "memory": [dict(zip(("vocabulary", "d", "positions"), size, strict=True),
                                            mib=memory(size)) for size in sizes]}  # fmt: skip
    save(arguments.out, result)
    console = Console()
    for row in rows:
        ratios = {name: round(value["median"], 3) for name, value in row["ratio"].items()}
        console.print(row["vocabulary"], row["d"], row["positions"], row["labels"], ratios)
    for row in result["memory"]:
        console.print(row)


if __name__ == "__main__":
    main()
