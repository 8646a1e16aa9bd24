"""Memory and time of all ranks in one pass over features of ImageNet's size: 1.28 million by 2048.

    python -m benchmarks.speed.rank_memory [--passed 131072]

``--passed`` says how many rows are really drawn and added; the state has one size whatever their number, and the time
is multiplied out. Memory is the peak of the whole process, PyTorch included, after the ranks with their intervals.
"""

import resource
import time

import torch

from benchmarks.harness import command_line, save
from matrix_ssl.matrix import RankStatistics


def main() -> None:
    """Adds, measures, prints and writes."""
    parser = command_line(__doc__, "rank_memory.json")
    parser.add_argument("--rows", type=int, default=1_281_167, help="The rows of all features.")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--passed", type=int, default=16_384, help="The rows that are really added.")
    options = parser.parse_args()
    width, passed = (64, 2048) if options.quick else (options.width, options.passed)
    state, seconds = RankStatistics(width), 0.0
    for seed in range(passed // 1024):
        batch = torch.randn(1024, width, generator=torch.Generator().manual_seed(seed))
        started = time.process_time()
        state.add(batch)
        seconds += time.process_time() - started
    started = time.process_time()
    estimates = state.estimates()
    result = {
        "rows": options.rows, "width": width, "passed": passed,
        "add_cpu_seconds": seconds, "hours_for_all": seconds * options.rows / passed / 3600,
        "estimates_cpu_seconds": time.process_time() - started,
        "rank_me": estimates["rank_me"].value,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }  # fmt: skip
    print(
        f"{passed} of {options.rows} rows in {seconds:.0f} CPU s, all in {result['hours_for_all']:.2f} h; intervals in "
        f"{result['estimates_cpu_seconds']:.0f} s; peak {result['peak_mib']} MiB"
    )
    save(options.out, result)


if __name__ == "__main__":
    main()
