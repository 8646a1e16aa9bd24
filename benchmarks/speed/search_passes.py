"""What one pass over all rows of an exact index costs on one core, and how fast the rows are read.

    python -m benchmarks.speed.search_passes [--rows 300000] [--width 512] [--rounds 9]

``ExactIndex`` multiplies rows in half precision with a query. Beside it: the same rows read and added as integers,
which is the least that a pass can take; bfloat16; and eight bits, by two functions of PyTorch that are not public, the
second of which takes a query in bfloat16. Times are CPU seconds of one thread.
"""

import torch
from torch import Tensor

from benchmarks.harness import command_line, save, spread, take_turns


def random_rows(rows: int, width: int) -> Tensor:
    """Rows of length one, up to rounding, in half precision."""
    generator = torch.Generator().manual_seed(0)
    half = torch.empty(rows, width, dtype=torch.half)
    for part in half.split(10_000):
        part.copy_(torch.randn(part.shape, generator=generator) / width**0.5)
    return half


def main() -> None:
    """Measures the passes and writes the result."""
    parser = command_line(__doc__, "search_passes.json")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rows, rounds = (2_000, 1) if options.quick else (options.rows, options.rounds)
    half = random_rows(rows, options.width)
    query, bits = half[0].clone(), (half * 20 * options.width**0.5).round().to(torch.int8)
    wide, scales = half.bfloat16(), torch.ones(rows, dtype=torch.bfloat16)
    passes = {
        "reading": (half.nbytes, lambda: half.view(torch.int64).sum()),
        "half": (half.nbytes, lambda: half @ query),
        "bfloat16": (wide.nbytes, lambda: wide @ query.bfloat16()[:, None]),
        "int8, torch._int_mm": (bits.nbytes, lambda: torch._int_mm(bits, bits[:1].mT)),
        "int8, torch._weight_int8pack_mm": (
            bits.nbytes, lambda: torch._weight_int8pack_mm(query.bfloat16()[None], bits, scales),
        ),
    }  # fmt: skip
    times = take_turns({name: run for name, (_, run) in passes.items()}, rounds=rounds)
    results = {}
    for name, (size, _) in passes.items():
        seconds = spread(times[name])
        results[name] = {"bytes": size, "cpu_seconds": seconds, "bytes_per_second": size / seconds["median"]}
        print(f"{name}: {1e3 * seconds['median']:.1f} ms, {size / seconds['median'] / 1e9:.1f} GB/s")
    save(options.out, {"rows": rows, "width": options.width, "rounds": rounds, "passes": results})


if __name__ == "__main__":
    main()
