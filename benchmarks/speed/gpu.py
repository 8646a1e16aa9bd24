"""What a GPU does in eight minutes: images per second and memory of whole steps, the losses, views, the language head.

    python -m benchmarks.speed.gpu                             (writes benchmarks/results/gpu.json)
    python -m benchmarks.speed.gpu --device cpu --quick        (tiny sizes: whether it runs)

ResNet-18 at 32 px and ResNet-50 and ViT-S/16 at 224 px: ours eager, ours compiled, and lightly's loop for BYOL, all in
bfloat16, on random images in memory. The loops take turns, a block of steps each; the first block does not count. The
clock is read when the device has done all it was asked. Parts come in the order of their worth, and none begins when
the time is over; the result is written after every part, so that what was cut short is kept.

Lightly's loop makes its views by PIL in as many workers as there are cores: its rate is that of its views where those
are slower than the network. ``lightly, views given`` therefore runs the same loop on one batch that is made once.
"""

import argparse
import dataclasses
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from benchmarks.harness import RESULTS, command, spread
from benchmarks.speed import loops
from benchmarks.speed.loops import Case, Steps
from matrix_ssl import config
from matrix_ssl.data.views import augment
from matrix_ssl.data.views.device_views import DeviceViews
from matrix_ssl.llm import matrix_cross_entropy_loss
from matrix_ssl.losses import matrix_entropy_loss, matrix_ssl_loss
from matrix_ssl.runs import devices
from matrix_ssl.runs.files import write_json

SECONDS = 480.0
CASES = {
    "ResNet-18, 32 px": Case("resnet18", 32, 512, hidden=2048, output=256),
    "ResNet-50, 224 px": Case("resnet50", 224, 256, hidden=2048, output=2048),
    "ViT-S/16, 224 px": Case("timm/vit_small_patch16_224", 224, 256, hidden=2048, output=256),
}
QUICK = {"tiny, 16 px": Case("tiny_resnet", 16, 8, hidden=16, output=8, width=8)}
LOSS_SIZES = ((512, 512), (1024, 2048), (4096, 2048))
HEAD = (32_000, 2048, 2048)  # vocabulary, width, positions
ROUNDS = 3


class Clock:
    """Wall seconds of blocks of calls, the device done, and its peak of memory."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.seconds = device, seconds

    def wait(self) -> None:
        """Waits until the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def per_call(self, call: Callable[[], object]) -> float:
        """Seconds of a call, the mean over a block; two calls before do not count."""
        for _ in range(2):
            call()
        self.wait()
        started, done = time.monotonic(), 0
        while done == 0 or time.monotonic() - started < self.seconds:
            call()
            done += 1
            if done % 8 == 0:
                self.wait()
        self.wait()
        return (time.monotonic() - started) / done

    def peak(self, call: Callable[[], object]) -> float:
        """MiB of the device during a call; NaN on a CPU."""
        if self.device.type != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**20


def steps(case: Case, images: Tensor, device: torch.device) -> dict[str, Callable[[], Steps]]:
    """The loops that are compared."""
    decoded = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    many = dataclasses.replace(case, workers=len(os.sched_getaffinity(0)) if device.type == "cuda" else 0)
    common = ["precision=bfloat16", "data.workers=0"]
    return {
        "ours": lambda: loops.ours(case, images, device=device, settings=common),
        "ours, BYOL": lambda: loops.ours(case, images, device=device, method="byol", settings=common),
        "ours, compiled": lambda: loops.ours(case, images, device=device, settings=[*common, "compile=true"]),
        "lightly, BYOL": lambda: loops.lightly(many, decoded, device=device, precision="bfloat16"),
        "lightly, views given": lambda: loops.lightly(
            case, decoded, device=device, precision="bfloat16", one_batch=True
        ),
    }


def measure_steps(case: Case, clock: Clock, *, rounds: int, compiles: bool) -> dict[str, Any]:
    """Images per second and peak memory of every loop."""
    side = 32 if case.side == 32 else round(case.side * 8 / 7)
    count = max(2 * case.batch, 64)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))
    makers = steps(case, images, clock.device)
    if not compiles:
        del makers["ours, compiled"]
    running = {name: make() for name, make in makers.items()}
    rates: dict[str, list[float]] = {name: [] for name in makers}
    memory = {name: clock.peak(lambda loop=loop: next(loop)) for name, loop in running.items()}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(running), len(running)):
            loop = running[name]
            rates[name].append(case.batch / clock.per_call(lambda loop=loop: next(loop)))
    return {name: {"images_per_second": spread(values), "peak_mib": memory[name]} for name, values in rates.items()}


