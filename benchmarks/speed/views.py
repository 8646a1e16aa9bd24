"""Speed of the views beside torchvision's on PIL images, alternating in one run, in CPU seconds of one thread.

    python -m benchmarks.speed.views            (writes benchmarks/results/views.json; minutes)

Both views of MoCo v3 for images in memory, normalised: ours as a training makes them, in batches for small images and
one by one for large ones, the same by OpenCV (``data.view_backend=opencv``), and torchvision's transforms on PIL images
one by one, as the published code does it. Ratios are of times of one round.
"""

from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torchvision.transforms import v2

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl.config import DataConfig
from matrix_ssl.config.views import asymmetric_views
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.loading import TrainingBatches

ROUNDS, IMAGES = 7, 64
SIZES = ((32, 32), (64, 128), (128, 128), (224, 256))  # pixels of a view, and of the image it is cut from


def main() -> None:
    arguments = command_line(__doc__, "views.json").parse_args()
    torch.manual_seed(0)
    sizes, rounds = (SIZES[:1], 1) if arguments.quick else (SIZES, ROUNDS)
    rows = [row for size, source in sizes for row in measure_views(size, source, rounds=rounds)]
    save(arguments.out, {"unit": "CPU seconds, one thread", "rounds": rounds, "rows": rows})
    table = Table("what", "size", "CPU seconds (median)", "least", "most")
    for row in rows:
        table.add_row(row["what"], row["size"], *(f"{row[key]:.4f}" for key in ("median", "least", "most")))
    Console().print(table)


def measure_views(size: int, source: int, *, rounds: int) -> list[dict[str, Any]]:
    """Both views of images of ``source`` pixels, at ``size`` pixels."""
    images = (
        torch.rand(IMAGES, 3, 8, 8).repeat_interleave(source // 8, 2).repeat_interleave(source // 8, 3) * 255
    ).byte()
    decoded = [torchvision.transforms.functional.to_pil_image(image) for image in images]
    memory = MemorySource("benchmark", images, Places.whole(["benchmark"], [IMAGES]), labels=None, classes=None)
    ours, by_opencv = (
        TrainingBatches(
            memory, DataConfig(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3, view_backend=backend),
            asymmetric_views(), batch_size=IMAGES, seed=0, rank=0, world_size=1, device=torch.device("cpu"),
            dtype=torch.float32,
        ).iterate(0, 10**6)
        for backend in ("torch", "opencv")
    )  # fmt: skip
    one_by_one = [_torchvision_view(size, view.blur, view.solarize) for view in asymmetric_views()]

    def torchvision_on_pil() -> None:
        for transform in one_by_one:
            torch.stack([transform(image) for image in decoded])

    variants = {"ours": lambda: next(ours), "ours by OpenCV": lambda: next(by_opencv)}
    seconds = take_turns({**variants, "torchvision on PIL": torchvision_on_pil}, rounds=rounds)
    return [
        {
            "what": f"views, {name}", "size": f"{IMAGES} images, {source} to {size} px", **spread(values),
            **{
                key: spread([other / own for own, other in zip(seconds[own_name], values, strict=True)])
                for key, own_name in (("times_ours", "ours"), ("times_opencv", "ours by OpenCV"))
            },
        }
        for name, values in seconds.items()
    ]  # fmt: skip


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
