"""Requests a second and latencies of `matrix-ssl serve` for single images, with and without batches, PyTorch and ONNX.

    python -m benchmarks.speed.serve [--encoder resnet18] [--image-size 224] [--requests 200]

Each service is a process of its own, on a real socket, whose encoder has random weights: they do not matter for time.
Clients are threads of this process with a connection each, which send JPEG photographs of random colours, one at a
time, and wait for the answer; they share the processor with the service. Services take turns, in an order that is drawn
anew for every round, and a round begins with requests that do not count. The largest difference between an answer and
the same image's features alone is a fraction of the largest feature, without batches and with them.
"""

import contextlib
import http.client
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import command_line, save, spread
from matrix_ssl.api.serve import open_served
from matrix_ssl.encoder.exporting import export
from matrix_ssl.encoder.importing import import_run
from matrix_ssl.encoder.opening import open_encoder

_HEADERS = {"Content-Type": "image/jpeg", "Accept": "application/x-npy"}
_SIZES = {"batched": 32, "single": 1}  # images of a batch at most


def photographs(count: int, side: int) -> list[bytes]:
    """JPEG files of smooth random colours."""
    files = []
    for seed in range(count):
        colours = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(colours).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextlib.contextmanager
def service(where: Path, batch: int) -> Iterator[tuple[str, int]]:
    """Host and port of a service in a process of its own."""
    words = [sys.executable, "-m", "matrix_ssl", "serve", str(where), "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*words, "--set", f"batch={batch}"], stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                said.seek(0)
                raise SystemExit(f"The service did not start: {said.read()}")
            host, _, port = line.split()[1].removeprefix("http://").rpartition(":")
            yield host, int(port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            process.stdout.close()


def ask(address: tuple[str, int], files: Sequence[bytes]) -> tuple[list[float], list[NDArray[np.float32]]]:
    """Seconds until each answer, and the features."""
    seconds, features = [], []
    connection = http.client.HTTPConnection(*address, timeout=600)
    for file in files:
        started = time.perf_counter()
        connection.request("POST", "/embed", file, _HEADERS)
        answer = connection.getresponse()
        content = answer.read()
        seconds.append(time.perf_counter() - started)
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {content[:200]!r}")
        features.append(np.load(io.BytesIO(content), allow_pickle=False)[0])
    connection.close()
    return seconds, features


def load(
    address: tuple[str, int], files: Sequence[bytes], *, clients: int, requests: int
) -> tuple[dict[str, Any], list[tuple[int, NDArray[np.float32]]]]:
    """Latencies and throughput of requests by so many clients, and the answers with the numbers of the files."""
    numbers = [[request % len(files) for request in range(client, requests, clients)] for client in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        parts = list(pool.map(lambda part: ask(address, [files[number] for number in part]), numbers))
        elapsed = time.perf_counter() - started
    seconds = [value for values, _ in parts for value in values]
    pairs = [zip(part, features, strict=True) for part, (_, features) in zip(numbers, parts, strict=True)]
    answers = list(itertools.chain.from_iterable(pairs))
    p50, p95 = np.percentile(seconds, (50, 95)).tolist()
    return {"requests_per_second": requests / elapsed, "p50_seconds": p50, "p95_seconds": p95}, answers


def main() -> None:
    """Measures every service and writes the result."""
    parser = command_line(__doc__, "serve.json")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    clients, requests, rounds, size = [1, 8, 32], options.requests, options.rounds, options.image_size
    if options.quick:
        clients, requests, rounds, size = [1, 4], 8, 1, 32
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        opened = open_encoder(f"random/{options.encoder}", image_size=size)
        import_run(opened, run, branch="student", fresh=False, say=lambda _: None)
        places = {"torch": run, "onnx": Path(folder) / "encoder.onnx"}
        export(run, places["onnx"], form="onnx")
        results = measure(places, photographs(32, 2 * size), clients, requests=requests, rounds=rounds)
    content = {"encoder": options.encoder, "image_size": size, "requests": requests, "rounds": rounds}
    save(options.out, {**content, **results})


def measure(
    places: dict[str, Path], files: list[bytes], clients: list[int], *, requests: int, rounds: int
) -> dict[str, Any]:
    """Every runtime, with and without batches, for every number of clients."""
    alone, differences = {}, {}
    for runtime, where in places.items():
        encoder = open_served(where, device="cpu")
        alone[runtime] = np.concatenate([encoder.features(encoder.square(file, "")[None]) for file in files])
    scale = float(np.abs(alone["torch"]).max())
    differences["onnx from torch"] = float(np.abs(alone["onnx"] - alone["torch"]).max()) / scale
    rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    variants = [(runtime, kind) for runtime in places for kind in _SIZES]
    for turn in range(rounds):
        for runtime, kind in random.Random(turn).sample(variants, len(variants)):
            with service(places[runtime], _SIZES[kind]) as address:
                ask(address, files[:3])  # does not count
                for count in clients:
                    row, answers = load(address, files, clients=count, requests=requests)
                    rows.setdefault((runtime, kind, count), []).append(row)
                    worst = max(float(np.abs(features - alone[runtime][number]).max()) for number, features in answers)
                    name = f"{runtime} {kind} from alone"
                    differences[name] = max(differences.get(name, 0.0), worst / scale)
    results = [
        {"runtime": runtime, "batches": kind, "clients": count}
        | {name: spread([one[name] for one in measured]) for name in measured[0]}
        for (runtime, kind, count), measured in sorted(rows.items())
    ]
    for one in results:
        rate, p50, p95 = (one[name]["median"] for name in ("requests_per_second", "p50_seconds", "p95_seconds"))
        print(
            f"{one['runtime']} {one['batches']}, {one['clients']} clients: {rate:.1f} requests/s, p50 {1e3 * p50:.0f} "
            f"ms, p95 {1e3 * p95:.0f} ms"
        )
    print(json.dumps(differences))
    return {"results": results, "relative_differences": differences}


if __name__ == "__main__":
    main()
