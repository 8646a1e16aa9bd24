"""Speed of the views beside their alternative, alternating in one run, in CPU seconds of one thread.

    python -m benchmarks.speed.views            (writes benchmarks/results/views.json)

Both views of MoCo v3 for images in memory, ours in batches against torchvision's transforms on PIL images one by
one, as the published code does it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torchvision.transforms import v2

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl.config.views import asymmetric_views
from matrix_ssl.data import augment

REPEATS = 3


def main() -> None:
    arguments = command_line(__doc__, "views.json").parse_args()
    torch.manual_seed(0)
    sizes = ((32, 32),) if arguments.quick else ((32, 32), (64, 128), (224, 256))
    rows = [row for size, source in sizes for row in measure_views(size, source)]
    save(arguments.out, {"unit": "CPU seconds, one thread", "repeats": REPEATS, "rows": rows})
    table = Table("what", "size", "CPU seconds (median)", "least", "most")
    for row in rows:
        table.add_row(row["what"], row["size"], *(f"{row[key]:.4f}" for key in ("median", "least", "most")))
    Console().print(table)


def alternate(variants: Mapping[str, Callable[[], object]], size: str) -> list[dict[str, Any]]:
    """CPU seconds of every variant, the variants taking turns so that noise meets all of them."""
    seconds = take_turns(variants, rounds=REPEATS)
    return [{"what": name, "size": size, **spread(values)} for name, values in seconds.items()]


def measure_views(size: int, source: int) -> list[dict[str, Any]]:
    """Both views of 64 images of ``source`` pixels, at ``size`` pixels."""
    n = 64
    images = (torch.rand(n, 3, 8, 8).repeat_interleave(source // 8, 2).repeat_interleave(source // 8, 3) * 255).byte()
    decoded = [torchvision.transforms.functional.to_pil_image(image) for image in images]
    views = asymmetric_views()

    def ours() -> None:
        for number, view in enumerate(views, 1):
            keys = augment.Keys(0, 0, np.arange(n), number)
            crops = augment.crop_batch(images, augment.random_boxes(view, keys, source, source), size)
            augment.normalise(augment.random_view(crops / 255, view, keys), (0.5,) * 3, (0.5,) * 3)

    one_by_one = [_torchvision_view(size, view.blur, view.solarize) for view in views]

    def torchvision_on_pil() -> None:
        for transform in one_by_one:
            torch.stack([transform(image) for image in decoded])

    variants = {"views, batched": ours, "views, torchvision on PIL": torchvision_on_pil}
    return alternate(variants, f"{n} images, {source} to {size} px")


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


if __name__ == "__main__":
    main()
