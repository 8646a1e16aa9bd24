"""What a pre-training without a recipe uses: start, network, image size, batch and epochs for folder and machine.

The rules are in ``fit``, and as a table in ``docs/images.md``. They aim at a run that ends within an hour or so on a
CPU and that trains long enough on a GPU. Each value is a setting, which ``--set`` overrides.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matrix_ssl import config as configuration
from matrix_ssl import distributed
from matrix_ssl.config import RunConfig, system
from matrix_ssl.data import Source
from matrix_ssl.data.base import evenly
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.encoder.published import torchvision_weights
from matrix_ssl.errors import CheckpointError, DataError, UnreadableImage
from matrix_ssl.methods import TeacherMethod, find_method
from matrix_ssl.report.formats import duration
from matrix_ssl.runs import devices
from matrix_ssl.runs.folder import CONFIG, has_begun, read_config

ON_CPU, ON_GPU = "images_small", "images"  # recipes
FEW = 500  # number of images below which an encoder learns little from scratch
_KEYS = ("start.reference", "network.encoder", "data.image_size", "batch_size", "epochs")
_GIB = 2**30
_SAMPLED = 16  # images that are opened to find their size
_PROBE = 32  # images in the batch that is timed
_OVERHEAD = 1.25  # time with heads, loss, views and optimizer, relative to the encoder alone; measured on CPUs


@dataclass(frozen=True)
class Machine:
    """Where a run takes place."""

    gpu: bool
    memory: float  # of one device, GiB
    processes: int = 1


@dataclass(frozen=True)
class Folder:
    """What a run learns from."""

    images: int
    side: int  # median of the shorter sides, pixels
    colour: bool = True


@dataclass(frozen=True)
class Fit:
    """The choice for a folder and a machine."""

    recipe: str
    values: Mapping[str, Any]  # by the names of settings
    remark: str  # a warning, or empty


def fit(folder: Folder, machine: Machine, *, has_weights: bool) -> Fit:
    """Chooses the settings of a first run.

    Args:
        has_weights: whether torchvision's published ResNet weights may be used because they are in the cache or may be
            downloaded.
    """
    n = folder.images
    starts = has_weights and folder.colour and (machine.gpu or n <= 10_000)
    if machine.gpu:
        large = n >= 100_000 and machine.memory >= 16
        encoder = "resnet50" if large else "resnet18"
        sizes = [32, 64, 96, 128, *([224] if machine.memory >= 16 else [])]
        size = max([s for s in sizes if s <= folder.side], default=32)
        epochs = _between(100, 5_000_000 // n, 800)
        batch = (256 if machine.memory >= 8 else 128) * min(machine.processes, 4)
    else:
        encoder = "resnet18" if starts else "tiny_resnet"
        size = 32 if folder.side < 48 else 96 if starts else 64
        epochs = _between(5, 50_000 // n, 100) if starts else _between(1, 150_000 // n, 200)
        batch = 128
    values: dict[str, Any] = {
        "data.image_size": size,
        "batch_size": _batch(n, batch, machine.processes),
        "epochs": epochs,
    }
    values |= {"start.reference": f"torchvision/{encoder}"} if starts else {"network.encoder": encoder}
    return Fit(ON_GPU if machine.gpu else ON_CPU, values, "" if starts or n >= FEW else _remark(n))


def base_recipe(device: str, run: Path | None) -> str:
    """The recipe for all other settings: that of a run that has begun, else by the device."""
    if run is not None and has_begun(run):
        return read_config(run).recipe
    return ON_CPU if devices.choose_device(device).type == "cpu" else ON_GPU


def fitted(
    config: RunConfig,
    source: Source,
    device: torch.device,
    *,
    chosen: Collection[str],
    run: Path | None,
    download: bool,
) -> tuple[RunConfig, list[str], str]:
    """A run with the choices of ``fit`` for images and device, the names of the settings chosen, and a remark.

    Args:
        chosen: names of the settings that the user chose, which are kept.
        run: the folder of the run; if it holds one, that run's choice is kept. None: start over.
        download: published weights may be downloaded.

    Raises:
        DataError: there is a single image.
    """
    if len(source) < 2:
        raise DataError(f"{source.name!r} is a single image: pre-training compares images, so add some.")
    if run is not None and (run / CONFIG).exists():
        recorded = dict(configuration.flatten(configuration.to_dict(read_config(run))))
        values, remark = {key: recorded[key] for key in _KEYS if recorded[key]}, ""
    else:
        choice = None
        with distributed.together():
            if distributed.is_main():
                own = {"start.reference", "network.encoder", "network.stem", "network.width"} & set(chosen)
                choice = fit(_folder(source, config), _machine(device), has_weights=not own and _has_weights(download))
        choice = distributed.broadcast_object(choice)
        values, remark = choice.values, choice.remark
    values = {key: value for key, value in values.items() if key not in chosen}
    if config.start.reference and "start.reference" in chosen:
        values = {key: value for key, value in values.items() if key in ("batch_size", "epochs")}
    return configuration.override(config, list(values.items())), list(values), remark


def expected_seconds(config: RunConfig, device: torch.device) -> float:
    """About how long a run will take, extrapolated from forward and backward of a batch through a copy of the encoder.

    The caller's random state is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        encoder, _ = initialise_encoder(config)
        count = min(_PROBE, config.batch_size)
        images = torch.randn(count, len(config.data.mean), config.data.image_size, config.data.image_size)
    precision = devices.MixedPrecision.choose(config.precision, device)
    precision.place(encoder)
    images = images.to(device, precision.weights)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        with precision.autocast():
            features = encoder(images)
        features.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    size = config.data.image_size
    views = sum(view.count * ((view.image_size or size) / size) ** 2 for view in config.views)
    passes = 1 + (1 / 3 if issubclass(find_method(config.method.name), TeacherMethod) else 0)
    each = min(seconds) / count * views * passes * _OVERHEAD
    total = min(config.data.images, config.data.subset or config.data.images)
    seen = total // config.batch_size * config.batch_size  # an incomplete last batch is dropped
    return each * seen * config.epochs / distributed.world_size()


