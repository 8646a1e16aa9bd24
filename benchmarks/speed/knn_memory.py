"""Memory and time of the search for neighbours at ImageNet's size: 1.28 million by 50 thousand by 2048.

    python -m benchmarks.speed.knn_memory [--searched 65536]

The training features lie in a mapped file of the full size, as ``evaluate`` leaves them; the test features in memory.
The search passes over the training features in chunks and keeps the same state after each, so its memory is that of any
number of chunks; ``--searched`` says over how many rows it really goes, and the time is multiplied out. Memory is the
peak of what the process has for itself (RssAnon of Linux); pages of the mapped file are the system's to drop.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import RESULTS, command
from matrix_ssl.evaluate.probes.knn import nearest, vote
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import write_json


def anonymous_mib() -> float:
    """Memory of this process that no file stands behind, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**10


def main() -> None:
    """Searches, votes, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1_281_167)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--searched", type=int, default=65_536, help="training rows that the search really passes over")
    parser.add_argument("--out", type=Path, default=RESULTS / "knn_memory.json")
    options = parser.parse_args()
    device = devices.choose_device("auto")
    peak, over = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], anonymous_mib())

    with tempfile.TemporaryDirectory() as folder:
        mapped = np.memmap(Path(folder) / "train.f32", np.float32, "w+", shape=(options.train, options.features))
        generator = np.random.default_rng(0)
        for start in range(0, options.searched, 8192):
            mapped[start : start + 8192] = generator.standard_normal((8192, options.features), np.float32)
        mapped.flush()
        train = torch.from_numpy(mapped)[: options.searched]
        test = torch.randn(options.test, options.features)
        before = anonymous_mib()
        watcher = threading.Thread(target=watch)
        watcher.start()
        started, cpu = time.monotonic(), time.process_time()
        indices, similarities = nearest(train, test, k=options.k, device=device)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        vote(indices % 1000, similarities)
        over.set()
        watcher.join()
    result = {
        "command": command(),
        "train": options.train, "test": options.test, "features": options.features, "k": options.k,
        "searched": options.searched,
        "mib_before": round(before), "mib_peak": round(peak[0]), "file_mib": round(mapped.nbytes / 2**20),
        "seconds": seconds, "cpu_seconds": cpu,
        "hours_for_all": seconds * options.train / options.searched / 3600,
        "environment": devices.environment(device),
    }  # fmt: skip
    write_json(options.out, result)
    print(
        f"{options.searched} of {options.train} rows in {seconds:.0f} s, all in {result['hours_for_all']:.2f} h; "
        f"peak {peak[0]:.0f} MiB, of which the test features and PyTorch {before:.0f}; mapped file "
        f"{result['file_mib']} MiB"
    )


if __name__ == "__main__":
    main()
