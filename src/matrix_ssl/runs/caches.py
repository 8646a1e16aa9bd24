"""The folders in which libraries keep their downloads: their size, and the weights that they contain."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from matrix_ssl.config.untrusted import expanded
from matrix_ssl.runs.files import features_cache
from matrix_ssl.runs.machine import describe_folder

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_SECONDS = 0.5  # after which a size is a lower bound: a folder may hold millions of files


def describe_caches() -> dict[str, dict[str, Any]]:
    """Path, free disk space in bytes, size and weights of each cache; ``complete``: whether all files were counted."""
    hub = _huggingface("HF_HUB_CACHE", "hub")
    places = {
        "torch hub": Path(torch.hub.get_dir()) / "checkpoints",
        "Hugging Face hub": hub,
        "Hugging Face datasets": _huggingface("HF_DATASETS_CACHE", "datasets"),
        "features of images": features_cache(),
    }
    if root := os.environ.get("MATRIX_SSL_DATA"):
        places["named datasets"] = Path(root)
    caches = {}
    for name, path in places.items():
        size, complete = _size(path)
        weights = {"torch hub": _files, "Hugging Face hub": _models}.get(name, lambda path: [])(path)
        caches[name] = describe_folder(path) | {"size": size, "complete": complete, "weights": weights}
    return caches


def _huggingface(variable: str, name: str) -> Path:
    """A folder of Hugging Face's libraries, by their rules: that of its own variable, else a folder in HF_HOME."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return expanded(os.environ.get(variable) or home / name)


def _files(folder: Path) -> list[str]:
    """The weight files in torchvision's folder, to which timm downloads as well."""
    return sorted(path.name for path in folder.glob("*") if path.suffix in WEIGHTS)


def _models(folder: Path) -> list[str]:
    """The models, including timm's, of which the folder has a version with weights."""
    return sorted(
        path.name.removeprefix("models--").replace("--", "/")
        for path in folder.glob("models--*")
        if any(file.suffix in WEIGHTS and file.exists() for file in path.glob("snapshots/*/*"))
    )


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes of the files below a folder, not following links, and whether there was time for all of them."""
    total, deadline = 0, time.monotonic() + _SECONDS
    for size in _sizes(folder):
        total += size
        if time.monotonic() > deadline:
            return total, False
    return total, True


def _sizes(folder: Path) -> Iterator[int]:
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                yield (Path(path) / name).lstat().st_size
            except OSError:  # removed meanwhile
                yield 0