def describe(config: RunConfig, names: Collection[str], seconds: float) -> str:
    """One line on what was chosen and about how long the run will take."""
    values = dict(configuration.flatten(configuration.to_dict(config)))
    listed = ", ".join(f"{name}={values[name]}" for name in names) or "nothing"
    return (
        f"Chosen for these images and this machine: recipe {config.recipe}, {listed}. Expected time: about "
        f"{duration(max(seconds, 1))}. Change any of it by --set, or name a recipe."
    )


def _batch(images: int, largest: int, processes: int) -> int:
    """At least four steps per epoch if that leaves 16 images or more; a power of two, or all images if they are few."""
    size = min(largest, max(2 ** int(np.log2(max(images // 4, 1))), min(16, images)))
    return max(size - size % processes, min(processes, images), 2)


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _remark(images: int) -> str:
    return (
        f"{images} images teach an encoder little. Add images, start from published weights (--from "
        "torchvision/resnet18 --download), or compare with an untrained network, which needs labels, by matrix-ssl "
        "evaluate."
    )


def _folder(source: Source, config: RunConfig) -> Folder:
    count = min(len(source), config.data.subset or len(source))
    sides = []
    for index in evenly(len(source), _SAMPLED).tolist():
        try:
            if source.reading.channels:  # whose range is still unknown
                sides.append(min(source.values(index).shape[:2]))
            else:
                sides.append(min(source.read(index).shape[-2:]))
        except UnreadableImage:
            continue
    return Folder(
        count,
        int(np.median(sides)) if sides else config.data.image_size,
        source.channels == 3 and not config.data.channels,
    )


def _machine(device: torch.device) -> Machine:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory, _ = system.memory()
    return Machine(device.type != "cpu", memory / _GIB, distributed.world_size())


def _has_weights(download: bool) -> bool:
    if download:
        return True
    try:
        torchvision_weights("resnet18", "", download=False)
    except CheckpointError:
        return False
    return True
