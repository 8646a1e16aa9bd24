"""Peak extra memory of one value and gradient, each variant in a process of its own.

    python -m benchmarks.speed.loss_memory VARIANT N D        (prints MiB; benchmarks/speed/losses.py calls it)

The inputs are in memory before; what is counted is the highest resident memory of the call above that. Freed blocks go
back to the system at once, so that the peak is what was alive together.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT
from benchmarks.speed import published
from benchmarks.speed.loss_variants import case_inputs, losses

FIRST_TERM = "published, one term"


def measure(variant: str, n: int, d: int) -> dict[str, Any]:
    """Starts a process for the variant; ``FIRST_TERM`` bounds the published form from below where that is too slow."""
    command = [sys.executable, "-m", "benchmarks.speed.loss_memory", variant, str(n), str(d)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if result.returncode:
        raise RuntimeError(f"{variant} at n={n}, d={d} ended with {result.returncode}: {result.stderr}")
    return {"variant": variant, "n": n, "d": d, "lower_bound": variant == FIRST_TERM, **json.loads(result.stdout)}


def main() -> None:
    variant, n, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)

    def call(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if variant == FIRST_TERM:
            value = published.order_loss(p, z, ridge=0.1, uniformity_weight=0.1, order=1)
        else:
            value = losses(p, z, 0.1)[variant]()
        return torch.autograd.grad(value, z)[0]

    call(*case_inputs(8, 16))  # loads what is loaded at first use
    call(*case_inputs(16, 8))
    inputs = case_inputs(n, d)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    gradient = call(*inputs)
    print(json.dumps({"mib": (resident("VmHWM") - before) / 1024, "gradient_mib": gradient.nbytes / 2**20}))


def resident(field: str) -> int:
    """KiB of a field of the process's status."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0])


if __name__ == "__main__":
    main()
