"""Prints an estimate of the hours that pre-training, evaluation and detection take on ImageNet and COCO.

    python -m benchmarks.speed.scale                       # on the device of this machine
    python -m benchmarks.speed.scale --devices 16 --rate pretrain=1700 --rate frozen=6000

Measures a step of every kind at its published size (ResNet-50, 224 pixels; detection at 800 by 1066 pixels) and
multiplies by the number of images. The images are random and already on the device: reading and decoding of files is
not included. A rate given with ``--rate`` is used instead of a measured one.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data.views.augment import Keys, crop_batch, random_boxes, random_view
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.evaluate.detection.network import build_detector, open_backbone
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.runs import devices
from matrix_ssl.training import optim, setup

TRAIN, VAL, COCO_TRAIN, COCO_VAL = 1_281_167, 50_000, 117_266, 5_000  # images
ITERATION = 16  # images per iteration of the detection schedules
EFFICIENCY = 0.9  # of several devices, assumed

# stage: kind of step, images that pass through it
STAGES = {
    "pre-training, 100 epochs": ("pretrain", 100 * TRAIN),
    "features for linear and kNN": ("frozen", TRAIN + VAL),
    "linear-sgd, 90 epochs": ("frozen", 90 * TRAIN),
    "1 % and 10 % labels, 20 epochs, 3 pairs of rates": (
        "supervised",
        round(20 * (0.01 + 0.1) * TRAIN * (1 + 3 * 0.8)),
    ),
    "fine-tuning, 30 epochs": ("supervised", 30 * TRAIN),
    "COCO 1x, c4": ("c4", 90_000 * ITERATION),
    "COCO 1x, fpn": ("fpn", 90_000 * ITERATION),
    "COCO 2x, c4": ("c4", 180_000 * ITERATION),
    "COCO 2x, fpn": ("fpn", 180_000 * ITERATION),
}


def main() -> None:
    """Measures, multiplies and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="Number of devices that share the work.")
    parser.add_argument("--batch", type=int, help="Images of a step on a device; default 128 on a GPU, 8 on a CPU.")
    parser.add_argument("--rounds", type=int, help="Steps that are timed; default 20 on a GPU, 3 on a CPU.")
    parser.add_argument("--rate", action="append", default=[], metavar="KIND=RATE",
                        help="Images per second of a kind of step, instead of a measured rate.")  # fmt: skip
    options = parser.parse_args()
    device = devices.choose_device("auto")
    is_gpu = device.type == "cuda"
    batch, rounds = options.batch or (128 if is_gpu else 8), options.rounds or (20 if is_gpu else 3)
    rates = {kind: float(value) for kind, value in (text.split("=") for text in options.rate)}
    for kind, (make, size) in STEPS.items():
        source = "assumed"
        if kind not in rates:
            images = size or batch
            rates[kind], source = measure(make(device, images), images, device, rounds), "measured"
        print(f"{kind:12s} {rates[kind]:8.2f} images/s, {source}", flush=True)
    share = options.devices * (EFFICIENCY if options.devices > 1 else 1)
    print(f"on {options.devices} devices" + f" at {EFFICIENCY:.0%} efficiency, which is assumed:" * (share > 1))
    for stage, (kind, images) in STAGES.items():
        print(f"{stage:50s} {images / rates[kind] / 3600 / share:12.1f} h")


def measure(step: Callable[[], object], images: int, device: torch.device, rounds: int) -> float:
    """Images a second, by the median of ``rounds`` steps after one that warms up."""
    seconds = []
    for turn in range(rounds + 1):
        started = time.monotonic()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:
            seconds.append(time.monotonic() - started)
    return images / statistics.median(seconds)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU that has it."""
    half = device.type == "cuda" and devices.has_bfloat16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def pretrain_step(device: torch.device, n: int) -> Callable[[], object]:
    """One step of the recipe ``imagenet``, its two views included."""
    config = setup.complete(find_recipe("imagenet"))
    method = setup.build_method(config).to(device, memory_format=torch.channels_last).train()
    optimizer = optim.build_optimizer(method, name="sgd", momentum=0.9, weight_decay=1e-5)
    pixels = torch.rand(n, 3, 256, 256, device=device)

    def step() -> None:
        views = []
        for number, view in enumerate(config.views, 1):
            keys = Keys(0, 0, torch.arange(n).numpy(), number)
            crops = crop_batch(pixels, random_boxes(view, keys, 256, 256), config.data.image_size)
            views.append(random_view(crops, view, keys).to(memory_format=torch.channels_last))
        optimizer.zero_grad()
        with autocast(device):
            loss = method(*views).loss
        loss.backward()
        optimizer.step()
        method.after_step(0.5)

    return step


def frozen_step(device: torch.device, n: int) -> Callable[[], object]:
    """Features, without gradients."""
    encoder = initialise_encoder(find_recipe("imagenet"))[0].to(device, memory_format=torch.channels_last).eval()
    pixels = torch.rand(n, 3, 224, 224, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.no_grad(), autocast(device):
            encoder(pixels)

    return step


def supervised_step(device: torch.device, n: int) -> Callable[[], object]:
    """Forward, backward and update of a classifier."""
    encoder, width = initialise_encoder(find_recipe("imagenet"))
    model = torch.nn.Sequential(encoder, torch.nn.Linear(width, 1000)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pixels = torch.rand(n, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(n, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device):
            scores = model(pixels)
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()

    return step


def detection_step(architecture: Any) -> Callable[[torch.device, int], Callable[[], object]]:
    """One iteration of Mask R-CNN on images of 800 by 1066 pixels with eight objects each."""

    def make(device: torch.device, n: int) -> Callable[[], object]:
        settings = DetectionSettings(architecture=architecture)
        backbone = open_backbone("random", architecture="resnet50", seed=0)
        detector = build_detector(backbone, settings, classes=80).to(device).train()
        optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-4)
        images = [torch.rand(3, 800, 1066, device=device) for _ in range(n)]
        corners = torch.arange(8, device=device)[:, None] * 60.0
        boxes = torch.cat([corners, corners, corners + 150, corners + 150], 1)
        masks = torch.zeros(8, 800, 1066, dtype=torch.uint8, device=device)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets = [{"boxes": boxes, "labels": torch.arange(1, 9, device=device), "masks": masks}] * n

        def step() -> None:
            optimizer.zero_grad()
            sum(detector(images, targets).values()).backward()
            optimizer.step()

        return step

    return make


# kind of step: what makes it, images of a step on a device (0: --batch)
STEPS: dict[str, tuple[Callable[[torch.device, int], Callable[[], object]], int]] = {
    "pretrain": (pretrain_step, 0),
    "frozen": (frozen_step, 0),
    "supervised": (supervised_step, 0),
    "c4": (detection_step("c4"), 2),
    "fpn": (detection_step("fpn"), 2),
}

if __name__ == "__main__":
    main()
