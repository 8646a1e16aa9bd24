"""Published weights of torchvision and timm by name: their file, and how their images are normalised."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision

from matrix_ssl.config import DataConfig
from matrix_ssl.config.reading import CropMode
from matrix_ssl.encoder.caches import absent, fetch_from_hub, fetch_url, find_in_hub, find_url, hub_place, url_place
from matrix_ssl.errors import CheckpointError, ConfigError, did_you_mean, import_extra

_CROP_MODES: dict[str, CropMode] = {"center": "centre", "squash": "squash"}  # of timm


@dataclass(frozen=True)
class Published:
    """A file of published weights."""

    path: Path
    architecture: str  # as in network.encoder
    data: DataConfig  # size, crop and normalisation of its images
    label: str  # its name, for messages


def torchvision_weights(name: str, weights: str, *, download: bool) -> Published:
    """Weights of torchvision by architecture and name, such as IMAGENET1K_V1; an empty name: torchvision's default.

    Raises:
        ConfigError: torchvision has no such weights.
        CheckpointError: the file is absent, cannot be fetched, or is damaged.
    """
    names = torchvision.models.list_models(module=torchvision.models)  # without models for detection, video and others
    if name not in names:
        raise ConfigError(f"torchvision has no weights of {name!r}.{_near(name, names)}")
    known = torchvision.models.get_model_weights(name)
    if weights and weights not in known.__members__:
        raise ConfigError(f"torchvision/{name} has no weights {weights!r}.{did_you_mean(weights, known.__members__)}")
    chosen: Any = known[weights] if weights else known.DEFAULT
    views = chosen.transforms()
    crop = views.crop_size[0]
    data = DataConfig(
        image_size=crop, mean=tuple(views.mean), std=tuple(views.std), crop_fraction=crop / views.resize_size[0]
    )
    path = _file_of(chosen.url, f"The file of {chosen}", download=download)
    return Published(path, name, data, str(chosen))


def timm_weights(name: str, tag: str, *, download: bool) -> Published:
    """Weights of timm by architecture and tag, such as a1_in1k; an empty tag: timm's default.

    Raises:
        ConfigError: timm has no such weights.
        CheckpointError: the file is absent, cannot be fetched, or is damaged.
        MissingExtra: timm is not installed.
    """
    timm = import_extra("timm", extra="timm")
    if not timm.is_model(name):
        raise ConfigError(f"timm has no architecture {name!r}.{_near(name, timm.list_models())}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if not tags:
        raise ConfigError(f"timm has no weights of {name!r}; choose a different architecture.")
    if tag and tag not in tags:
        raise ConfigError(f"timm/{name} has no weights {tag!r}.{did_you_mean(tag, tags)}")
    settings = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    label = f"timm/{name}.{settings.tag}"
    channels, size, _ = settings.input_size
    if settings.crop_mode not in _CROP_MODES:
        raise ConfigError(
            f"{label} takes images with crop_mode={settings.crop_mode} of timm, which is not supported; choose "
            "different weights."
        )
    data = DataConfig(
        image_size=size, mean=settings.mean, std=settings.std,
        crop_fraction=settings.crop_pct, crop_mode=_CROP_MODES[settings.crop_mode],
    )  # fmt: skip
    if len(data.mean) != channels:
        raise ConfigError(f"{label} takes images of {channels} channels, but names the mean of {len(data.mean)}.")
    path = _timm_file(settings, label, download=download)
    return Published(path, f"timm/{name}", data, label)


def _timm_file(settings: Any, label: str, *, download: bool) -> Path:
    """The file in Hugging Face's cache, where timm looks first, or else in PyTorch's."""
    what, repository = f"The file of {label}", settings.hf_hub_id
    url = None if settings.custom_load else settings.url
    if repository:
        names = [settings.hf_hub_filename] if settings.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        path = find_in_hub(repository, names) or (find_url(url) if url else None)
        if path is None and not download:
            raise absent(what, source=f"https://huggingface.co/{repository}", place=hub_place(repository))
        return path or fetch_from_hub(repository, names, what=what)
    if not url:
        raise CheckpointError(f"{label} has no file that this package reads; choose different weights.")
    return _file_of(url, what, download=download)


def _file_of(url: str, what: str, *, download: bool) -> Path:
    path = find_url(url)
    if path is None and not download:
        raise absent(what, source=url, place=url_place(url))
    return path or fetch_url(url, what=what)


def _near(name: str, known: Iterable[str]) -> str:
    """Like ``did_you_mean``, but without listing more than a thousand names."""
    near, listed, _ = did_you_mean(name, known).partition(" Known:")
    return near if not listed else " Choose a different architecture."