def measure_losses(clock: Clock, sizes: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Milliseconds of value and gradient of both orders, or views, in float32."""
    rows: dict[str, Any] = {}
    for n, d in sizes:
        z1, z2, p1, p2 = torch.randn(4, n, d, device=clock.device).unbind()
        z1.requires_grad_(), z2.requires_grad_()
        calls = {
            "matrix_ssl_loss": lambda z1=z1, z2=z2, p1=p1, p2=p2: matrix_ssl_loss(z1, z2, p1, p2).backward(),
            "matrix_ssl_loss, taylor": lambda z1=z1, z2=z2, p1=p1, p2=p2: matrix_ssl_loss(
                z1, z2, p1, p2, logarithm="taylor", ridge=1.0
            ).backward(),
            "matrix_entropy_loss": lambda z1=z1, z2=z2: matrix_entropy_loss(z1, z2).backward(),
        }
        for name, call in calls.items():
            rows[f"{name}, n = {n}, d = {d}"] = {
                "milliseconds": 1e3 * clock.per_call(call),
                "peak_mib": clock.peak(call),
            }
    return rows


def measure_views(clock: Clock, cases: dict[str, Case]) -> dict[str, Any]:
    """Images per second of two views of images on the device."""
    rows: dict[str, Any] = {}
    for side, batch in {(case.side, case.batch) for case in cases.values()}:
        views = augment.each_view(config.asymmetric_views(), side)
        maker = DeviceViews(
            views, mean=config.IMAGENET_MEAN, std=config.IMAGENET_STD, device=clock.device, dtype=torch.float32
        )
        large = side if side <= 32 else round(side * 8 / 7)
        images = torch.randint(0, 256, (batch, 3, large, large), dtype=torch.uint8, device=clock.device)
        samples = np.arange(batch)
        call = lambda m=maker, i=images, s=samples: m.of_images(i, s, seed=0, epoch=0)  # noqa: E731
        rows[f"{side} px"] = {"images_per_second": batch / clock.per_call(call), "peak_mib": clock.peak(call)}
    return rows


def measure_head(clock: Clock, size: tuple[int, int, int]) -> dict[str, Any]:
    """Milliseconds of value and gradients of the language head's loss, and of head with cross-entropy."""
    vocabulary, width, positions = size
    dtype = torch.bfloat16 if clock.device.type == "cuda" else torch.float32
    head = (torch.randn(vocabulary, width, device=clock.device, dtype=dtype) / width**0.5).requires_grad_()
    hidden = torch.randn(1, positions + 1, width, device=clock.device, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (1, positions + 1), device=clock.device)

    def plain() -> None:
        logits = hidden[0, :-1] @ head.mT
        torch.nn.functional.cross_entropy(logits.float(), labels[0, 1:]).backward()

    calls = {"ours": lambda: matrix_cross_entropy_loss(hidden, head, labels).backward(), "cross-entropy": plain}
    return {
        name: {"milliseconds": 1e3 * clock.per_call(call), "peak_mib": clock.peak(call)} for name, call in calls.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="Tiny sizes: whether it runs, not how fast.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="After which no part begins.")
    parser.add_argument("--eager", action="store_true", help="Compile nothing.")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    device = devices.choose_device(arguments.device)
    clock = Clock(device, 0.0 if arguments.quick else 3.0)
    cases = QUICK if arguments.quick else CASES
    rounds, compiles = (1 if arguments.quick else ROUNDS), not arguments.eager
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        name: lambda case=case: measure_steps(case, clock, rounds=rounds, compiles=compiles)
        for name, case in cases.items()
    }
    parts["losses"] = lambda: measure_losses(clock, ((16, 8),) if arguments.quick else LOSS_SIZES)
    parts["views"] = lambda: measure_views(clock, cases)
    parts["language head"] = lambda: measure_head(clock, (50, 8, 12) if arguments.quick else HEAD)
    started = time.monotonic()
    content: dict[str, Any] = {
        "command": command(), "rows": {}, "not_begun": [], "environment": devices.environment(device)
    }  # fmt: skip
    for name, part in parts.items():
        if time.monotonic() - started > arguments.seconds:
            content["not_begun"].append(name)
        else:
            content["rows"][name] = part()
            Console().print(name, content["rows"][name], markup=False)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, content)


if __name__ == "__main__":
    main()
