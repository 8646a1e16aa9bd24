"""Speed of views and losses beside their alternatives, alternating in one run, in CPU seconds of one thread.

    make bench            (writes benchmarks/results/speed.json)

Views: both views of MoCo v3 for pictures in memory, ours in batches against torchvision's transforms on PIL pictures
one by one, as the published code does it. Losses: value and gradient of both orders, exact and Taylor, in float32.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2

from matrix_ssl import augment, record
from matrix_ssl.losses import matrix_ssl_loss, mec_loss
from matrix_ssl.recipes._views import asymmetric_views

OUT = Path(__file__).parent / "results" / "speed.json"
REPEATS = 3
LOSS_SIZES = ((256, 128), (256, 512), (512, 512), (256, 1024))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for size, source in ((32, 32), (64, 128), (224, 256)) for row in measure_views(size, source)]
    rows += [row for n, d in LOSS_SIZES for row in measure_losses(n, d)]
    environment = record.environment(device="cpu", device_name="cpu", threads=1, processes=1)
    OUT.parent.mkdir(exist_ok=True)
    record.write_json(
        OUT, {"unit": "CPU seconds, one thread", "repeats": REPEATS, "environment": environment, "rows": rows}
    )
    table = Table("what", "size", "CPU seconds (median)", "least", "most")
    for row in rows:
        table.add_row(row["what"], row["size"], *(f"{row[key]:.4f}" for key in ("median", "least", "most")))
    Console().print(table)
    print(json.dumps({"written": OUT.name}))


def alternate(variants: dict[str, Callable[[], object]], size: str) -> list[dict[str, object]]:
    """CPU seconds of every variant, the variants taking turns so that noise meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(REPEATS + 1):
        for name, function in variants.items():
            started = time.process_time()
            function()
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    return [
        {"what": name, "size": size, "median": float(np.median(s)), "least": min(s), "most": max(s)}
        for name, s in seconds.items()
    ]


def measure_views(size: int, source: int) -> list[dict[str, object]]:
    """Both views of 64 pictures of ``source`` pixels, at ``size`` pixels."""
    n = 64
    images = (torch.rand(n, 3, 8, 8).repeat_interleave(source // 8, 2).repeat_interleave(source // 8, 3) * 255).byte()
    pictures = [torchvision.transforms.functional.to_pil_image(image) for image in images]
    views = asymmetric_views()

    def ours() -> None:
        for number, view in enumerate(views, 1):
            keys = augment.Keys(0, 0, np.arange(n), number)
            crops = augment.crop_batch(images, augment.random_boxes(view, keys, source, source), size)
            augment.normalise(augment.random_view(crops / 255, view, keys), (0.5,) * 3, (0.5,) * 3)

    one_by_one = [_torchvision_view(size, view.blur, view.solarize) for view in views]

    def torchvision_on_pil() -> None:
        for transform in one_by_one:
            torch.stack([transform(picture) for picture in pictures])

    variants = {"views, batched": ours, "views, torchvision on PIL": torchvision_on_pil}
    return alternate(variants, f"{n} pictures, {source} to {size} px")


def _torchvision_view(size: int, blur: float, solarize: float) -> v2.Compose:
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0)),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=blur),
        v2.RandomSolarize(128, p=solarize),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.5,) * 3, (0.5,) * 3),
    ])  # fmt: skip


def measure_losses(n: int, d: int) -> list[dict[str, object]]:
    """Value and gradient on correlated random outputs."""
    base = torch.randn(n, d) * torch.exp(-3 * torch.arange(d) / d)
    z1, z2, p1, p2 = (base + 0.5 * torch.randn(n, d) for _ in range(4))
    z1.requires_grad_()
    z2.requires_grad_()

    def run(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), (z1, z2))

    variants = {
        "Matrix-SSL, exact": run(lambda: matrix_ssl_loss(z1, z2, p1, p2)),
        "Matrix-SSL, Taylor": run(lambda: matrix_ssl_loss(z1, z2, p1, p2, logarithm="taylor", ridge=1.0)),
        "MEC": run(lambda: mec_loss(z1, z2, p1, p2)),
    }
    return alternate(variants, f"n={n}, d={d}")


if __name__ == "__main__":
    main()
