"""Exact search among a million random features on one core, after loading: time of a query, and memory.

    python -m benchmarks.speed.search [--rows 1000000] [--widths 128 512] [--queries 40]

``ExactIndex`` looks at all rows in half precision and compares the candidates again in float64; beside it the plain
product of the float32 rows with the query and its largest values. Random features of independent normal numbers are the
hardest case: nothing separates near rows from far ones. Answers are compared with those of the plain search. Times are
seconds of the clock and of the CPU for one query at a time; on a machine with other work the latter say more.
"""

import time

import numpy as np
import torch

from benchmarks.harness import command_line, save, spread
from matrix_ssl.config import system
from matrix_ssl.evaluate.explore.index import ExactIndex


def measure(rows: int, width: int, *, queries: int, k: int) -> dict[str, object]:
    """Times of both searches for single queries, in seconds, and the bytes that the index takes."""
    generator = torch.Generator().manual_seed(width)
    features = torch.randn(rows, width, generator=generator)
    asked = torch.randn(queries, width, generator=generator)
    started = time.perf_counter()
    index = ExactIndex(features)
    loading = time.perf_counter() - started
    units = torch.nn.functional.normalize(features, dim=1)
    del features
    wall: dict[str, list[float]] = {"index": [], "plain": []}
    cpu: dict[str, list[float]] = {"index": [], "plain": []}
    same = []
    for query in [asked[0], *asked]:  # the first once more, to warm up
        answers = {}
        for name in wall:
            before = time.perf_counter(), time.process_time()
            if name == "index":
                answers[name] = index.nearest(query[None], k=k).indices[0]
            else:
                answers[name] = (units @ torch.nn.functional.normalize(query, dim=0)).topk(k).indices.numpy()
            wall[name].append(time.perf_counter() - before[0])
            cpu[name].append(time.process_time() - before[1])
        same.append(bool(np.isin(answers["index"], answers["plain"]).all()))
    return {
        "rows": rows, "width": width, "k": k, "queries": queries, "equal_answers": sum(same[1:]),
        "loading_seconds": loading, "index_bytes": index.nbytes,
        "seconds": {name: spread(values[1:]) for name, values in wall.items()},
        "cpu_seconds": {name: spread(values[1:]) for name, values in cpu.items()},
    }  # fmt: skip


def main() -> None:
    """Measures every width and writes the result."""
    parser = command_line(__doc__, "search.json")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--queries", type=int, default=40)
    options = parser.parse_args()
    rows, queries = (5_000, 3) if options.quick else (options.rows, options.queries)
    results = []
    for width in options.widths:
        result = measure(rows, width, queries=queries, k=20)
        results.append(result)
        seconds, cpu = result["seconds"]["index"], result["cpu_seconds"]["index"]
        print(
            f"{rows:,} x {width}: median {1e3 * seconds['median']:.1f} ms, {1e3 * cpu['median']:.1f} ms of the CPU, "
            f"index {result['index_bytes'] / 2**30:.2f} GiB"
        )
    save(options.out, {"searches": results, "peak_memory": system.peak_memory()})


if __name__ == "__main__":
    main()
