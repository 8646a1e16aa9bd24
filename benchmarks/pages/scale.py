"""Accuracies on all of CIFAR-10 beside published ones, with the floating-point operations that each of them took.

    python -m benchmarks.pages.scale            (reads benchmarks/results/; takes seconds)

Counts the operations of one view in the encoder, forward and backward, by PyTorch's own counter, a multiplication and
an addition being two; heads, losses and views are left out, which are small beside it. Writes
``benchmarks/results/scale.json`` and the table of ``docs/results/cifar10_full.md``.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import page_command_line, save
from benchmarks.pages.tables import fill, table
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.networks.encoders import build_encoder
from matrix_ssl.runs.files import read_json

IMAGES, SIDE = 50_000, 32
# method, epochs, protocol, per cent; ResNet-18 with the small stem and two views of every image, as their authors
# state them. Both used the original PNG images.
PUBLISHED = {
    "lightly's benchmark, batch 512": [
        ("byol", 200, "knn_20", 86.8),
        ("simclr", 200, "knn_20", 84.8),
        ("simsiam", 200, "knn_20", 76.4),
    ],
    "solo-learn": [("byol", 1000, "linear", 92.58), ("simclr", 1000, "linear", 90.74)],
}
LABELS = {"linear": "linear", "knn_20": "20-NN"}

Row = dict[str, Any]


def main() -> None:
    arguments = page_command_line(__doc__).parse_args()
    ours = [arguments.results / f"compare_{name}.json" for name in ("cifar10_full", "cifar10_150")]
    rows = [
        *(row for path in ours if path.exists() for row in compared(read_json(path))),
        *on_a_gpu(read_json(arguments.results / "gpu_short.json")),
        *published(),
    ]
    save(arguments.results / "scale.json", {"rows": rows})
    fill(arguments.docs / "results" / "cifar10_full.md", "scale", section(rows))


def flop_per_view(encoder: str, *, width: int = 32, side: int = SIDE) -> int:
    """Floating-point operations of one image in training, forward and backward."""
    network, _ = build_encoder(encoder, channels=3, image_size=side, width=width, stem="small")
    images = torch.zeros(2, 3, side, side)  # BatchNorm needs two
    with FlopCounterMode(display=False) as counter:
        network.train()(images).sum().backward()
    return counter.get_total_flops() // len(images)


def compared(results: Row) -> Iterator[Row]:
    """A row for each method of a comparison that has run, the mean over its seeds."""
    settings = results["settings"]
    network, side = settings["network.encoder"], settings["data.image_size"]
    one = flop_per_view(network, width=settings["network.width"], side=side)
    for method in results["methods"]:
        runs = [row for row in results["rows"] if row["method"] == method and "accuracy" in row]
        if not runs:
            continue
        yield {
            "who": "ours, two cores",
            "method": method,
            "encoder": f"{network}, width {settings['network.width']}",
            "seeds": len(runs),
            "epochs": runs[0]["epochs"],
            "flop": one * 2 * runs[0]["steps"] * settings["batch_size"],
            "accuracy": {key: summarise([run["accuracy"][key]["mean"] for run in runs]) for key in LABELS},
        }


def on_a_gpu(results: Row) -> Iterator[Row]:
    """A row for each run of ``gpu_short``."""
    for row in results["rows"].values():
        config = row["config"]
        steps = config["epochs"] * (IMAGES // config["batch_size"])
        yield {
            "who": f"`gpu_short`, {row['environment']['device_name']}",
            "method": config["method"]["name"],
            "encoder": config["network"]["encoder"],
            "seeds": 1,
            "epochs": config["epochs"],
            "flop": flop_per_view(config["network"]["encoder"]) * 2 * steps * config["batch_size"],
            "accuracy": {key: summarise([row["accuracy"][key]]) for key in LABELS},
        }


def published() -> Iterator[Row]:
    """A row for each number of others."""
    one = flop_per_view("resnet18")
    for who, rows in PUBLISHED.items():
        for method, epochs, protocol, per_cent in rows:
            yield {
                "who": who,
                "method": method,
                "encoder": "resnet18",
                "epochs": epochs,
                "flop": one * 2 * IMAGES * epochs,
                "accuracy": {protocol: {"mean": per_cent / 100}},
            }


def section(rows: list[Row]) -> str:
    """The table."""
    head = ["", "method", "encoder", "epochs", "FLOP", *LABELS.values()]
    lines = [
        [
            row["who"],
            row["method"],
            row["encoder"],
            f"{row['epochs']:,}",
            f"{row['flop']:.1e}".replace("e+", "e"),
            *(in_per_cent(row, key) for key in LABELS),
        ]
        for row in rows
    ]
    return table(head, lines)


def in_per_cent(row: Row, key: str) -> str:
    """Mean, and spread where there are several seeds."""
    if key not in row["accuracy"]:
        return "–"
    found = row["accuracy"][key]
    spread = f" ± {100 * found['sd']:.1f}" if row.get("seeds", 0) > 1 else ""
    return f"{100 * found['mean']:.1f}{spread}"


if __name__ == "__main__":
    main()
