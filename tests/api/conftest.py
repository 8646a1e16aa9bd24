"""Images and settings for runs of a second."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import matrix_ssl

TINY: dict[str, Any] = {
    "encoder": "tiny_resnet", "image_size": 16, "batch_size": 16, "epochs": 2, "width": 8, "hidden_dim": 16,
    "output_dim": 16, "warmup_epochs": 0, "log_every": 1, "workers": 0, "device": "cpu", "quiet": True, "report": False,
    "precision": "float32",
}  # fmt: skip
LABELS = np.arange(40) % 2
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)
PIXELS[LABELS == 1] //= 3


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, the images in class folders, and the runs ``of_folder`` and ``of_array``."""
    folder = tmp_path_factory.mktemp("api")
    for index, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        path = folder / "photos" / "ab"[label] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    here = Path.cwd()
    os.chdir(folder)
    try:
        matrix_ssl.pretrain("photos", out="of_folder", **TINY)
        matrix_ssl.pretrain((PIXELS, LABELS), out="of_array", **TINY)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def here(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared folder, in which every test runs."""
    monkeypatch.chdir(shared)
    return shared
